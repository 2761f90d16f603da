"""Model: what it tells about itself, and that what it saves is whole and comes back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from qrt.core.errors import OutputError
from qrt.graph import Model, TensorInfo, attr_float, attr_int, attr_ints, attr_str, constant, model, new_initializer, only_use, unique_name
from qrt.graph.nodes import naming
from qrt.loaders import load

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def make() -> Model:
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x, int64[2] axes) => (float[N,4] y, float z) {
            h = MatMul (x, w) y = LeakyRelu <alpha = 0.5> (h) z = ReduceSum <keepdims = 0> (h)
        }""")
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return load(proto)


def test_inputs_and_outputs_as_onnx_runtime_writes_them() -> None:
    loaded = make()
    assert loaded.inputs == [TensorInfo("x", ("N", 3), "tensor(float)"), TensorInfo("axes", (2,), "tensor(int64)")]
    assert loaded.outputs == [TensorInfo("y", ("N", 4), "tensor(float)"), TensorInfo("z", (), "tensor(float)")]


@pytest.mark.parametrize(
    ("element", "name"),
    [
        (TensorProto.DOUBLE, "tensor(double)"),
        (TensorProto.FLOAT16, "tensor(float16)"),
        (TensorProto.BFLOAT16, "tensor(bfloat16)"),
        (TensorProto.BOOL, "tensor(bool)"),
        (TensorProto.UINT8, "tensor(uint8)"),
        (TensorProto.INT4, "tensor(int4)"),
    ],
)
def test_dtype_names(element: int, name: str) -> None:
    value = helper.make_tensor_value_info("x", element, ["N", None, 2])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [value], [helper.make_tensor_value_info("y", element, None)]
    )
    loaded = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    assert loaded.inputs == [TensorInfo("x", ("N", None, 2), name)]


def test_sequences_have_a_name_too() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\ng (float[2] x) => (seq(float[2]) y) { y = SequenceConstruct (x) }'
    )
    assert load(proto).outputs[0].dtype == "seq(tensor(float))"


def test_repr_tells_nodes_parameters_and_size(tmp_path: Path) -> None:
    make().save(tmp_path / "tiny.onnx")
    assert repr(load(tmp_path / "tiny.onnx")) == "<qrt.Model 'tiny.onnx': 3 nodes, 12 parameters, 48 bytes>"


def test_a_saved_model_comes_back(tmp_path: Path) -> None:
    make().save(tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)
    again = load(str(tmp_path / "m.onnx"))
    x = np.ones((2, 3), np.float32)
    y, _ = ReferenceEvaluator(again.to_proto()).run(None, {"x": x, "axes": np.array([0, 1])})
    np.testing.assert_array_equal(y, x @ WEIGHT)
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_a_relative_name_is_saved_where_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make().save("m.onnx")
    assert (tmp_path / "m.onnx").is_file()


def test_weights_past_the_limit_go_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_EMBED_LIMIT", 40)
    first = new_initializer(make().graph, "big", np.zeros((100, 100), np.float32))
    assert first.name == "big"
    big = make()
    proto = big.to_proto()
    proto.graph.initializer.append(numpy_helper.from_array(np.full((64, 64), 7, np.float32), "big"))
    load(proto).save(tmp_path / "m.onnx")
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    again = load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(constant(again.graph.initializers["big"]), np.full((64, 64), 7, np.float32))
    again.save(tmp_path / "m.onnx")  # over itself: the weights are in memory by now
    np.testing.assert_array_equal(constant(load(tmp_path / "m.onnx").graph.initializers["w"]), WEIGHT)


def test_a_failed_save_of_two_files_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_EMBED_LIMIT", 40)
    big = make()
    new_initializer(big.graph, "big", np.full((64, 64), 7, np.float32))
    big.save(tmp_path / "m.onnx")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*args: object, **options: object) -> None:
        (tmp_path / next(name for name in os.listdir(tmp_path) if name.endswith(".part")) / "m.onnx.data").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.ir, "save", fail)
    with pytest.raises(OutputError, match="No space left"):
        big.save(tmp_path / "m.onnx")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("place", ["missing/m.onnx", "file/m.onnx", "folder"])
def test_a_path_that_cannot_be_written(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match="cannot write"):
        make().save(tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        make().save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_a_clone_changes_alone() -> None:
    original = make()
    other = original.clone()
    other.graph.inputs[0].name = "renamed"
    new_initializer(other.graph, "w2", np.zeros(1, np.float32))
    assert original.inputs[0].name == "x"
    assert set(original.graph.initializers) == {"w"}


def test_attributes_with_defaults() -> None:
    _, leaky, total = make().graph
    assert attr_float(leaky, "alpha", 0.01) == 0.5
    assert attr_float(total, "alpha", 0.01) == 0.01
    assert attr_int(total, "keepdims", 1) == 0
    assert attr_int(leaky, "keepdims", 1) == 1
    assert attr_ints(total, "axes", (3,)) == (3,)
    assert attr_str(total, "mode", "none") == "none"


def test_reading_and_making_values() -> None:
    graph = make().graph
    matmul, leaky, total = graph
    np.testing.assert_array_equal(constant(matmul.inputs[1]), WEIGHT)
    assert constant(matmul.inputs[0]) is None
    assert only_use(matmul.outputs[0]) is None
    assert only_use(leaky.outputs[0]) is None  # nobody reads an output but the caller
    assert only_use(graph.inputs[0]) is matmul
    assert unique_name(graph, "free") == "free"
    assert unique_name(graph, "h") == "h_1"
    scalar = new_initializer(graph, "w", np.float32(3.0))
    assert (scalar.name, scalar.shape) == ("w_1", ())
    assert total.outputs[0].is_graph_output()


def test_names_that_are_given_out_are_taken() -> None:
    graph = make().graph
    with naming(graph):
        names = [unique_name(graph, "h"), unique_name(graph, "h"), new_initializer(graph, "h", np.zeros(1)).name]
    assert names == ["h_1", "h_2", "h_3"]
    assert unique_name(graph, "h_2") == "h_2"  # nobody used it
