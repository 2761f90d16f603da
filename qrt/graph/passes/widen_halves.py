"""Compute in float32 what a model says in float16 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from qrt.graph.model import Model
from qrt.graph.nodes import all_graphs, attr_int, is_op, new_initializer, unique_name, value_names
from qrt.graph.passes.infer_shapes import infer_shapes
from qrt.graph.passes.name_everything import name_everything

__all__ = ["HALVES", "widen_halves"]

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FLOAT = ir.DataType.FLOAT
# Integer attributes that name a dtype.
_DTYPES = ("dtype", "output_datatype", "output_dtype", "stash_type", "softmax_precision")
# What jumps where its input hardly changes, so that it needs the number that the model says, rounded.
_JUMPS = frozenset({"Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Mod", "NonZero"})
_JUMPS |= {"Round", "Sign", "Unique"}
# Every number of these is one of float16 and of bfloat16 too.
_EXACT = frozenset({ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8})


def widen_halves(model: Model) -> bool:
    """Requires: no functions; constants are initializers. Ensures: only Casts, and nodes that need the bits (`_keeps`), read or make
    float16 and bfloat16; constants are float32; inputs and outputs of the model have the types they had.

    Nothing rounds any more where a node gives a result of 16 bits, as in ONNX Runtime, save where rounding is what the model asks for, or
    decides something: see docs/numerics.md.
    """
    if all(_settled(value, model) for value in _halves(model)):
        return False
    name_everything(model)  # now, as nodes without a name are called after their outputs, and some outputs get new names
    infer_shapes(model)
    for node in model.graph.all_nodes():
        if is_op(node, "CastLike"):
            _spell_cast(node)
    _Widening(model).run()
    return True


def _spell_cast(node: ir.Node) -> None:
    """A CastLike, while it is known to what, becomes the Cast that it is."""
    like = node.inputs[1]
    if like is not None and like.dtype is not None:
        node.op_type = "Cast"
        node.attributes["to"] = ir.AttrInt64("to", int(like.dtype))
        node.resize_inputs(1)


def _halves(model: Model) -> Iterator[ir.Value]:
    """Values of 16 bits; not sequences that the model is given, which it cannot be run with."""
    for graph in all_graphs(model.graph):
        for value in (*graph.inputs, *graph.initializers.values()):
            if value.dtype in HALVES and isinstance(value.type, ir.TensorType):
                yield value
        for node in graph:
            for value in node.outputs:
                if value.dtype in HALVES:
                    yield value


def _keeps(node: ir.Node) -> bool:
    """Whether the node itself reads or makes 16 bits: operators that nobody here knows, and those that say so."""
    precision = is_op(node, "QuantizeLinear") and attr_int(node, "precision", 0) in HALVES
    return node.domain != "" or node.op_type == "BitCast" or precision


def _born(value: ir.Value, model: Model) -> bool:
    """Whether `value` has 16 bits whatever becomes of the others."""
    node = value.producer()
    if node is None:
        return value.graph is model.graph and (value.is_graph_input() or value.is_graph_output())
    return is_op(node, "Cast") or _keeps(node)


def _settled(value: ir.Value, model: Model) -> bool:
    if not _born(value, model) or (value.is_graph_output() and value.graph is not model.graph):
        return False
    readers = [use.node for use in value.uses()]
    return all(_keeps(node) or (is_op(node, "Cast") and attr_int(node, "to", 0) == _FLOAT) for node in readers)


def _wide(type_: ir.TypeProtocol) -> ir.TypeProtocol:
    """`type_`, of float32."""
    if isinstance(type_, ir.SequenceType | ir.OptionalType):
        return type(type_)(_wide(type_.elem_type))
    return ir.SparseTensorType(_FLOAT) if isinstance(type_, ir.SparseTensorType) else ir.TensorType(_FLOAT)


class _Widening:
    """One walk over a model. `says`: of each value that is float32 now, what the model says; `exact`: those that cannot need rounding."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.says: dict[ir.Value, ir.DataType] = {}
        self.exact: set[ir.Value] = set()
        self._names = value_names(model.graph)
        # By the graph, what is rounded there, and to what.
        self._rounded: dict[tuple[int, ir.Value | None, int], ir.Value | None] = {}

    def run(self) -> None:
        graphs = list(all_graphs(self.model.graph))
        first = self.model.graph[0] if len(self.model.graph) else None
        for value in list(_halves(self.model)):
            if value.const_value is not None:
                self._constant(value, value.const_value)
            elif value.producer() is None and value.graph is self.model.graph and first is not None:
                self._bring_in(value, first, before=True)
            elif not _born(value, self.model):
                self._retype(value)
        for graph in graphs:
            for node in list(graph):
                self._node(node)
        self._give_out()

    # -- values -----------------------------------------------------------------------------------------------------------
    def _retype(self, value: ir.Value) -> None:
        if value.dtype in HALVES and value.type is not None:
            self.says[value] = value.dtype
            value.type = _wide(value.type)

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        array = tensor.numpy().astype(np.float32)
        if value.is_graph_output() and value.graph is self.model.graph:  # which stays what the model gives
            wide = new_initializer(self.model.graph, f"{value.name}_float32", array, self._names)
            self._read_instead(value, wide)
        else:
            wide, value.const_value = value, ir.Tensor(array, name=tensor.name)
            self._retype(value)
        self.exact.add(wide)

    def _read_instead(self, value: ir.Value, wide: ir.Value) -> None:
        """Lets all nodes read `wide`, and the bodies that give `value` give it."""
        self.says[wide] = value.dtype or _FLOAT
        for use in tuple(value.uses()):
            if use.node is not wide.producer():
                use.node.replace_input_with(use.idx, wide)
        graph = value.graph
        if value.is_graph_output() and graph is not None and graph is not self.model.graph:
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = wide

    def _bring_in(self, value: ir.Value, at: ir.Node, before: bool) -> ir.Value | None:
        """Makes float32 of `value`, which keeps its 16 bits, for all that read it, and gives that; None where nobody does."""
        inner = value.is_graph_output() and value.graph is not self.model.graph
        if not value.uses() and not inner:
            return None
        cast = self._cast(value, _FLOAT, f"{value.name}_float32")
        (at.graph.insert_before if before else at.graph.insert_after)(at, [cast])  # type: ignore[union-attr]
        self._read_instead(value, cast.outputs[0])
        self.exact.add(cast.outputs[0])
        return cast.outputs[0]

    def _cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
        name = unique_name(self.model.graph, name, self._names)
        node = ir.node("Cast", [value], {"to": int(to)}, name=f"Cast_{name}")
        made = node.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(to), value.shape
        return node

    def _round(self, node: ir.Node, index: int, wide: bool = True) -> None:
        """Lets `node` read its input rounded to what the model says: as float32 again, or, where not `wide`, in 16 bits."""
        value = node.inputs[index]
        if value is None or value not in self.says or (wide and value in self.exact) or node.graph is None:
            return
        dtype = self.says[value]
        known = self._rounded.get((id(node.graph), value, dtype))
        if not wide or known is None:
            casts = [self._cast(value, dtype, f"{value.name}_{dtype.name.lower()}")]
            if wide:
                casts.append(self._cast(casts[0].outputs[0], _FLOAT, f"{value.name}_rounded"))
                self._rounded[id(node.graph), value, dtype] = casts[-1].outputs[0]
            node.graph.insert_before(node, casts)
            known = casts[-1].outputs[0]
        node.replace_input_with(index, known)

    # -- nodes ------------------------------------------------------------------------------------------------------------
    def _node(self, node: ir.Node) -> None:
        if is_op(node, "Cast"):
            self._cast_node(node)
            return
        if _keeps(node):
            for index in range(len(node.inputs)):
                self._round(node, index, wide=False)
            for value in node.outputs:
                if value.dtype in HALVES:
                    self._bring_in(value, node, before=False)
            return
        if is_op(node, *_JUMPS):
            for index in range(len(node.inputs)):
                self._round(node, index)
        for name, attr in list(node.attributes.items()):
            wide = _wide_attribute(attr)
            if wide is not None:
                node.attributes[name] = wide

    def _cast_node(self, node: ir.Node) -> None:
        x, y, to = node.inputs[0], node.outputs[0], attr_int(node, "to", 0)
        said = None if x is None else self.says.get(x)
        if said is not None and to in (said, _FLOAT):
            # Nothing is left to do: what has 16 bits in the model is float32 already.
            node.op_type = "Identity"
            node.attributes.clear()
            self._retype(y)
            if x in self.exact:
                self.exact.add(y)
        elif to in HALVES and x is not None and x.dtype in _EXACT:
            node.attributes["to"] = ir.AttrInt64("to", int(_FLOAT))
            self._retype(y)
            self.exact.add(y)
        elif to in HALVES and (again := self._rounded.get((id(node.graph), x, to))) is not None:
            # Exporters of mixed precision write a Cast for each reader.
            self._read_instead(y, again)
        elif to in HALVES:
            self._rounded[id(node.graph), x, to] = self._bring_in(y, node, before=False)
        elif said is not None and to != ir.DataType.DOUBLE:
            self._round(node, 0)

    def _give_out(self) -> None:
        """Casts the model's outputs back."""
        outputs = self.model.graph.outputs
        for index, value in enumerate(outputs):
            if value in self.says and isinstance(value.type, ir.TensorType):
                name, dtype = value.name, self.says[value]
                value.name = unique_name(self.model.graph, f"{name}_float32", self._names)
                cast = self._cast(value, dtype, f"{name}_{dtype.name.lower()}")
                cast.outputs[0].name = name
                self.model.graph.append(cast)
                outputs[index] = cast.outputs[0]


def _float32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _wide_attribute(attr: ir.Attr) -> ir.Attr | None:
    """The attribute for float32, where it names a dtype of 16 bits or holds numbers of one."""
    if attr.is_ref():
        return None
    if attr.type == ir.AttributeType.INT and attr.name in _DTYPES and attr.as_int() in HALVES:
        return ir.AttrInt64(attr.name, int(_FLOAT))
    if attr.type == ir.AttributeType.TENSOR and attr.as_tensor().dtype in HALVES:
        return ir.AttrTensor(attr.name, _float32(attr.as_tensor()))
    if attr.type == ir.AttributeType.TYPE_PROTO and attr.value.type is not None and attr.value.type.dtype in HALVES:
        return ir.AttrTypeProto(attr.name, ir.TypeAndShape(_wide(attr.value.type), attr.value.shape))
    return None
