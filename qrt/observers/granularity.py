"""Which elements of an array share a scale, and how their range maps to codes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from qrt.core.errors import QuantizationError
from qrt.core.record import record

__all__ = [
    "Granularity",
    "MappingType",
    "PerAxis",
    "PerBlock",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "PerToken",
    "TorchAODType",
    "ZeroPointDomain",
    "get_block_size",
]


class MappingType(Enum):
    """How a range maps to codes: around zero; around zero with a scale that clips neither end; or from end to end."""

    SYMMETRIC = 1
    SYMMETRIC_NO_CLIPPING_ERR = 2
    ASYMMETRIC = 3


class ZeroPointDomain(Enum):
    """What a zero point is: a code, a real value (that of the middle code), or nothing."""

    INT = 1
    FLOAT = 2
    NONE = 3


class TorchAODType(Enum):
    """Signed integers of fewer than eight bits; the value is the number of bits."""

    INT1 = 1
    INT2 = 2
    INT3 = 3
    INT4 = 4
    INT5 = 5
    INT6 = 6
    INT7 = 7


@record
class Granularity:
    """Base of the following."""


@record
class PerTensor(Granularity):
    """One scale for the whole array."""


@record
class PerAxis(Granularity):
    """One scale for each index of `axis`."""

    axis: int


@record
class PerGroup(Granularity):
    """One scale for each `group_size` elements in a row along the last axis."""

    group_size: int


@record
class PerRow(Granularity):
    """One scale for each row along the last axis."""


@record
class PerToken(Granularity):
    """One scale for each vector along the last axis, which is a token's."""


@record
class PerBlock(Granularity):
    """One scale for each block of this shape; axes in front of it are blocks of one."""

    block_size: tuple[int, ...]


def get_block_size(input_shape: Sequence[int], granularity: Granularity) -> tuple[int, ...]:
    """The shape of the blocks that share a scale, one extent for each axis of `input_shape`.

    Raises QuantizationError where the blocks do not fill the array.
    """
    shape = tuple(input_shape)
    ones = (1,) * len(shape)
    if isinstance(granularity, PerTensor):
        return shape
    if isinstance(granularity, PerAxis):
        if not -len(shape) <= granularity.axis < len(shape):
            raise QuantizationError(f"an array of shape {shape} has no axis {granularity.axis}")
        axis = granularity.axis % len(shape)
        return (*shape[:axis], 1, *shape[axis + 1 :])
    if not shape:
        raise QuantizationError(f"{granularity!r} needs an array with axes")
    if isinstance(granularity, PerRow | PerToken):
        return (*ones[1:], shape[-1])
    if isinstance(granularity, PerGroup):
        block = (*ones[1:], granularity.group_size)
    elif isinstance(granularity, PerBlock) and len(granularity.block_size) <= len(shape):
        block = (*ones[len(granularity.block_size) :], *granularity.block_size)
    else:
        raise QuantizationError(f"{granularity!r} does not fit an array of shape {shape}")
    if any(b < 1 or n % b for n, b in zip(shape, block, strict=True)):
        raise QuantizationError(f"blocks of {block} do not fill an array of shape {shape}")
    return block
