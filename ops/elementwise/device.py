"""The table of device kernels of the element-wise ops. Operands start at multiples of 16 bytes."""

from __future__ import annotations

from collections.abc import Sequence

from qrt.core.errors import UnsupportedOp
from qrt.jit import record_dtype
from qrt.jit.cuda import DeviceKernel
from qrt.ops.elementwise.unary import SIXTEEN
from qrt.ops.elementwise.walk import MAX_AXES, walk_fields
from qrt.ops.op import DeviceSteps, Operand, Ref

__all__ = ["BINARY", "CAST", "INTEGERS", "KERNELS", "NOT", "UNARY", "WHERE", "emit_binary", "emit_cast", "emit_unary", "emit_where"]

PER_THREAD = 4  # elements
_SOURCE = "qrt.ops.elementwise.cuda:"

# Those of `formulas.unary`, `formulas.binary` and `wide.wide`.
_UNARY_NAMES = (
    *("abs", "ceil", "celu", "clip", "cos", "cube", "elu", "erf", "exp", "floor", "gelu", "gelu_tanh", "hard_sigmoid", "hard_swish"),
    *("leaky_relu", "log", "mish", "neg", "reciprocal", "relu", "round", "selu", "sigmoid", "sign", "sin", "softplus", "softsign", "sqrt"),
    *("square", "swish", "tanh", "thresholded_relu", "round_bfloat16", "round_float16"),
)
_BINARY_NAMES = ("add", "div", "equal", "greater", "greater_or_equal", "less", "less_or_equal", "max", "min", "mul", "pow", "prelu", "sub")

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
# Of integers and bools.
_WHOLE = ("int64", "int32", "uint8", "int8")
_COMPARING = ("equal", "greater", "greater_or_equal", "less", "less_or_equal")
_NAMES = dict.fromkeys(_WHOLE, (*_COMPARING, "add", "sub", "mul", "max", "min", "bitwise_and", "bitwise_or", "bitwise_xor"))
INTEGERS = {
    (name, dtype): DeviceKernel(f"binary_{name}_{dtype}__cuda", record_dtype(*_walk("ab")), _SOURCE + "binary_of_integers", (name, dtype))
    for dtype, names in (_NAMES | {"bool": ("and", "or", "xor", "equal")}).items()
    for name in names
}
WHERE = {size: DeviceKernel(f"where_b{size}__cuda", record_dtype(*_walk("cab")), _SOURCE + "where", (size,)) for size in (1, 4, 8)}
_CASTS = ("float32", "bool", *_WHOLE)
_HALVES = tuple(pair for name in SIXTEEN for pair in ((name, "float32"), ("float32", name)))
CAST = {
    (source, result): DeviceKernel(f"cast_{source}_{result}__cuda", _CAST, _SOURCE + "cast", (source, result))
    for source, result in (*((a, b) for a in _CASTS for b in _CASTS if a != b), *_HALVES)
}
NOT = DeviceKernel("unary_not_bool__cuda", _CAST, _SOURCE + "cast", ("bool", "not"))
KERNELS: tuple[DeviceKernel, ...] = (*UNARY.values(), *BINARY.values(), *INTEGERS.values(), *WHERE.values(), *CAST.values(), NOT)


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
    if name == "not":
        steps.launch(NOT, _grid(NOT, y.spec.size), x=x.ref, y=y.ref, n=y.spec.size)
        return
    if name not in UNARY or x.spec.dtype != "float32":
        raise UnsupportedOp(f"no kernel for CUDA computes {name} of {x.spec.dtype}")
    kernel = UNARY[name]
    steps.launch(kernel, _grid(kernel, y.spec.size), x=x.ref, y=y.ref, n=y.spec.size, p=p, q=q)


def emit_binary(steps: DeviceSteps, name: str, a: Operand, b: Operand, y: Operand) -> None:
    """Appends Binary."""
    floats = a.spec.dtype == "float32"
    kernel = BINARY.get(name) if floats else INTEGERS.get((name, a.spec.dtype.name))
    if kernel is None:
        raise UnsupportedOp(f"no kernel for CUDA computes {name} of {a.spec.dtype}")
    fields = _walked(kernel, "ab", (a, b), y)
    if floats:
        # Where the last axis is walked in fours, so are the others: all else that an operand walks is a multiple of its last extent, or 0.
        fields["wide"] = int(fields["n5"] % 4 == 0 and fields["a5"] in (0, 1) and fields["b5"] in (0, 1))  # type: ignore[operator]
    steps.launch(kernel, _grid(kernel, y.spec.size), **fields)


def emit_where(steps: DeviceSteps, inputs: Sequence[Operand], y: Operand) -> None:
    """Appends Where."""
    kernel = WHERE.get(y.spec.dtype.itemsize)
    if kernel is None:
        raise UnsupportedOp(f"Where has no kernel for CUDA for {y.spec.dtype}")
    steps.launch(kernel, _grid(kernel, y.spec.size), **_walked(kernel, "cab", inputs, y))


def emit_cast(steps: DeviceSteps, x: Operand, y: Operand) -> None:
    """Appends Cast."""
    kernel = CAST.get((x.spec.dtype.name, y.spec.dtype.name))
    if kernel is None:
        raise UnsupportedOp(f"no kernel for CUDA casts {x.spec.dtype} to {y.spec.dtype}")
    steps.launch(kernel, _grid(kernel, y.spec.size), x=x.ref, y=y.ref, n=y.spec.size)
