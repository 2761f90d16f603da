"""QuantRule: how quantization treats an operator. Each family lists the rules of its ONNX operators in its `rule.py`.

Where Q/DQ goes (qrt/quantization) and the backend config that users can read are both made from these tables.
"""

from __future__ import annotations

from enum import Enum

from qrt.core.record import record

__all__ = ["Kind", "QuantRule"]


class Kind(Enum):
    """What an operator does with codes."""

    PRODUCT = "multiplies by a weight (or another activation) and sums"
    COMPUTE = "gives a result with a range of its own"
    CURVE = "computes each element from one element, and scalar constants"
    MOVE = "only moves elements: its result has the range of its input"
    JOIN = "puts its inputs side by side"


@record
class QuantRule:
    """How one operator is quantized. `inputs`: the activations, all inputs where empty; `weight`, `bias`: inputs that may be constant;
    `fixed`: the scale and zero point (quint8) of a result whose range is known by nature; `dynamic`: whether it has a form whose
    activations are quantized in each run."""

    kind: Kind
    inputs: tuple[int, ...] = ()
    weight: int | None = None
    bias: int | None = None
    fixed: tuple[float, int] | None = None
    dynamic: bool = False
