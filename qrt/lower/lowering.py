"""Lowering: a fused graph and the shapes of its inputs → a Program.

Lowering runs once per set of input shapes, with every extent known, so nothing here is symbolic: Shape gives a constant,
and whatever is computed from constants is computed now.

A value's physical layout is a permutation of its logical axes, and a Transpose only renames axes: no bytes move until an
op asks for another order. Images therefore flow channels-last between convolutions whatever the file says.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from qrt.core.errors import ModelError, QrtError, UnsupportedOp
from qrt.core.record import record
from qrt.graph import has_subgraph, ir
from qrt.lower.spelled import SPELLED
from qrt.ops.movement import Copy, Transpose
from qrt.ops.op import Array, Op, Spec, View
from qrt.ops.program import Program, interpret
from qrt.runtime.shared import shared

__all__ = ["Constants", "Handler", "Lowering", "NotConstant", "NotNative", "Tensor", "channels_last", "identity"]


class NotNative(Exception):
    """A node that qrt has no kernel for; the argument says why. It runs in Python instead."""


class NotConstant(NotNative):
    """A node that has a kernel only where the contents of `value` are known before the run."""

    def __init__(self, value: ir.Value | None, what: str) -> None:
        super().__init__(f"{what} is not a constant")
        self.value = value


@record
class Tensor:
    """Where a logical value lives: program value `value`, whose axis k is the logical axis perm[k]."""

    value: int
    perm: tuple[int, ...]


def identity(rank: int) -> tuple[int, ...]:
    """The layout in which physical and logical axes agree."""
    return tuple(range(rank))


def channels_last(rank: int) -> tuple[int, ...]:
    """The layout of images: batch, space, channels. For rank 4: (0, 2, 3, 1)."""
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


class Constants:
    """A model's constants, in every layout asked for: each array is made once, so that what is packed from it is too.

    `above`: those of the model, for the constants of one lowering (shapes, and what follows from them), which go with it.
    """

    def __init__(self, above: Constants | None = None) -> None:
        self._above = above
        self._named: dict[str, Array] = {}
        self._held: dict[int, Array] = {}
        self._made: dict[tuple[int, Hashable], Array] = {}

    def named(self, name: str) -> Array | None:
        """What `name` was given to."""
        return self._above.named(name) if self._above is not None else self._named.get(name)

    def name(self, name: str, array: Array) -> Array:
        """Keeps `array`, an initializer or what follows from initializers alone, as a constant of the model."""
        if self._above is not None:
            return self._above.name(name, array)
        self._named[name] = self._hold(array)
        return array

    def lasts(self, array: Array) -> bool:
        """Whether `array` is a constant of the model, and not of one lowering."""
        return self._above.lasts(array) if self._above is not None else id(array) in self._held

    def derived(self, source: Array, how: Hashable, make: Callable[[], Array]) -> Array:
        """What `make()` computes from the constant `source`, once: lowering again for other shapes gives the same array."""
        if self._above is not None and id(source) not in self._held and self._above.lasts(source):
            return self._above.derived(source, how, make)
        key = (id(source), how)
        if key not in self._made:
            self._hold(source)
            self._made[key] = self._hold(_kept(make(), source))
        return self._made[key]

    def laid(self, array: Array, perm: tuple[int, ...]) -> Array:
        """`array` with its axes in the order `perm`, C-contiguous."""
        return self.derived(
            array, ("laid", perm), lambda: np.ascontiguousarray(array.transpose(perm)).reshape([array.shape[k] for k in perm])
        )

    def _hold(self, array: Array) -> Array:
        """Keeps `array`: an id belongs to one array only while that lives."""
        self._held[id(array)] = array
        return array


def _kept(made: Array, source: Array) -> Array:
    """An array computed from a constant: that of another session where it is the same."""
    return shared(made) if made.flags.c_contiguous and not np.may_share_memory(made, source) else made


Handler = Callable[["Lowering", ir.Node], None]


class Lowering:
    """The state of one lowering, and the words that handlers write in.

    A handler reads its node's inputs (`const`, `get`, `image`), calls ops (`call`) and binds the node's outputs (`bind`,
    `bind_const`). It raises NotNative for what it cannot do.
    """

    def __init__(self, handlers: Mapping[tuple[str, str], Handler], constants: Constants) -> None:
        self.program = Program()
        self.constants = Constants(constants)
        self._handlers = handlers
        self._known: dict[ir.Value, Array] = {}
        self._tensors: dict[ir.Value, Tensor] = {}
        self._fed: set[ir.Value] = set()
        self._laid: dict[tuple[int, tuple[int, ...]], int] = {}
        self._constant_values: dict[int, int] = {}
        self.node: ir.Node | None = None

    # -- reading inputs -------------------------------------------------------------------------------------------------
    def const(self, value: ir.Value | None) -> Array | None:
        """The contents of `value` in logical layout, if they are known before the run."""
        if value is None:
            return None
        if value in self._known:
            return self._known[value]
        tensor = value.const_value
        if tensor is None:
            return None
        array = self.constants.named(value.name or "")
        if array is None:
            array = self.constants.name(value.name or "", tensor.numpy())
        self._known[value] = array
        return array

    def require_const(self, value: ir.Value | None, what: str) -> Array:
        """`const`, or NotConstant: `what` has to be known."""
        array = self.const(value)
        if array is None:
            raise NotConstant(value, what)
        return array

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Logical shape."""
        known = self.const(value)
        if known is not None:
            return tuple(map(int, known.shape))
        tensor = self._tensors[value]
        physical = self.program.specs[tensor.value].shape
        return tuple(physical[tensor.perm.index(axis)] for axis in range(len(physical)))

    def dtype(self, value: ir.Value) -> np.dtype[Any]:
        """NumPy dtype."""
        known = self.const(value)
        return known.dtype if known is not None else self.program.specs[self._tensors[value].value].dtype

    def perm(self, value: ir.Value) -> tuple[int, ...]:
        """The layout that `value` has now; constants have the logical one."""
        tensor = self._tensors.get(value)
        return tensor.perm if tensor is not None else identity(len(self.shape(value)))

    def get(self, value: ir.Value, perm: tuple[int, ...] | None = None) -> int:
        """The program value that holds `value` in layout `perm` (default: logical). Data moves only if it has to."""
        known = self.const(value)
        wanted = perm if perm is not None else identity(len(self.shape(value)))
        if known is not None and value not in self._tensors:
            return self.constant(self.constants.laid(known, wanted))
        tensor = self._tensors[value]
        return self._relayout(tensor, wanted)

    def image(self, value: ir.Value) -> int:
        """`get`, channels last."""
        return self.get(value, channels_last(len(self.shape(value))))

    def constant(self, array: Array) -> int:
        """The program value of a constant array; the same array gives the same value."""
        key = id(array)
        if key not in self._constant_values:
            index = self.program.constant(array)
            self.program.constants[index] = array if array.flags.c_contiguous else self.program.constants[index]
            self._constant_values[key] = index
        return self._constant_values[key]

    def _relayout(self, tensor: Tensor, wanted: tuple[int, ...]) -> int:
        if tensor.perm == wanted:
            return tensor.value
        # Two values may be one program value with their axes named differently: what counts is how its bytes move.
        steps = tuple(tensor.perm.index(axis) for axis in wanted)
        key = (tensor.value, steps)
        if key not in self._laid:
            extents = self.program.specs[tensor.value].shape
            moved = [axis for axis in steps if extents[axis] != 1]
            # Axes of one element move no bytes.
            op = View(tuple(extents[axis] for axis in steps)) if moved == sorted(moved) else Transpose(steps)
            self._laid[key] = self.call(op, [tensor.value])[0]
        return self._laid[key]

    # -- writing outputs ------------------------------------------------------------------------------------------------
    def call(self, op: Op, inputs: Sequence[int]) -> tuple[int, ...]:
        """Appends `op` to the program, in the name of the current node."""
        name = (self.node.name or self.node.op_type) if self.node is not None else "input"
        return self.program.call(op, inputs, name)

    def bind(self, value: ir.Value, index: int, perm: tuple[int, ...] | None = None) -> None:
        """Says that `value` is the program value `index` in layout `perm` (default: logical)."""
        rank = len(self.program.specs[index].shape)
        self._tensors[value] = Tensor(index, perm if perm is not None else identity(rank))

    def bind_image(self, value: ir.Value, index: int) -> None:
        """`bind`, channels last."""
        self.bind(value, index, channels_last(len(self.program.specs[index].shape)))

    def bind_const(self, value: ir.Value, array: Array) -> None:
        """Says that the contents of `value` are known."""
        self._known[value] = array

    def rename(self, source: ir.Value, target: ir.Value, axes: Sequence[int]) -> None:
        """Binds `target` to `source` with its logical axes permuted: target axis i is source axis axes[i]. No bytes move."""
        known = self.const(source)
        if known is not None and source not in self._tensors:
            self.bind_const(target, known.transpose(tuple(axes)))
            return
        tensor = self._tensors[source]
        self.bind(target, tensor.value, tuple(list(axes).index(axis) for axis in tensor.perm))

    # -- running ----------------------------------------------------------------------------------------------------------
    def feed(self, value: ir.Value, array: Array, known: bool) -> None:
        """Declares `value` an input of the program, like `array`; `known`: its contents are those of `array`."""
        index = self.program.value(Spec(array.shape, array.dtype))
        self.program.inputs.append(index)
        self._fed.add(value)
        if known:
            self.bind_const(value, array.copy())
        else:
            self.bind(value, index)

    def lower(self, node: ir.Node) -> None:
        """Lowers one node, or computes it now if its inputs are known. Raises ModelError for one that does not fit its inputs."""
        self.node = node
        handler = self._handlers.get((node.domain, node.op_type))
        if handler is None:
            raise NotNative("no kernel for this operator")
        given = [v for v in node.inputs if v is not None]
        known = [array for v in given if v not in self._tensors and (array := self.const(v)) is not None]
        try:
            if known and len(known) == len(given) and not has_subgraph(node):
                self._compute(node, handler, all(self.constants.lasts(array) for array in known))
            else:
                handler(self, node)
        except UnsupportedOp as lacking:
            if node.domain != "" and node.op_type not in SPELLED:  # onnx.reference knows no other operators
                raise
            raise NotNative(str(lacking.__cause__ or lacking)) from lacking
        except QrtError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # Handlers test what kernels trust; what is malformed in another way fails in NumPy or in Python, and is the model's fault.
            raise ModelError(f"node {node.name!r} ({node.op_type}): its inputs and attributes do not fit one another: {error}") from error

    def _compute(self, node: ir.Node, handler: Handler, lasting: bool) -> None:
        """Binds the outputs of a node of known inputs, through the references of its own ops. `lasting`: for every lowering."""
        made = {v: self.constants.named(v.name) for v in node.outputs if v.name} if lasting else {}
        if made and all(array is not None for array in made.values()):
            self._known.update((value, array) for value, array in made.items() if array is not None)
            return
        side = Lowering(self._handlers, self.constants)
        side.node = node
        side._known = dict(self._known)
        handler(side, node)
        wanted = [v for v in node.outputs if v.name and (v in side._tensors or v in side._known)]
        side.program.outputs = [side.get(v) for v in wanted if side.const(v) is None]
        results = iter(interpret(side.program, []))
        for value in wanted:
            known = side.const(value)
            array = known if known is not None else next(results)
            self.bind_const(value, self.constants.name(value.name or "", array) if lasting else array)

    def tapped(self, names: frozenset[str]) -> dict[int, list[tuple[str, tuple[int, ...]]]]:
        """The program values that the graph values `names` live in, each with its names and their layouts; not those that are fed."""
        found: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
        for value, tensor in self._tensors.items():
            if value.name in names and value not in self._fed:
                found.setdefault(tensor.value, []).append((value.name, tensor.perm))
        return found

    def finish(self, outputs: Sequence[ir.Value]) -> Program:
        """Declares the program's outputs, each in its logical layout and in a buffer of its own."""
        taken = set(self.program.inputs)
        for value in outputs:
            if value not in self._tensors and self.const(value) is None:
                raise ModelError(f"graph output {value.name!r} is never computed")
            index = self.get(value)
            root = self.program.roots()[index]
            if root in taken or root in self.program.constants:
                index = root = self.call(Copy(), [index])[0]
            taken.add(root)
            self.program.outputs.append(index)
        return self.program
