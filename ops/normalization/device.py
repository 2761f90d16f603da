"""The table of device kernels of softmax and the norms."""

from __future__ import annotations

from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.reduction.device import WARP, record_of

__all__ = ["IMAGE_NORM", "KERNELS", "LAYER_NORM", "LP_NORM", "MAX_GROUPS", "RMS_NORM", "SOFTMAX_COLUMNS", "SOFTMAX_ROWS"]

BLOCK = 256
MAX_GROUPS = 65535  # blocks along a grid's second axis
_SOURCE = "qrt.ops.normalization.cuda:"


SOFTMAX_ROWS = {
    log: DeviceKernel(
        f"{'log_' if log else ''}softmax_rows_f32__cuda", record_dtype(*record_of("x y rows", "n")), _SOURCE + "softmax_rows", (int(log),)
    )
    for log in (False, True)
}
SOFTMAX_COLUMNS = {
    log: DeviceKernel(
        f"{'log_' if log else ''}softmax_columns_f32__cuda",
        record_dtype(*record_of("x y columns", "n", "inner")),
        _SOURCE + "softmax_columns",
        (int(log),),
    )
    for log in (False, True)
}
_NORM = record_dtype(*record_of("x scale bias y rows", "n", epsilon=True))
LAYER_NORM = {
    bias: DeviceKernel(f"layer_norm{'_bias' if bias else ''}_f32__cuda", _NORM, _SOURCE + "layer_norm", (int(bias),))
    for bias in (False, True)
}
RMS_NORM = DeviceKernel("rms_norm_f32__cuda", record_dtype(*record_of("x scale y rows", "n", epsilon=True)), _SOURCE + "rms_norm")
LP_NORM = {p: DeviceKernel(f"l{p}_norm_f32__cuda", record_dtype(*record_of("x y rows", "n")), _SOURCE + "lp_norm", (p,)) for p in (1, 2)}
IMAGE_NORM = DeviceKernel(
    "image_norm_f32__cuda",
    record_dtype(*record_of("x scale bias y", "pixels", "channels", "group", epsilon=True)),
    _SOURCE + "image_norm",
    (BLOCK,),
    BLOCK,
    4 * BLOCK // WARP,
)
KERNELS: tuple[DeviceKernel, ...] = (
    *SOFTMAX_ROWS.values(),
    *SOFTMAX_COLUMNS.values(),
    *LAYER_NORM.values(),
    RMS_NORM,
    *LP_NORM.values(),
    IMAGE_NORM,
)
