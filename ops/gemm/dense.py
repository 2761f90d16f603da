"""Dense: rows times a constant matrix."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.ops.gemm.amx import Lines
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.gemm.product import Product, Weights, emit_table_apart, overread_safe
from qrt.ops.gemm.table import SUMS
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps
from qrt.ops.strides import agreed, row_stride

__all__ = ["Dense", "check_extra", "product_reference"]

# Columns from which on a copy of A is made up for: tiles read A once for each 32 of them.
READ_OFTEN = 96


def check_extra(epilogue: Epilogue, inputs: Sequence[Spec], y: Spec) -> None:
    """Raises unless `inputs` are what the epilogue reads beside the operands."""
    if len(inputs) != epilogue.extra:
        raise ModelError(f"{len(inputs)} extra inputs, expected {epilogue.extra}")
    if epilogue.name in (*SUMS, "f32add") and inputs[0] != y:
        raise UnsupportedOp(f"residual of {inputs[0].dtype}{list(inputs[0].shape)} for a result of {y.dtype}{list(y.shape)}")
    if epilogue.name == "f32d" and [(s.dtype, s.size) for s in inputs] != [(np.dtype(np.float32), 1), (np.dtype(np.uint8), 1)]:
        raise UnsupportedOp("the run-time scale and zero point must be one float32 and one uint8")


def check_operand(epilogue: Epilogue, x: Spec) -> None:
    """Raises unless x has the dtype that the epilogue's products take."""
    wanted = np.dtype(np.uint8) if epilogue.integer else np.dtype(np.float32)
    if x.dtype != wanted:
        raise UnsupportedOp(f"operand of {x.dtype}, expected {wanted}")


def product_reference(a: Array, b: Array) -> Array:
    """a @ b: float32 for floats, exact int64 for integers (through float64, which holds their sums)."""
    if a.dtype == np.float32:
        product: Array = np.matmul(a, b)
    else:
        product = np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int64)
    return product


@record(eq=False)
class Dense(Op):
    """y[…, n] = epilogue(Σ_k (x − x_zero_point)[…, k] · w[k, n] + bias[n]).

    Inputs: x [..., k], then what the epilogue reads (a residual has y's shape). `weights`: one group, one tap.
    """

    weights: Weights
    epilogue: Epilogue
    x_zero_point: int = 0

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        _, _, k, n = self.weights.w.shape
        check_operand(self.epilogue, inputs[0])
        if not inputs[0].shape or inputs[0].shape[-1] != k:
            raise ModelError(f"rows of shape {list(inputs[0].shape)} do not fit a matrix of {k} x {n}")
        if k == 0:
            raise UnsupportedOp("a product over an empty axis")
        y = Spec((*inputs[0].shape[:-1], n), self.epilogue.dtype)
        check_extra(self.epilogue, inputs[1:], y)
        return (y,)

    def macs(self, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> int:
        return outputs[0].size * inputs[0].shape[-1]

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        w = self.weights.centred()[0, 0]
        x = inputs[0] if w.dtype == np.float32 else inputs[0].astype(np.int32)
        # A zero point that is known only in the run is the epilogue's business.
        acc = product_reference(x if self.epilogue.name in ("f32", "f32add", "f32d") else x - self.x_zero_point, w)
        return (self.epilogue.reference(acc, self.weights.bias, inputs[1:], self.weights.sums()),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        _, _, k, n = self.weights.w.shape
        m = prod(inputs[0].spec.shape[:-1])
        if m == 0 or n == 0:
            return
        x_row, y_row = (agreed(row_stride(operand.spec.shape, operand.strides)) for operand in (inputs[0], outputs[0]))
        plain = Product(m, n, k, self.epilogue, lines=Lines.of_rows(m, x_row))
        product, fields = plain.with_constant(steps, self.weights, self.x_zero_point)
        if not product.looks_up:
            emit_table_apart(self, steps, inputs, outputs)
            return
        size = 1 if self.epilogue.integer else 4
        often = product.amx and n > READ_OFTEN
        x = overread_safe(steps, inputs[0], k, product.piece, often) if self.epilogue.integer else inputs[0].ref
        fields |= {"x": x, "x_row": x_row * size, "y": outputs[0].ref, "y_row": y_row * outputs[0].spec.dtype.itemsize}
        product.step(steps, inputs[1:], False, fields)

    def reads(self, index: int, x: Spec, strides: Sequence[int]) -> bool:
        return index == 0 and row_stride(x.shape, strides) is not None

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        return not self.epilogue.residual and row_stride(y.shape, strides) is not None

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.gemm.device import emit_product

        emit_product(steps, self.weights, self.epilogue, self.x_zero_point, inputs, outputs[0])
