"""Unary ops and Cast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import erf
from typing import Any

import numpy as np

from qrt.core.dtypes import dtype_of
from qrt.core.errors import UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.elementwise.walk import ROWS, row_fields, threads_for
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps
from qrt.ops.strides import row_stride

__all__ = ["CASTS", "KERNELS", "SIXTEEN", "UNARY", "Cast", "Unary", "cast"]

FLOAT = ("float32",)
REAL = ("float32", "float64")
SIGNED = ("float32", "float64", "int64", "int32")
BOOL = ("bool",)
# What Cast reads and writes.
CASTS = ("float32", "float64", "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")
# What it makes of float32, and float32 of; nothing is computed in them (graph/passes/widen_halves.py).
SIXTEEN = ("float16", "bfloat16")

# Elements of the widest vector.
LANES = 16

_ERF = np.vectorize(erf, otypes=[np.float64])


@record
class Row:
    """One unary function: its definition (of an array and up to two parameters), dtypes, and the result's dtype if another."""

    reference: Callable[[Array, Any, Any], Array]
    dtypes: tuple[str, ...]
    params: int = 0
    result: str | None = None


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _softplus(x: Array) -> Array:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x))))


# Names are those of the ONNX operators in snake case. p and q are the operators' attributes in the order of the ONNX
# documents (alpha, beta or gamma); for `clip` the bounds, for `is_inf` whether negative and positive infinities count.
UNARY: dict[str, Row] = {
    "abs": Row(lambda x, p, q: np.abs(x), SIGNED),
    "acos": Row(lambda x, p, q: np.arccos(x), FLOAT),
    "acosh": Row(lambda x, p, q: np.arccosh(x), FLOAT),
    "asin": Row(lambda x, p, q: np.arcsin(x), FLOAT),
    "asinh": Row(lambda x, p, q: np.arcsinh(x), FLOAT),
    "atan": Row(lambda x, p, q: np.arctan(x), FLOAT),
    "atanh": Row(lambda x, p, q: np.arctanh(x), FLOAT),
    "bitwise_not": Row(lambda x, p, q: ~x, ("int64", "int32", "uint8", "int8")),
    "ceil": Row(lambda x, p, q: np.ceil(x), REAL),
    "celu": Row(lambda x, p, q: np.where(x > 0, x, p * (np.exp(x / p) - 1)), FLOAT, 1),
    "clip": Row(lambda x, p, q: np.minimum(np.maximum(x, p), q), (*SIGNED, "uint8", "int8"), 2),
    "cos": Row(lambda x, p, q: np.cos(x), FLOAT),
    "cosh": Row(lambda x, p, q: np.cosh(x), FLOAT),
    "cube": Row(lambda x, p, q: x * x * x, SIGNED),
    "elu": Row(lambda x, p, q: np.where(x > 0, x, p * (np.exp(x) - 1)), FLOAT, 1),
    "erf": Row(lambda x, p, q: _ERF(x), FLOAT),
    "exp": Row(lambda x, p, q: np.exp(x), FLOAT),
    "floor": Row(lambda x, p, q: np.floor(x), REAL),
    "gelu": Row(lambda x, p, q: 0.5 * x * (1 + _ERF(x * np.sqrt(0.5))), FLOAT),
    "gelu_tanh": Row(lambda x, p, q: _gelu_tanh(x), FLOAT),
    "hard_sigmoid": Row(lambda x, p, q: np.minimum(np.maximum(p * x + q, 0), 1), FLOAT, 2),
    "hard_swish": Row(lambda x, p, q: x * np.minimum(np.maximum(x * np.float32(1 / 6) + np.float32(0.5), 0), 1), FLOAT),
    "is_inf": Row(lambda x, p, q: (np.isneginf(x) & (p != 0)) | (np.isposinf(x) & (q != 0)), REAL, 2, "bool"),
    "is_nan": Row(lambda x, p, q: np.isnan(x), REAL, 0, "bool"),
    "leaky_relu": Row(lambda x, p, q: np.where(x < 0, p * x, x), FLOAT, 1),
    "log": Row(lambda x, p, q: np.log(x), FLOAT),
    "mish": Row(lambda x, p, q: x * np.tanh(_softplus(x)), FLOAT),
    "neg": Row(lambda x, p, q: -x, SIGNED),
    "not": Row(lambda x, p, q: ~x, BOOL),
    "reciprocal": Row(lambda x, p, q: 1 / x, REAL),
    "relu": Row(lambda x, p, q: np.maximum(x, 0), SIGNED),
    "round": Row(lambda x, p, q: np.round(x), REAL),
    "round_bfloat16": Row(lambda x, p, q: x.astype(dtype_of("bfloat16")).astype(np.float32), FLOAT),
    "round_float16": Row(lambda x, p, q: x.astype(np.float16).astype(np.float32), FLOAT),
    "selu": Row(lambda x, p, q: np.where(x > 0, q * x, q * (p * np.exp(x) - p)), FLOAT, 2),
    "sigmoid": Row(lambda x, p, q: _sigmoid(x), FLOAT),
    "sign": Row(lambda x, p, q: np.sign(x), SIGNED),
    "sin": Row(lambda x, p, q: np.sin(x), FLOAT),
    "sinh": Row(lambda x, p, q: np.sinh(x), FLOAT),
    "softplus": Row(lambda x, p, q: _softplus(x), FLOAT),
    "softsign": Row(lambda x, p, q: x / (1 + np.abs(x)), FLOAT),
    "sqrt": Row(lambda x, p, q: np.sqrt(x), REAL),
    "square": Row(lambda x, p, q: x * x, SIGNED),
    "swish": Row(lambda x, p, q: x * _sigmoid(p * x), FLOAT, 1),
    "tan": Row(lambda x, p, q: np.tan(x), FLOAT),
    "tanh": Row(lambda x, p, q: np.tanh(x), FLOAT),
    "thresholded_relu": Row(lambda x, p, q: np.where(x > p, x, 0), FLOAT, 1),
}


def _record(dtype: str) -> np.dtype[np.void]:
    kind = np.dtype(np.uint8 if dtype == "bool" else dtype).str[1:]
    return record_dtype(*ROWS, ("p", kind), ("q", kind))


_CAST_RECORD = record_dtype(("x", "i8"), ("y", "i8"), ("n", "i8"))

_UNARY_KERNELS = {
    (name, dtype): Kernel(
        f"unary_{name}_{dtype}__generic", _record(dtype), "qrt.ops.elementwise.cpu:unary", (name, dtype, row.result or dtype)
    )
    for name, row in UNARY.items()
    for dtype in row.dtypes
}
_CAST_KERNELS = {
    (a, b): Kernel(f"cast_{a}_{b}__generic", _CAST_RECORD, "qrt.ops.elementwise.cpu:cast", (a, b))
    for a, b in (
        *((a, b) for a in CASTS for b in CASTS if a != b),
        *(("float32", name) for name in SIXTEEN),
        *((name, "float32") for name in SIXTEEN),
    )
}
KERNELS: tuple[Kernel, ...] = (*_UNARY_KERNELS.values(), *_CAST_KERNELS.values())


@record
class Unary(Op):
    """y = f(x) element by element, f a row of UNARY with its parameters."""

    name: str
    params: tuple[float, ...] = ()

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        row, x = UNARY[self.name], inputs[0]
        if x.dtype.name not in row.dtypes or len(self.params) != row.params:
            raise UnsupportedOp(f"{self.name} has no kernel for {x.dtype} with {len(self.params)} parameters")
        return (Spec(x.shape, np.dtype(row.result) if row.result else x.dtype),)

    def _values(self, dtype: np.dtype[Any]) -> tuple[Any, Any]:
        p, q = (*self.params, 0, 0)[:2]
        return dtype.type(p), dtype.type(q)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x = inputs[0]
        with np.errstate(all="ignore"):
            y = UNARY[self.name].reference(x, *self._values(x.dtype))
        return (np.asarray(y, self.infer([Spec(x.shape, x.dtype)])[0].dtype),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size == 0:
            return
        p, q = self._values(x.spec.dtype)
        kernel = _UNARY_KERNELS[self.name, x.spec.dtype.name]
        steps.step(kernel, threads_for(x.spec.nbytes), **row_fields(x, y), p=p, q=q)

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        # The end of a row that fills no vector is computed one by one: slower than all of y in one piece, and a copy.
        return row_stride(y.shape, strides) is not None and y.shape[-1] % LANES == 0

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.elementwise.device import emit_unary

        if outputs[0].spec.size:
            emit_unary(steps, self.name, inputs[0], outputs[0], *self._values(inputs[0].spec.dtype))

    @property
    def inplace(self) -> tuple[int, ...]:
        return (0,)


def cast(x: Array, dtype: np.dtype[Any]) -> Array:
    """ONNX Cast between numbers, defined also where ONNX leaves it open: a float is clamped to int32 (to int64 for wider
    results), NaN to the lower end, its fraction dropped; the integer then wraps into `dtype`."""
    if x.dtype.kind != "f" or dtype.kind not in "iu":
        with np.errstate(all="ignore"):
            return x.astype(dtype)
    wide = np.dtype(np.int64 if dtype.itemsize == 8 or dtype == np.uint32 else np.int32)
    low, high = bounds(x.dtype, wide)
    x = np.where(x > low, x, low)
    return np.where(x < high, x, high).astype(wide).astype(dtype)


def bounds(source: np.dtype[Any], wide: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and the largest number of float dtype `source` that the signed integer dtype `wide` holds."""
    low, past = source.type(-(2.0 ** (8 * wide.itemsize - 1))), source.type(2.0 ** (8 * wide.itemsize - 1))
    return low, past - 1 if past - 1 != past else np.nextafter(past, source.type(0))


@record
class Cast(Op):
    """The same numbers in another dtype; see `cast`."""

    dtype: str

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        if inputs[0].dtype.name != self.dtype and (inputs[0].dtype.name, self.dtype) not in _CAST_KERNELS:
            raise UnsupportedOp(f"no kernel casts {inputs[0].dtype} to {self.dtype}")
        return (Spec(inputs[0].shape, dtype_of(self.dtype)),)

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        return (cast(inputs[0], dtype_of(self.dtype)),)

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, y = inputs[0], outputs[0]
        if y.spec.size:
            kernel = _CAST_KERNELS[x.spec.dtype.name, self.dtype]
            steps.step(kernel, threads_for(x.spec.nbytes), x=x.ref, y=y.ref, n=y.spec.size)

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.elementwise.device import emit_cast

        if outputs[0].spec.size:
            emit_cast(steps, inputs[0], outputs[0])
