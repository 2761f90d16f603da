"""Nodes that other operators say as well become these: ONNX Runtime's fused float operators, and standard ones that ONNX defines by others.

So that every floor below, from quantization to kernels, knows one spelling.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import defs, helper

from qrt.core.errors import ModelError, QrtError
from qrt.graph.model import Model
from qrt.graph.nodes import naming, replace, unique_name
from qrt.graph.passes._attention import attention
from qrt.graph.passes._einsum import einsum
from qrt.graph.passes._spelling import VENDOR_DOMAIN, Spell, Spelling, Unsaid
from qrt.graph.passes._vendor_attention import ATTENTION_SPELLINGS
from qrt.graph.passes._vendor_codes import CODE_SPELLINGS
from qrt.graph.passes._vendor_float import FLOAT_SPELLINGS

__all__ = ["SPELLED", "VENDOR_DOMAIN", "spell_out"]


def _by_definition(s: Spelling) -> None:
    """The body that ONNX gives the operator for the types of its inputs. What is not float32 has no kernels: it stays one node."""
    from onnx import inliner  # here, because few models need it

    node = s.node
    if s.dtype(s.needed(0)) != ir.DataType.FLOAT:
        raise Unsaid
    given = list(dict.fromkeys(value for value in node.inputs if value is not None))
    if any(value.dtype is None or value.shape is None for value in given):
        raise Unsaid
    proto = ir.serde.serialize_node(node)
    names = {attribute.name for attribute in proto.attribute}
    schema = defs.get_schema(node.op_type, s.opset, "")
    # The inliner knows no defaults.
    proto.attribute.extend(a.default_value for a in schema.attributes.values() if a.name not in names and a.default_value.name)
    graph = onnx.GraphProto(name="body", node=[proto], input=[ir.serde.serialize_value(value) for value in given])
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in node.outputs if value.name)
    model = onnx.ModelProto(graph=graph, ir_version=10, opset_import=[helper.make_opsetid("", s.opset)])
    try:
        body = ir.from_proto(inliner.inline_selected_functions(model, [("", node.op_type)], False, True)).graph
    except RuntimeError as error:  # a definition that onnx's inliner cannot follow
        raise Unsaid from error
    if any(made.op_type == node.op_type and made.domain == "" for made in body):
        raise Unsaid
    for formal, value in zip(list(body.inputs), given, strict=True):
        formal.replace_all_uses_with(value)
    results = {value.name: value for value in body.outputs}
    s.results = [results[value.name] if value.name else None for value in node.outputs]
    s.nodes = list(body)
    body.outputs.clear()
    body.remove(s.nodes)
    for made in s.nodes:
        made.name = f"{node.name}_{made.name or made.op_type.lower()}"
        for output in made.outputs:
            if output.name:
                output.name = unique_name(s.top, f"{node.name}_{output.name}")


# The types between which CastLike is a Cast that has a kernel.
_CAST = frozenset({"BOOL", "FLOAT", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})


def _attention(s: Spelling) -> None:
    try:
        attention(s)
    except Unsaid:
        s.nodes.clear()
        _by_definition(s)


def _cast_like(s: Spelling) -> None:
    source, wanted = (s.dtype(s.needed(k)) for k in (0, 1))
    if not {source.name, wanted.name} <= _CAST:
        raise Unsaid
    s.results = [s.op("Cast", s.needed(0), to=int(wanted))]


# The operators that are spelled out, by domain and name.
SPELLED: dict[tuple[str, str], Spell] = {
    **{(VENDOR_DOMAIN, name): spell for table in (FLOAT_SPELLINGS, ATTENTION_SPELLINGS, CODE_SPELLINGS) for name, spell in table.items()},
    ("", "Attention"): _attention,
    ("", "CastLike"): _cast_like,
    ("", "Einsum"): einsum,
    **dict.fromkeys(
        (("", name) for name in ("NegativeLogLikelihoodLoss", "RotaryEmbedding", "SoftmaxCrossEntropyLoss")),
        _by_definition,
    ),
}


def spell_out(model: Model, node: ir.Node) -> bool:
    """Puts the nodes that say the same in the place of `node`, after which they are inserted; False where there are none, or not yet.

    Requires: the types of the node's inputs, as far as they are known. Raises ModelError or UnsupportedOp for a node that is malformed, or
    asks for what qrt does not have.
    """
    spell = SPELLED.get((node.domain, node.op_type))
    if spell is None or node.graph is None:
        return False
    opsets = model.ir.opset_imports
    with naming(model.graph):
        s = Spelling(node, model.graph, opsets.get("", 0))
        try:
            spell(s)
        except Unsaid:
            return False
        except QrtError:
            raise
        except Exception as error:  # NumPy's and onnx's are of many kinds; all mean that attributes and inputs do not fit one another
            raise ModelError(f"{model.name}: node {node.name!r} ({node.op_type}) is malformed: {error}") from error
        _take_place(s, node, node.graph)
    opsets[""] = max(opsets.get("", 0), s.opset)
    return True


def _take_place(s: Spelling, node: ir.Node, graph: ir.Graph | ir.Function) -> None:
    missing = [k for k, value in enumerate(node.outputs) if s.wanted(k) and (k >= len(s.results) or s.results[k] is None)]
    if missing:
        raise s.refuse(f"its output {missing[0]}")
    given: set[ir.Value] = set()
    pairs = []
    for old, new in zip(node.outputs, s.results, strict=False):
        if new is None or not (old.uses() or old.is_graph_output()):
            continue
        if old.is_graph_output() and (new in given or new.producer() not in s.nodes):
            new = s.op("Identity", new)
        given.add(new)
        if new.producer() in s.nodes:
            new.type, new.shape = old.type, old.shape
        pairs.append((old, new))
    graph.insert_after(node, s.nodes)
    for old, new in pairs:
        replace(old, new)
    graph.remove(node, safe=True)
