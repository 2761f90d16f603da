"""BackendConfig: what a backend can quantize, and how; qrt's own is made from the rules that stand beside its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, TypeAlias

from qrt.core.dtypes import qint8, quint8
from qrt.core.errors import InvalidInput
from qrt.ops.rule import Kind, QuantRule
from qrt.quantization.dtype_config import FLOAT32, DTypeConfig, DTypeWithConstraints, check_keys, mismatch
from qrt.quantization.qconfig import QConfig

__all__ = [
    "BackendConfig",
    "BackendPatternConfig",
    "DTypeConfig",
    "DTypeWithConstraints",
    "ObservationType",
    "get_native_backend_config",
    "get_qrt_backend_config",
    "is_qconfig_supported",
]

Pattern: TypeAlias = str | Callable[..., Any] | tuple["Pattern", ...]


class ObservationType(Enum):
    """Where a pattern's observers stand."""

    OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT = 0
    """The output has a range of its own: convolutions, sums, Softmax."""
    OUTPUT_SHARE_OBSERVER_WITH_INPUT = 1
    """The output has its input's range: Concat, MaxPool, Reshape."""
    INPUT_OUTPUT_NOT_OBSERVED = 2
    """Nothing is quantized: Shape."""


# Attribute of a pattern's config → its key in a dict.
_MODULES = {
    "root_module": "root_module",
    "qat_module": "qat_module",
    "reference_quantized_module": "reference_quantized_module_for_root",
    "fused_module": "fused_module",
    "fuser_method": "fuser_method",
}


class BackendPatternConfig:
    """How one pattern is quantized. `pattern`: an ONNX operator ("Conv"), a class or function, or a tuple of these in sequence.

    Setters return the config itself. Raises InvalidInput for arguments of other types.
    """

    def __init__(self, pattern: Pattern | None = None) -> None:
        self.pattern: Pattern | None = None if pattern is None else _pattern(pattern)
        self.observation_type = ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT
        self.dtype_configs: list[DTypeConfig] = []
        self.root_module: type | None = None
        self.qat_module: type | None = None
        self.reference_quantized_module: type | None = None
        self.fused_module: type | None = None
        self.fuser_method: Callable[..., Any] | None = None

    def set_pattern(self, pattern: Pattern) -> BackendPatternConfig:
        """The pattern that is configured."""
        self.pattern = _pattern(pattern)
        return self

    def set_observation_type(self, observation_type: ObservationType) -> BackendPatternConfig:
        """Where its observers stand; by default the output has one of its own."""
        if not isinstance(observation_type, ObservationType):
            raise InvalidInput(f"observation_type is {observation_type!r}: give an ObservationType")
        self.observation_type = observation_type
        return self

    def add_dtype_config(self, dtype_config: DTypeConfig) -> BackendPatternConfig:
        """One more choice of dtypes."""
        if not isinstance(dtype_config, DTypeConfig):
            raise InvalidInput(f"dtype_config is a {type(dtype_config).__name__}: give a DTypeConfig")
        self.dtype_configs.append(dtype_config)
        return self

    def set_dtype_configs(self, dtype_configs: Iterable[DTypeConfig]) -> BackendPatternConfig:
        """The choices of dtypes, in place of those there."""
        self.dtype_configs = []
        for dtype_config in dtype_configs:
            self.add_dtype_config(dtype_config)
        return self

    def set_root_module(self, root_module: type | None) -> BackendPatternConfig:
        """The module whose weight the pattern uses."""
        self.root_module = root_module
        return self

    def set_qat_module(self, qat_module: type | None) -> BackendPatternConfig:
        """The module that trains it with fake quantization."""
        self.qat_module = qat_module
        return self

    def set_reference_quantized_module(self, reference_quantized_module: type | None) -> BackendPatternConfig:
        """The module that computes in float what the quantized root module does."""
        self.reference_quantized_module = reference_quantized_module
        return self

    def set_fused_module(self, fused_module: type | None) -> BackendPatternConfig:
        """The module that the pattern becomes."""
        self.fused_module = fused_module
        return self

    def set_fuser_method(self, fuser_method: Callable[..., Any] | None) -> BackendPatternConfig:
        """What makes that module: a function of `is_qat` and the pattern's modules in order."""
        if fuser_method is not None and not callable(fuser_method):
            raise InvalidInput(f"fuser_method is {fuser_method!r}: give a function of is_qat and the pattern's modules")
        self.fuser_method = fuser_method
        return self

    @classmethod
    def from_dict(cls, backend_pattern_config_dict: Mapping[str, Any]) -> BackendPatternConfig:
        """What `to_dict` wrote; all keys may be missing. Raises InvalidInput for other keys or values."""
        given = backend_pattern_config_dict
        check_keys("a BackendPatternConfig", given, ("pattern", "observation_type", "dtype_configs", *_MODULES.values()))
        made = cls(given.get("pattern"))
        made.set_observation_type(given.get("observation_type", made.observation_type))
        made.set_dtype_configs(_parts(DTypeConfig, "dtype_configs", given))
        for attribute, key in _MODULES.items():
            getattr(made, f"set_{attribute}")(given.get(key))
        return made

    def to_dict(self) -> dict[str, Any]:
        """The config as a dict: "pattern", "observation_type", "dtype_configs" (dicts) and what modules are set."""
        made: dict[str, Any] = {} if self.pattern is None else {"pattern": self.pattern}
        made |= {"observation_type": self.observation_type, "dtype_configs": [config.to_dict() for config in self.dtype_configs]}
        return made | {key: value for name, key in _MODULES.items() if (value := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        return f"BackendPatternConfig({ ({name: value for name, value in vars(self).items() if value}) })"


class BackendConfig:
    """What a backend can quantize: one config for each pattern. Setters return the config itself."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._configs: dict[Pattern, BackendPatternConfig] = {}

    def set_name(self, name: str) -> BackendConfig:
        """The backend's name."""
        self.name = name
        return self

    def set_backend_pattern_config(self, config: BackendPatternConfig) -> BackendConfig:
        """One more pattern, or another config for one that is there. Raises InvalidInput for a config without a pattern."""
        if not isinstance(config, BackendPatternConfig):
            raise InvalidInput(f"config is a {type(config).__name__}: give a BackendPatternConfig")
        if config.pattern is None:
            raise InvalidInput("a BackendPatternConfig has no pattern: call its set_pattern first")
        self._configs[config.pattern] = config
        return self

    def set_backend_pattern_configs(self, configs: Iterable[BackendPatternConfig]) -> BackendConfig:
        """Likewise, for several."""
        for config in configs:
            self.set_backend_pattern_config(config)
        return self

    @property
    def configs(self) -> list[BackendPatternConfig]:
        """The configs of all patterns, in a new list."""
        return list(self._configs.values())

    def config_of(self, pattern: Pattern) -> BackendPatternConfig | None:
        """The config of a pattern; None where the backend does not know it."""
        return self._configs.get(pattern)

    @classmethod
    def from_dict(cls, backend_config_dict: Mapping[str, Any]) -> BackendConfig:
        """What `to_dict` wrote; "configs" may hold configs or their dicts. Raises InvalidInput for other keys or values."""
        check_keys("a BackendConfig", backend_config_dict, ("name", "configs"))
        configs = _parts(BackendPatternConfig, "configs", backend_config_dict)
        return cls(backend_config_dict.get("name", "")).set_backend_pattern_configs(configs)

    def to_dict(self) -> dict[str, Any]:
        """The config as a dict: "name", and "configs" as dicts."""
        return {"name": self.name, "configs": [config.to_dict() for config in self.configs]}

    def __repr__(self) -> str:
        return f"BackendConfig({self.name!r}, {self.configs})"


def get_qrt_backend_config() -> BackendConfig:
    """What qrt can quantize: a config for each operator that has a QuantRule, made from that rule.

    Activations are quint8 or qint8, in all codes, and weights qint8, of products also beside activations that are quantized in each run
    or stay float; an embedding's table is quint8. Sigmoid and its like need the qparams that their range gives.
    """
    from qrt.quantization.rules import RULES  # this brings the graph along, which nothing else here needs

    return BackendConfig("qrt").set_backend_pattern_configs(_config_of_rule(op_type, rule) for op_type, rule in RULES.items())


get_native_backend_config = get_qrt_backend_config


def is_qconfig_supported(qconfig: QConfig, config: BackendPatternConfig) -> str | None:
    """Why a pattern cannot be quantized as the QConfig says; None where it can.

    A QConfig fits if one of the config's choices of dtypes takes the dtypes of its observers, their codes, smallest scale (eps) and, where
    these are fixed, scale and zero point.
    """
    activation, weight = qconfig.activation(), qconfig.weight()
    found = [mismatch(activation, weight, choice) for choice in config.dtype_configs]
    if None in found:
        return None
    _, reason = max((one for one in found if one is not None), key=lambda one: one[0], default=(0, "no dtypes are known for it"))
    return reason


def _config_of_rule(op_type: str, rule: QuantRule) -> BackendPatternConfig:
    product, embedding = rule.kind is Kind.PRODUCT, rule.kind is Kind.MOVE and rule.weight is not None
    shared = rule.kind in (Kind.MOVE, Kind.JOIN)
    config = BackendPatternConfig(op_type)
    if shared:
        config.set_observation_type(ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT)
    weights: dict[str, Any] = {"weight_dtype": qint8, "bias_dtype": FLOAT32} if product else {}
    for dtype in (quint8, qint8):
        activation: Any = dtype
        if rule.fixed is not None:
            scale, zero_point = rule.fixed
            zero_point += dtype.qmin - quint8.qmin
            activation = DTypeWithConstraints(dtype, dtype.qmin, dtype.qmax, scale_exact_match=scale, zero_point_exact_match=zero_point)
        config.add_dtype_config(DTypeConfig(activation, activation, **weights))
    if rule.dynamic:
        config.add_dtype_config(DTypeConfig(quint8, FLOAT32, is_dynamic=True, **weights))
    if product or embedding:
        config.add_dtype_config(DTypeConfig(FLOAT32, FLOAT32, **(weights or {"weight_dtype": quint8})))
    return config


def _pattern(pattern: Pattern) -> Pattern:
    parts = pattern if isinstance(pattern, tuple) else (pattern,)
    if not parts or not all(isinstance(part, str) or callable(part) for part in parts):
        raise InvalidInput(f"{pattern!r} is no pattern: give an operator's name, a class, or a tuple of these in sequence")
    return pattern


def _parts(cls: type[Any], key: str, given: Mapping[str, Any]) -> list[Any]:
    """The parts under a key, each an object of the class or its dict."""
    parts = given.get(key, [])
    if not isinstance(parts, list | tuple) or not all(isinstance(part, cls | Mapping) for part in parts):
        raise InvalidInput(f"{key} is {parts!r}: give a list of {cls.__name__}s or their dicts")
    return [cls.from_dict(part) if isinstance(part, Mapping) else part for part in parts]
