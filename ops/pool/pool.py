"""MaxPool, AveragePool and QAveragePool on images [N, *space, C] of one to three space axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qrt.core.dtypes import quint8
from qrt.core.errors import ModelError, UnsupportedOp
from qrt.core.numerics import requantize
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.conv import Window
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps
from qrt.ops.strides import agreed, row_stride

__all__ = ["KERNELS", "AveragePool", "MaxPool", "QAveragePool"]

_TYPES = {"f32": np.dtype(np.float32), "u8": np.dtype(np.uint8), "s8": np.dtype(np.int8)}

# Planes, rows and columns (d, h, w): n input extents, o output extents, k taps, s strides, d dilations, p padding before.
_SPACE = [f"{name}{axis}" for name in "noksdp" for axis in "dhw"]
# x_pixel, y_pixel: elements from one pixel to the next.
_PLACES = ("rows", "channels", "x_pixel", "y_pixel", "block", *_SPACE)
_MAX = record_dtype(*((name, "i8") for name in ("x", "y", *_PLACES)))
# q: counted padding after.
_AVERAGE = record_dtype(
    *((name, "i8") for name in ("x", "y", "sums", *_PLACES, "qd", "qh", "qw", "padding_counts", "x_zero_point")),
    *((name, "f4") for name in ("x_scale", "y_scale", "low", "high")),
    ("y_zero_point", "i4"),
)

_MAXIMUM = {kind: Kernel(f"pool_{kind}_max__generic", _MAX, "qrt.ops.pool.cpu:maximum", (kind,)) for kind in _TYPES}
_MEAN = {kind: Kernel(f"pool_{kind}_average__generic", _AVERAGE, "qrt.ops.pool.cpu:average", (kind,)) for kind in ("f32", "u8")}
KERNELS: tuple[Kernel, ...] = (*_MAXIMUM.values(), *_MEAN.values())

# Channels that a thread takes at once where there are fewer rows than threads.
BLOCK = 64
# Fewer reads than this are not worth a second thread.
SERIAL_READS = 1 << 14


def _check(x: Spec, window: Window, kinds: Sequence[str]) -> tuple[int, ...]:
    """The output's shape."""
    if x.dtype not in [_TYPES[kind] for kind in kinds]:
        raise UnsupportedOp(f"pooling of {x.dtype}: there are kernels for {', '.join(str(_TYPES[kind]) for kind in kinds)}")
    if not 3 <= len(x.shape) <= 5:
        raise UnsupportedOp(f"pooling of an image of shape {x.shape}: there are kernels for 1 to 3 space axes")
    if window.transposed or 0 in x.shape[1:-1]:
        raise ModelError(f"an image of shape {x.shape} cannot be pooled by a window of {window.kernel}")
    return (x.shape[0], *window.out_space(x.shape[1:-1]), x.shape[-1])


def _geometry(window: Window, x: Operand, y: Operand, threads: int) -> dict[str, int]:
    """The fields of both records that say where windows lie."""
    rank = len(window.kernel)
    x_pixel, y_pixel = (agreed(row_stride(operand.spec.shape, operand.strides)) for operand in (x, y))

    def three(values: Sequence[int], filler: int) -> Sequence[int]:
        return (*(filler,) * (3 - rank), *values)

    axes = {
        "n": three(x.spec.shape[1:-1], 1),
        "o": three(y.spec.shape[1:-1], 1),
        "k": three(window.kernel, 1),
        "s": three(window.strides, 1),
        "d": three(window.dilations, 1),
        "p": three(window.pads[:rank], 0),
    }
    rows, channels = x.spec.shape[0] * axes["o"][0] * axes["o"][1], x.spec.shape[-1]
    fields = {f"{name}{axis}": value for name, values in axes.items() for axis, value in zip("dhw", values, strict=True)}
    return fields | {
        "rows": rows,
        "channels": channels,
        "x_pixel": x_pixel,
        "y_pixel": y_pixel,
        "block": channels if rows >= threads else BLOCK,
    }


def _threads(window: Window, y: Spec) -> int | None:
    return 1 if y.size * window.taps < SERIAL_READS else None


class _Pool(Op):
    """An op whose kernel finds pixels at one distance."""

    def reads(self, index: int, x: Spec, strides: Sequence[int]) -> bool:
        return row_stride(x.shape, strides) is not None

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        return row_stride(y.shape, strides) is not None


@record
class MaxPool(_Pool):
    """The largest of each window; padding does not count, a NaN neither. A window on padding alone gives the lowest value."""

    window: Window

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return (Spec(_check(inputs[0], self.window, tuple(_TYPES)), inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = inputs[0]
        lowest = -np.inf if x.dtype == np.float32 else np.iinfo(x.dtype).min
        columns = self.window.columns(np.where(x == x, x, lowest).astype(x.dtype), lowest)
        return (np.asarray(columns.max(-2)),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size:
            kernel = _MAXIMUM[next(kind for kind, dtype in _TYPES.items() if dtype == x.spec.dtype)]
            where = _geometry(self.window, x, y, steps.threads)
            steps.step(kernel, _threads(self.window, y.spec), x=x.ref, y=y.ref, **where)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.pool.device import emit_pool

        emit_pool(steps, self.window, inputs[0], outputs[0], None, {})


def _counts(window: Window, counted: tuple[int, ...] | None, x: Spec) -> tuple[Array, Array]:
    """For each output pixel the taps on the image, and those that the mean divides by."""
    rank, space = len(window.kernel), x.shape[1:-1]
    valid = (window.offsets(space, 1) >= 0).sum(-1)
    if counted is None:
        return valid, valid
    # The image with its counted padding, under what is left of the window's own.
    padded = [n + counted[i] + counted[i + rank] for i, n in enumerate(space)]
    rest = Window(window.kernel, window.strides, window.dilations, tuple(p - c for p, c in zip(window.pads, counted, strict=True)))
    return valid, (rest.offsets(padded, 1) >= 0).sum(-1)


def _emit_average(
    steps: Steps,
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    window: Window,
    counted: tuple[int, ...] | None,
    codes: dict[str, float | int],
) -> None:
    x, y = inputs[0], outputs[0]
    if not y.spec.size:
        return
    rank = len(window.kernel)
    after = (*(0,) * (3 - rank), *(counted[rank:] if counted is not None else (0,) * rank))
    steps.step(
        _MEAN["u8" if codes else "f32"],
        _threads(window, y.spec),
        x=x.ref,
        y=y.ref,
        sums=steps.scratch(steps.threads * BLOCK * 4),
        padding_counts=int(counted is not None),
        **dict(zip(("qd", "qh", "qw"), after, strict=True)),
        **_geometry(window, x, y, steps.threads),
        **(codes or dict.fromkeys(("x_zero_point", "x_scale", "y_scale", "low", "high", "y_zero_point"), 0)),
    )


def _emit_average_device(
    steps: DeviceSteps, x: Operand, y: Operand, window: Window, counted: tuple[int, ...] | None, codes: dict[str, float | int]
) -> None:
    from qrt.ops.pool.device import emit_pool

    emit_pool(steps, window, x, y, _counts(window, counted, x.spec)[1], codes)


@record
class AveragePool(_Pool):
    """The mean of each window, float32. `counted`: the padding whose zeros count, as pads; None: no padding counts.

    `counted` may leave out rows that the window's own pads have at the ends; its begins equal theirs.
    """

    window: Window
    counted: tuple[int, ...] | None = None

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        return (Spec(_check(inputs[0], self.window, ("f32",)), inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        columns = self.window.columns(inputs[0], 0.0)
        total = np.zeros_like(columns[..., 0, :])
        for tap in range(columns.shape[-2]):
            total = total + columns[..., tap, :]
        _, count = _counts(self.window, self.counted, Spec(inputs[0].shape, inputs[0].dtype))
        with np.errstate(invalid="ignore"):
            return (total / count.astype(np.float32).reshape(*total.shape[1:-1], 1),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        _emit_average(steps, inputs, outputs, self.window, self.counted, {})

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        _emit_average_device(steps, inputs[0], outputs[0], self.window, self.counted, {})


@record
class QAveragePool(_Pool):
    """AveragePool of uint8 codes to uint8 codes: requantize(Σ (x − x_zero_point), x_scale / (y_scale · count)), float32."""

    window: Window
    counted: tuple[int, ...] | None
    x_scale: float
    x_zero_point: int
    y_scale: float
    y_zero_point: int
    qmin: int = 0
    qmax: int = 255

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if self.window.taps >= 1 << 23:
            raise UnsupportedOp(f"a window of {self.window.taps} codes: their sum may leave 32 bits")
        return (Spec(_check(inputs[0], self.window, ("u8",)), inputs[0].dtype),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        total = (self.window.columns(inputs[0].astype(np.int32) - self.x_zero_point, 0)).sum(-2, dtype=np.int32)
        _, count = _counts(self.window, self.counted, Spec(inputs[0].shape, inputs[0].dtype))
        with np.errstate(divide="ignore"):
            multiplier = np.float32(self.x_scale) / (np.float32(self.y_scale) * count.astype(np.float32).reshape(*total.shape[1:-1], 1))
        with np.errstate(invalid="ignore"):
            codes = requantize(total, multiplier, np.array(self.y_zero_point), quint8)
        return (np.asarray(np.clip(codes, np.uint8(self.qmin), np.uint8(self.qmax))),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        _emit_average(steps, inputs, outputs, self.window, self.counted, self._codes())

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        _emit_average_device(steps, inputs[0], outputs[0], self.window, self.counted, self._codes())

    def _codes(self) -> dict[str, float | int]:
        return {
            "x_zero_point": self.x_zero_point,
            "y_zero_point": self.y_zero_point,
            "x_scale": self.x_scale,
            "y_scale": self.y_scale,
            "low": self.qmin - self.y_zero_point,
            "high": self.qmax - self.y_zero_point,
        }
