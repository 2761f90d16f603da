"""PreparedModel: a float model with an observer or fake-quantize at every site. Call it with real inputs, then convert it.

Every door (qrt.quantize, fx, pt2e, jit) makes one, and they differ only in who annotates the graph before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from qrt.core.errors import CalibrationError, InvalidInput, QuantizationError
from qrt.core.qparams import QParams
from qrt.graph import Model, constant, ir
from qrt.graph.passes import prepare
from qrt.graph.passes.drop_dead import drop_dead
from qrt.graph.passes.name_everything import name_everything
from qrt.graph.rules import fuse
from qrt.jit.host import host_target
from qrt.lower import Executable
from qrt.observers import (
    FakeQuantizeBase,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    ObserverOrFakeQuantize,
    UniformQuantizationObserverBase,
)
from qrt.quantization.batches import Batch, feeds_of
from qrt.quantization.construct import make_observer, name_site, observed
from qrt.quantization.fresh import Fresh
from qrt.quantization.qdq import open_input, open_output, qparams_of, write_qdq
from qrt.quantization.quantizer import EdgeOrNode, FixedQParamsQuantizationSpec, QuantizationSpec, Quantizer, forget
from qrt.quantization.resolve import Group, Site, resolve

__all__ = ["PreparedModel", "prepare_model", "sample_feeds"]

MARK = "activation_post_process"


def prepare_model(model: Model, quantizer: Quantizer) -> PreparedModel:
    """The model cleaned, annotated by `quantizer`, and with observers. `model` stays as it is.

    Raises InvalidInput for what is no Model or Quantizer, QuantizationError for annotations that contradict each other or themselves.
    """
    if not isinstance(quantizer, Quantizer):
        raise InvalidInput(f"the quantizer is a {type(quantizer).__name__}: give a qrt.quantization.Quantizer")
    clean = quantizer.transform_for_annotation(prepare(model))
    if not isinstance(clean, Model):
        raise InvalidInput(f"transform_for_annotation of {type(quantizer).__name__} gives a {type(clean).__name__}: return the model")
    if any(not node.name or any(v.name and (v.dtype is None or v.shape is None) for v in node.outputs) for node in clean.graph):
        clean = prepare(clean)  # nodes that it put in need names and types as well
    quantizer.annotate(clean)
    quantizer.validate(clean)
    return PreparedModel(clean, quantizer)


class PreparedModel:
    """A float model that learns ranges as it runs. `model`: its graph, annotated; `groups`: its sites, each group with one observer.

    `observers`: those of activations, by site, which learn from data; `weight_observers`: those of constants, which have seen them.
    """

    def __init__(self, model: Model, quantizer: Quantizer) -> None:
        self.model, self.quantizer = model, quantizer
        self.groups = resolve(model)
        made = {g: make_observer(g.spec, g.name) for g in self.groups if isinstance(g.spec, QuantizationSpec)}
        # What is quantized in each run has nothing to learn before; but a fake-quantize shows what that will do.
        made = {g: maker for g, maker in made.items() if not g.spec.is_dynamic or isinstance(maker, FakeQuantizeBase)}
        made = self._as_replaced(made)
        if any(isinstance(maker, FakeQuantizeBase) for maker in made.values()):
            made |= {g: _fixed_fake_quantize(g.spec) for g in self.groups if isinstance(g.spec, FixedQParamsQuantizationSpec)}
        for group, maker in made.items():
            for name in group.constants:
                maker(self._constant(name))
        self._take(made)

    def _take(self, made: dict[Group, ObserverOrFakeQuantize]) -> None:
        """Hold these observers, and nothing that ran with others."""
        self._made = made
        self.observers = {g.name: m for g, m in made.items() if not g.held}
        self.weight_observers = {g.name: m for g, m in made.items() if g.held}
        self._executable: Executable | None = None
        fake = any(isinstance(maker, FakeQuantizeBase) for maker in made.values())
        self._fake: _FakeQuantized | None = _FakeQuantized(self) if fake else None

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedModel:
        """A copy that goes on learning by itself. The graph is shared, as it does not change."""
        other = object.__new__(PreparedModel)
        other.model, other.quantizer, other.groups = self.model, self.quantizer, self.groups
        other._take({group: deepcopy(maker, memo) for group, maker in self._made.items()})
        return other

    def __repr__(self) -> str:
        kinds = f"{len(self.observers)} observers of activations, {len(self.weight_observers)} of constants"
        return f"<qrt.quantization.PreparedModel {self.model.name!r}: {kinds}>"

    # -- which observer is whose --------------------------------------------------------------------------------------------
    def _of_places(self, made: Mapping[Group, Any]) -> list[tuple[EdgeOrNode, Group]]:
        nodes = {node.name or "": node for node in self.model.graph}
        values = {v.name or "": v for v in [*self.model.graph.inputs, *(v for n in self.model.graph for v in n.outputs)]}
        values |= self.model.graph.initializers
        found: list[tuple[EdgeOrNode, Group]] = []
        for group in made:
            for site in group.sites:
                value = values[site.value]
                found.append(((value, nodes[site.reader]) if site.reader else value, group))
        return found

    def _as_replaced(self, made: Mapping[Group, ObserverOrFakeQuantize]) -> dict[Group, ObserverOrFakeQuantize]:
        """The observers after the quantizer's callback, which sees them by value and by edge, has put others in their place."""
        of_places = self._of_places(made)
        places = {place: made[group] for place, group in of_places}
        self.quantizer.prepare_obs_or_fq_callback(self.model, places)
        found = dict(made)
        for place, group in of_places:
            now = places.get(place)
            if not isinstance(now, ObserverOrFakeQuantize):
                raise InvalidInput(
                    f"{group.name}: prepare_obs_or_fq_callback leaves a {type(now).__name__}: give an observer or a fake-quantize"
                )
            if now is not made[group]:  # for one of its places, and so for all
                found[group] = name_site(now, group.name)
        return found

    def _constant(self, name: str) -> np.ndarray:
        held = constant(self.model.graph.initializers[name])
        if held is None:
            raise QuantizationError(f"{name!r} is no constant")
        return held

    # -- as modules, for functions that torch's users know ----------------------------------------------------------------------
    def named_modules(self) -> Iterator[tuple[str, Any]]:
        """Each observer or fake-quantize under `<site>.activation_post_process`, and the observer inside a fake-quantize below that."""
        for name, made in [*self.observers.items(), *self.weight_observers.items()]:
            yield f"{name}.{MARK}", made
            if isinstance(made, FakeQuantizeBase) and hasattr(made, MARK):
                yield f"{name}.{MARK}.{MARK}", getattr(made, MARK)

    def apply(self, fn: Callable[[Any], Any]) -> PreparedModel:
        """Call `fn` with every observer and fake-quantize: `prepared.apply(qrt.quantization.disable_observer)`."""
        for _, module in self.named_modules():
            fn(module)
        return self

    @property
    def learns(self) -> bool:
        """Whether there are ranges to learn from data: of activations that are not quantized anew in each run."""
        return any(not group.held and not group.spec.is_dynamic for group in self._made)

    # -- running --------------------------------------------------------------------------------------------------------------
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the float model on inputs in order, or by name, and observe. Returns its output, or a tuple of several.

        With fake-quantizes, the outputs are those of the fake-quantized model. Raises CalibrationError for inputs that do not fit, and for
        those that make NaN or infinity where something is observed.
        """
        results = self.observe(feeds_of(self.model, sample_feeds(self.model, args, kwargs), "the call"))
        return results[0] if len(results) == 1 else tuple(results)

    def observe(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run on checked feeds and let every observer see its values. The outputs, in order."""
        if self._fake is not None:
            return self._fake.run(feeds)
        watchers: dict[str, list[ObserverOrFakeQuantize]] = {}
        for group, maker in self._made.items():
            for name in group.watched:
                watchers.setdefault(name, []).append(maker)
        if self._executable is None:
            self._executable = _executable(self.model, list(watchers))

        def tap(name: str, array: np.ndarray) -> None:
            for watcher in watchers[name]:
                watcher(in_memory_order(array, watcher))

        return self._executable.run(feeds, tap)

    def calibrate(self, data: Iterable[Batch]) -> int:
        """Observe every batch (a dict of name → array, or one array for a model with one input). How many there were.

        Raises CalibrationError for no data, and for data that does not fit the inputs or holds NaN or infinity.
        """
        count = 0
        for count, batch in enumerate(data, 1):
            self.observe(feeds_of(self.model, batch, f"calibration batch {count - 1}"))
        if not count and self.learns:
            raise CalibrationError("no calibration data: give at least one batch, better 100 to 500 samples like those to come")
        return count

    # -- converting -----------------------------------------------------------------------------------------------------------
    def qparams(self) -> dict[str, QParams]:
        """What was learned so far: site → scale and zero point. Raises CalibrationError for an observer that saw nothing."""
        return {group.name: params for group, params in self._qparams(self.groups).items()}

    def _qparams(self, groups: Sequence[Group]) -> dict[Group, QParams]:
        made = {site: maker for group, maker in self._made.items() for site in group.sites}

        def learned(group: Group) -> QParams:
            maker = next((made[site] for site in group.sites if site in made), None)
            if maker is None:
                raise QuantizationError(
                    f"{group.sites[0]} would become codes, but nothing observed it: prepare the model as it is converted"
                )
            return observed(maker).calculate_qparams()

        return qparams_of(self.model, groups, learned)

    def convert(self, *, fold_weights: bool = True, inputs: Sequence[int] = (), outputs: Sequence[int] = ()) -> Model:
        """The model in QDQ form with what was learned. May be called again after more data.

        `fold_weights`: weights become codes now; otherwise they stay float, behind Q and DQ. `inputs`, `outputs`: numbers of those that
        become codes themselves (uint8 or int8), with no Q and DQ of their own. Raises CalibrationError for an observer that saw nothing,
        QuantizationError for qparams that an operator cannot take, and for an input or output that is not quantized.
        """
        return self.convert_groups(self.groups, fold_weights=fold_weights, inputs=inputs, outputs=outputs)

    def convert_groups(
        self, groups: Sequence[Group], *, fold_weights: bool = True, inputs: Sequence[int] = (), outputs: Sequence[int] = ()
    ) -> Model:
        """As `convert`, for another resolution of the same graph, whose sites are some of those here."""
        learned = self._qparams(groups)
        model = self.model.clone()
        forget(model)
        write_qdq(model, groups, learned, fold_weights=fold_weights)
        for index in inputs:
            open_input(model, index)
        for index in outputs:
            open_output(model, index)
        drop_dead(model)
        name_everything(model)
        return model


def _fixed_fake_quantize(spec: FixedQParamsQuantizationSpec) -> FixedQParamsFakeQuantize:
    observer = FixedQParamsObserver.with_args(scale=spec.scale, zero_point=spec.zero_point, dtype=spec.dtype)
    low = spec.dtype.qmin if spec.quant_min is None else spec.quant_min
    high = spec.dtype.qmax if spec.quant_max is None else spec.quant_max
    return FixedQParamsFakeQuantize(observer.with_args(quant_min=low, quant_max=high))


def sample_feeds(model: Model, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a call like a function's means: inputs in order, or by name, or one dict of them. Raises InvalidInput for too many, or twice."""
    names = [v.name or "" for v in model.graph.inputs]
    if len(args) == 1 and isinstance(args[0], Mapping) and not kwargs:
        return dict(args[0])
    if len(args) > len(names):
        raise InvalidInput(f"{model.name} takes {len(names)} inputs ({', '.join(names)}); {len(args)} were given")
    twice = [name for name in names[: len(args)] if name in kwargs]
    if twice:
        raise InvalidInput(f"input {twice[0]!r} of {model.name} was given twice, in order and by name")
    return dict(zip(names, args, strict=False)) | dict(kwargs)


class _FakeQuantized:
    """The model with its fake-quantizes in it, as calls from the graph. Weights are constants, renewed when what they become changes."""

    def __init__(self, prepared: PreparedModel) -> None:
        self.prepared = prepared
        self.weights: dict[tuple[Group, str], np.ndarray] = {}
        self.executable: Executable | None = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        made = self.prepared._made.items()
        weights = {(group, name): maker(self.prepared._constant(name)) for group, maker in made for name in group.constants}
        if self.executable is None or any(not np.array_equal(w, self.weights[key]) for key, w in weights.items()):
            self.weights = weights
            self.executable = self._build()
        return self.executable.run(feeds)

    def _build(self) -> Executable:
        model = self.prepared.model.clone()
        nodes = {node.name or "": node for node in model.graph}
        values = {v.name or "": v for v in [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)]}
        fresh = Fresh(model.graph)
        calls: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        faked: dict[str, ir.Value] = {}  # by the name of the value, for all its readers
        sites = [(site, group) for group in self.prepared._made for site in group.sites]
        for site, group in sorted(sites, key=lambda item: bool(item[0].reader)):  # values before edges, which may read them
            if site.value in group.constants:
                faked_weight = fresh.constant(f"{site.value}_fake_quantized", self.weights[group, site.value])
                _swap(nodes[site.reader], model.graph.initializers[site.value], faked_weight)
            elif isinstance(group.spec, QuantizationSpec) and not group.spec.is_dynamic and site.value not in group.watched:
                continue  # it is moved from what is fake-quantized already
            elif not site.reader:
                value = values[site.value]
                readers = [use.node for use in value.uses()]
                faked[site.value] = output = _call(
                    model, value, fresh.name(f"{site.value}_fake_quantized"), calls, self.prepared._made[group]
                )
                for reader in readers:
                    _swap(reader, value, output)
                if value.is_graph_output() and value.producer() is not None:
                    model.graph.outputs[list(model.graph.outputs).index(value)] = output
            elif Site(site.value) not in group.sites:
                value = faked.get(site.value, values[site.value])
                output = _call(model, value, fresh.name(f"{site.value}_{site.reader}_fake_quantized"), calls, self.prepared._made[group])
                _swap(nodes[site.reader], value, output)
        fuse(model)
        return Executable(model, host_target(), 1, calls=calls)


def _call(model: Model, value: ir.Value, name: str, calls: dict[str, Callable[[np.ndarray], np.ndarray]], function: Any) -> ir.Value:
    """What a call of `function` makes of `value`, called `name`: by a node right behind its maker, listed in `calls`."""
    output = ir.Value(name=name, shape=value.shape, type=value.type)
    node = ir.node("Call", [value], domain="ai.qrt", outputs=[output], name=f"{output.name}_call")
    calls[node.name or ""] = function
    maker = value.producer()
    if maker is not None:
        model.graph.insert_after(maker, node)
    else:
        model.graph.insert_before(next(iter(model.graph)), node)
    return output


def _swap(reader: ir.Node, value: ir.Value, other: ir.Value) -> None:
    for index, v in enumerate(reader.inputs):
        if v is value:
            reader.replace_input_with(index, other)


def _executable(model: Model, names: Sequence[str]) -> Executable:
    """The model fused, but with the values `names` still there to be seen."""
    model = model.clone()
    real = list(model.graph.outputs)
    made = {v.name: v for node in model.graph for v in node.outputs}
    # Rules keep what is an output.
    model.graph.outputs.extend(made[name] for name in names if name in made and not made[name].is_graph_output())
    fuse(model)
    del model.graph.outputs[len(real) :]
    return Executable(model, host_target(), 1, taps=names)


def in_memory_order(array: np.ndarray, observer: ObserverOrFakeQuantize) -> np.ndarray:
    """`array` with its axes as they lie in memory, which saves an observer of one range a copy; others get it as it is."""
    if not isinstance(observer, UniformQuantizationObserverBase) or observer.axis is not None:
        return array
    return array.transpose(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))
