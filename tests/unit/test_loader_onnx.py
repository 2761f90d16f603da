"""What the loader makes of sound files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from qrt import InferenceSession, InvalidInput
from qrt.graph import Model
from qrt.loaders import load

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,2] x) => (float[N,2] y) { a = Add (x, w) y = Relu (a) }"""


def proto() -> onnx.ModelProto:
    made = parser.parse_model(TEXT)
    made.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    return made


def test_every_kind_of_source_gives_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(proto(), path)
    models = [load(path), load(str(path)), load(path.read_bytes()), load(proto())]
    assert len({m.to_proto().graph.SerializeToString(deterministic=True) for m in models}) == 1
    assert [m.name for m in models] == ["m.onnx", "m.onnx", "<bytes>", "g"]
    assert load(models[0]) is models[0]


def test_a_proto_is_not_touched() -> None:
    source = proto()
    before = source.SerializeToString(deterministic=True)
    loaded = load(source)
    source.graph.initializer[0].raw_data = b"\xff" * 8
    loaded.graph.initializers["w"].name = "renamed"
    assert loaded.to_proto().graph.initializer[0].raw_data == np.ones(2, np.float32).tobytes()
    source = proto()
    load(source)
    assert source.SerializeToString(deterministic=True) == before


def test_initializers_among_the_inputs_are_constants() -> None:
    source = proto()
    source.ir_version = 3
    source.graph.input.append(helper.make_tensor_value_info("w", 1, [2]))
    onnx.checker.check_model(source)
    loaded = load(source)
    assert [i.name for i in loaded.inputs] == ["x"]
    after = loaded.to_proto()
    onnx.checker.check_model(after)
    assert [i.name for i in after.graph.input] == ["x"]
    feeds = {"x": np.ones(2, np.float32), "w": np.ones(2, np.float32)}
    with pytest.raises(InvalidInput, match=r"no input is called 'w': .* initializers are constants, also where the file lists"):
        InferenceSession(source).run(None, feeds)


@pytest.mark.parametrize("opset", [7, 13, 21, onnx.defs.onnx_opset_version()])
def test_every_opset_that_is_promised(opset: int) -> None:
    source = proto()
    source.opset_import[0].version = opset
    assert isinstance(load(source), Model)


def test_imports_of_domains_that_nobody_uses_do_no_harm() -> None:
    source = proto()
    source.opset_import.add(domain="org.pytorch.aten", version=1)
    source.opset_import.add(domain="ai.onnx.ml", version=3)
    assert isinstance(load(source), Model)


def test_the_long_name_of_the_standard_domain() -> None:
    source = proto()
    source.opset_import[0].domain = "ai.onnx"
    for node in source.graph.node:
        node.domain = "ai.onnx"
    loaded = load(source)
    assert {n.domain for n in loaded.graph} == {""}
    assert loaded.outputs[0].shape == ("N", 2)


def test_shapes_are_inferred_and_outputs_need_no_claims() -> None:
    source = proto()
    source.graph.output[0].ClearField("type")
    assert load(source).outputs[0].shape == ("N", 2)


def test_of_an_initializer_the_tensor_counts() -> None:
    source = proto()
    source.graph.value_info.append(helper.make_tensor_value_info("w", onnx.TensorProto.INT64, [7, 7]))
    loaded = load(source)
    assert loaded.graph.initializers["w"].shape == (2,)
    assert len(source.graph.value_info) == 1
    np.testing.assert_array_equal(InferenceSession(source).run(None, {"x": np.ones((1, 2), np.float32)})[0], [[2, 2]])


def test_every_way_to_store_a_tensor() -> None:
    """Typed fields and raw data of each element type give the array that onnx itself reads."""
    types = [t for t in helper.get_all_tensor_dtypes() if t not in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED)]
    for element in types:
        dtype = helper.tensor_dtype_to_np_dtype(element)
        array = np.array([0, 1, 1], np.float32).astype(dtype)
        typed = helper.make_tensor("k", element, [3], array.astype(np.complex64) if dtype.kind == "c" else array)
        for tensor in (typed, numpy_helper.from_array(array, "k")):
            source = proto()
            source.graph.initializer.append(tensor)
            value = load(source).graph.initializers["k"].const_value
            assert value is not None
            assert value.numpy().dtype == dtype
            assert value.numpy().tobytes() == numpy_helper.to_array(tensor).tobytes()
