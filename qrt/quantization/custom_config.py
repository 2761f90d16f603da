"""Custom configuration of prepare, convert and fuse, as torch.ao.quantization's graph mode takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self, TypeVar

from qrt.core.errors import InvalidInput
from qrt.quantization.backend_config import BackendConfig
from qrt.quantization.dtype_config import check_keys
from qrt.quantization.qconfig_mapping import QConfigMapping

__all__ = ["ConvertCustomConfig", "FuseCustomConfig", "PrepareCustomConfig", "QuantType", "StandaloneModuleConfigEntry"]

C = TypeVar("C", QConfigMapping, "PrepareCustomConfig", BackendConfig)


class QuantType(IntEnum):
    """When activations are quantized: in each run, with calibrated qparams, in training, or never."""

    DYNAMIC = 0
    STATIC = 1
    QAT = 2
    WEIGHT_ONLY = 3


class _CustomConfig:
    """What the three have in common."""

    def __init__(self) -> None:
        self.preserved_attributes: list[str] = []

    def set_preserved_attributes(self, attributes: Sequence[str]) -> Self:
        """Names of attributes that are kept, though nothing uses them."""
        self.preserved_attributes = _strings("attributes", attributes)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({ ({name: value for name, value in vars(self).items() if value}) })"


class FuseCustomConfig(_CustomConfig):
    """Custom configuration of `fuse_fx`. Setters return the config itself, and raise InvalidInput for values of another type."""

    @classmethod
    def from_dict(cls, fuse_custom_config_dict: Mapping[str, Any]) -> FuseCustomConfig:
        """What `to_dict` wrote; all keys may be missing. Raises InvalidInput for others."""
        check_keys("a FuseCustomConfig", fuse_custom_config_dict, ("preserved_attributes",))
        return cls().set_preserved_attributes(fuse_custom_config_dict.get("preserved_attributes", []))

    def to_dict(self) -> dict[str, Any]:
        """What is set, by name: "preserved_attributes"."""
        return _filled({"preserved_attributes": self.preserved_attributes})


class ConvertCustomConfig(_CustomConfig):
    """Custom configuration of `convert_fx`. Setters return the config itself, and raise InvalidInput for values of another type."""

    def __init__(self) -> None:
        super().__init__()
        self.observed_to_quantized_mapping: dict[QuantType, dict[type, type]] = {}

    def set_observed_to_quantized_mapping(
        self, observed_class: type, quantized_class: type, quant_type: QuantType = QuantType.STATIC
    ) -> ConvertCustomConfig:
        """What a custom observed module becomes: a class with a classmethod `from_observed`."""
        _check_classes(observed_class=observed_class, quantized_class=quantized_class)
        self.observed_to_quantized_mapping.setdefault(QuantType(quant_type), {})[observed_class] = quantized_class
        return self

    @classmethod
    def from_dict(cls, convert_custom_config_dict: Mapping[str, Any]) -> ConvertCustomConfig:
        """What `to_dict` wrote; all keys may be missing. Raises InvalidInput for others."""
        given = convert_custom_config_dict
        check_keys("a ConvertCustomConfig", given, ("observed_to_quantized_custom_module_class", "preserved_attributes"))
        made = cls().set_preserved_attributes(given.get("preserved_attributes", []))
        for quant_type, classes in _by_type(given, "observed_to_quantized_custom_module_class"):
            for observed_class, quantized_class in classes.items():
                made.set_observed_to_quantized_mapping(observed_class, quantized_class, quant_type)
        return made

    def to_dict(self) -> dict[str, Any]:
        """What is set: "observed_to_quantized_custom_module_class" (by "static", "dynamic" …), "preserved_attributes"."""
        mapping = {quant_type.name.lower(): classes for quant_type, classes in self.observed_to_quantized_mapping.items()}
        return _filled({"observed_to_quantized_custom_module_class": mapping, "preserved_attributes": self.preserved_attributes})


@dataclass
class StandaloneModuleConfigEntry:
    """How a standalone module is prepared; None takes over what its parent has.

    `example_inputs`: what the module is called with.
    """

    qconfig_mapping: QConfigMapping | None
    example_inputs: tuple[Any, ...]
    prepare_custom_config: PrepareCustomConfig | None
    backend_config: BackendConfig | None

    def __post_init__(self) -> None:
        self.qconfig_mapping = _config("qconfig_mapping", QConfigMapping, self.qconfig_mapping)
        self.prepare_custom_config = _config("prepare_custom_config", PrepareCustomConfig, self.prepare_custom_config)
        self.backend_config = _config("backend_config", BackendConfig, self.backend_config)

    def to_tuple(self, key: str | type) -> tuple[Any, ...]:
        """The entry behind its key, its configs as dicts."""
        mapping, custom, backend = self.qconfig_mapping, self.prepare_custom_config, self.backend_config
        return (
            key,
            None if mapping is None else mapping.to_dict(),
            self.example_inputs,
            None if custom is None else custom.to_dict(),
            None if backend is None else backend.to_dict(),
        )


class PrepareCustomConfig(_CustomConfig):
    """Custom configuration of `prepare_fx` and `prepare_qat_fx`. Setters return the config itself, and raise InvalidInput for values of
    another type."""

    def __init__(self) -> None:
        super().__init__()
        self.standalone_module_names: dict[str, StandaloneModuleConfigEntry] = {}
        self.standalone_module_classes: dict[type, StandaloneModuleConfigEntry] = {}
        self.float_to_observed_mapping: dict[QuantType, dict[type, type]] = {}
        self.non_traceable_module_names: list[str] = []
        self.non_traceable_module_classes: list[type] = []
        self.input_quantized_indexes: list[int] = []
        self.output_quantized_indexes: list[int] = []

    def set_standalone_module_name(
        self,
        module_name: str,
        qconfig_mapping: QConfigMapping | None,
        example_inputs: tuple[Any, ...],
        prepare_custom_config: PrepareCustomConfig | None,
        backend_config: BackendConfig | None,
    ) -> PrepareCustomConfig:
        """The module of that name is prepared by itself, with configs of its own or, where None, its parent's."""
        (name,) = _strings("module_name", [module_name])
        entry = StandaloneModuleConfigEntry(qconfig_mapping, example_inputs, prepare_custom_config, backend_config)
        self.standalone_module_names[name] = entry
        return self

    def set_standalone_module_class(
        self,
        module_class: type,
        qconfig_mapping: QConfigMapping | None,
        example_inputs: tuple[Any, ...],
        prepare_custom_config: PrepareCustomConfig | None,
        backend_config: BackendConfig | None,
    ) -> PrepareCustomConfig:
        """Likewise, for all modules of a class."""
        _check_classes(module_class=module_class)
        entry = StandaloneModuleConfigEntry(qconfig_mapping, example_inputs, prepare_custom_config, backend_config)
        self.standalone_module_classes[module_class] = entry
        return self

    def set_float_to_observed_mapping(
        self, float_class: type, observed_class: type, quant_type: QuantType = QuantType.STATIC
    ) -> PrepareCustomConfig:
        """What a custom float module becomes while it is calibrated: a class with a classmethod `from_float`. As in torch, static only."""
        _check_classes(float_class=float_class, observed_class=observed_class)
        if quant_type is not QuantType.STATIC:
            raise InvalidInput(f"quant_type is {quant_type!r}: a float module has an observed class for static quantization only")
        self.float_to_observed_mapping.setdefault(quant_type, {})[float_class] = observed_class
        return self

    def set_non_traceable_module_names(self, module_names: Sequence[str]) -> PrepareCustomConfig:
        """Names of modules that stay whole."""
        self.non_traceable_module_names = _strings("module_names", module_names)
        return self

    def set_non_traceable_module_classes(self, module_classes: Sequence[type]) -> PrepareCustomConfig:
        """Classes of modules that stay whole."""
        self.non_traceable_module_classes = list(module_classes)
        _check_classes(**{f"module_classes[{i}]": cls for i, cls in enumerate(self.non_traceable_module_classes)})
        return self

    def set_input_quantized_indexes(self, indexes: Sequence[int]) -> PrepareCustomConfig:
        """Which inputs of the graph hold codes; the others are float32."""
        self.input_quantized_indexes = _indexes(indexes)
        return self

    def set_output_quantized_indexes(self, indexes: Sequence[int]) -> PrepareCustomConfig:
        """Which outputs of the graph hold codes; the others are float32."""
        self.output_quantized_indexes = _indexes(indexes)
        return self

    @classmethod
    def from_dict(cls, prepare_custom_config_dict: Mapping[str, Any]) -> PrepareCustomConfig:
        """What `to_dict` wrote; all keys may be missing. Raises InvalidInput for others, and for entries of another form."""
        given, made = prepare_custom_config_dict, cls()
        standalone: dict[str, Callable[..., PrepareCustomConfig]] = {
            "standalone_module_name": made.set_standalone_module_name,
            "standalone_module_class": made.set_standalone_module_class,
        }
        plain: dict[str, Callable[..., PrepareCustomConfig]] = {
            "non_traceable_module_name": made.set_non_traceable_module_names,
            "non_traceable_module_class": made.set_non_traceable_module_classes,
            "input_quantized_idxs": made.set_input_quantized_indexes,
            "output_quantized_idxs": made.set_output_quantized_indexes,
            "preserved_attributes": made.set_preserved_attributes,
        }
        check_keys("a PrepareCustomConfig", given, (*standalone, "float_to_observed_custom_module_class", *plain))
        for key, add in standalone.items():
            for entry in given.get(key, []):
                if not isinstance(entry, tuple | list) or len(entry) != 5:
                    raise InvalidInput(f"{key} holds {entry!r}: give (module, qconfig mapping, inputs, prepare config, backend config)")
                add(*entry)
        for quant_type, classes in _by_type(given, "float_to_observed_custom_module_class"):
            for float_class, observed_class in classes.items():
                made.set_float_to_observed_mapping(float_class, observed_class, quant_type)
        for key, put in plain.items():
            put(given.get(key, []))
        return made

    def to_dict(self) -> dict[str, Any]:
        """What is set, under torch's keys: "standalone_module_name", "standalone_module_class" (tuples of key, qconfig dict, example
        inputs, prepare dict, backend dict), "float_to_observed_custom_module_class", "non_traceable_module_name",
        "non_traceable_module_class", "input_quantized_idxs", "output_quantized_idxs", "preserved_attributes"."""
        mapping = {quant_type.name.lower(): classes for quant_type, classes in self.float_to_observed_mapping.items()}
        return _filled(
            {
                "standalone_module_name": [entry.to_tuple(key) for key, entry in self.standalone_module_names.items()],
                "standalone_module_class": [entry.to_tuple(key) for key, entry in self.standalone_module_classes.items()],
                "float_to_observed_custom_module_class": mapping,
                "non_traceable_module_name": self.non_traceable_module_names,
                "non_traceable_module_class": self.non_traceable_module_classes,
                "input_quantized_idxs": self.input_quantized_indexes,
                "output_quantized_idxs": self.output_quantized_indexes,
                "preserved_attributes": self.preserved_attributes,
            }
        )


def _filled(parts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parts.items() if value}


def _config(what: str, cls: type[C], given: Any) -> C | None:
    """A config as such, from its dict, or None."""
    if given is None or isinstance(given, cls):
        return given
    if isinstance(given, Mapping):
        return cls.from_dict(given)
    raise InvalidInput(f"{what} is a {type(given).__name__}: give a {cls.__name__}, its dict, or None")


def _by_type(given: Mapping[str, Any], key: str) -> list[tuple[QuantType, Mapping[type, type]]]:
    """The classes under a key, for each quant type."""
    known = {quant_type.name.lower(): quant_type for quant_type in QuantType}
    found = []
    for name, classes in given.get(key, {}).items():
        if name not in known or not isinstance(classes, Mapping):
            raise InvalidInput(f"{key} holds {name!r}: give one of {list(known)}, each with a dict of classes")
        found.append((known[name], classes))
    return found


def _strings(what: str, names: Sequence[str]) -> list[str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InvalidInput(f"{what} is {names!r}: give strings in a list")
    return list(names)


def _indexes(indexes: Sequence[int]) -> list[int]:
    if not all(isinstance(index, int) and index >= 0 for index in indexes):
        raise InvalidInput(f"indexes is {indexes!r}: give numbers of inputs or outputs, from 0 on")
    return list(indexes)


def _check_classes(**classes: type) -> None:
    for what, cls in classes.items():
        if not isinstance(cls, type):
            raise InvalidInput(f"{what} is {cls!r}: give a class")
