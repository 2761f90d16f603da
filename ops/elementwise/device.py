"""The table of device kernels of the element-wise ops, for floats. Operands start at multiples of 16 bytes."""

from __future__ import annotations

from collections.abc import Sequence

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.elementwise.walk import MAX_AXES, walk_fields
from qrt.ops.op import DeviceSteps, Operand, Ref

__all__ = ["BINARY", "KERNELS", "TO_FLOAT", "UNARY", "WHERE", "emit_binary", "emit_to_float", "emit_unary", "emit_where"]

PER_THREAD = 4  # elements
_SOURCE = "qrt.ops.elementwise.cuda:"

# Those of `formulas.unary` and `formulas.binary`.
_UNARY_NAMES = (
    *("abs", "ceil", "celu", "clip", "cube", "elu", "erf", "exp", "floor", "gelu", "gelu_tanh", "hard_sigmoid", "hard_swish", "leaky_relu"),
    *("log", "mish", "neg", "reciprocal", "relu", "round", "selu", "sigmoid", "sign", "softplus", "softsign", "sqrt", "square", "swish"),
    *("tanh", "thresholded_relu"),
)
_BINARY_NAMES = ("add", "div", "equal", "greater", "greater_or_equal", "less", "less_or_equal", "max", "min", "mul", "prelu", "sub")

_UNARY = record_dtype(("x", "i8"), ("y", "i8"), ("n", "i8"), ("p", "f4"), ("q", "f4"))
_CAST = record_dtype(("x", "i8"), ("y", "i8"), ("n", "i8"))


def _walk(operands: str, *more: str) -> list[tuple[str, str]]:
    """As `walk.walk_record`, but for the outermost extent, which follows from n: all elements. y lies in one piece."""
    strides = [(x, "i8") for letter in operands for x in (letter, *(f"{letter}{k}" for k in range(MAX_AXES)))]
    return [("y", "i8"), *((name, "i4") for name in ("n", *more, *(f"n{k}" for k in range(1, MAX_AXES)))), *strides]


UNARY = {name: DeviceKernel(f"unary_{name}_f32__cuda", _UNARY, _SOURCE + "unary", (name,)) for name in _UNARY_NAMES}
BINARY = {
    name: DeviceKernel(f"binary_{name}_f32__cuda", record_dtype(*_walk("ab", "wide")), _SOURCE + "binary", (name,))
    for name in _BINARY_NAMES
}
WHERE = DeviceKernel("where_b4__cuda", record_dtype(*_walk("cab")), _SOURCE + "where")
TO_FLOAT = {
    source: DeviceKernel(f"cast_{source}_f32__cuda", _CAST, _SOURCE + "to_float", (source,))
    for source in ("bool", "uint8", "int8", "int32", "int64")
}
KERNELS: tuple[DeviceKernel, ...] = (*UNARY.values(), *BINARY.values(), WHERE, *TO_FLOAT.values())


def _grid(kernel: DeviceKernel, n: int) -> tuple[int, int]:
    return -(-n // (PER_THREAD * kernel.block)), 1


def _walked(kernel: DeviceKernel, letters: str, operands: Sequence[Operand], y: Operand) -> dict[str, int | Ref]:
    """Values of `_walk`'s fields."""
    if y.spec.size >= 2**31:
        raise UnsupportedOp(f"no kernel for CUDA walks the {y.spec.size} elements of a result")
    fields = walk_fields(letters, operands, y) | {"n": y.spec.size}
    return {name: fields[name] for name in kernel.record.names or () if name in fields}


def emit_unary(steps: DeviceSteps, name: str, x: Operand, y: Operand, p: float, q: float) -> None:
    """Appends Unary."""
    if name not in UNARY or x.spec.dtype != "float32":
        raise UnsupportedOp(f"no kernel for CUDA computes {name} of {x.spec.dtype}")
    kernel = UNARY[name]
    steps.launch(kernel, _grid(kernel, y.spec.size), x=x.ref, y=y.ref, n=y.spec.size, p=p, q=q)


def emit_binary(steps: DeviceSteps, name: str, a: Operand, b: Operand, y: Operand) -> None:
    """Appends Binary."""
    if name not in BINARY or a.spec.dtype != "float32":
        raise UnsupportedOp(f"no kernel for CUDA computes {name} of {a.spec.dtype}")
    kernel, fields = BINARY[name], _walked(BINARY[name], "ab", (a, b), y)
    # Where the last axis is walked in fours, so are the others: all else that an operand walks is a multiple of its last extent, or 0.
    wide = fields["n5"] % 4 == 0 and fields["a5"] in (0, 1) and fields["b5"] in (0, 1)  # type: ignore[operator]
    steps.launch(kernel, _grid(kernel, y.spec.size), **fields, wide=int(wide))


def emit_where(steps: DeviceSteps, inputs: Sequence[Operand], y: Operand) -> None:
    """Appends Where."""
    if y.spec.dtype.itemsize != 4:
        raise UnsupportedOp(f"Where has no kernel for CUDA for {y.spec.dtype}")
    steps.launch(WHERE, _grid(WHERE, y.spec.size), **_walked(WHERE, "cab", inputs, y))


def emit_to_float(steps: DeviceSteps, x: Operand, y: Operand) -> None:
    """Appends Cast to float32."""
    if y.spec.dtype != "float32" or x.spec.dtype.name not in TO_FLOAT:
        raise UnsupportedOp(f"no kernel for CUDA casts {x.spec.dtype} to {y.spec.dtype}")
    kernel = TO_FLOAT[x.spec.dtype.name]
    steps.launch(kernel, _grid(kernel, y.spec.size), x=x.ref, y=y.ref, n=y.spec.size)
