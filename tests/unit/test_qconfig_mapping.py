"""QConfigMapping: who gets which QConfig, what is told of, and the default mappings against torch 2.13.0's."""

from __future__ import annotations

from typing import Any

import pytest
from qconfigs import GOLDEN, both

import qrt
from qrt import quantization
from qrt.core.errors import InvalidInput
from qrt.observers import HistogramObserver, MinMaxObserver, default_weight_observer
from qrt.quantization import QConfig, QConfigMapping, default_qconfig, default_qrt_qconfig, op_types, qconfig_equals

A, B, C, D = (QConfig(MinMaxObserver.with_args(quant_min=0, quant_max=n), default_weight_observer) for n in (63, 126, 127, 255))
CONV = "/layer1/layer1.0/conv1/Conv"
NODES = [
    ("/conv1/Conv", "Conv"),
    (CONV, "Conv"),
    ("/layer1/layer1.0/relu/Relu", "Relu"),
    ("/layer1/layer1.0/conv2/Conv", "Conv"),
    ("/layer1/layer1.1/conv1/Conv", "Conv"),
    ("/layer10/conv1/Conv", "Conv"),
    ("/fc/Gemm", "Gemm"),
]


def test_an_empty_mapping_leaves_all_float() -> None:
    assert QConfigMapping().global_qconfig is None
    assert QConfigMapping().resolve(NODES) == [None] * len(NODES)


def test_what_counts_before_what() -> None:
    mapping = QConfigMapping().set_global(A)
    assert mapping.of(CONV, "Conv") is A
    mapping.set_object_type("Conv", B)
    assert mapping.of(CONV, "Conv") is B
    assert mapping.of(CONV, "Relu") is A
    mapping.set_module_name_regex(".*conv1", C)
    assert mapping.of(CONV, "Conv") is C
    mapping.set_module_name("layer1", D)
    assert mapping.of(CONV, "Conv") is D
    mapping.set_module_name_object_type_order("layer1", "Conv", 0, A)
    assert mapping.of(CONV, "Conv") is A
    assert mapping.of(CONV, "Conv", 1) is D
    mapping.set_module_name_object_type_order("layer1", "Conv", 0, None)
    assert mapping.of(CONV, "Conv") is None


def test_the_first_regex_counts_from_the_beginning_of_a_name_or_path() -> None:
    mapping = (
        QConfigMapping().set_module_name_regex("layer1.*conv[0-9]", A).set_module_name_regex("/?layer1", B).set_module_name_regex("", C)
    )
    assert mapping.resolve(NODES) == [C, A, B, A, A, A, C]
    mapping.set_module_name_regex("layer1.*conv[0-9]", D)  # keeps its place
    assert mapping.resolve(NODES) == [C, D, B, D, D, D, C]
    assert QConfigMapping().set_module_name_regex("/layer1/layer1.0", A).resolve(NODES) == [None, A, A, A, None, None, None]


@pytest.mark.parametrize("name", [CONV, "layer1.0.conv1.Conv", "layer1.0.conv1", "/layer1/layer1.0/conv1", "layer1/0/conv1"])
def test_one_node_by_each_of_its_names(name: str) -> None:
    assert QConfigMapping().set_module_name(name, A).resolve(NODES) == [None, A, None, None, None, None, None]


def test_the_longest_module_name_counts() -> None:
    mapping = QConfigMapping().set_module_name("layer1.0.conv1", A).set_module_name("layer1", B).set_module_name("layer1.0", C)
    assert mapping.resolve(NODES) == [None, A, C, C, B, None, None]
    assert QConfigMapping().set_module_name("conv1", A).of("conv10", "Conv") is None
    assert QConfigMapping().set_module_name("Conv_47", A).of("Conv_47", "Conv") is A
    assert QConfigMapping().set_module_name("features", A).of("/features/features.0/features.0.1/Conv", "Conv") is A
    assert QConfigMapping().set_module_name("features.0.1", A).of("/features/features.0/features.0.1/Conv", "Conv") is A


def test_one_node_by_its_number_below_a_module() -> None:
    mapping = (
        QConfigMapping()
        .set_module_name_object_type_order("layer1", "Conv", 2, A)
        .set_module_name_object_type_order("", "conv2d", 4, B)
        .set_module_name_object_type_order("", "Conv", 1, C)
        .set_module_name_object_type_order("layer1.0", "Conv", 0, D)
    )
    assert mapping.resolve(NODES) == [None, D, None, None, A, B, None]


def test_torchs_names_of_types() -> None:
    class Linear:
        pass

    assert op_types("Conv") == op_types("conv2d") == op_types("Conv3d") == ("Conv",)
    assert op_types("linear") == op_types(Linear) == ("Gemm", "MatMul")
    assert op_types("sigmoid_") == op_types("Sigmoid") == ("Sigmoid",)
    assert op_types("MyOp") == ("MyOp",)
    mapping = QConfigMapping().set_object_type("conv2d", A).set_object_type(Linear, B).set_object_type("matmul", C)
    assert (mapping.of("n", "Conv"), mapping.of("n", "Gemm"), mapping.of("n", "MatMul")) == (A, B, C)
    mapping.set_object_type("conv2d", B).set_object_type("Conv", C).set_object_type("conv2d", D)
    assert mapping.of("n", "Conv") is D, "what is set last counts"


def test_what_matches_nothing_is_told_of() -> None:
    mapping = (
        QConfigMapping()
        .set_global(A)
        .set_object_type("Conv", A)
        .set_object_type("Convv", A)
        .set_object_type("linear", A)
        .set_module_name_regex(".*relu", A)
        .set_module_name_regex("relu", A)
        .set_module_name("layer1.0", A)
        .set_module_name("layer1.00", A)
        .set_module_name_object_type_order("layer1", "Conv", 2, A)
        .set_module_name_object_type_order("layer1", "Conv", 3, A)
        .set_module_name_object_type_order("layer9", "Conv", 0, A)
    )
    assert mapping.unmatched(NODES) == [
        "object type 'Convv'",
        "module name regex 'relu'",
        "module name 'layer1.00'",
        "number 3 of type 'Conv' below 'layer1'",
        "number 0 of type 'Conv' below 'layer9'",
    ]
    assert len(mapping.unmatched([])) == 11 - 1
    assert quantization.get_default_qconfig_mapping().unmatched(NODES) == []
    assert QConfigMapping.from_dict(quantization.get_default_qconfig_mapping().to_dict()).unmatched(NODES) == []


def filled() -> QConfigMapping:
    """A mapping with one entry of each kind."""
    return (
        QConfigMapping()
        .set_global(A)
        .set_object_type("Conv", B)
        .set_module_name_regex("layer.*", C)
        .set_module_name("fc", None)
        .set_module_name_object_type_order("layer1", "Conv", 1, D)
    )


def test_dicts_round_trip() -> None:
    as_dict = {
        "": A,
        "object_type": [("Conv", B)],
        "module_name_regex": [("layer.*", C)],
        "module_name": [("fc", None)],
        "module_name_object_type_order": [("layer1", "Conv", 1, D)],
    }
    assert filled().to_dict() == as_dict
    assert QConfigMapping.from_dict(as_dict).to_dict() == as_dict
    assert QConfigMapping.from_dict({}).to_dict() == QConfigMapping().to_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"object_types": []}, "no key 'object_types': give"),
        ({"object_type": [("Conv",)]}, "object_type holds .*: give tuples of 2"),
        ({"module_name_object_type_order": [("a", "Conv", A)]}, "give tuples of 4"),
        ({"": "int8"}, "'int8' is no QConfig"),
        ({"module_name": [("fc", MinMaxObserver)]}, "is no QConfig: give QConfig"),
        ({"module_name": [(3, None)]}, "3 is no module name"),
        ({"module_name_regex": [("(", None)]}, r"'\(' is no regular expression: missing"),
        ({"module_name_regex": [(3, None)]}, "3 is no regular expression"),
        ({"object_type": [(3, None)]}, "3 is no object type"),
        ({"module_name_object_type_order": [("a", "Conv", -1, A)]}, "index is -1"),
        ({"module_name_object_type_order": [("a", "Conv", "1", A)]}, "index is '1'"),
    ],
)
def test_entries_of_other_forms_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        QConfigMapping.from_dict(given)


def test_repr_shows_every_entry() -> None:
    lines = repr(filled()).splitlines()
    assert lines[0] == "QConfigMapping ("
    for style in ("global", "object_type", "module_name_regex", "module_name", "module_name_object_type_order"):
        assert any(line.startswith(f" {style}_qconfig") for line in lines)
    assert "  fc: None" in lines
    assert f"  ('layer1', 'Conv', 1): {D}" in lines


@pytest.mark.parametrize("name", GOLDEN["mappings"])
def test_default_mappings_are_made_of_what_torchs_are(name: str) -> None:
    function, backend, version = name.split()
    mapping = getattr(quantization, function)(backend, int(version))
    golden = GOLDEN["mappings"][name]
    assert both(mapping.global_qconfig) == golden["global"]
    assert len(golden["types"]) >= 19  # 23, of which some share the last word of their names
    for torch_name, parts in golden["types"].items():
        (op_type,) = op_types(torch_name)
        assert both(mapping.of("node", op_type)) == parts, torch_name
    assert {op_type for torch_name in golden["types"] for op_type in op_types(torch_name)} == set(mapping.object_type_qconfigs)


def test_qrts_own_mapping() -> None:
    mapping = quantization.get_default_qrt_qconfig_mapping()
    assert mapping.of("n", "Conv") is default_qrt_qconfig
    assert default_qrt_qconfig.activation is HistogramObserver


def test_the_deprecated_dicts() -> None:
    with pytest.warns(FutureWarning, match="use get_default_qconfig_mapping"):
        static = quantization.get_default_qconfig_dict("qnnpack")
    assert qconfig_equals(static[""], quantization.get_default_qconfig("qnnpack"))
    with pytest.warns(FutureWarning, match="use get_default_qat_qconfig_mapping"):
        qat = quantization.get_default_qat_qconfig_dict(version=0)
    assert qconfig_equals(qat[""], quantization.get_default_qat_qconfig("x86", 0))
    assert [key for key, _ in qat["object_type"]] == [key for key, _ in static["object_type"]]


def test_the_public_name_is_this_one() -> None:
    assert qrt.QConfigMapping is QConfigMapping
    assert not qconfig_equals(QConfigMapping().set_global(default_qconfig).of("n", "Conv"), default_qrt_qconfig)
