"""Where Q/DQ goes: the sites that the rules of the operators put on a graph.

Products (Conv, ConvTranspose, Gemm, MatMul) are what int8 is for: they are always quantized. The other operators of the table are quantized
where they stand between products, so that codes need not become floats in between. What leads to no product any more, such as the last
layers before an output, stays float, and the last product gives floats itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from qrt.core.errors import InvalidInput, QuantizationError
from qrt.core.qparams import QParams
from qrt.graph import Model, constant, ir, is_op, only_use
from qrt.ops.rule import Kind, QuantRule
from qrt.quantization.qconfig import QConfig, QConfigMapping
from qrt.quantization.rules import rule_of

__all__ = ["Placement", "Site", "excluded_nodes", "place"]


# Binary operators that are curves where all but one operand are scalar constants, or both come from one tensor.
_BINARY = frozenset({"Add", "Mul", "Sub", "Div", "Max", "Min", "Pow", "PRelu"})
_BOUNDS = frozenset({"Relu", "Clip"})


@dataclass(eq=False)
class Site:
    """A value that becomes codes. `shares`: the site whose qparams it takes over; `fixed`: its qparams, where they are known by nature;
    `qconfig`: what makes its observer otherwise."""

    value: ir.Value
    qconfig: QConfig
    shares: Site | None = None
    fixed: QParams | None = None

    @property
    def name(self) -> str:
        """The value's name."""
        return self.value.name or ""

    @property
    def origin(self) -> Site:
        """The site that this one's qparams come from in the end."""
        return self if self.shares is None else self.shares.origin


@dataclass
class Placement:
    """`sites`: the values that become codes, in the order of the graph; `products`: the products that are quantized, each with its QConfig;
    `operands`: constants (not weights) that become codes, with the node and the input where they stand."""

    sites: dict[ir.Value, Site] = field(default_factory=dict)
    products: dict[ir.Node, QConfig] = field(default_factory=dict)
    operands: list[tuple[ir.Node, int]] = field(default_factory=list)


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


def place(model: Model, mapping: QConfigMapping, excluded: set[str]) -> Placement:
    """The sites of a prepared float model."""
    return _Placer(model, mapping, excluded).place()


class _Placer:
    def __init__(self, model: Model, mapping: QConfigMapping, excluded: set[str]) -> None:
        self.model, self.mapping = model, mapping
        self.nodes = list(model.graph)
        self.rules = {node: rule for node in self.nodes if (rule := self._rule(node, excluded)) is not None}
        self.wanted = self._wanted()
        self.placement = Placement()
        # Curve results that need no codes: value → the site's value it is a function of.
        self.inner: dict[ir.Value, ir.Value] = {}

    def place(self) -> Placement:
        for node, rule in self.rules.items():
            if rule.kind is Kind.PRODUCT:
                self._demand(node, rule)
        for node in self.nodes:
            if node in self.rules:
                self._visit(node, self.rules[node])
        order = {v: i for i, v in enumerate([*self.model.graph.inputs, *(v for n in self.nodes for v in n.outputs)])}
        self.placement.sites = dict(sorted(self.placement.sites.items(), key=lambda item: order.get(item[0], -1)))
        return self.placement

    # -- which nodes ------------------------------------------------------------------------------------------------------
    def _rule(self, node: ir.Node, excluded: set[str]) -> QuantRule | None:
        return None if node.name in excluded or self._qconfig(node) is None else rule_of(node)

    def _qconfig(self, node: ir.Node) -> QConfig | None:
        return self.mapping.of(node.name or "", node.op_type)

    def _wanted(self) -> set[ir.Value]:
        """The values that lead, through nodes with rules, to a product."""
        wanted: set[ir.Value] = set()
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

    def _site(self, value: ir.Value, node: ir.Node, shares: Site | None = None, fixed: QParams | None = None) -> Site:
        """The site at `value`, with the QConfig of `node` if it is new."""
        if value not in self.placement.sites:
            qconfig = self._qconfig(node)
            if qconfig is None:
                raise QuantizationError(f"node {node.name!r} has no QConfig")
            self.placement.sites[value] = Site(value, qconfig, shares, fixed)
        return self.placement.sites[value]

    def _visit(self, node: ir.Node, rule: QuantRule) -> None:
        output = node.outputs[0]
        wanted = any(v in self.wanted for v in node.outputs)
        if rule.kind is Kind.PRODUCT:
            qconfig = self._qconfig(node)
            if qconfig is not None:
                self.placement.products[node] = qconfig
            for value in self._activations(node, rule):
                self._site(value, node)
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
        elif output in self.placement.sites or not wanted:
            return
        elif self._is_curve(node):
            self._curve(node, rule)
        elif rule.kind is Kind.COMPUTE and all(v in self.placement.sites for v in self._activations(node, rule)):
            self._compute(node, rule)

    def _result(self, node: ir.Node, fixed: QParams | None = None) -> None:
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
        self._result(node, rule.qparams)

    def _operands(self, node: ir.Node, rule: QuantRule) -> None:
        for index, value in enumerate(node.inputs):
            if not rule.inputs and constant(value) is not None:
                self.placement.operands.append((node, index))

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
            source = self.inner.get(value, value if value in self.placement.sites else None)
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
        self._site(output, node, fixed=rule.qparams)

    def _continues(self, reader: ir.Node, source: ir.Value) -> bool:
        """Whether `reader` goes on with the curve of `source`."""
        return reader in self.rules and any(v in self.wanted for v in reader.outputs) and self._source(reader) is source


def _constant_bounds(node: ir.Node) -> bool:
    return all(v is None or constant(v) is not None for v in node.inputs[1:])
