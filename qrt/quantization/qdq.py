"""Writes Q/DQ: QuantizeLinear → DequantizeLinear at every site, DequantizeLinear of int8 weights and int32 biases. Standard ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from qrt.core.dtypes import qint8, qint32, quint8
from qrt.core.errors import QuantizationError
from qrt.core.numerics import quantize
from qrt.core.qparams import QParams
from qrt.graph import Model, constant, ir, is_op, replace, unique_name
from qrt.ops.rule import Kind
from qrt.quantization.construct import derive, fixed_qparams
from qrt.quantization.dynamic import DynamicWriter
from qrt.quantization.fresh import Fresh
from qrt.quantization.quantizer import DerivedQuantizationSpec, FixedQParamsQuantizationSpec
from qrt.quantization.resolve import Group, Site
from qrt.quantization.rules import RULES, is_embedding

__all__ = ["open_input", "open_output", "qparams_of", "write_qdq"]

# A bias may use this part of the range of int32; the rest is room for the sum of products.
_BIAS_LIMIT = 2.0**30
_STORED = {qint8: ir.DataType.INT8, quint8: ir.DataType.UINT8, qint32: ir.DataType.INT32}


def qparams_of(model: Model, groups: Iterable[Group], learned: Callable[[Group], QParams]) -> dict[Group, QParams]:
    """The qparams of every group that is not dynamic. `learned`: what the observer of a group gives, asked once for each.

    The scale of a weight's channel is raised where its bias would not fit int32 otherwise. Raises QuantizationError for qparams that the
    operators there cannot compute with.
    """
    nodes = {node.name or "": node for node in model.graph}
    found: dict[Group, QParams] = {}

    def visit(group: Group) -> QParams:
        if group not in found:
            found[group] = find(group)
        return found[group]

    def find(group: Group) -> QParams:
        params = given(group)
        for name in group.constants:
            held = constant(model.graph.initializers[name])
            if held is not None:
                _check_channels(name, params, held)
        return params

    def given(group: Group) -> QParams:
        spec, name = group.spec, str(group.sites[0])
        if isinstance(spec, FixedQParamsQuantizationSpec):
            return fixed_qparams(spec)
        if not isinstance(spec, DerivedQuantizationSpec):
            params = learned(group)
            _check(group, params, nodes)
            return params
        sources = [visit(source) for source in group.sources]
        weights = [source for source in group.sources if source.held]
        if spec.dtype == qint32 and group.held and len(sources) == 2 and weights == group.sources[1:]:
            bias = constant(model.graph.initializers[group.sites[0].value])
            if bias is not None:
                found[weights[0]] = sources[1] = _room_for_bias(sources[1], bias, sources[0])
        return derive(spec, sources, name)

    for group in groups:
        if not group.spec.is_dynamic:
            visit(group)
    return found


def _room_for_bias(params: QParams, bias: np.ndarray, x: QParams) -> QParams:
    """`params` with the scales of channels raised whose bias would not fit int32: dead channels, whose weights are (next to) nothing."""
    most = np.abs(bias.reshape(-1)) if params.scale.ndim else np.abs(bias).max(initial=0)
    floor = (most / (np.float64(x.scale) * _BIAS_LIMIT)).astype(np.float32)
    return QParams(np.maximum(params.scale, floor), params.zero_point, params.dtype, params.axis)


def _check_channels(name: str, params: QParams, held: np.ndarray) -> None:
    """Raises QuantizationError where a constant has other channels than its qparams."""
    if params.axis is None or (params.dtype == qint32 and held.size in (1, params.scale.size)):  # a bias is spread over the channels
        return
    if params.axis >= held.ndim or held.shape[params.axis] != params.scale.size:
        raise QuantizationError(
            f"{name!r} of shape {held.shape} has {params.scale.size} scales along axis {params.axis}: give one for each channel"
        )


def _check(group: Group, params: QParams, nodes: Mapping[str, ir.Node]) -> None:
    """Raises QuantizationError for an observer that gives what the operators here do not take."""
    for site in group.sites:
        if site.value not in group.constants:
            if params.dtype not in (quint8, qint8) or params.axis is not None:
                raise QuantizationError(
                    f"the activation observer of {site} gives {params.dtype!r} codes; activations take qrt.quint8 or qrt.qint8 per tensor"
                )
            continue
        node = nodes.get(site.reader)
        rule = RULES.get(node.op_type) if node is not None else None
        if node is None or rule is None or rule.kind is not Kind.PRODUCT:
            continue
        if params.dtype != qint8 or params.zero_point.any():
            raise QuantizationError(f"the weight observer of {site} gives {params.dtype!r}; weights take symmetric qrt.qint8")


def write_qdq(model: Model, groups: Sequence[Group], qparams: Mapping[Group, QParams], *, fold_weights: bool = True) -> None:
    """Write what `groups` say into `model` in place, whose values and nodes have the names that the sites go by.

    `fold_weights`: weights become codes now; otherwise they stay float, behind Q and DQ.
    """
    _Writer(model, fold_weights).write(groups, qparams)


def open_input(model: Model, index: int) -> None:
    """Makes an input the codes that it is quantized to. Raises QuantizationError where nothing, or something else too, is done with it."""
    value = _numbered(model, model.graph.inputs, index, "input")
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or not is_op(readers[0], "QuantizeLinear"):
        raise QuantizationError(f"input {value.name!r} of {model.name} is not quantized for all that read it: it cannot hold codes")
    codes = readers[0].outputs[0]
    value.type = codes.type
    replace(codes, value)
    model.graph.remove(readers[0], safe=True)


def open_output(model: Model, index: int) -> None:
    """Makes an output the codes that it is dequantized from. Raises QuantizationError where it is not."""
    value = _numbered(model, model.graph.outputs, index, "output")
    node = value.producer()
    codes = node.inputs[0] if node is not None and is_op(node, "DequantizeLinear") else None
    if codes is None:
        raise QuantizationError(f"output {value.name!r} of {model.name} is not quantized: it cannot hold codes")
    model.graph.outputs[index] = codes
    name = value.name
    value.name = unique_name(model.graph, f"{name}_real")
    codes.name = name


def _numbered(model: Model, values: Sequence[ir.Value], index: int, what: str) -> ir.Value:
    if not 0 <= index < len(values):
        raise QuantizationError(f"{model.name} has {len(values)} {what}s; there is none of number {index}")
    return values[index]


class _Writer:
    def __init__(self, model: Model, fold_weights: bool) -> None:
        self.graph, self.fold = model.graph, fold_weights
        self.nodes = {node.name or "": node for node in model.graph}
        self.values = {v.name or "": v for v in [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]}
        self.fresh = Fresh(self.graph)
        self.dynamic = DynamicWriter(self.graph, self.fresh)
        # What DQ gives for values that several nodes read, by value and qparams.
        self.written: dict[tuple[ir.Value, bytes], ir.Value] = {}
        # The parts of tables that rows are looked up in, by their name and qparams.
        self.tables: dict[tuple[str | None, bytes], dict[str, ir.Value]] = {}

    def write(self, groups: Sequence[Group], qparams: Mapping[Group, QParams]) -> None:
        """Weights, biases and other constants first, as they are found by what reads them; then activations; dynamic products last."""
        sites = [(site, group) for group in groups for site in group.sites]
        dynamic = {site.reader: site.value for site, group in sites if group.spec.is_dynamic}
        weights: dict[str, QParams] = {}
        for site, group in sites:
            if site.value in group.constants:
                if site.reader in dynamic:
                    weights[site.reader] = qparams[group]
                else:
                    self.constant(self.nodes[site.reader], site.value, qparams[group])
        for site, group in sites:
            if not site.reader:
                self.activation(self.values[site.value], qparams[group])
        for site, group in sites:
            if site.reader and site.value not in group.constants and site.reader not in dynamic:
                self.edge(site, group, {s for s, g in sites if g is group}, qparams[group])
        for reader, params in weights.items():
            self.dynamic.write(self.nodes[reader], params)

    def activation(self, value: ir.Value, params: QParams) -> None:
        """Q and DQ behind `value`; whatever read it reads the DQ."""
        name = value.name or "value"
        nodes, real = self._pair(value, name, params)
        was_output = value.is_graph_output()
        for use in tuple(value.uses()):
            if use.node is not nodes[0]:
                use.node.replace_input_with(use.idx, real)
        if was_output and value.producer() is not None:
            self.graph.outputs[list(self.graph.outputs).index(value)] = real
            value.name = self.fresh.name(f"{name}_QuantizeLinear_Input")
            real.name = name

    def edge(self, site: Site, group: Group, together: set[Site], params: QParams) -> None:
        """Q and DQ on the way to one node, or to several that share them; none where the value itself has them already."""
        value, reader = self.values[site.value], self.nodes[site.reader]
        if Site(site.value) in together:
            return
        now = next((v for v in reader.inputs if v is value or (v is not None and self._comes_from(v, value))), None)
        if now is None:
            return
        key = (now, _key(params))
        if key not in self.written:
            self.written[key] = self._pair(now, f"{site.value}_{site.reader}", params)[1]
        for index, v in enumerate(reader.inputs):
            if v is now:
                reader.replace_input_with(index, self.written[key])

    def _comes_from(self, v: ir.Value, value: ir.Value) -> bool:
        """Whether `v` is `value` behind the Q and DQ of its own site."""
        dq = v.producer()
        q = dq.inputs[0].producer() if dq is not None and is_op(dq, "DequantizeLinear") and dq.inputs[0] is not None else None
        return q is not None and q.inputs[0] is value

    def _pair(self, value: ir.Value, name: str, params: QParams, reader: ir.Node | None = None) -> tuple[list[ir.Node], ir.Value]:
        """Q and DQ of `value`, right behind what makes it, or in front of `reader`."""
        scale, zero_point = self._params(name, params)
        stored, given = ir.TensorType(_STORED[params.dtype]), ir.TensorType(ir.DataType.FLOAT)
        codes = ir.Value(name=self.fresh.name(f"{name}_QuantizeLinear_Output"), shape=value.shape, type=stored)
        attributes = {} if params.axis is None else {"axis": params.axis}
        quantized = ir.node("QuantizeLinear", [value, scale, zero_point], attributes, outputs=[codes], name=f"{name}_QuantizeLinear")
        real = ir.Value(name=self.fresh.name(f"{name}_DequantizeLinear_Output"), shape=value.shape, type=given)
        dequantized = ir.node("DequantizeLinear", [codes, scale, zero_point], attributes, outputs=[real], name=f"{name}_DequantizeLinear")
        maker = value.producer()
        if maker is not None:
            self.graph.insert_after(maker, [quantized, dequantized])
        else:
            self.graph.insert_before(reader or next(iter(self.graph)), [quantized, dequantized])
        return [quantized, dequantized], real

    def constant(self, node: ir.Node, name: str, params: QParams) -> None:
        """A constant input of `node` as codes behind a DQ."""
        value = next((v for v in node.inputs if v is not None and v.name == name), None)
        held = constant(value)
        if value is None or held is None or (params.dtype == qint32 and not self.fold):  # QuantizeLinear writes no int32
            return
        if is_embedding(node) and params.zero_point.dtype.kind == "f":
            self._embedding(node, held, params)
            return
        key = (value, _key(params))
        if key not in self.written:
            self.written[key] = self._codes(value, held, params, node) if self.fold else self._pair(value, name, params, node)[1]
        for index, v in enumerate(node.inputs):
            if v is value:
                node.replace_input_with(index, self.written[key])

    def _codes(self, value: ir.Value, real: np.ndarray, params: QParams, reader: ir.Node) -> ir.Value:
        """The dequantized codes of a constant, in front of its first reader."""
        name = value.name or "constant"
        if params.dtype == qint32:
            real = np.broadcast_to(real.reshape(-1), params.scale.shape or (real.size,))
        codes = self.fresh.constant(f"{name}_quantized", quantize(real, params))
        output = ir.Value(name=self.fresh.name(f"{name}_DequantizeLinear_Output"), shape=codes.shape, type=ir.TensorType(ir.DataType.FLOAT))
        attributes = {} if params.axis is None else {"axis": params.axis}
        node = ir.node("DequantizeLinear", [codes, *self._params(name, params)], attributes, outputs=[output], name=f"{output.name}_node")
        self.graph.insert_before(reader, node)
        return output

    def _embedding(self, node: ir.Node, table: np.ndarray, params: QParams) -> None:
        """Rows of codes, looked up and then dequantized each with its own scale and (float) zero point."""
        name, output = node.inputs[0].name if node.inputs[0] is not None else "", node.outputs[0]
        if (name, _key(params)) not in self.tables:
            parts = {"quantized": quantize(table, params), "zero_point": params.zero_point[:, None], "scale": params.scale[:, None]}
            self.tables[name, _key(params)] = {part: self.fresh.constant(f"{name}_{part}", array) for part, array in parts.items()}
        rows = []
        for part, held in self.tables[name, _key(params)].items():
            rows.append(self._before(node, "Gather", [held, node.inputs[1]], part, held.dtype))
        real = self._before(node, "Cast", rows[:1], "real", ir.DataType.FLOAT, {"to": int(ir.DataType.FLOAT)})
        centred = self._before(node, "Sub", [real, rows[1]], "centred", ir.DataType.FLOAT)
        result = self._before(node, "Mul", [centred, rows[2]], "dequantized", ir.DataType.FLOAT)
        result.shape, self.values[output.name or ""] = output.shape, result
        replace(output, result)
        self.graph.remove(node, safe=True)

    def _before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        part: str,
        dtype: ir.DataType | None,
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        """The output of a new node in front of `node`."""
        output = ir.Value(name=self.fresh.name(f"{node.name}_{part}"), type=ir.TensorType(dtype or ir.DataType.FLOAT))
        made = ir.node(op_type, inputs, attributes or {}, outputs=[output], name=self.fresh.name(f"{node.name}_{part}_node"))
        self.graph.insert_before(node, made)
        return output

    def _params(self, name: str, params: QParams) -> tuple[ir.Value, ir.Value]:
        scale = self.fresh.constant(f"{name}_scale", params.scale)
        return scale, self.fresh.constant(f"{name}_zero_point", params.zero_point.astype(params.dtype.storage))


def _key(params: QParams) -> bytes:
    return b"|".join((repr(params.dtype).encode(), params.scale.tobytes(), params.zero_point.tobytes()))
