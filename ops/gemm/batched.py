"""BatchedMatMul: a product of two values that are both computed in the run, as attention has them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.gemm.dense import check_operand, product_reference
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.gemm.product import Fields, Product, overread_safe
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps

__all__ = ["PACK_CODES", "PACK_FLOAT", "BatchedMatMul"]

_WALK = (
    ("b", "i8"),
    ("w", "i8"),
    *((f"b_{axis}", "i8") for axis in ("batch", "group", "k", "n")),  # strides in elements
    *((name, "i8") for name in ("batch", "groups", "k", "n", "nr")),
)
PACK_FLOAT = Kernel("pack_f32_strided__generic", record_dtype(*_WALK), "qrt.ops.gemm.cpu_pack:pack_float")
PACK_CODES = Kernel(
    "pack_u8_strided__generic",
    record_dtype(*_WALK, *((name, "i8") for name in ("bias", "start", "parts", "step", "stretch", "a_zero_point", "b_zero_point"))),
    "qrt.ops.gemm.cpu_pack:pack_codes",
)

_ZERO = {True: np.zeros(1, np.int32), False: np.zeros(1, np.float32)}

Walk = tuple[int, int, int, int]  # extent, then the strides of a, b and y in elements


def _logical(shape: Sequence[int], perm: Sequence[int]) -> tuple[int, ...]:
    """Extents (or strides) of logical axes, given those of physical ones."""
    return tuple(shape[list(perm).index(axis)] for axis in range(len(shape)))


def _strides(shape: Sequence[int]) -> list[int]:
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _merge(walks: Sequence[Walk]) -> list[Walk]:
    """The same walk over batches with fewer axes."""
    merged: list[Walk] = []
    for extent, *strides in walks:
        if extent == 1:
            continue
        if merged and all(outer == inner * extent for outer, inner in zip(merged[-1][1:], strides, strict=True)):
            merged[-1] = (merged[-1][0] * extent, *strides)  # type: ignore[assignment]
        else:
            merged.append((extent, *strides))  # type: ignore[arg-type]
    return merged


@record(eq=False)
class BatchedMatMul(Op):
    """y = epilogue(Σ_k (a − a_zero_point)[…, m, k] · (b − b_zero_point)[…, k, n] + bias[n]); batches broadcast.

    Inputs: a, b. `bias`: [n], int32 for integers and float32 for floats, or None. Integer: a and b uint8.
    `a_perm`, `b_perm`, `y_perm` give each physical axis its logical one, so that a head need not be moved to the front
    to be multiplied; k must be innermost in a, and n in y.
    """

    epilogue: Epilogue
    a_perm: tuple[int, ...]
    b_perm: tuple[int, ...]
    y_perm: tuple[int, ...]
    bias: Array | None = None
    a_zero_point: int = 0
    b_zero_point: int = 0

    def _shapes(self, inputs: Sequence[Spec]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Logical shapes of a, b and y."""
        a, b = _logical(inputs[0].shape, self.a_perm), _logical(inputs[1].shape, self.b_perm)
        if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
            raise ModelError(f"cannot multiply matrices of shapes {list(a)} and {list(b)}")
        try:
            batch = np.broadcast_shapes(a[:-2], b[:-2])
        except ValueError as error:
            raise ModelError(f"batches of shapes {list(a)} and {list(b)} do not broadcast") from error
        return a, b, (*batch, a[-2], b[-1])

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        a, b, y = self._shapes(inputs)
        for operand in inputs[:2]:
            check_operand(self.epilogue, operand)
        if self.bias is not None and self.bias.shape != (b[-1],):
            raise ModelError(f"bias of shape {list(self.bias.shape)} for {b[-1]} columns")
        if a[-1] == 0 or self.epilogue.extra or self.epilogue.table is not None:
            raise UnsupportedOp("a product over an empty axis, or with an epilogue that needs constant weights")
        if self.a_perm[-1] != len(a) - 1 or self.y_perm[-1] != len(y) - 1:
            raise UnsupportedOp("the innermost axis of a product's operand or result must be its last")
        if len(self._walks(inputs)) > 2:
            raise UnsupportedOp(f"batches of shapes {list(a)} and {list(b)} that cannot be walked with two strides")
        spec = Spec(tuple(y[axis] for axis in self.y_perm), self.epilogue.dtype)
        return (spec,)

    def macs(self, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> int:
        return outputs[0].size * inputs[0].shape[-1]

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        a = inputs[0].transpose([self.a_perm.index(axis) for axis in range(inputs[0].ndim)])
        b = inputs[1].transpose([self.b_perm.index(axis) for axis in range(inputs[1].ndim)])
        if self.epilogue.integer:
            a, b = a.astype(np.int32) - self.a_zero_point, b.astype(np.int32) - self.b_zero_point
        y = self.epilogue.reference(product_reference(a, b), self.bias, (), np.zeros(1, np.int64))
        return (np.ascontiguousarray(y.transpose(self.y_perm)),)

    def _walks(self, inputs: Sequence[Spec]) -> list[Walk]:
        """How batches are walked."""
        a, b, y = self._shapes(inputs)
        rank = len(y) - 2
        physical = tuple(y[axis] for axis in self.y_perm)

        def batch_strides(shape: tuple[int, ...], strides: Sequence[int]) -> list[int]:
            own = [0 if extent == 1 else stride for extent, stride in zip(shape[:-2], strides[:-2], strict=True)]
            return [0] * (rank - len(own)) + own

        return _merge(
            list(
                zip(
                    y[:-2],
                    batch_strides(a, _logical(_strides(inputs[0].shape), self.a_perm)),
                    batch_strides(b, _logical(_strides(inputs[1].shape), self.b_perm)),
                    batch_strides(y, _logical(_strides(physical), self.y_perm)),
                    strict=True,
                )
            )
        )

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        specs = [operand.spec for operand in inputs]
        a, b, _ = self._shapes(specs)
        if outputs[0].spec.size == 0:
            return
        walks = self._walks(specs)
        (batch, a_batch, b_batch, y_batch), (groups, a_group, b_group, y_group) = [(1, 0, 0, 0)] * (2 - len(walks)) + walks
        # One integer part cannot hold every code less its zero point; three are needed only for a difference of 255.
        integer = self.epilogue.integer
        parts = (3 if self.b_zero_point == 0 else 2) if integer else 1
        product = Product(a[-2], b[-1], a[-1], self.epilogue, parts, groups, batch).on(steps.target)
        nr, columns = product.nr(steps), product.columns(steps)
        matrix = columns * product.k_bytes
        w = steps.scratch(batch * groups * matrix)
        b_strides = _logical(_strides(specs[1].shape), self.b_perm)
        walk: Fields = {"b": inputs[1].ref, "w": w, "b_batch": b_batch, "b_group": b_group, "b_k": b_strides[-2], "b_n": b_strides[-1]}
        walk |= {"batch": batch, "groups": groups, "k": a[-1], "n": b[-1], "nr": nr}
        fields: Fields = {"w": w, "w_batch": groups * matrix, "w_group": matrix}
        threads = 1 if specs[1].size < 4096 else None
        bias = self.bias if self.bias is not None else _ZERO[integer]
        laid = product.pad(steps)(bias, "bias", bias)
        if integer:
            start = steps.scratch(4 * batch * groups * columns)
            codes: Fields = {
                "bias": laid,
                "start": start,
                "parts": parts,
                "step": product.step_bytes,
                "stretch": product.k if product.pairs else 4 * product.k4,
                "a_zero_point": self.a_zero_point,
                "b_zero_point": self.b_zero_point,
            }
            steps.step(PACK_CODES, threads, **walk, **codes)
            fields |= {"bias": start, "bias_batch": 4 * groups * columns}
        else:
            steps.step(PACK_FLOAT, threads, **walk)
            fields |= {"bias": laid}
        size, y_size = (1 if integer else 4), outputs[0].spec.dtype.itemsize
        a_row = _logical(_strides(specs[0].shape), self.a_perm)[-2]
        y_row = _logical(_strides(outputs[0].spec.shape), self.y_perm)[-2]
        x = overread_safe(steps, inputs[0], a[-1], product.piece) if integer else inputs[0].ref
        fields |= {"x": x, "x_batch": a_batch * size, "x_group": a_group * size, "x_row": a_row * size}
        fields |= {"y": outputs[0].ref, "y_batch": y_batch * y_size, "y_group": y_group * y_size, "y_row": y_row * y_size}
        product.step(steps, (), False, fields)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.gemm.device_batched import emit_batched_codes
        from qrt.ops.gemm.device_float import emit_batches

        y = outputs[0]
        if y.spec.size == 0:
            return
        specs = [operand.spec for operand in inputs]
        a, b, _ = self._shapes(specs)
        a_strides, b_strides = _logical(specs[0].strides, self.a_perm), _logical(specs[1].strides, self.b_perm)
        rows = (a_strides[-2], b_strides[-2], b_strides[-1], _logical(y.spec.strides, self.y_perm)[-2])
        product = (inputs[0], inputs[1], y), (a[-2], b[-1], a[-1]), rows, self._walks(specs)
        if self.epilogue.integer:
            emit_batched_codes(steps, self.epilogue, self.bias, (self.a_zero_point, self.b_zero_point), *product)
        else:
            emit_batches(steps, self.epilogue, self.bias, *product)
