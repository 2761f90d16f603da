"""What an operator is: typed attributes, shapes, a NumPy reference, and the kernel calls that carry it out.

An `Op` works on C-contiguous arrays in physical layout (images are channels-last); it knows no ONNX. `reference` is its
definition; `emit` appends the steps whose kernels equal it (bit for bit where the result is integer).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.core.record import record
from qrt.core.target import Target
from qrt.jit import Kernel
from qrt.ops.strides import contiguous

if TYPE_CHECKING:
    from qrt.jit.cuda import DeviceKernel

__all__ = ["Array", "Base", "Boxes", "DeviceSteps", "Op", "Operand", "Ref", "Spec", "Steps", "refusal"]

Array = np.ndarray[Any, Any]


@record
class Spec:
    """Shape and dtype of a value."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """Those of a C-contiguous array of this shape, in elements."""
        return tuple(contiguous(self.shape))


class Base(Enum):
    """What an address is relative to."""

    ARENA = "arena"  # index: a buffer that the planner places
    CONSTANT = "constant"  # index: an array that the plan keeps alive
    INPUT = "input"  # index: which input of the run
    OUTPUT = "output"  # index: which output of the run


@record
class Ref:
    """An address that is known only when a run starts: a base and a byte offset."""

    base: Base
    index: int
    offset: int = 0

    def __add__(self, nbytes: int) -> Ref:
        return Ref(self.base, self.index, self.offset + nbytes)


@record
class Boxes:
    """A matrix of bytes that a GPU's copy engine reads box by box; what lies outside of it reads as 0. A launch gets the address of its
    description ("tensor map").

    `row_bytes`: from one row to the next, a multiple of 16, as `ref` is. A box is `box_rows` (256 at most) rows of 128 bytes.
    """

    ref: Ref
    rows: int
    columns: int
    row_bytes: int
    box_rows: int


@record
class Operand:
    """A value as `emit` sees it: what it is, where it is, and its contents where they are known.

    `strides`, in elements, are those of a C-contiguous array unless the op agreed to others (`Op.reads`, `Op.writes`).
    """

    spec: Spec
    ref: Ref
    strides: tuple[int, ...]
    constant: Array | None = None


def refusal(rule: str, found: int) -> str:
    """What an error says of an input that holds `found` against `rule`."""
    return f"{rule}; one is {found}"


class Steps(Protocol):
    """What `emit` writes to: the plan under construction."""

    @property
    def target(self) -> Target:
        """The target that kernels are chosen for."""
        ...

    @property
    def threads(self) -> int:
        """How many threads will walk the plan."""
        ...

    @property
    def current(self) -> str:
        """The node whose op is emitting."""
        ...

    def step(self, kernel: Kernel, threads: int | None = None, **fields: int | float | Ref) -> None:
        """Appends one kernel call. `fields` fill the kernel's record, each one exactly once; `threads` bounds how many
        threads share it (1 for work too small to split; default all)."""
        ...

    def rule(self, text: str) -> None:
        """Says what an input must hold for the step appended last, whose kernel leaves what it refuses in its record's word
        `refused`, which is 0 before. A run that ends with another number there raises InvalidInput."""
        ...

    def packed(self, source: Array, how: Hashable, make: Callable[[], Array]) -> Ref:
        """A constant made from `source` once per model: `make()` is called unless (source, how) was packed before."""
        ...

    def scratch(self, nbytes: int) -> Ref:
        """Arena bytes (64-byte aligned, with slack to read 64 bytes past the end) that live while this op runs."""
        ...


class DeviceSteps(Protocol):
    """What `emit_device` writes to: the plan of a GPU under construction. Every buffer starts at a multiple of 64 bytes."""

    @property
    def cc(self) -> tuple[int, int]:
        """The device's compute capability."""
        ...

    def launch(self, kernel: DeviceKernel, grid: tuple[int, int], **fields: int | float | Ref | Boxes) -> None:
        """Appends one launch of `grid` blocks. `fields` fill the kernel's record, each one exactly once."""
        ...

    def packed(self, source: Array, how: Hashable, make: Callable[[], Array]) -> Ref:
        """As of Steps."""
        ...

    def scratch(self, nbytes: int) -> Ref:
        """As of Steps."""
        ...

    def refused(self, rule: str) -> Ref:
        """Where the launch to come leaves what it refuses of an input, which is held against `rule`: an int64, 0 before. A run that is
        waited for and finds another number there raises InvalidInput."""
        ...


class Op(ABC):
    """Base of every operator: a record of typed attributes."""

    @abstractmethod
    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        """Specs of the outputs. Raises ModelError for shapes that do not fit, UnsupportedOp for what has no kernel."""

    @abstractmethod
    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """The outputs, by plain NumPy: the definition of the operator."""

    @abstractmethod
    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        """Appends the kernel calls that compute `outputs` from `inputs`."""

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        """Appends the launches that compute `outputs` from `inputs` on a GPU. Raises UnsupportedOp where there is no kernel."""
        raise UnsupportedOp(f"{type(self).__name__} has no kernel for CUDA")

    @property
    def inplace(self) -> tuple[int, ...]:
        """Inputs whose memory output 0 may take over, element by element, when nobody needs them any more."""
        return ()

    @property
    def repeats(self) -> bool:
        """Whether output 0 holds elements of input 0 and no others, so that each may as well be computed with before."""
        return False

    def reads(self, index: int, x: Spec, strides: Sequence[int]) -> bool:
        """Whether `emit` can read input `index` where it lies with `strides` as a part of a larger value."""
        return False

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        """Whether `emit` can write output 0 with `strides` into a part of a larger value, and nothing between."""
        return False

    def macs(self, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> int:
        """Multiply-accumulates that the operator does; 0 for operators that are not counted."""
        return 0


@record
class View(Op):
    """The same bytes under another shape: costs nothing, the planner aliases them."""

    shape: tuple[int, ...]

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if prod(self.shape) != inputs[0].size:
            raise UnsupportedOp(f"cannot view {inputs[0].shape} as {self.shape}")
        return (Spec(self.shape, inputs[0].dtype),)

    @property
    def repeats(self) -> bool:
        return True

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (inputs[0].reshape(self.shape),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        """Nothing to do: input and output are one buffer."""

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        """The same."""
