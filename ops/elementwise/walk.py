"""The walk of broadcast operands that element-wise kernels share."""

from __future__ import annotations

from collections.abc import Sequence

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.ops.op import Op, Operand, Ref, Spec
from qrt.ops.strides import agreed, contiguous, is_contiguous, row_stride

__all__ = ["MAX_AXES", "ROWS", "SMALL", "Walked", "broadcast_shape", "merge", "row_fields", "threads_for", "walk_fields", "walk_record"]

MAX_AXES = 6
# Bytes below which handing work to another thread costs more than it saves.
SMALL = 1 << 16
# Elements that one tile of the walk holds at most; threads share tiles.
TILE = 4096

# Record fields of a function of one operand: `rows` of `n` elements, from one row of x and y to the next in elements.
ROWS = (("x", "i8"), ("y", "i8"), ("rows", "i8"), ("n", "i8"), ("x_row", "i8"), ("y_row", "i8"))


def threads_for(nbytes: int) -> int | None:
    """How many threads should share work that writes `nbytes`: one, or all."""
    return None if nbytes > SMALL else 1


def broadcast_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The common shape of operands of one rank, in which extents of 1 repeat.

    Raises ModelError where there is none, UnsupportedOp where a walk over it takes more than six strides.
    """
    if len({len(shape) for shape in shapes}) != 1:
        raise ModelError(f"operands of shapes {list(shapes)} have different ranks")
    result = []
    for extents in zip(*shapes, strict=True):
        wide = {n for n in extents if n != 1}
        if len(wide) > 1:
            raise ModelError(f"operands of shapes {list(shapes)} do not broadcast")
        result.append(wide.pop() if wide else 1)
    if len(merge(tuple(result), [_steps(shape, contiguous(shape)) for shape in shapes])[0]) > MAX_AXES:
        raise UnsupportedOp(f"broadcasting {list(shapes)} takes more than {MAX_AXES} strides")
    return tuple(result)


def _steps(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The strides, 0 along extents of 1."""
    return [0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True)]


def merge(shape: tuple[int, ...], strides: Sequence[list[int]]) -> tuple[list[int], list[list[int]]]:
    """The same walk with fewer axes: drops extents of 1, joins neighbours that one stride an operand can walk."""
    axes: list[tuple[int, list[int]]] = []
    for axis, extent in enumerate(shape):
        steps = [s[axis] for s in strides]
        if extent == 1:
            continue
        if axes and all(outer == step * extent for outer, step in zip(axes[-1][1], steps, strict=True)):
            axes[-1] = (axes[-1][0] * extent, steps)
        else:
            axes.append((extent, steps))
    return [extent for extent, _ in axes], [[steps[k] for _, steps in axes] for k in range(len(strides))]


def walk_record(operands: str) -> tuple[tuple[str, str], ...]:
    """Record fields of a walk: for y and each operand (a letter) its address and its strides in elements; that of y along axis 5 is 1.

    A tile is `rows` of axis 4 by `cols` of axis 5; `outer` is the product of axes 0 to 3.
    """
    fields = [("outer", "i8"), ("rows", "i8"), ("cols", "i8"), *((f"n{k}", "i8") for k in range(1, MAX_AXES))]
    for letter in f"y{operands}":
        fields += [(letter, "i8"), *((f"{letter}{k}", "i8") for k in range(MAX_AXES))]
    return tuple(fields)


def walk_fields(letters: str, operands: Sequence[Operand], y: Operand) -> dict[str, int | Ref]:
    """Values of `walk_record`'s fields, for operands whose shapes broadcast (`broadcast_shape`)."""
    walked = [y, *operands]
    extents, strides = merge(y.spec.shape, [_steps(operand.spec.shape, operand.strides) for operand in walked])
    pad = MAX_AXES - len(extents)
    extents = [1] * pad + extents
    cols = min(extents[5], TILE)
    fields: dict[str, int | Ref] = {"outer": extents[0] * extents[1] * extents[2] * extents[3]}
    fields |= {"cols": cols, "rows": max(1, TILE // cols)}
    fields |= {f"n{k}": extents[k] for k in range(1, MAX_AXES)}
    for letter, operand, steps in zip(f"y{letters}", walked, strides, strict=True):
        fields[letter] = operand.ref
        fields |= {f"{letter}{k}": step for k, step in enumerate([0] * pad + steps)}
    return fields


def row_fields(x: Operand, y: Operand) -> dict[str, int | Ref]:
    """Values of ROWS, for two values of one shape whose rows (`row_stride`) lie at one distance each; one row where all lies together."""
    shape = y.spec.shape
    if all(is_contiguous(shape, operand.strides) for operand in (x, y)):
        return {"x": x.ref, "y": y.ref, "rows": 1, "n": y.spec.size, "x_row": 0, "y_row": 0}
    x_row, y_row = (agreed(row_stride(shape, operand.strides)) for operand in (x, y))
    return {"x": x.ref, "y": y.ref, "rows": y.spec.size // shape[-1], "n": shape[-1], "x_row": x_row, "y_row": y_row}


def _in_rows(spec: Spec, strides: Sequence[int]) -> bool:
    """Whether a walk can read or write a part with these strides: of rows that lie at one distance, along axes that it has room for."""
    return len(spec.shape) <= MAX_AXES and spec.shape[-1:] != (1,) and row_stride(spec.shape, strides) is not None


class Walked(Op):
    """An op whose kernel walks its operands, parts of larger values as well."""

    def reads(self, index: int, x: Spec, strides: Sequence[int]) -> bool:
        return _in_rows(x, strides)

    def writes(self, y: Spec, strides: Sequence[int]) -> bool:
        return _in_rows(y, strides)
