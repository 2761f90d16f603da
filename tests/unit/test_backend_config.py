"""BackendConfig: torch's setters and dicts, qrt's own config against the rules, and which QConfigs fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qrt
from qrt import quantization
from qrt.core.errors import InvalidInput
from qrt.observers import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    NoopObserver,
    PlaceholderObserver,
    default_weight_observer,
)
from qrt.ops.rule import Kind
from qrt.quantization import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    DTypeWithConstraints,
    ObservationType,
    QConfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    get_native_backend_config,
    get_qrt_backend_config,
    is_qconfig_supported,
)
from qrt.quantization.rules import RULES

F32 = np.dtype(np.float32)
INT8 = DTypeConfig(qrt.quint8, qrt.quint8, qrt.qint8, np.float32)


class Root:
    pass


class Fused:
    pass


def fuse(is_qat: bool, root: Root, relu: object) -> Fused:
    return Fused()


def filled() -> BackendPatternConfig:
    """A config with all that can be set."""
    return (
        BackendPatternConfig(("Conv", "Relu"))
        .set_observation_type(ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT)
        .set_dtype_configs([INT8])
        .add_dtype_config(DTypeConfig(np.float16, is_dynamic=True))
        .set_root_module(Root)
        .set_qat_module(Root)
        .set_reference_quantized_module(Root)
        .set_fused_module(Fused)
        .set_fuser_method(fuse)
    )


def test_dtype_configs() -> None:
    bounded = DTypeWithConstraints(qrt.quint8, quant_min_lower_bound=0, quant_max_upper_bound=127)
    config = DTypeConfig(bounded, qrt.quint8, bias_dtype=np.float32, is_dynamic=False)
    assert (config.input_dtype, config.output_dtype, config.weight_dtype) == (qrt.quint8, qrt.quint8, None)
    assert (config.bias_dtype, config.is_dynamic) == (F32, False)
    assert config.input_dtype_with_constraints is bounded
    assert config.to_dict() == {
        "input_dtype": bounded,
        "output_dtype": DTypeWithConstraints(qrt.quint8),
        "bias_dtype": F32,
        "is_dynamic": False,
    }
    assert DTypeConfig.from_dict(config.to_dict()) == config != INT8
    assert DTypeConfig.from_dict({}) == DTypeConfig()
    assert repr(bounded) == "DTypeWithConstraints(dtype=qrt.quint8, quant_min_lower_bound=0, quant_max_upper_bound=127)"
    assert repr(DTypeConfig(bias_dtype=np.float32)) == "DTypeConfig(bias_dtype=dtype('float32'))"


def test_pattern_configs_round_trip() -> None:
    as_dict = filled().to_dict()
    assert as_dict == {
        "pattern": ("Conv", "Relu"),
        "observation_type": ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT,
        "dtype_configs": [INT8.to_dict(), {"input_dtype": DTypeWithConstraints(np.float16), "is_dynamic": True}],
        "root_module": Root,
        "qat_module": Root,
        "reference_quantized_module_for_root": Root,
        "fused_module": Fused,
        "fuser_method": fuse,
    }
    assert BackendPatternConfig.from_dict(as_dict).to_dict() == as_dict
    plain = {"observation_type": ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT, "dtype_configs": []}
    assert BackendPatternConfig().to_dict() == BackendPatternConfig.from_dict({}).to_dict() == plain
    assert "'pattern': ('Conv', 'Relu')" in repr(filled())
    assert "qat_module" not in repr(BackendPatternConfig("Conv"))


def test_one_config_for_each_pattern() -> None:
    first, second, other = BackendPatternConfig("Conv"), BackendPatternConfig().set_pattern("Conv"), filled()
    config = BackendConfig("a").set_name("b").set_backend_pattern_config(first).set_backend_pattern_configs([other, second])
    assert config.name == "b"
    assert config.configs == [second, other]
    assert config.config_of("Conv") is second
    assert config.config_of(("Conv", "Relu")) is other
    assert config.config_of("Relu") is None
    config.configs.clear()
    assert len(config.configs) == 2
    assert BackendConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert BackendConfig.from_dict({"configs": [first]}).configs == [first]
    assert BackendConfig.from_dict({}).to_dict() == {"name": "", "configs": []}
    assert "BackendConfig('b', [BackendPatternConfig({'pattern': 'Conv'" in repr(config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DTypeConfig("int8"), "input_dtype is 'int8': give a dtype such as"),
        (lambda: DTypeConfig(None, 8), "output_dtype is 8"),
        (lambda: DTypeConfig.from_dict({"weight_dtype": "qint8"}), "weight_dtype is 'qint8'"),
        (lambda: DTypeConfig.from_dict({"dtype": qrt.qint8}), "the dict of a DTypeConfig has no key 'dtype'"),
        (lambda: DTypeConfig.from_dict([INT8]), "a DTypeConfig cannot be made of a list"),
        (lambda: DTypeWithConstraints("int8"), "dtype is 'int8'"),
        (lambda: BackendPatternConfig(3), "3 is no pattern"),
        (lambda: BackendPatternConfig().set_pattern(()), r"\(\) is no pattern"),
        (lambda: BackendPatternConfig().set_observation_type(1), "observation_type is 1: give an ObservationType"),
        (lambda: BackendPatternConfig().add_dtype_config({}), "dtype_config is a dict"),
        (lambda: BackendPatternConfig().set_fuser_method(3), "fuser_method is 3"),
        (lambda: BackendPatternConfig.from_dict({"dtype_configs": [3]}), r"dtype_configs is \[3\]: give a list of DTypeConfigs"),
        (lambda: BackendPatternConfig.from_dict({"patterns": 3}), "no key 'patterns'"),
        (lambda: BackendConfig().set_backend_pattern_config("Conv"), "config is a str"),
        (lambda: BackendConfig().set_backend_pattern_config(BackendPatternConfig()), "has no pattern: call its set_pattern"),
        (lambda: BackendConfig.from_dict({"configs": ["Conv"]}), "give a list of BackendPatternConfigs"),
        (lambda: BackendConfig.from_dict({"config": []}), "no key 'config'"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call()


def test_qrts_config_is_made_of_the_rules() -> None:
    config = get_qrt_backend_config()
    assert config.name == "qrt"
    assert [one.pattern for one in config.configs] == list(RULES)
    for one in config.configs:
        rule = RULES[str(one.pattern)]
        shares = one.observation_type is ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT
        assert shares == (rule.kind in (Kind.MOVE, Kind.JOIN))
        assert any(choice.is_dynamic for choice in one.dtype_configs) == rule.dynamic
        assert any(choice.weight_dtype is not None for choice in one.dtype_configs) == (rule.weight is not None)
        exact = one.dtype_configs[0].output_dtype_with_constraints
        assert (exact.scale_exact_match, exact.zero_point_exact_match) == (rule.fixed or (None, None))
    assert get_native_backend_config().to_dict() == config.to_dict()
    assert BackendConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("op_type", RULES)
@pytest.mark.parametrize("backend", ["x86", "fbgemm", "qnnpack", "onednn"])
def test_the_default_mappings_fit_qrts_config(op_type: str, backend: str) -> None:
    config = get_qrt_backend_config().config_of(op_type)
    assert config is not None
    for mapping in (get_default_qconfig_mapping(backend), get_default_qat_qconfig_mapping(backend)):
        qconfig = mapping.of("node", op_type)
        assert qconfig is not None
        assert is_qconfig_supported(qconfig, config) is None


FLOAT = PlaceholderObserver
FLOAT16 = PlaceholderObserver.with_args(dtype=np.dtype(np.float16))


@pytest.mark.parametrize(
    ("qconfig", "op_type", "reason"),
    [
        (quantization.default_qrt_qconfig, "Conv", None),
        (quantization.default_symmetric_qnnpack_qconfig, "Gemm", None),
        (quantization.default_dynamic_qconfig, "Gemm", None),
        (quantization.default_dynamic_qat_qconfig, "MatMul", None),
        (quantization.default_weight_only_qconfig, "Conv", None),
        (quantization.float_qparams_weight_only_qconfig, "Gather", None),
        (quantization.default_reuse_input_qconfig, "Reshape", None),
        (quantization.default_dynamic_qconfig, "ConvTranspose", "its activation is quantized in each run"),
        (quantization.default_activation_only_qconfig, "Conv", "its weight is float32, not qrt.qint8"),
        (quantization.float16_static_qconfig, "Conv", "its activation is float16, not qrt.quint8"),
        (QConfig(HistogramObserver, MinMaxObserver), "Conv", "its weight is qrt.quint8, not qrt.qint8"),
        (QConfig(FLOAT, FLOAT), "Relu", "its activation is float32, not qrt.quint8"),
        (
            quantization.default_qrt_qconfig,
            "Sigmoid",
            "its activation has to be fixed, with a FixedQParamsObserver, to scale 0.00390625 and zero point 0",
        ),
        (
            QConfig(FixedQParamsObserver.with_args(scale=1 / 128, zero_point=0), NoopObserver),
            "Sigmoid",
            "its activation is fixed to scale 0.0078125 and zero point 0, not to scale 0.00390625 and zero point 0",
        ),
        (QConfig(FixedQParamsObserver.with_args(scale=1 / 128, zero_point=128), NoopObserver), "Tanh", None),
        (
            QConfig(
                FixedQParamsObserver.with_args(scale=1 / 128, zero_point=0, dtype=qrt.qint8, quant_min=-128, quant_max=127), NoopObserver
            ),
            "Tanh",
            None,
        ),
    ],
)
def test_which_qconfigs_fit_qrt(qconfig: QConfig, op_type: str, reason: str | None) -> None:
    config = get_qrt_backend_config().config_of(op_type)
    assert config is not None
    assert is_qconfig_supported(qconfig, config) == reason


def with_activation(activation: Any, weight: Any = default_weight_observer) -> QConfig:
    return QConfig(activation, weight)


NARROW = DTypeWithConstraints(qrt.quint8, quant_min_lower_bound=0, quant_max_upper_bound=127)
COARSE = DTypeWithConstraints(qrt.quint8, scale_min_lower_bound=2.0**-12)
FIXED = DTypeWithConstraints(qrt.quint8, scale_exact_match=0.1, zero_point_exact_match=3)
NARROW_WEIGHT = DTypeWithConstraints(qrt.qint8, quant_min_lower_bound=-127, quant_max_upper_bound=127)
TENTH = FixedQParamsObserver.with_args(scale=0.1, zero_point=3)


@pytest.mark.parametrize(
    ("choice", "qconfig", "reason"),
    [
        (DTypeConfig(NARROW), with_activation(HistogramObserver), "the codes of its activation are 0..255, not within 0..127"),
        (DTypeConfig(NARROW), with_activation(HistogramObserver.with_args(reduce_range=True)), None),
        (DTypeConfig(NARROW), with_activation(FakeQuantize.with_args(quant_min=0, quant_max=64)), None),
        (DTypeConfig(NARROW), with_activation(FakeQuantize), "the codes of its activation are 0..255, not within 0..127"),
        (DTypeConfig(None, NARROW), with_activation(FakeQuantize), "the codes of its activation are 0..255, not within 0..127"),
        (
            DTypeConfig(NARROW),
            with_activation(PlaceholderObserver.with_args(dtype=qrt.quint8)),
            "its activation has to give quant_min and quant_max",
        ),
        (
            DTypeConfig(COARSE),
            with_activation(MinMaxObserver),
            "the eps of its activation is 1.1920928955078125e-07, and has to be 0.000244140625 or more",
        ),
        (DTypeConfig(COARSE), with_activation(MovingAverageMinMaxObserver.with_args(eps=2.0**-12)), None),
        (
            DTypeConfig(COARSE),
            with_activation(TENTH),
            "the eps of its activation is None, and has to be 0.000244140625 or more",
        ),
        (DTypeConfig(FIXED), with_activation(TENTH), None),
        (DTypeConfig(FIXED), with_activation(FixedQParamsFakeQuantize.with_args(observer=TENTH)), None),
        (
            DTypeConfig(FIXED),
            with_activation(MinMaxObserver),
            "its activation has to be fixed, with a FixedQParamsObserver, to scale 0.1 and zero point 3",
        ),
        (
            DTypeConfig(weight_dtype=NARROW_WEIGHT),
            with_activation(MinMaxObserver),
            "the codes of its weight are -128..127, not within -127..127",
        ),
        (
            DTypeConfig(weight_dtype=NARROW_WEIGHT),
            with_activation(MinMaxObserver, quantization.weight_observer_range_neg_127_to_127),
            None,
        ),
        (
            DTypeConfig(NARROW, F32, is_dynamic=True),
            with_activation(PlaceholderObserver.with_args(dtype=qrt.quint8, quant_min=0, quant_max=127, is_dynamic=True)),
            None,
        ),
        (DTypeConfig(is_dynamic=True), with_activation(MinMaxObserver), "its activation is not quantized in each run"),
    ],
)
def test_constraints(choice: DTypeConfig, qconfig: QConfig, reason: str | None) -> None:
    assert is_qconfig_supported(qconfig, BackendPatternConfig("Conv").add_dtype_config(choice)) == reason


def test_the_reason_is_that_of_the_choice_that_comes_nearest() -> None:
    config = BackendPatternConfig("Conv")
    assert is_qconfig_supported(with_activation(MinMaxObserver), config) == "no dtypes are known for it"
    config.set_dtype_configs([DTypeConfig(is_dynamic=True), DTypeConfig(qrt.qint8), DTypeConfig(NARROW), DTypeConfig(F32)])
    assert is_qconfig_supported(with_activation(MinMaxObserver), config) == "the codes of its activation are 0..255, not within 0..127"
    assert is_qconfig_supported(with_activation(FLOAT16), config) == "its activation is float16, not qrt.qint8"
    config.add_dtype_config(DTypeConfig(qrt.quint8))
    assert is_qconfig_supported(with_activation(MinMaxObserver), config) is None
