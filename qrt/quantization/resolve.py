"""Annotations → groups of sites that share one scale and zero point. Looks at the graph and changes nothing.

A site is a value, for all its readers or for one of them. Sites are named, not pointed at, so that they hold for every copy of a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from qrt.core.dtypes import QDType, qint8, quint8
from qrt.core.errors import InvalidInput, QuantizationError
from qrt.core.record import record
from qrt.graph import Model, constant, ir
from qrt.ops.rule import Kind
from qrt.quantization.quantizer import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
    annotation_of,
    annotations_in,
)
from qrt.quantization.rules import rule_of, weight_axis

__all__ = ["Group", "OwnSpec", "Site", "resolve"]

OwnSpec = QuantizationSpec | FixedQParamsQuantizationSpec | DerivedQuantizationSpec


@record
class Site:
    """A value that becomes codes: on its way to the node `reader`, or, where that is "", for everyone."""

    value: str
    reader: str = ""

    def __str__(self) -> str:
        return f"{self.value!r} on its way to {self.reader!r}" if self.reader else repr(self.value)


@dataclass(eq=False)
class Group:
    """Sites that share one scale and zero point. `spec`: where those come from; `name`: that of the first value, with the reader where it
    is quantized for that one alone; `sources`: the groups a derived spec derives them from.

    `constants`: the values that are, which are observed at once; `watched`: those that an observer must see in a run, as they are computed,
    and not merely moved from others of the group.
    """

    spec: OwnSpec
    name: str
    sites: list[Site] = field(default_factory=list)
    sources: list[Group] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether all its values are constants."""
        return all(site.value in self.constants for site in self.sites)


def resolve(model: Model) -> list[Group]:
    """The groups of an annotated graph, in its order.

    Raises QuantizationError for a spec that shares with or derives from what is not quantized, or from itself in the end; for a dtype or
    channel axis that the operator does not support; for an edge that is none, and where two specs speak of one site. InvalidInput for what
    is no spec.
    """
    return _Resolver(model).groups()


class _Resolver:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.nodes = {node.name or "": node for node in model.graph}
        self.values: dict[str, ir.Value] = {}
        self.specs: dict[Site, QuantizationSpecBase] = {}
        self.alone: set[Site] = set()  # sites whose annotation forbids implicit sharing
        self.leader: dict[Site, Site] = {}
        for place, annotation in annotations_in(model).items():
            self._collect(place, annotation)
        for name, value in model.graph.initializers.items():
            if annotation_of(value) is not None:
                raise QuantizationError(f"{name!r} is a constant: annotate the edges to its readers, with annotate_input_qspec_map")

    # -- what is said -------------------------------------------------------------------------------------------------------
    def _collect(self, place: ir.Node | ir.Value, annotation: QuantizationAnnotation) -> None:
        for value, spec in annotation.input_qspec_map.items():
            if isinstance(place, ir.Value) or value not in place.inputs:
                raise QuantizationError(f"the annotation of {place.name!r} names {value.name!r}, which is none of its inputs")
            self._say(value, place.name or "", spec, annotation)
        outputs = [place] if isinstance(place, ir.Value) else [v for v in place.outputs if v.dtype == ir.DataType.FLOAT]
        for value in outputs:
            self._say(value, "", annotation.output_qspec, annotation)

    def _say(self, value: ir.Value, reader: str, spec: QuantizationSpecBase | None, annotation: QuantizationAnnotation) -> None:
        if spec is None:
            return
        site = Site(value.name or "", reader)
        if not isinstance(spec, OwnSpec | SharedQuantizationSpec):
            raise InvalidInput(f"{site} is annotated with a {type(spec).__name__}: give a QuantizationSpec or one of its kin")
        if value.dtype != ir.DataType.FLOAT:
            raise QuantizationError(f"{site} is annotated, but holds {value.dtype}: only float32 becomes codes")
        if self.specs.get(site, spec) != spec:
            raise QuantizationError(f"{site} has conflicting annotations, its own and that of its node: take one of them away")
        self.specs[site] = spec
        self.values[site.value] = value
        if not annotation.allow_implicit_sharing:
            self.alone.add(site)

    def _site(self, place: EdgeOrNode) -> Site:
        """The site that an edge, value or node of a spec means: an edge without a spec has that of its value."""
        if isinstance(place, tuple):
            value, node = place
            site = Site(value.name or "", node.name or "")
            return site if site in self.specs else Site(site.value)
        if isinstance(place, ir.Node):
            if len(place.outputs) != 1:
                raise QuantizationError(f"a spec names node {place.name!r}, which has {len(place.outputs)} outputs: name the value")
            place = place.outputs[0]
        return Site(place.name or "")

    # -- who belongs together -----------------------------------------------------------------------------------------------
    def _root(self, site: Site) -> Site:
        while site in self.leader:
            site = self.leader[site]
        return site

    def _join(self, site: Site, other: Site) -> None:
        a, b = self._root(site), self._root(other)
        if a != b:
            self.leader[a] = b

    def _share(self) -> None:
        for site, spec in self.specs.items():
            path = [site]
            while isinstance(spec, SharedQuantizationSpec):
                next_ = self._site(spec.edge_or_node)
                if next_ not in self.specs:
                    raise QuantizationError(f"{path[-1]} shares the qparams of {next_}, which is not quantized: annotate that too")
                if next_ in path:
                    ring = " → ".join(str(s) for s in [*path, next_])
                    raise QuantizationError(f"shared specs go round in a ring: {ring}; give one of them a spec of its own")
                path.append(next_)
                spec = self.specs[next_]
            if len(path) > 1:
                self._join(site, path[-1])
        for site, spec in self.specs.items():
            if site.reader and site not in self.alone and isinstance(spec, QuantizationSpec) and not self._held(site):
                self._share_implicitly(site, spec)

    def _share_implicitly(self, site: Site, spec: QuantizationSpec) -> None:
        """Joins an edge with its value, or else with the first other edge from there, of the same spec."""
        others = [Site(site.value), *(s for s in self.specs if s.value == site.value and s.reader)]
        for other in others:
            if other == site:
                return
            if other in self.specs and other not in self.alone and self.specs[other] == spec:
                self._join(site, other)
                return

    def _held(self, site: Site) -> bool:
        return constant(self.values[site.value]) is not None

    # -- groups -------------------------------------------------------------------------------------------------------------
    def groups(self) -> list[Group]:
        self._share()
        found: dict[Site, Group] = {}
        for site in self.specs:
            root = self._root(site)
            if root not in found:
                spec = self.specs[root]
                assert isinstance(spec, OwnSpec)  # _share has followed every other to its end
                found[root] = Group(spec, self._name(site))
            found[root].sites.append(site)
            if self._held(site) and site.value not in found[root].constants:
                found[root].constants.append(site.value)
        for root, group in found.items():
            for site in group.sites:
                self._check(site, group)
            if isinstance(group.spec, DerivedQuantizationSpec):
                group.sources = [self._source(root, group.spec, place, found) for place in group.spec.derived_from]
            group.watched = list(self._watched(group))
        _check_order(found.values())
        return list(found.values())

    def _name(self, site: Site) -> str:
        """Unique, and the same whatever else is quantized: a constant goes without its reader where it has only that one."""
        alone = self._held(site) and len({use.node for use in self.values[site.value].uses()}) == 1
        return f"{site.value}.{site.reader}" if site.reader and not alone else site.value

    def _source(self, site: Site, spec: DerivedQuantizationSpec, place: EdgeOrNode, found: Mapping[Site, Group]) -> Group:
        source = self._site(place)
        if source not in self.specs:
            raise QuantizationError(
                f"{site} derives its qparams from {source}, which is not quantized: annotate that, or leave {site} float"
            )
        group = found[self._root(source)]
        if group.spec.is_dynamic:
            raise QuantizationError(f"{site} derives its qparams from {source}, which is quantized in each run: leave {site} float")
        return group

    def _watched(self, group: Group) -> Iterator[str]:
        if not isinstance(group.spec, QuantizationSpec) or group.spec.is_dynamic:
            return
        inside = set(group.sites)
        for name in dict.fromkeys(site.value for site in group.sites):
            if name not in group.constants and not self._moved(self.values[name], inside):
                yield name

    def _moved(self, value: ir.Value, inside: set[Site]) -> bool:
        """Whether `value` only holds what other values of its group hold, which the observer sees there."""
        node = value.producer()
        rule = rule_of(node) if node is not None else None
        if node is None or rule is None or rule.kind not in (Kind.MOVE, Kind.JOIN):
            return False
        data = [node.inputs[i] for i in rule.inputs] or list(node.inputs)
        names = [v.name or "" for v in data if v is not None]
        return bool(names) and all(Site(n) in inside or Site(n, node.name or "") in inside for n in names)

    # -- checks -------------------------------------------------------------------------------------------------------------
    def _check(self, site: Site, group: Group) -> None:
        """Whether the operator that reads codes here can do so."""
        spec, value = group.spec, self.values[site.value]
        rank = len(value.shape) if value.shape is not None else None
        axis = getattr(spec, "ch_axis", None)
        if axis is not None and rank is not None and axis >= rank:
            raise QuantizationError(f"{site} has {rank} axes; its spec's ch_axis is {axis}: give one of 0 … {rank - 1}")
        if spec.is_dynamic:
            self._check_dynamic(site, spec)
        elif not self._held(site):
            _check_activation(site, spec)
            return
        if self._held(site):
            _check_constant(site, spec, value, self.nodes[site.reader])

    def _check_dynamic(self, site: Site, spec: OwnSpec) -> None:
        """Whether what is quantized in each run goes into a product whose weight is quantized too."""
        if not isinstance(spec, QuantizationSpec) or self._held(site):
            raise QuantizationError(f"{site} has qparams that are known before, and its spec says is_dynamic: take that away")
        if not site.reader:
            raise QuantizationError(f"{site} is quantized dynamically for all that read it: annotate the edge to each product instead")
        _check_activation(site, spec)
        _check_dtype(site, spec.dtype, (quint8,), "dynamic activations")
        node = self.nodes[site.reader]
        rule, weight = rule_of(node), node.inputs[1] if len(node.inputs) > 1 else None
        if rule is None or not rule.dynamic or weight is None or constant(weight) is None or node.inputs[0] is not self.values[site.value]:
            raise QuantizationError(
                f"{site} is quantized dynamically, which {node.op_type} {node.name!r} cannot read: "
                "only a Conv, Gemm or MatMul with a constant weight can"
            )
        said = {other.value for other in self.specs if other.reader == site.reader} - {site.value}
        if said != {weight.name}:
            wrong = (
                f"its weight {weight.name!r} is not quantized: annotate that" if weight.name not in said else "so is more than its weight"
            )
            raise QuantizationError(f"{site} is quantized dynamically, and {wrong}; a bias stays float")


def _check_activation(site: Site, spec: OwnSpec) -> None:
    _check_dtype(site, spec.dtype, (quint8, qint8), "activations")
    if spec.qscheme is not None and spec.qscheme.per_channel:
        raise QuantizationError(f"{site} is an activation; its spec is {spec.qscheme!r}: activations take one scale per tensor")


def _check_constant(site: Site, spec: OwnSpec, value: ir.Value, node: ir.Node) -> None:
    rule = rule_of(node)
    uses = [i for i, v in enumerate(node.inputs) if v is value]
    if isinstance(spec, DerivedQuantizationSpec):
        return
    if rule is not None and rule.kind is Kind.PRODUCT and rule.weight in uses:
        _check_dtype(site, spec.dtype, (qint8,), f"the weight of {node.op_type} {node.name!r}")
        axis, right = getattr(spec, "ch_axis", None), weight_axis(node)
        if axis is not None and axis != right:
            where = "it takes one scale per tensor" if right is None else f"its output channels lie along axis {right}"
            raise QuantizationError(f"{site}, the weight of {node.op_type} {node.name!r}, has a spec with ch_axis {axis}: {where}")
    else:
        _check_dtype(site, spec.dtype, (quint8, qint8), f"a constant of {node.op_type} {node.name!r}")


def _check_dtype(site: Site, dtype: object, known: tuple[QDType, ...], what: str) -> None:
    if dtype not in known:
        raise QuantizationError(
            f"{site} would become {dtype!r}, which its operator's rule does not support: {what} may be "
            f"{' or '.join(repr(k) for k in known)}; change the dtype of its qconfig or spec, or leave it float (None)"
        )


def _check_order(groups: Iterable[Group]) -> None:
    """Raises where derived specs derive from each other in a ring."""
    state: dict[Group, bool] = {}

    def visit(group: Group) -> None:
        if state.get(group) is False:
            raise QuantizationError(f"the qparams of {group.sites[0]} derive from themselves in the end")
        if group in state:
            return
        state[group] = False
        for source in group.sources:
            visit(source)
        state[group] = True

    for group in groups:
        visit(group)
