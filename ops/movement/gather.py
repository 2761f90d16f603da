"""Ops that look elements up by computed indices: Gather, GatherND, GatherElements, ScatterND, ScatterElements; and Triangle.

Indices are int32 or int64; a negative one counts from the end. A run that meets one out of range ends in InvalidInput; until then the
index is clamped, so that native code never leaves a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from math import prod

import numpy as np

from qrt.core.errors import InvalidInput, ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.movement.strided import SERIAL_BYTES, contiguous, emit_strided
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps, refusal

__all__ = ["KERNELS", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Triangle", "require_indices"]

MAX_DEPTH = 4  # indices of one tuple
MAX_AXES = 6
_SOURCE = "qrt.ops.movement.cpu_index:"
_SIZES = (1, 2, 4, 8)

_ROUTES = record_dtype(
    *((name, "i8") for name in ("x", "y", "index", "batches", "x_stride", "index_stride", "tuples", "depth", "inner", "refused")),
    *((f"{name}{k}", "i8") for name in "ns" for k in range(MAX_DEPTH)),
)
_ALONG = record_dtype(
    *((name, "i8") for name in ("x", "y", "index", "extent", "stride", "refused")),
    *((f"{name}{k}", "i8") for name in "ns" for k in range(MAX_AXES)),
)
_MATRICES = record_dtype(*((name, "i8") for name in ("x", "y", "matrices", "rows", "columns", "diagonal")))

_GATHER = {(b, i): Kernel(f"gather_b{b}_i{8 * i}__generic", _ROUTES, _SOURCE + "gather", (b, i)) for b in _SIZES for i in (4, 8)}
_SCATTER = {(b, i): Kernel(f"scatter_b{b}_i{8 * i}__generic", _ROUTES, _SOURCE + "scatter", (b, i)) for b in _SIZES for i in (4, 8)}
_PICK = {(b, i): Kernel(f"gather_along_b{b}_i{8 * i}__generic", _ALONG, _SOURCE + "along", (b, i, False)) for b in _SIZES for i in (4, 8)}
_PUT = {(b, i): Kernel(f"scatter_along_b{b}_i{8 * i}__generic", _ALONG, _SOURCE + "along", (b, i, True)) for b in _SIZES for i in (4, 8)}
_TRIANGLE = {
    (b, upper): Kernel(f"triangle_b{b}_{'upper' if upper else 'lower'}__generic", _MATRICES, _SOURCE + "triangle", (b, upper))
    for b in _SIZES
    for upper in (False, True)
}

KERNELS: tuple[Kernel, ...] = tuple(k for table in (_GATHER, _SCATTER, _PICK, _PUT, _TRIANGLE) for k in table.values())


def _check_index(index: Spec, extents: Sequence[int]) -> None:
    if index.dtype not in (np.int32, np.int64):
        raise ModelError(f"indices of dtype {index.dtype}: expected int32 or int64")
    if index.size > 0 and 0 in extents:
        raise ModelError(f"indices into an axis without elements, of {tuple(extents)}")


def _clamped(index: Array, extent: int) -> Array:
    index = index.astype(np.int64)
    return np.clip(np.where(index < 0, index + extent, index), 0, max(extent - 1, 0))


def _rule(label: str, extents: Sequence[int]) -> str:
    """What indices into axes of `extents` have to be, as errors say it."""
    ranges = ", ".join(f"{-n} … {n - 1}" for n in extents)
    return f"{label} must be within {ranges}" if len(extents) == 1 else f"{label} must be tuples within ({ranges})"


def require_indices(index: Array, extents: Sequence[int], label: str) -> None:
    """InvalidInput if one of `index` is out of range: one axis of `extents`, or several that its last axis goes over."""
    index = np.atleast_1d(index)
    wrong = index[(index < -np.array(extents)) | (index >= np.array(extents))]
    if wrong.size:
        raise InvalidInput(refusal(_rule(label, extents), int(wrong[-1])))


def _padded(values: Sequence[int], count: int, filler: int, name: str) -> dict[str, int]:
    return {f"{name}{k}": v for k, v in enumerate([*values, *[filler] * (count - len(values))])}


def _look_up(
    table: dict[tuple[int, int], Kernel],
    steps: Steps,
    threads: int | None,
    x: Operand,
    y: Operand,
    index: Operand,
    extents: Sequence[int],
    strides: Sequence[int],
    label: str,
    counts: dict[str, int],
) -> None:
    """Appends a kernel of `table`, which goes where tuples of indices point: into axes of `extents`, whose elements lie `strides` apart.
    The last stride is what lies behind those axes, and moves in one piece. `counts`: the record's other words."""
    steps.step(
        table[y.spec.dtype.itemsize, index.spec.dtype.itemsize],
        threads,
        x=x.ref,
        y=y.ref,
        index=index.ref,
        refused=0,
        depth=len(extents),
        inner=strides[-1],
        **counts,
        **_padded(extents, MAX_DEPTH, 1, "n"),
        **_padded(strides, MAX_DEPTH, 0, "s"),
    )
    steps.rule(_rule(label, extents))


@record
class Gather(Op):
    """x, index → x with `axis` replaced by the axes of index. `label`, here and below: what errors call the indices."""

    axis: int
    label: str = field(default="indices", compare=False)

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, index = inputs
        _check_index(index, x.shape[self.axis : self.axis + 1])
        return (Spec((*x.shape[: self.axis], *index.shape, *x.shape[self.axis + 1 :]), x.dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x, index = inputs
        y = np.asarray(np.take(x, _clamped(index, x.shape[self.axis]), self.axis))
        if y.size:
            require_indices(index, x.shape[self.axis : self.axis + 1], self.label)
        return (y,)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, index, y = inputs[0], inputs[1], outputs[0]
        if y.spec.size == 0:
            return
        extent, inner = x.spec.shape[self.axis], prod(x.spec.shape[self.axis + 1 :])
        counts = {"batches": prod(x.spec.shape[: self.axis]), "x_stride": extent * inner, "index_stride": 0, "tuples": index.spec.size}
        _look_up(_GATHER, steps, None if y.spec.nbytes > SERIAL_BYTES else 1, x, y, index, [extent], [inner], self.label, counts)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.movement.device_index import emit_gather

        x, index, y = inputs[0], inputs[1], outputs[0]
        if y.spec.size:
            shape, axis = x.spec.shape, self.axis
            extents = (prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))
            emit_gather(steps, x, index, y, extents, _rule(self.label, [shape[axis]]))


@record
class GatherND(Op):
    """x, index → for each tuple along the last axis of index the part of x that it points at, `batch` leading axes in step."""

    batch: int = 0
    label: str = field(default="indices", compare=False)

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, index = inputs
        depth = index.shape[-1] if index.shape else 0
        if not 1 <= depth <= len(x.shape) - self.batch or x.shape[: self.batch] != index.shape[: self.batch]:
            raise ModelError(f"indices of shape {index.shape} do not point into {x.shape} with {self.batch} batch axes")
        if depth > MAX_DEPTH:
            raise UnsupportedOp(f"tuples of {depth} indices: there are kernels for up to {MAX_DEPTH}")
        _check_index(index, x.shape[self.batch : self.batch + depth])
        return (Spec((*index.shape[:-1], *x.shape[self.batch + depth :]), x.dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x, index = inputs
        depth, batches = index.shape[-1], prod(x.shape[: self.batch])
        shape = (*index.shape[:-1], *x.shape[self.batch + depth :])
        x, index = x.reshape(batches, *x.shape[self.batch :]), index.reshape(batches, prod(index.shape[self.batch : -1]), depth)
        which = np.arange(batches)[:, None]
        found = x[(which, *(_clamped(index[..., k], x.shape[k + 1]) for k in range(depth)))]
        if found.size:
            require_indices(index, x.shape[1 : depth + 1], self.label)
        return (found.reshape(shape),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, index, y = inputs[0], inputs[1], outputs[0]
        if y.spec.size == 0:
            return
        depth, tuples = index.spec.shape[-1], prod(index.spec.shape[self.batch : -1])
        shape, strides, axes = x.spec.shape, contiguous(x.spec.shape), slice(self.batch, self.batch + depth)
        counts = {
            "batches": prod(shape[: self.batch]),
            "x_stride": prod(shape[self.batch :]),
            "index_stride": tuples * depth,
            "tuples": tuples,
        }
        _look_up(_GATHER, steps, None if y.spec.nbytes > SERIAL_BYTES else 1, x, y, index, shape[axes], strides[axes], self.label, counts)


@record
class ScatterND(Op):
    """x, index, updates → x with the part that each tuple of index points at replaced by its update; the last one wins."""

    label: str = field(default="indices", compare=False)

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, index, updates = inputs
        gathered = GatherND().infer([x, index])[0]
        if updates != gathered:
            raise ModelError(f"updates of {updates.dtype}{updates.shape}: expected {gathered.dtype}{gathered.shape}")
        return (x,)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x, index, updates = inputs
        y, depth = x.copy(), index.shape[-1]
        if updates.size:
            require_indices(index, x.shape[:depth], self.label)
        for at in np.ndindex(*index.shape[:-1]):
            y[tuple(int(_clamped(index[at][k], x.shape[k])) for k in range(depth))] = updates[at]
        return (y,)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, index, updates = inputs
        emit_strided(steps, x, outputs[0], contiguous(x.spec.shape))
        if updates.spec.size == 0:
            return
        shape, depth = x.spec.shape, index.spec.shape[-1]
        counts = {"batches": 1, "x_stride": 0, "index_stride": 0, "tuples": prod(index.spec.shape[:-1])}
        _look_up(_SCATTER, steps, 1, updates, outputs[0], index, shape[:depth], contiguous(shape)[:depth], self.label, counts)


def _walk_along(
    kernel: Kernel,
    steps: Steps,
    threads: int | None,
    op: GatherElements | ScatterElements,
    x: Operand,
    y: Operand,
    index: Operand,
    whole: Spec,
) -> None:
    """One step of `along`: positions of `index`, in a value like `whole` whose coordinate on the op's axis the index replaces."""
    axis = op.axis
    strides = contiguous(whole.shape)
    missing = MAX_AXES - len(strides)
    own = [0 if k == axis else s for k, s in enumerate(strides)]
    steps.step(
        kernel,
        threads,
        x=x.ref,
        y=y.ref,
        index=index.ref,
        refused=0,
        extent=whole.shape[axis],
        stride=strides[axis],
        **_padded([*[1] * missing, *index.spec.shape], MAX_AXES, 1, "n"),
        **_padded([*[0] * missing, *own], MAX_AXES, 0, "s"),
    )
    steps.rule(_rule(op.label, [whole.shape[axis]]))


def _check_along(x: Spec, index: Spec, axis: int) -> None:
    if len(x.shape) > MAX_AXES:
        raise UnsupportedOp(f"elements along an axis of {len(x.shape)}: there are kernels for up to {MAX_AXES} axes")
    larger = len(index.shape) != len(x.shape) or any(i > n for k, (i, n) in enumerate(zip(index.shape, x.shape, strict=True)) if k != axis)
    if larger:
        raise ModelError(f"indices of shape {index.shape} do not fit a value of shape {x.shape} along axis {axis}")
    _check_index(index, x.shape)


@record
class GatherElements(Op):
    """x, index → x at the position of each index, with the coordinate on `axis` replaced by it."""

    axis: int
    label: str = field(default="indices", compare=False)

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        _check_along(inputs[0], inputs[1], self.axis)
        return (Spec(inputs[1].shape, inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x, index = inputs
        require_indices(index, x.shape[self.axis : self.axis + 1], self.label)
        where: list[Array] = list(np.indices(index.shape, sparse=True))
        where[self.axis] = _clamped(index, x.shape[self.axis])
        return (np.broadcast_to(x[tuple(where)], index.shape).copy(),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, index, y = inputs[0], inputs[1], outputs[0]
        if y.spec.size > 0:
            threads = None if y.spec.nbytes > SERIAL_BYTES else 1
            _walk_along(_PICK[x.spec.dtype.itemsize, index.spec.dtype.itemsize], steps, threads, self, x, y, index, x.spec)


@record
class ScatterElements(Op):
    """x, index, updates → x with one element for each index replaced, as GatherElements finds them; the last one wins."""

    axis: int
    label: str = field(default="indices", compare=False)

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        x, index, updates = inputs
        _check_along(x, index, self.axis)
        if updates != Spec(index.shape, x.dtype):
            raise ModelError(f"updates of {updates.dtype}{updates.shape}: expected {x.dtype}{index.shape}")
        return (x,)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x, index, updates = inputs
        require_indices(index, x.shape[self.axis : self.axis + 1], self.label)
        y = x.copy()
        for at in np.ndindex(*index.shape):
            there = list(at)
            there[self.axis] = int(_clamped(index[at], x.shape[self.axis]))
            y[tuple(there)] = updates[at]
        return (y,)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, index, updates = inputs
        emit_strided(steps, x, outputs[0], contiguous(x.spec.shape))
        if updates.spec.size > 0:
            kernel = _PUT[x.spec.dtype.itemsize, index.spec.dtype.itemsize]
            _walk_along(kernel, steps, 1, self, updates, outputs[0], index, x.spec)


@record
class Triangle(Op):
    """The upper or lower triangle of matrices (the last two axes), from the diagonal `diagonal` above the main one; 0 elsewhere."""

    upper: bool
    diagonal: int

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if len(inputs[0].shape) < 2:
            raise ModelError(f"a value of shape {inputs[0].shape} holds no matrices")
        return (inputs[0],)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (np.triu(inputs[0], self.diagonal) if self.upper else np.tril(inputs[0], self.diagonal),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        shape = inputs[0].spec.shape
        if inputs[0].spec.size > 0:
            steps.step(
                _TRIANGLE[inputs[0].spec.dtype.itemsize, self.upper],
                None if inputs[0].spec.nbytes > SERIAL_BYTES else 1,
                x=inputs[0].ref,
                y=outputs[0].ref,
                matrices=prod(shape[:-2]),
                rows=shape[-2],
                columns=shape[-1],
                diagonal=self.diagonal,
            )
