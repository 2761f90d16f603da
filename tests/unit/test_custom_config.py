"""The custom configs of graph mode: setters, dicts and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from qrt.core.errors import InvalidInput
from qrt.quantization import (
    BackendConfig,
    ConvertCustomConfig,
    FuseCustomConfig,
    PrepareCustomConfig,
    QConfigMapping,
    QuantType,
    StandaloneModuleConfigEntry,
    default_qconfig,
)


class Float:
    pass


class Observed:
    pass


class Quantized:
    pass


MAPPING = QConfigMapping().set_global(default_qconfig)
CHILD = PrepareCustomConfig().set_input_quantized_indexes([0])
BACKEND = BackendConfig("b")


def prepare() -> PrepareCustomConfig:
    """A config with all that can be set."""
    return (
        PrepareCustomConfig()
        .set_standalone_module_name("block", MAPPING, (1,), CHILD, BACKEND)
        .set_standalone_module_name("tail", None, (), None, None)
        .set_standalone_module_class(Float, MAPPING, (1, 2), None, None)
        .set_float_to_observed_mapping(Float, Observed)
        .set_non_traceable_module_names(("a", "b"))
        .set_non_traceable_module_classes([Float])
        .set_input_quantized_indexes([0, 2])
        .set_output_quantized_indexes([1])
        .set_preserved_attributes(["x"])
    )


PREPARED = {
    "standalone_module_name": [
        ("block", MAPPING.to_dict(), (1,), {"input_quantized_idxs": [0]}, {"name": "b", "configs": []}),
        ("tail", None, (), None, None),
    ],
    "standalone_module_class": [(Float, MAPPING.to_dict(), (1, 2), None, None)],
    "float_to_observed_custom_module_class": {"static": {Float: Observed}},
    "non_traceable_module_name": ["a", "b"],
    "non_traceable_module_class": [Float],
    "input_quantized_idxs": [0, 2],
    "output_quantized_idxs": [1],
    "preserved_attributes": ["x"],
}


def test_prepare_round_trips() -> None:
    config = prepare()
    assert config.standalone_module_names["block"] == StandaloneModuleConfigEntry(MAPPING, (1,), CHILD, BACKEND)
    assert config.float_to_observed_mapping == {QuantType.STATIC: {Float: Observed}}
    assert config.to_dict() == PREPARED
    assert PrepareCustomConfig.from_dict(PREPARED).to_dict() == PREPARED
    objects = {"standalone_module_name": [("block", MAPPING, (1,), CHILD, BACKEND)]}
    assert PrepareCustomConfig.from_dict(objects).standalone_module_names["block"] == config.standalone_module_names["block"]
    assert PrepareCustomConfig.from_dict({}).to_dict() == PrepareCustomConfig().to_dict() == {}


def test_convert_round_trips() -> None:
    config = (
        ConvertCustomConfig()
        .set_observed_to_quantized_mapping(Observed, Quantized)
        .set_observed_to_quantized_mapping(Observed, Float, QuantType.DYNAMIC)
        .set_observed_to_quantized_mapping(Float, Float, QuantType.WEIGHT_ONLY)
        .set_preserved_attributes(["x"])
    )
    as_dict = {
        "observed_to_quantized_custom_module_class": {
            "static": {Observed: Quantized},
            "dynamic": {Observed: Float},
            "weight_only": {Float: Float},
        },
        "preserved_attributes": ["x"],
    }
    assert config.to_dict() == as_dict
    assert ConvertCustomConfig.from_dict(as_dict).to_dict() == as_dict
    assert ConvertCustomConfig.from_dict({}).to_dict() == {}


def test_fuse_round_trips() -> None:
    config = FuseCustomConfig().set_preserved_attributes(["x", "y"])
    assert config.to_dict() == {"preserved_attributes": ["x", "y"]}
    assert FuseCustomConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert FuseCustomConfig().to_dict() == {}


def test_repr_shows_what_is_set() -> None:
    assert repr(FuseCustomConfig()) == "FuseCustomConfig({})"
    assert repr(CHILD) == "PrepareCustomConfig({'input_quantized_indexes': [0]})"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PrepareCustomConfig().set_standalone_module_name(3, None, (), None, None), r"module_name is \[3\]: give strings"),
        (
            lambda: PrepareCustomConfig().set_standalone_module_name("a", 3, (), None, None),
            "qconfig_mapping is a int: give",
        ),
        (lambda: PrepareCustomConfig().set_standalone_module_name("a", None, (), 3, None), "prepare_custom_config is a int"),
        (lambda: PrepareCustomConfig().set_standalone_module_class("a", None, (), None, None), "module_class is 'a': give a class"),
        (lambda: PrepareCustomConfig().set_standalone_module_class(Float, None, (), None, "x86"), "backend_config is a str"),
        (lambda: PrepareCustomConfig().set_float_to_observed_mapping(Float, "Observed"), "observed_class is 'Observed'"),
        (lambda: PrepareCustomConfig().set_float_to_observed_mapping(Float, Observed, QuantType.QAT), "for static quantization only"),
        (lambda: PrepareCustomConfig().set_non_traceable_module_names("block"), "module_names is 'block': give strings in a list"),
        (lambda: PrepareCustomConfig().set_non_traceable_module_classes([Float, 3]), r"module_classes\[1\] is 3"),
        (lambda: PrepareCustomConfig().set_input_quantized_indexes([-1]), r"indexes is \[-1\]: give numbers"),
        (lambda: PrepareCustomConfig().set_output_quantized_indexes(["y"]), "indexes is"),
        (lambda: FuseCustomConfig().set_preserved_attributes("x"), "attributes is 'x'"),
        (lambda: ConvertCustomConfig().set_observed_to_quantized_mapping(Observed, None), "quantized_class is None"),
        (lambda: FuseCustomConfig.from_dict({"attributes": []}), "a FuseCustomConfig has no key 'attributes'"),
        (lambda: PrepareCustomConfig.from_dict({"standalone": []}), "a PrepareCustomConfig has no key 'standalone'"),
        (lambda: PrepareCustomConfig.from_dict({"standalone_module_name": [("a", None)]}), "standalone_module_name holds"),
        (
            lambda: PrepareCustomConfig.from_dict({"float_to_observed_custom_module_class": {"dynamic": {Float: Observed}}}),
            "for static quantization only",
        ),
        (
            lambda: ConvertCustomConfig.from_dict({"observed_to_quantized_custom_module_class": {"int8": {}}}),
            "holds 'int8': give one of",
        ),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call()
