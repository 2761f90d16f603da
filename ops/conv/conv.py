"""Conv: convolution and transposed convolution of any rank and group count, integer or float."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qrt.core.errors import ModelError
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.conv.lines import lines_of, padded, phases_of, pixel_stride
from qrt.ops.conv.window import Window
from qrt.ops.gemm.amx import Lines
from qrt.ops.gemm.dense import check_extra, check_operand, product_reference
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.gemm.product import Fields, Product, Weights, emit_table_apart, overread_safe
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Ref, Spec, Steps
from qrt.ops.strides import agreed, row_stride

__all__ = ["FILL", "Conv"]

# The row that padding reads, where its code is known only in the run.
FILL = Kernel("fill_u8_flat__generic", record_dtype(("y", "i8"), ("n", "i8"), ("code", "i8")), "qrt.ops.conv.cpu:fill")


@record(eq=False)
class Conv(Op):
    """y[n, o…, g, c] = epilogue(Σ over taps and channels of (x − x_zero_point) · w + bias), channels last.

    Inputs: x [N, *space, groups · k], then what the epilogue reads. Output: [N, *out, groups · n].
    `weights.w`: [groups, taps, k, n]; taps in row-major order of `window.kernel`. Padding counts as x_zero_point.
    """

    window: Window
    weights: Weights
    epilogue: Epilogue
    x_zero_point: int = 0

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        groups, taps, k, n = self.weights.w.shape
        x = inputs[0]
        check_operand(self.epilogue, x)
        if len(x.shape) != len(self.window.kernel) + 2 or x.shape[-1] != groups * k or taps != self.window.taps or k == 0:
            raise ModelError(
                f"an image of shape {list(x.shape)} does not fit weights of {groups} x {k} channels and {self.window.kernel} taps"
            )
        y = Spec((x.shape[0], *self.window.out_space(x.shape[1:-1]), groups * n), self.epilogue.dtype)
        check_extra(self.epilogue, inputs[1:], y)
        return (y,)

    def macs(self, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> int:
        taps, k = map(int, self.weights.w.shape[1:3])
        return outputs[0].size * taps * k

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = inputs[0]
        groups, taps, k, _ = self.weights.w.shape
        w = self.weights.centred()
        known = self.epilogue.name not in ("f32", "f32add", "f32d")
        pad = inputs[2].reshape(()) if self.epilogue.name == "f32d" else (self.x_zero_point if self.epilogue.integer else 0.0)
        columns = self.window.columns(x, float(pad))
        if self.epilogue.integer:
            columns = columns.astype(np.int32) - (self.x_zero_point if known else 0)
        parts = []
        for group in range(groups):
            rows = columns[..., group * k : (group + 1) * k]
            parts.append(product_reference(rows.reshape(*rows.shape[:-2], taps * k), w[group].reshape(taps * k, -1)))
        acc = np.concatenate(parts, -1)
        return (self.epilogue.reference(acc, self.weights.bias, inputs[1:], self.weights.sums()),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size == 0:
            return
        groups, taps, k, n = self.weights.w.shape
        batch, *space, channels = x.spec.shape
        size = 1 if self.epilogue.integer else 4
        pixels, y_size = prod(y.spec.shape[1:-1]), y.spec.dtype.itemsize
        x_pixel, y_pixel = agreed(pixel_stride(x.spec, x.strides)), agreed(pixel_stride(y.spec, y.strides))
        point, sorted_ = self.window.is_point, phases_of(self.window, space, channels) is not None
        flat = point and (batch == 1 or (x.strides[0] == pixels * x_pixel and y.strides[0] == pixels * y_pixel))
        m, images = (batch * pixels, 1) if flat else (pixels, batch)
        run = self.window.kernel[-1] if self.window.dilations[-1] == 1 and x_pixel == channels and not sorted_ else 1
        lines = Lines.of_rows(m, x_pixel) if point else lines_of(self.window, space, channels, x_pixel)
        product = Product(m, n, k, self.epilogue, taps, groups, images, run, lines)
        product, fields = product.with_constant(steps, self.weights, self.x_zero_point)
        if not product.looks_up:
            emit_table_apart(self, steps, inputs, outputs)
            return
        fields |= {
            "x": x.ref,
            "x_batch": x.strides[0] * size,
            "x_group": k * size,
            "x_row": x_pixel * size,
            "y": y.ref,
            "y_batch": y.strides[0] * y_size,
            "y_group": n * y_size,
            "y_row": y_pixel * y_size,
        }
        in_lines = product.amx and product.lines is not None
        if in_lines and (sorted_ or any(self.window.pads)):
            fields["x"], fields["x_batch"] = padded(steps, self.window, x, self._padding(steps, inputs, 1))
        elif self.epilogue.integer:
            fields["x"] = overread_safe(steps, x, product.run * k if product.amx else k, product.piece)
        if not point and not in_lines:
            fields |= self._table(steps, inputs, space, x_pixel * size, product)
        product.step(steps, inputs[1:], not point, fields)

    def reads(self, index: int, x: Spec, strides: Sequence[int]) -> bool:
        return index == 0 and pixel_stride(x, strides) is not None

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        # A residual is walked like y. Codes that a step of its own looks up lie in rows at one distance, across images too.
        distance = pixel_stride(y, strides) if self.epilogue.table is None else row_stride(y.shape, strides)
        return not self.epilogue.residual and distance is not None

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.conv.device import emit_convolution

        if outputs[0].spec.size:
            emit_convolution(steps, self.window, self.weights, self.epilogue, self.x_zero_point, inputs, outputs[0])

    def _padding(self, steps: Steps, inputs: Sequence[Operand], row: int) -> Ref:
        """`row` bytes of what padding reads."""
        if self.epilogue.name == "f32d":
            zeros = steps.scratch(row)
            steps.step(FILL, 1, y=zeros, n=row, code=inputs[2].ref)
            return zeros
        code = self.x_zero_point if self.epilogue.integer else 0
        return steps.packed(self.weights.w, ("padding", code, row), lambda: np.full(row, code, np.uint8))

    def _table(self, steps: Steps, inputs: Sequence[Operand], space: Sequence[int], pixel: int, product: Product) -> Fields:
        """The offsets of every tap, and the row that padding reads."""
        copies = product.taps // self.window.taps
        how = ("offsets", tuple(space), pixel, copies, self.window)
        offsets = steps.packed(self.weights.w, how, lambda: np.repeat(self.window.offsets(space, pixel), copies, 1))
        row = product.k if self.epilogue.integer else 4 * product.k
        return {"offsets": offsets, "zeros": self._padding(steps, inputs, -(-row // product.piece) * product.piece)}
