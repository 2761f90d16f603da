"""Where Q/DQ goes: the sites that the rules of the operators put on a graph.

Products (Conv, ConvTranspose, Gemm, MatMul) are what int8 is for: they are always quantized. The other operators of the table are quantized
where they stand between products, so that codes need not become floats in between. What leads to no product any more, such as the last
layers before an output, stays float, and the last product gives floats itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from qrt.core.dtypes import QDType, qint32, quint8
from qrt.core.errors import InvalidInput, QuantizationError
from qrt.graph import Model, constant, ir, is_op, only_use
from qrt.observers import MinMaxObserver, NoopObserver, ReuseInputObserver
from qrt.ops.rule import Kind, QuantRule
from qrt.quantization.absorb import absorb_bias
from qrt.quantization.construct import is_dynamic, is_per_channel, sample, spec_of
from qrt.quantization.qconfig import Constructor, QConfig, QConfigAny, weight_observer
from qrt.quantization.qconfig_mapping import QConfigMapping, get_default_qrt_qconfig_mapping
from qrt.quantization.quantizer import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
    annotate_input_qspec_map,
    annotate_output_qspec,
    annotations_in,
)
from qrt.quantization.rules import is_embedding, product_of_scales, rule_of, weight_axis

__all__ = ["QrtQuantizer", "excluded_nodes", "qconfigs_of"]

_FLOAT = ir.DataType.FLOAT
# Binary operators that are curves where all but one operand are scalar constants, or both come from one tensor.
_BINARY = frozenset({"Add", "Mul", "Sub", "Div", "Max", "Min", "Pow", "PRelu"})
_BOUNDS = frozenset({"Relu", "Clip"})


@dataclass(eq=False)
class _Wish:
    """A value that is to become codes. `shares`: the one whose qparams it takes over; `fixed`: its scale and zero point, where they are
    known by nature; `qconfig`: what makes its observer otherwise."""

    value: ir.Value
    qconfig: QConfig
    shares: _Wish | None = None
    fixed: tuple[float, int] | None = None

    @property
    def origin(self) -> _Wish:
        """The one that this one's qparams come from in the end."""
        return self if self.shares is None else self.shares.origin


def excluded_nodes(model: Model, exclude: Iterable[str]) -> set[str]:
    """The names of the nodes that one of the names or globs `exclude` matches.

    Raises QuantizationError for one that matches nothing, InvalidInput for what is no collection of strings.
    """
    if isinstance(exclude, str) or not isinstance(exclude, Iterable):
        raise InvalidInput(f"exclude is {exclude!r}: give a list of names or globs")
    names = [node.name or "" for node in model.graph]
    found: set[str] = set()
    for pattern in exclude:
        if not isinstance(pattern, str):
            raise InvalidInput(f"exclude holds {pattern!r}: give names or globs")
        matched = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not matched:
            raise QuantizationError(f"exclude: no node of {model.name} is called {pattern!r}; `qrt inspect` lists their names")
        found |= matched
    return found


def qconfigs_of(nodes: Iterable[ir.Node], mapping: QConfigMapping, name: str) -> dict[ir.Node, QConfigAny]:
    """What a mapping says of each node. `name`: of the model, for the QuantizationError about an entry that speaks of none of the nodes."""
    nodes = list(nodes)
    named = [(node.name or "", node.op_type) for node in nodes]
    missed = mapping.unmatched(named)
    if missed:
        raise QuantizationError(
            f"the qconfig mapping speaks of {missed[0]}, and {name} has no such node, or none once the graph is cleaned: "
            "`qrt inspect` lists names and operators"
        )
    return dict(zip(nodes, mapping.resolve(named), strict=True))


class QrtQuantizer(Quantizer):
    """Annotates a graph for qrt's kernels, as `qrt.quantize` wants it: what the rules of the operators say, with each node's QConfig.

    `qconfig_mapping`: by default `get_default_qrt_qconfig_mapping()`. A QConfig whose activation is dynamic makes a product quantize its
    input in each run; one whose activation stays float quantizes the weight alone. `exclude`: names or globs of nodes to leave float.
    Raises InvalidInput for a mapping or patterns of another type.
    """

    def __init__(
        self,
        qconfig_mapping: QConfigMapping | None = None,
        *,
        exclude: Iterable[str] = (),
    ) -> None:
        if qconfig_mapping is not None and not isinstance(qconfig_mapping, QConfigMapping):
            raise InvalidInput(f"qconfig_mapping is a {type(qconfig_mapping).__name__}: give a qrt.QConfigMapping")
        if isinstance(exclude, str) or not isinstance(exclude, Iterable):
            raise InvalidInput(f"exclude is {exclude!r}: give a list of names or globs")
        self.mapping = get_default_qrt_qconfig_mapping() if qconfig_mapping is None else qconfig_mapping
        self.exclude = list(exclude)
        self._excluded: set[str] = set()
        self.outputs: Sequence[int] = ()  # of the graph, that become codes although no product reads them

    def transform_for_annotation(self, model: Model) -> Model:
        """Constants added behind a product go into its bias."""
        self._excluded = excluded_nodes(model, self.exclude)
        absorb_bias(model)
        return model

    def annotate(self, model: Model) -> Model:
        count = len(model.graph.outputs)
        if any(index >= count for index in self.outputs):
            raise QuantizationError(f"{model.name} has {count} outputs; there is none of number {max(self.outputs)}")
        outputs = [model.graph.outputs[index] for index in self.outputs]
        _Placer(model, self.qconfigs(model), self.mapping.global_qconfig, outputs).place()
        return model

    def qconfigs(self, model: Model) -> dict[ir.Node, QConfig]:
        """The QConfig of each node that may be quantized. Raises QuantizationError for an entry of the mapping that speaks of no node."""
        found = qconfigs_of(model.graph, self.mapping, model.name)
        return {node: q for node, q in found.items() if q is not None and node.name not in self._excluded}

    def validate(self, model: Model) -> None:
        """Raises QuantizationError where nothing is quantized."""
        if not annotations_in(model):
            raise QuantizationError(
                f"{model.name}: nothing to quantize: no Conv, ConvTranspose, Gemm or MatMul of float32 with a constant weight is left; "
                "see `qrt inspect --why`"
            )


def _is_quantized(node: ir.Node, rule: QuantRule) -> bool:
    """Whether the operands of a product were quantized before: all of them, or one that is constant."""
    made = [value.producer() for value in node.inputs if value is not None]
    codes = [maker for maker in made if maker is not None and is_op(maker, "DequantizeLinear")]
    return rule.kind is Kind.PRODUCT and (len(codes) == len(made) or any(constant(maker.inputs[0]) is not None for maker in codes))


class _Placer:
    """`qconfigs`: of the nodes that may be quantized; `default`: for values whose own node says only that it reuses its input's qparams;
    `outputs`: values that become codes although no product reads them."""

    def __init__(
        self, model: Model, qconfigs: Mapping[ir.Node, QConfig], default: QConfig | None, outputs: Sequence[ir.Value] = ()
    ) -> None:
        self.default, self.outputs = default, outputs
        self.others = dict(annotations_in(model))  # what other quantizers said before
        self.qconfigs = {node: qconfig for node, qconfig in qconfigs.items() if node not in self.others}
        self.nodes = list(model.graph)
        self.samples: dict[Constructor, Any] = {}
        static = [node for node in self.nodes if self._is_static(node)]
        self.rules = {node: rule for node in static if (rule := rule_of(node)) is not None and not _is_quantized(node, rule)}
        self.wanted = self._wanted()
        self.sites: dict[ir.Value, _Wish] = {}
        # Curve results that need no codes: value → the site's value it is a function of.
        self.inner: dict[ir.Value, ir.Value] = {}

    def place(self) -> None:
        """Annotate."""
        for node, rule in self.rules.items():
            if rule.kind is Kind.PRODUCT:
                self._demand(node, rule)
        for node in self.nodes:
            if node in self.rules:
                self._visit(node, self.rules[node])
        for value, wish in self.sites.items():
            self._say(value, self._spec(wish))
        for node in self.nodes:
            if node in self.qconfigs and node not in self.rules:
                self._unusual(node)

    def _say(self, value: ir.Value, spec: QuantizationSpecBase) -> None:
        """Annotates the node that makes `value`, or itself; not at all where another quantizer has."""
        maker = value.producer()
        node = maker if maker is not None and len(maker.outputs) == 1 else None
        said = [found for place in (node, value) if place is not None and (found := self.others.get(place)) is not None]
        if not any(found.output_qspec is not None for found in said):
            annotate_output_qspec(value if node is None or node in self.others else node, spec)

    # -- which nodes ------------------------------------------------------------------------------------------------------
    def _sample(self, ctr: Constructor, what: str) -> Any:
        if ctr not in self.samples:
            self.samples[ctr] = sample(ctr, what)
        return self.samples[ctr]

    def _is_static(self, node: ir.Node) -> bool:
        """Whether a node's QConfig turns its activations into codes with qparams known beforehand."""
        if node not in self.qconfigs:
            return False
        made = self._sample(self.qconfigs[node].activation, f"the QConfig of {node.name!r}")
        return isinstance(made, ReuseInputObserver) or (isinstance(made.dtype, QDType) and not is_dynamic(made))

    def _wanted(self) -> set[ir.Value]:
        """The values that lead, through nodes with rules, to a product, or to an output that is to be codes."""
        wanted: set[ir.Value] = set(self.outputs)
        for node in reversed(self.nodes):
            rule = self.rules.get(node)
            if rule is not None and (rule.kind is Kind.PRODUCT or any(v in wanted for v in node.outputs)):
                wanted.update(self._activations(node, rule))
        return wanted

    def _activations(self, node: ir.Node, rule: QuantRule) -> list[ir.Value]:
        """The computed inputs that hold activations."""
        given = [node.inputs[i] for i in rule.inputs] if rule.inputs else list(node.inputs)
        return [v for v in given if v is not None and constant(v) is None]

    # -- which values -----------------------------------------------------------------------------------------------------
    def _demand(self, node: ir.Node, rule: QuantRule) -> None:
        """Sites on the inputs of a product, or, where they were only moved, on what was moved."""
        for value in self._activations(node, rule):
            maker = value.producer()
            moved = self.rules.get(maker) if maker is not None else None
            if maker is not None and moved is not None and moved.kind in (Kind.MOVE, Kind.JOIN):
                self._demand(maker, moved)
            elif maker is None or moved is None:
                self._site(value, node)

    def _site(self, value: ir.Value, node: ir.Node, shares: _Wish | None = None, fixed: tuple[float, int] | None = None) -> _Wish:
        """The site at `value`, with the QConfig of `node` if it is new."""
        if value not in self.sites:
            qconfig = self.qconfigs[node]
            if isinstance(self._sample(qconfig.activation, ""), ReuseInputObserver) and shares is None:
                source = next((self.sites[v] for v in node.inputs if v in self.sites and v is not value), None)
                shares, qconfig = source, qconfig if source is not None else self.default or qconfig
            self.sites[value] = _Wish(value, qconfig, shares, fixed)
        return self.sites[value]

    def _visit(self, node: ir.Node, rule: QuantRule) -> None:
        output = node.outputs[0]
        wanted = any(v in self.wanted for v in node.outputs)
        if rule.kind is Kind.PRODUCT:
            for value in self._activations(node, rule):
                self._site(value, node)
            self._weights(node, rule)
            # The others have a kernel that gives floats.
            if wanted or is_op(node, "ConvTranspose") or rule.weight is None:
                self._result(node)
        elif wanted and rule.kind is Kind.MOVE:
            source = self._site(self._activations(node, rule)[0], node) if self._activations(node, rule) else None
            for value in node.outputs:
                if source is not None and value.name:
                    self._site(value, node, shares=source)
        elif wanted and rule.kind is Kind.JOIN:
            self._join(node, rule)
        elif output in self.sites or not wanted:
            return
        elif self._is_curve(node):
            self._curve(node, rule)
        elif rule.kind is Kind.COMPUTE and all(v in self.sites for v in self._activations(node, rule)):
            self._compute(node, rule)

    def _result(self, node: ir.Node, fixed: tuple[float, int] | None = None) -> None:
        """A site at the result of a node, behind the Relu or Clip that bounds it."""
        output = node.outputs[0]
        reader = only_use(output)
        if fixed is None and reader is not None and is_op(reader, *_BOUNDS) and reader in self.rules and _constant_bounds(reader):
            output = reader.outputs[0]
        self._site(output, node, fixed=fixed)

    def _join(self, node: ir.Node, rule: QuantRule) -> None:
        parts = [self._site(v, node) for v in self._activations(node, rule)]
        self._operands(node, rule)
        origins = {part.origin for part in parts}
        held = any(constant(v) is not None for v in node.inputs)
        self._site(node.outputs[0], node, shares=parts[0] if len(origins) == 1 and not held else None)

    def _compute(self, node: ir.Node, rule: QuantRule) -> None:
        if not self._activations(node, rule):
            return
        self._operands(node, rule)
        self._result(node, rule.fixed)

    def _operands(self, node: ir.Node, rule: QuantRule) -> None:
        """The constant operands of a sum, product or concatenation: codes of the dtype of its activations."""
        dtype = self._sample(self.qconfigs[node].activation, "").dtype
        for value in node.inputs:
            if not rule.inputs and value is not None and constant(value) is not None:
                annotate_input_qspec_map(node, value, QuantizationSpec(dtype, MinMaxObserver))

    def _weights(self, node: ir.Node, rule: QuantRule, *, bias: bool = True) -> None:
        """The weight of a product, and its bias in units of the product of the scales."""
        weight = node.inputs[rule.weight] if rule.weight is not None else None
        if weight is None:
            return
        made = self._sample(self.qconfigs[node].weight, f"the QConfig of {node.name!r}")
        if not isinstance(made.dtype, QDType) and isinstance(made, NoopObserver):
            return
        axis = weight_axis(node) if rule.kind is Kind.PRODUCT else 0
        spec = spec_of(self.qconfigs[node].weight, made)
        if is_per_channel(made):
            spec = replace(spec, ch_axis=axis) if axis is not None else QuantizationSpec(made.dtype, weight_observer)
        annotate_input_qspec_map(node, weight, spec)
        given = node.inputs[rule.bias] if bias and rule.bias is not None and len(node.inputs) > rule.bias else None
        data = node.inputs[0]
        if given is not None and data is not None and constant(given) is not None:
            edges = [(data, node), (weight, node)]
            annotate_input_qspec_map(node, given, DerivedQuantizationSpec(edges, product_of_scales, qint32))

    def _unusual(self, node: ir.Node) -> None:
        """Dynamic products, and weights that are quantized alone."""
        rule = rule_of(node)
        if rule is None or rule.weight is None or constant(node.inputs[rule.weight]) is None:
            return
        data = node.inputs[rule.inputs[0]]
        activation = self.qconfigs[node].activation
        made = self._sample(activation, "")
        if rule.kind is Kind.PRODUCT and is_dynamic(made) and data is not None:
            if not rule.dynamic or constant(data) is not None or data.dtype != _FLOAT:
                return
            annotate_input_qspec_map(node, data, spec_of(activation, made))
            self._weights(node, rule, bias=False)
        elif not is_dynamic(made) and (rule.kind is Kind.PRODUCT or is_embedding(node)):
            self._weights(node, rule, bias=False)

    def _spec(self, wish: _Wish) -> QuantizationSpecBase:
        if wish.shares is not None:
            return SharedQuantizationSpec(wish.origin.value)
        made = self._sample(wish.qconfig.activation, "")
        if wish.fixed is None:
            return spec_of(wish.qconfig.activation, made)
        scale, zero_point = wish.fixed
        return FixedQParamsQuantizationSpec(made.dtype, scale, zero_point + (made.dtype.qmin - quint8.qmin))

    # -- curves -------------------------------------------------------------------------------------------------------------
    def _is_curve(self, node: ir.Node) -> bool:
        return self._source(node) is not None

    def _source(self, node: ir.Node) -> ir.Value | None:
        """The site's value that the result of an element-wise node is a function of, with scalar constants."""
        if self.rules[node].kind is not Kind.CURVE and node.op_type not in _BINARY:
            return None
        sources: set[ir.Value] = set()
        for value in node.inputs:
            held = constant(value)
            if value is None or (held is not None and held.size == 1):
                continue
            source = self.inner.get(value, value if value in self.sites else None)
            if source is None:
                return None
            sources.add(source)
        return sources.pop() if len(sources) == 1 else None

    def _curve(self, node: ir.Node, rule: QuantRule) -> None:
        """A site at the end of a curve; the values inside it stay float."""
        source, output = self._source(node), node.outputs[0]
        if source is None:
            return
        self.inner[output] = source
        readers = [use.node for use in output.uses()]
        if not output.is_graph_output() and readers and all(self._continues(reader, source) for reader in readers):
            return
        del self.inner[output]
        self._site(output, node, fixed=rule.fixed)

    def _continues(self, reader: ir.Node, source: ir.Value) -> bool:
        """Whether `reader` goes on with the curve of `source`."""
        return reader in self.rules and any(v in self.wanted for v in reader.outputs) and self._source(reader) is source


def _constant_bounds(node: ir.Node) -> bool:
    return all(v is None or constant(v) is not None for v in node.inputs[1:])
