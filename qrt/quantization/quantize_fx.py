"""FX graph mode on a loaded Model: a QConfigMapping says how each node is quantized.

prepared = prepare_fx(model, get_default_qconfig_mapping(), (x,))
for x in samples:
    prepared(x)
int8 = convert_fx(prepared)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from qrt.core.errors import InvalidInput, QrtWarning, QuantizationError
from qrt.graph import Model, ir
from qrt.graph.passes import prepare
from qrt.quantization.backend_config import BackendConfig, is_qconfig_supported
from qrt.quantization.batches import feeds_of
from qrt.quantization.custom_config import ConvertCustomConfig, FuseCustomConfig, PrepareCustomConfig
from qrt.quantization.placement import QrtQuantizer, qconfigs_of
from qrt.quantization.prepared import PreparedModel, prepare_model, sample_feeds
from qrt.quantization.pt2e import check_fake_quantizes
from qrt.quantization.qconfig import QConfig, QConfigAny, qconfig_equals
from qrt.quantization.qconfig_mapping import QConfigMapping, covers
from qrt.quantization.quantizer import forget
from qrt.quantization.resolve import resolve
from qrt.quantization.rules import RULES

__all__ = ["convert_fx", "fuse_fx", "prepare_fx", "prepare_qat_fx"]


def prepare_fx(
    model: Model,
    qconfig_mapping: QConfigMapping | dict[str, Any],
    example_inputs: Any,
    prepare_custom_config: PrepareCustomConfig | dict[str, Any] | None = None,
    _equalization_config: None = None,
    backend_config: BackendConfig | dict[str, Any] | None = None,
) -> PreparedModel:
    """The model with observers where `qconfig_mapping` wants them. Call it with samples, then give it to `convert_fx`.

    `model`: a loaded float Model, which stays as it is. `example_inputs`: arrays, a tuple of them or a dict by name, as the model is called
    with; they are checked, and nothing is learned from them; None checks nothing. `prepare_custom_config`: modules (name prefixes) that
    stay float (`non_traceable_module_names`) or have a mapping of their own (`standalone_module_names`), and inputs and outputs that hold
    codes. `_equalization_config`: must be None. `backend_config`: nodes that it does not list, or whose QConfig it does not take, stay
    float with a warning; by default whatever qrt's rules take is quantized, and what they do not take is an error.
    Raises InvalidInput for arguments of other types, QuantizationError for a mapping that speaks of no node or asks for what is not there.
    """
    if _equalization_config is not None:
        raise InvalidInput("_equalization_config: qrt does not equalize; leave it None")
    mapping = _as(qconfig_mapping, QConfigMapping, "qconfig_mapping")
    custom = _as(prepare_custom_config, PrepareCustomConfig, "prepare_custom_config") if prepare_custom_config else PrepareCustomConfig()
    backend = _as(backend_config, BackendConfig, "backend_config") if backend_config is not None else None
    _check_custom(custom)
    prepared = prepare_model(model, FxQuantizer(mapping, custom, backend))
    if example_inputs is not None:
        given = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
        feeds_of(prepared.model, sample_feeds(prepared.model, given, {}), "example_inputs")
    return prepared


def prepare_qat_fx(
    model: Model,
    qconfig_mapping: QConfigMapping | dict[str, Any],
    example_inputs: Any,
    prepare_custom_config: PrepareCustomConfig | dict[str, Any] | None = None,
    backend_config: BackendConfig | dict[str, Any] | None = None,
) -> PreparedModel:
    """As `prepare_fx`, for QConfigs that make fake-quantizes: calling the result gives what the quantized model will.

    BatchNorm is folded, as after training. Raises QuantizationError too where nothing would be fake-quantized.
    """
    prepared = prepare_fx(model, qconfig_mapping, example_inputs, prepare_custom_config, None, backend_config)
    return check_fake_quantizes(prepared, "get_default_qat_qconfig_mapping(), or QConfigs of FakeQuantize")


def convert_fx(
    graph_module: PreparedModel,
    convert_custom_config: ConvertCustomConfig | dict[str, Any] | None = None,
    _remove_qconfig: bool = True,
    qconfig_mapping: QConfigMapping | dict[str, Any] | None = None,
    backend_config: BackendConfig | dict[str, Any] | None = None,
    keep_original_weights: bool = False,
) -> Model:
    """The prepared model in QDQ form, standard ONNX, with what its observers learned.

    `qconfig_mapping`: leaves nodes float after all where it says None; otherwise it must say what the model was prepared with.
    `keep_original_weights`: weights stay float in the file, behind QuantizeLinear and DequantizeLinear. `_remove_qconfig`: a Model holds no
    QConfig, so there is nothing to keep. `convert_custom_config`: may only preserve attributes, which a Model always does.
    `backend_config`: must be None or equal the one of `prepare_fx`.
    Raises CalibrationError for an observer that saw nothing, QuantizationError for a mapping that disagrees, InvalidInput for arguments of
    other types.
    """
    if not isinstance(graph_module, PreparedModel) or not isinstance(graph_module.quantizer, FxQuantizer):
        raise InvalidInput(f"convert_fx takes what prepare_fx gives, not a {type(graph_module).__name__}")
    quantizer = graph_module.quantizer
    if convert_custom_config and _as(convert_custom_config, ConvertCustomConfig, "convert_custom_config").observed_to_quantized_mapping:
        raise InvalidInput("convert_custom_config maps classes of modules, and a graph has none: leave observed_to_quantized_mapping empty")
    backend = None if backend_config is None else _as(backend_config, BackendConfig, "backend_config").to_dict()
    if backend is not None and (quantizer.backend is None or quantizer.backend.to_dict() != backend):
        raise InvalidInput("backend_config is not the one that the model was prepared with: give that, or None")
    groups = graph_module.groups
    if qconfig_mapping is not None:
        clone = graph_module.model.clone()
        forget(clone)
        quantizer.without(_as(qconfig_mapping, QConfigMapping, "qconfig_mapping")).annotate(clone)
        groups = resolve(clone)
    custom = quantizer.custom
    return graph_module.convert_groups(
        groups,
        fold_weights=not keep_original_weights,
        inputs=custom.input_quantized_indexes,
        outputs=custom.output_quantized_indexes,
    )


def fuse_fx(
    model: Model,
    fuse_custom_config: FuseCustomConfig | dict[str, Any] | None = None,
    backend_config: BackendConfig | dict[str, Any] | None = None,
) -> Model:
    """The model as quantization starts from it: BatchNorm folded into the product before it, constants folded, Dropout and Identity gone.

    Activations need no fusing here: a session does that. `fuse_custom_config`, `backend_config`: checked; a Model keeps its attributes, and
    the fusions do not depend on the backend.
    """
    if fuse_custom_config is not None:
        _as(fuse_custom_config, FuseCustomConfig, "fuse_custom_config")
    if backend_config is not None:
        _as(backend_config, BackendConfig, "backend_config")
    return prepare(model)


class FxQuantizer(QrtQuantizer):
    """QrtQuantizer with what prepare_fx adds to it."""

    def __init__(self, mapping: QConfigMapping, custom: PrepareCustomConfig, backend: BackendConfig | None) -> None:
        super().__init__(mapping)
        self.custom, self.backend = custom, backend
        self.later: QConfigMapping | None = None
        self.outputs = custom.output_quantized_indexes

    def without(self, mapping: QConfigMapping) -> FxQuantizer:
        """The same, but for the nodes that `mapping` leaves float."""
        other = FxQuantizer(self.mapping, self.custom, self.backend)
        other.later = mapping
        return other

    def qconfigs(self, model: Model) -> dict[ir.Node, QConfig]:
        found = super().qconfigs(model)
        if self.later is not None:
            found = _kept(found, qconfigs_of(model.graph, self.later, model.name))
        for name, entry in self.custom.standalone_module_names.items():
            inside = [node for node in model.graph if covers(name, node.name or "")]
            _check_some(inside, name, model)
            if entry.qconfig_mapping is not None:
                own = qconfigs_of(inside, entry.qconfig_mapping, f"module {name!r} of {model.name}")
                found = {n: q for n, q in found.items() if n not in inside} | {n: q for n, q in own.items() if q is not None}
        for name in self.custom.non_traceable_module_names:
            inside = [node for node in model.graph if covers(name, node.name or "")]
            _check_some(inside, name, model)
            found = {node: q for node, q in found.items() if node not in inside}
        if self.backend is not None:
            found = self._taken(found, self.backend)
        return found

    def _taken(self, found: Mapping[ir.Node, QConfig], backend: BackendConfig) -> dict[ir.Node, QConfig]:
        """The nodes that a backend can quantize as their QConfigs say; it is told which others stay float."""
        taken, unlisted = {}, set()
        for node, qconfig in found.items():
            config = backend.config_of(node.op_type)
            if config is None:
                unlisted |= {node.op_type} & RULES.keys()
                continue
            reason = is_qconfig_supported(qconfig, config)
            if reason is None:
                taken[node] = qconfig
            elif self.later is None:
                _warn(f"{node.op_type} {node.name!r} stays float: the backend config {backend.name!r}: {reason}")
        if unlisted and self.later is None:
            _warn(f"these stay float, as the backend config {backend.name!r} does not list them: {', '.join(sorted(unlisted))}")
        return taken


def _warn(message: str) -> None:
    warnings.warn(message, QrtWarning, stacklevel=8)  # where prepare_fx is called


def _kept(found: Mapping[ir.Node, QConfig], later: Mapping[ir.Node, QConfigAny]) -> dict[ir.Node, QConfig]:
    """The nodes that `later` does not leave float. Raises QuantizationError where it says something else than was prepared."""
    kept = {}
    for node, before in found.items():
        now = later[node]
        if now is None:
            continue
        if not qconfig_equals(before, now):
            raise QuantizationError(f"node {node.name!r} was prepared with {before} and would be converted with {now}: give that or None")
        kept[node] = before
    return kept


def _check_some(nodes: list[ir.Node], name: str, model: Model) -> None:
    if not nodes:
        raise QuantizationError(f"prepare_custom_config speaks of module {name!r}, and no node of {model.name} lies below it")


def _check_custom(custom: PrepareCustomConfig) -> None:
    classes = ("standalone_module_classes", "float_to_observed_mapping", "non_traceable_module_classes")
    for attribute in classes:
        if getattr(custom, attribute):
            raise InvalidInput(f"prepare_custom_config.{attribute} speaks of classes of modules, and a graph has none: use names")


def _as(given: Any, cls: Any, what: str) -> Any:
    """`given`, or what its dict says, as a `cls`."""
    if isinstance(given, Mapping):
        return cls.from_dict(given)
    if not isinstance(given, cls):
        raise InvalidInput(f"{what} is a {type(given).__name__}: give a qrt.quantization.{cls.__name__} or its dict")
    return given
