"""The graph before anything is built from it: versions, domains, names, and how big it would grow."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, defs

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.graph.passes.spell_out import SPELLED, VENDOR_DOMAIN
from qrt.graph.passes.vendor import VENDOR_OPS
from qrt.loaders._limits import MAX_NODES, MIN_OPSET
from qrt.loaders._tensors import attribute_graphs

__all__ = ["check_structure", "disown"]

_Key = tuple[str, str, str]
_STANDARD = ("", "ai.onnx")
# QuantizeLinear and DequantizeLinear of 16-bit codes, before the standard had them.
_VENDOR = {*VENDOR_OPS, "QuantizeLinear", "DequantizeLinear", *(name for domain, name in SPELLED if domain == VENDOR_DOMAIN)}

# Operators that ONNX Runtime's optimizer writes as if the standard had them, and the opset that they came with, if they did.
_CLAIMED = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 1 << 31}


def disown(proto: ModelProto) -> None:
    """Moves nodes that claim to be standard, and are ONNX Runtime's own, to its domain."""
    version = max((entry.version for entry in proto.opset_import if entry.domain in _STANDARD), default=0)
    claimed = [n for n in _nested(proto.graph.node) if n.domain in _STANDARD and version < _CLAIMED.get(n.op_type, 0)]
    for node in claimed:
        node.domain = VENDOR_DOMAIN
    if claimed and all(entry.domain != VENDOR_DOMAIN for entry in proto.opset_import):
        proto.opset_import.add(domain=VENDOR_DOMAIN, version=1)


def check_structure(proto: ModelProto, where: str) -> None:
    """Raises ModelError or UnsupportedOp, naming `where` and the node or value, for what no later step could work with."""
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{where} holds no graph: it is not an ONNX model, or it is damaged; export it again")
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{where} has IR version {proto.ir_version} and the installed onnx knows {onnx.IR_VERSION} at most; upgrade onnx or "
            "export for an older IR version"
        )
    functions = {_key(f): f for f in proto.functions}
    if len(functions) != len(proto.functions):
        raise ModelError(f"{where} defines two functions of one name; export it again")
    versions = _opsets(proto.opset_import, where)
    _check_size(proto.graph, functions, where)
    for value in (*proto.graph.input, *proto.graph.output):
        _check_value_info(value, where)
    _check_graph(proto.graph, set(), versions, set(functions), where)
    for function in proto.functions:
        body = GraphProto(name=function.name, node=function.node)
        body.input.extend(ValueInfoProto(name=name) for name in function.input)
        body.output.extend(ValueInfoProto(name=name) for name in function.output)
        _check_graph(body, set(), _opsets(function.opset_import, where) or versions, set(functions), where)


def _opsets(imports: Iterable[onnx.OperatorSetIdProto], where: str) -> dict[str, int]:
    versions: dict[str, int] = {}
    newest = defs.onnx_opset_version()
    for entry in imports:
        domain = "" if entry.domain in _STANDARD else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"{where} imports two versions of the domain {domain!r}; export it again")
        if domain == "" and not MIN_OPSET <= entry.version <= newest:
            remedy = (
                f"export it with opset {MIN_OPSET} or newer" if entry.version < MIN_OPSET else f"upgrade onnx or export with opset {newest}"
            )
            raise ModelError(f"{where} has opset {entry.version}; qrt takes {MIN_OPSET} to {newest}: {remedy}")
    return versions


def _key(item: FunctionProto | NodeProto) -> _Key:
    name = item.name if isinstance(item, FunctionProto) else item.op_type
    return item.domain, name, item.overload


def _label(node: NodeProto) -> str:
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    return f"the {node.op_type} node that makes {node.output[0]!r}" if node.output else f"a {node.op_type} node"


def _nested(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes and the nodes of the graphs they carry."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in attribute_graphs(attribute):
                yield from _nested(graph.node)


def _check_size(graph: GraphProto, functions: dict[_Key, FunctionProto], where: str) -> None:
    """How many nodes the graph has with functions written out, without writing them out: a few lines can double twenty times."""
    sizes: dict[_Key, int] = {}
    state: dict[_Key, bool] = {}  # False while a function is being counted, True after

    for root in functions:
        stack = [root]
        while stack:
            key = stack[-1]
            calls = [_key(n) for n in _nested(functions[key].node)]
            inner = {c for c in calls if c in functions}
            if key not in state:
                state[key] = False
                if any(state.get(c) is False for c in inner):
                    raise ModelError(f"{where}: function {key[1]!r} calls itself; export it without recursion")
                stack.extend(c for c in inner if c not in state)
                continue
            stack.pop()
            if not state[key]:
                state[key] = True
                sizes[key] = sum(sizes.get(c, 1) for c in calls)
    nodes = sum(sizes.get(_key(n), 1) for n in _nested(graph.node))
    if nodes > MAX_NODES:
        raise ModelError(f"{where} has {nodes:,} nodes; qrt takes {MAX_NODES:,} at most: split the model")


def _check_value_info(value: ValueInfoProto, where: str) -> None:
    for dim in value.type.tensor_type.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value < 0:
            raise ModelError(f"{where}: value {value.name!r} has the dimension {dim.dim_value}; give a free dimension a name instead")


def _check_graph(graph: GraphProto, outer: set[str], versions: dict[str, int], functions: set[_Key], where: str) -> None:
    """Names and operators of one graph whose nodes may also read the values `outer`."""
    _check_text(where, graph.name, graph.doc_string)
    defined = set(outer)
    inputs = [v.name for v in graph.input]
    # Files of IR version 3 list each initializer among the inputs as well.
    initializers = [t.name for t in graph.initializer]
    for name in [*inputs, *(set(initializers) - set(inputs))]:
        _define(name, defined, f"{where}: graph {graph.name!r}")
    if len(set(initializers)) != len(initializers):
        raise ModelError(f"{where}: graph {graph.name!r} has two initializers of one name; export it again")
    for node in graph.node:
        _check_text(where, node.name, node.op_type, node.domain, node.doc_string, *node.output)
        for name in node.output:
            if name:
                _define(name, defined, f"{where}: {_label(node)}")
    for node in graph.node:
        _check_operator(node, versions, functions, where)
        missing = next((name for name in node.input if name and name not in defined), None)
        if missing is not None:
            raise ModelError(f"{where}: {_label(node)} reads {missing!r}, which nothing makes; export the model again")
        for attribute in node.attribute:
            for inner in attribute_graphs(attribute):
                _check_graph(inner, defined, versions, functions, where)
    for value in graph.output:
        if value.name not in defined:
            raise ModelError(f"{where}: the output {value.name!r} of graph {graph.name!r} is made by no node; export the model again")


def _check_text(where: str, *words: str | bytes) -> None:
    """protobuf gives what is no UTF-8 as bytes, and takes it from nobody."""
    for word in words:
        if isinstance(word, bytes):
            raise ModelError(f"{where}: {word!r} is no text in UTF-8; export the model again")


def _define(name: str, defined: set[str], what: str) -> None:
    if not name:
        raise ModelError(f"{what} has an input or initializer without a name; export the model again")
    if name in defined:
        raise ModelError(f"{what} defines {name!r}, which is defined already: names must be unique; export the model again")
    defined.add(name)


@functools.cache
def _is_standard(op_type: str, version: int) -> bool:
    """Whether this opset of the standard domain has the operator."""
    try:
        return not defs.get_schema(op_type, version, "").deprecated
    except defs.SchemaError:
        return False


def _check_operator(node: NodeProto, versions: dict[str, int], functions: set[_Key], where: str) -> None:
    if _key(node) in functions:
        return
    if node.domain in _STANDARD:
        if "" not in versions:
            raise ModelError(f"{where} uses standard operators but imports no opset; export the model again")
        if not _is_standard(node.op_type, versions[""]):
            raise UnsupportedOp(
                f"{where}: {_label(node)}: opset {versions['']} has no operator {node.op_type!r}; export with a matching opset"
            )
    elif node.domain != VENDOR_DOMAIN or node.op_type not in _VENDOR:
        raise UnsupportedOp(
            f"{where}: {_label(node)} belongs to the domain {node.domain!r}; qrt runs standard ONNX operators and most "
            "of those that ONNX Runtime's optimizations write: export the model without others (optimization level 'extended' or lower)"
        )
