"""The table of device kernels of convolutions of floats in several groups."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.conv.window import Window
from qrt.ops.gemm.epilogue import Epilogue
from qrt.ops.gemm.product import Weights
from qrt.ops.op import Array, DeviceSteps, Operand

__all__ = ["KERNELS", "WINDOWS", "emit_float_windows"]

RECORD = record_dtype(
    ("x", "i8"),  # float32 [images][space][groups · k]
    ("offsets", "i8"),  # int32 [pixels][taps]: bytes from an image's first to each tap, −1 for padding
    ("w", "i8"),  # [taps][k][channels]
    ("bias", "i8"),  # [channels]
    ("y", "i8"),  # [images][pixels][channels]
    ("r", "i8"),  # residual, like y
    ("x_image", "i8"),  # bytes
    ("threads", "i4"),
    ("pixels", "i4"),
    ("taps", "i4"),
    ("k", "i4"),  # input channels of a group
    ("n", "i4"),  # output channels of a group
    ("channels", "i4"),  # output channels
    ("lo", "f4"),
    ("hi", "f4"),
)
# By whether there is a residual, and the channels that a thread makes: four of depthwise convolutions.
WINDOWS = {
    (residual, piece): DeviceKernel(
        f"windows_f32{'add' if residual else ''}_{piece}__cuda", RECORD, "qrt.ops.conv.cuda_float:windows", (int(residual), piece)
    )
    for residual in (False, True)
    for piece in (1, 4)
}
KERNELS: tuple[DeviceKernel, ...] = tuple(WINDOWS.values())


def emit_float_windows(
    steps: DeviceSteps, window: Window, weights: Weights, epilogue: Epilogue, inputs: Sequence[Operand], y: Operand
) -> None:
    """Appends y = epilogue(x · w), as `device.emit_windows` does for codes."""
    groups, taps, k, n = weights.w.shape
    _, *space, in_channels = inputs[0].spec.shape
    channels = groups * n
    piece = 4 if k == n == 1 and channels % 4 == 0 else 1
    threads = y.spec.size // piece
    if threads >= 2**31:
        raise UnsupportedOp(f"a result of {y.spec.size} elements: convolutions of several groups count in 32 bits")
    offsets = window.offsets(space, 4 * in_channels)

    def packed() -> Array:
        return np.ascontiguousarray(weights.w.transpose(1, 2, 0, 3))

    source = weights.w if weights.bias is None else weights.bias
    bias = np.zeros(channels, np.float32) if weights.bias is None else weights.bias
    how = ("cuda windows", "offsets", offsets.shape, offsets.tobytes())
    steps.launch(
        WINDOWS[epilogue.name == "f32add", piece],
        (-(-threads // WINDOWS[False, piece].block), 1),
        **({"r": 0} | epilogue.fields(inputs[1:], lambda source, how, array: steps.packed(source, how, array.copy))),
        x=inputs[0].ref,
        offsets=steps.packed(weights.w, how, lambda: offsets),
        w=steps.packed(weights.w, ("cuda windows", "floats"), packed),
        bias=steps.packed(source, ("cuda windows", "floats", "bias"), lambda: np.resize(bias, channels)),
        y=y.ref,
        x_image=4 * prod(space) * in_channels,
        threads=threads,
        pixels=len(offsets),
        taps=taps,
        k=k,
        n=n,
        channels=channels,
    )
