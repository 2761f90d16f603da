"""Bad model files: each gets its typed error, which says where and what to do, and nothing hangs or crashes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from qrt.core.errors import ModelError, QrtError, UnsupportedOp
from qrt.graph import Model
from qrt.graph.passes import prepare
from qrt.loaders import _structure, _tensors, load


def model(text: str, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}')


def small() -> onnx.ModelProto:
    """A valid model with a weight in raw data, a typed bias, a subgraph and a Constant node."""
    proto = model("""
        g (float[N,4] x, bool c) => (float[N,3] y) {
            k = Constant <value = float {2.0}> ()
            h = Gemm (x, w, b)
            s = Mul (h, k)
            y = If (c) <then_branch = t () => (float[N,3] a) { a = Relu (s) }, else_branch = e () => (float[N,3] n) { n = Neg (s) }>
        }""")
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w"))
    proto.graph.initializer.append(helper.make_tensor("b", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]))
    return proto


SMALL = small().SerializeToString()


def test_the_small_model_itself_is_sound() -> None:
    assert isinstance(load(SMALL), Model)


# ---- the file as a file


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"not a model at all", os.urandom(4096), SMALL[: len(SMALL) // 2], b"\x08\x08"])
def test_a_file_that_is_no_model_is_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"broken\.onnx.*export"):
        load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent"):
        load(tmp_path / "absent.onnx")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a file"):
        load(tmp_path)


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match="not a file"):
        load(tmp_path / "pipe.onnx")


def test_a_path_with_a_nul() -> None:
    with pytest.raises(ModelError, match="cannot read"):
        load("a\0b.onnx")


def test_a_file_past_2_gib_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse: takes no space
    start = time.monotonic()
    with pytest.raises(ModelError, match="external data"):
        load(path)
    assert time.monotonic() - start < 1


# ---- versions and domains


def test_opset_too_new() -> None:
    proto = small()
    proto.opset_import[0].version = 999
    with pytest.raises(ModelError, match=r"opset 999.*upgrade onnx"):
        load(proto)


def test_opset_too_old() -> None:
    proto = small()
    proto.opset_import[0].version = 6
    with pytest.raises(ModelError, match=r"opset 6.*export it with opset 7"):
        load(proto)


def test_ir_version_too_new() -> None:
    proto = small()
    proto.ir_version = 99
    with pytest.raises(ModelError, match="IR version 99"):
        load(proto)


def test_no_opset() -> None:
    proto = small()
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="imports no opset"):
        load(proto)


def test_two_versions_of_one_domain() -> None:
    proto = small()
    proto.opset_import.add(domain="ai.onnx", version=13)
    with pytest.raises(ModelError, match="two versions"):
        load(proto)


@pytest.mark.parametrize(("domain", "op_type"), [("my.domain", "Magic"), ("ai.onnx.ml", "Scaler"), ("com.microsoft", "FusedConv")])
def test_an_operator_of_another_domain_is_named(domain: str, op_type: str) -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    node = proto.graph.node[0]
    node.name, node.domain, node.op_type = "the_node", domain, op_type
    proto.opset_import.add(domain=domain, version=1)
    with pytest.raises(UnsupportedOp, match=f"the_node.*{domain}"):
        load(proto)


def test_an_operator_the_standard_does_not_have() -> None:
    with pytest.raises(UnsupportedOp, match="Blorp"):
        load(model("g (float[2] x) => (float[2] y) { y = Blorp (x) }"))


def test_an_operator_that_the_opset_dropped() -> None:
    with pytest.raises(UnsupportedOp, match="Upsample"):
        load(model("g (float[1,1,2,2] x, float[4] s) => (float[1,1,4,4] y) { y = Upsample (x, s) }", opset=13))


def test_strings_are_not_computed_with() -> None:
    with pytest.raises(UnsupportedOp, match=r"StringNormalizer.*string"):
        load(model("g (string[2] x) => (string[2] y) { y = StringNormalizer (x) }"))


def test_complex_numbers_are_not_computed_with() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Identity (x) z = Identity (w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.complex64), "w"))
    with pytest.raises(UnsupportedOp, match="complex64"):
        load(proto)


def test_an_unused_string_tensor_is_fine() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Identity (x) }")
    proto.graph.initializer.append(helper.make_tensor("labels", TensorProto.STRING, [2], [b"cat", b"dog"]))
    assert [i.name for i in load(proto).inputs] == ["x"]


def test_sparse_initializers() -> None:
    proto = small()
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "v"), numpy_helper.from_array(np.zeros(1, np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(UnsupportedOp, match="sparse"):
        load(proto)


# ---- the graph


def test_a_cycle() -> None:
    with pytest.raises(ModelError, match="cycle"):
        load(model("g (float[2] x) => (float[2] y) { a = Add (x, b) b = Relu (a) y = Relu (b) }"))


def test_nodes_in_any_order_are_sorted() -> None:
    loaded = load(model("g (float[2] x) => (float[2] y) { y = Relu (a) a = Neg (x) }"))
    assert [n.op_type for n in loaded.graph] == ["Neg", "Relu"]


GRAPHS = {
    "undefined value": ("g (float[2] x) => (float[2] y) { y = Add (x, ghost) }", "'ghost', which nothing makes"),
    "undefined output": ("g (float[2] x) => (float[2] y) { z = Relu (x) }", "'y'.*made by no node"),
    "twice the same output": ("g (float[2] x) => (float[2] y) { y = Relu (x) y = Neg (x) }", "'y', which is defined already"),
    "an input computed again": ("g (float[2] x) => (float[2] x) { x = Relu (x) }", "'x', which is defined already"),
    "twice the same input": ("g (float[2] x, float[2] x) => (float[2] y) { y = Relu (x) }", "'x', which is defined already"),
    "shapes that do not fit": ("g (float[2,3] x, float[4,5] w) => (float[2,5] y) { y = MatMul (x, w) }", "ill-typed"),
    "types that do not fit": ("g (float[2] x, int64[2] w) => (float[2] y) { y = Add (x, w) }", "ill-typed"),
    "too few inputs": ("g (float[1,1,4,4] x) => (float[1,1,2,2] y) { y = Conv (x) }", "not a sound"),
    "an unknown attribute": ("g (float[2] x) => (float[2] y) { y = Relu <loud = 1> (x) }", "not a sound"),
    "a required attribute missing": ("g (float[2] x) => (float[2] y) { y = Cast (x) }", "not a sound|ill-typed"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_malformed_graph(case: str) -> None:
    text, message = GRAPHS[case]
    with pytest.raises(ModelError, match=message):
        load(model(text))


def test_a_value_defined_in_one_branch_is_unknown_in_the_other() -> None:
    proto = model("""
        g (float[2] x, bool c) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] a) { h = Neg (x) a = Relu (h) }, else_branch = e () => (float[2] b) { b = Relu (h) }
            >
        }""")
    with pytest.raises(ModelError, match="'h', which nothing makes"):
        load(proto)


def test_an_input_with_a_negative_dimension() -> None:
    proto = small()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    with pytest.raises(ModelError, match=r"dimension -1.*name"):
        load(proto)


def test_two_initializers_of_one_name() -> None:
    proto = small()
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(ModelError, match="two initializers"):
        load(proto)


def test_a_name_that_is_not_utf8() -> None:
    data = SMALL.replace(b"Gemm", b"\xff\xfe\xfd\xfc")
    with pytest.raises(ModelError):
        load(data)


def functions(*bodies: str) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 17, "f" : 1]>\ng (float[2] x) => (float[2] y) { y = f.f0 (x) }\n'
    return parser.parse_model(head + "\n".join(f'<domain: "f", opset_import: ["" : 17, "f" : 1]>\n{b}' for b in bodies))


def test_functions_that_double_and_double_again() -> None:
    bodies = [f"f{i} (a) => (c) {{ b = f.f{i + 1} (a) c = f.f{i + 1} (b) }}" for i in range(40)]
    start = time.monotonic()
    with pytest.raises(ModelError, match="nodes; qrt takes"):
        load(functions(*bodies, "f40 (a) => (b) { b = Relu (a) }"))
    assert time.monotonic() - start < 2


def test_functions_that_call_each_other_in_a_ring() -> None:
    with pytest.raises(ModelError, match="calls itself"):
        load(functions("f0 (a) => (b) { b = f.f1 (a) }", "f1 (a) => (b) { b = f.f0 (a) }"))


def test_a_function_that_reads_a_value_of_its_caller() -> None:
    with pytest.raises(ModelError, match="'x', which nothing makes"):
        load(functions("f0 (a) => (b) { b = Add (a, x) }"))


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = b"", len(payload)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + payload


def test_graphs_nested_without_end() -> None:
    graph = b""
    for _ in range(5000):
        attribute = field(1, b"then_branch") + field(6, graph)
        graph = field(1, field(1, b"c") + field(2, b"y") + field(4, b"If") + field(5, attribute))
    with pytest.raises(ModelError, match="damaged"):
        load(field(7, graph))


BOMBS = {
    "a vector of 2**40 entries as a shape": "g (float[2] x, int64[1099511627776] s) => (y) { y = Reshape (x, s) }",
    "a computed vector of 2**40 entries": "g (float[2] x) => (y) { v = ConstantOfShape (n) s = Cast <to = 7> (v) y = Expand (x, s) }",
    "a dimension of 2**62": "g (float[4611686018427387904] x) => (y) { y = Concat <axis = 0> (x, x, x) }",
    "dimensions whose product wraps": "g (float[4294967296,4294967296] x) => (y) { y = Flatten <axis = 0> (x) }",
    "a padding past 2**63": "g (float[2,2] x) => (y) { p = Pad (x, far) y = Slice (p, n, n) }",
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_shape_that_no_tensor_can_have(case: str) -> None:
    proto = model(BOMBS[case])
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2**40]), "n"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2**62, 2**62, 2**62, 2**62]), "far"))
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"dimension"):
        prepare(load(proto))
    assert time.monotonic() - start < 2


def test_a_reversed_slice_of_an_empty_tensor() -> None:
    proto = model("g (float[0,3] x) => (y) { y = Slice (x, b, e, a, t) }")
    for name, number in {"b": -1, "e": -9, "a": 0, "t": -1}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array([number]), name))
    assert load(proto).outputs[0].shape == (0, None)


# ---- tensors


def with_tensor(change: Callable[[TensorProto], None]) -> onnx.ModelProto:
    proto = small()
    change(proto.graph.initializer[0])
    return proto


TENSORS: dict[str, tuple[Callable[[TensorProto], object], str]] = {
    "negative dimension": (lambda t: t.dims.__setitem__(0, -4), "negative dimension"),
    "raw data cut off": (lambda t: setattr(t, "raw_data", t.raw_data[:-1]), "needs 48 bytes but has 47"),
    "raw data too long": (lambda t: setattr(t, "raw_data", t.raw_data + b"\0"), "needs 48 bytes but has 49"),
    "a shape that is a lie": (lambda t: t.dims.__setitem__(0, 5), "needs 60 bytes but has 48"),
    "a huge shape": (lambda t: t.dims.extend([2**40, 2**40, 2**40]), "GiB"),
    "too many dimensions": (lambda t: t.dims.extend([1] * 80), "82 dimensions"),
    "no element type": (lambda t: setattr(t, "data_type", 0), "element type 0"),
    "an unknown element type": (lambda t: setattr(t, "data_type", 12345), "element type 12345"),
    "strings as bytes": (lambda t: setattr(t, "data_type", TensorProto.STRING), "strings as raw bytes"),
    "segments": (lambda t: setattr(t.segment, "begin", 0), "segments"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_malformed_tensor_is_named(case: str) -> None:
    change, message = TENSORS[case]
    with pytest.raises(ModelError, match=f"tensor 'w'.*{message}|{message}"):
        load(with_tensor(change))


def test_a_typed_field_of_the_wrong_length() -> None:
    proto = small()
    proto.graph.initializer[1].float_data.append(4.0)
    with pytest.raises(ModelError, match=r"tensor 'b'.*needs 3 entries in float_data but has 4"):
        load(proto)


def test_codes_outside_their_type() -> None:
    proto = model("g (uint8[1] x) => (uint8[1] y) { y = Max (x, w) }")
    proto.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.UINT8, dims=[1], int32_data=[300]))
    with pytest.raises(ModelError, match=r"tensor 'w'.*0..255"):
        load(proto)


def test_a_bad_tensor_inside_a_subgraph() -> None:
    proto = small()
    branch = proto.graph.node[-1].attribute[0].g
    branch.initializer.append(TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[3], raw_data=b"12"))
    with pytest.raises(ModelError, match="tensor 'inner'"):
        load(proto)


def test_all_tensors_together_have_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tensors, "MAX_MODEL_BYTES", 50)
    with pytest.raises(ModelError, match="split the model"):
        load(SMALL)


def test_the_number_of_nodes_has_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_structure, "MAX_NODES", 5)
    with pytest.raises(ModelError, match="6 nodes"):
        load(SMALL)


# ---- external data


def external(folder: Path, **entries: str) -> Path:
    """The small model with its weight at `entries` (location, offset, length), saved in `folder`."""
    proto = small()
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("entries", [{}, {"offset": "8"}, {"offset": "8", "length": "48"}, {"checksum": "abc"}])
def test_external_data_beside_the_model(entries: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m" / "deep").mkdir(parents=True)
    (tmp_path / "m" / "deep" / "w.bin").write_bytes(b"\0" * int(entries.get("offset", "0")) + WEIGHT.tobytes())
    external(tmp_path / "m", location="deep/w.bin", **entries)
    monkeypatch.chdir(tmp_path / "m")
    for path in ("model.onnx", tmp_path / "m" / "model.onnx"):
        value = load(path).graph.initializers["w"].const_value
        assert value is not None
        np.testing.assert_array_equal(value.numpy(), WEIGHT)


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "deep/../../secret.bin",
        "..\\secret.bin",
        "",
        "C:\\secret.bin",
        "\\\\host\\secret.bin",
        "a\0b",
        "/etc/hostname",
        "../m/../secret.bin",
    ],
)
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelError, match=r"tensor 'w'.*inside the model's folder"):
        load(external(tmp_path / "m", location=location))


def test_external_data_by_an_absolute_path_into_the_folder_itself(tmp_path: Path) -> None:
    path = external(tmp_path / "m", location=str(tmp_path / "m" / "w.bin"))
    (tmp_path / "m" / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelError, match="not a path inside"):
        load(path)


def test_external_data_by_a_link_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    path = external(tmp_path / "m", location="w.bin")
    (tmp_path / "m" / "w.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        load(path)


def test_external_data_by_a_linked_folder_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w.bin").write_bytes(WEIGHT.tobytes())
    path = external(tmp_path / "m", location="here/w.bin")
    (tmp_path / "m" / "here").symlink_to(tmp_path / "other")
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        load(path)


def test_external_data_by_a_link_that_stays_inside(tmp_path: Path) -> None:
    path = external(tmp_path / "m", location="w.bin")
    (tmp_path / "m" / "real.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m" / "w.bin").symlink_to("real.bin")
    assert load(path).graph.initializers["w"].shape == (4, 3)


def test_external_data_in_a_named_pipe(tmp_path: Path) -> None:
    path = external(tmp_path / "m", location="w.bin")
    os.mkfifo(tmp_path / "m" / "w.bin")
    with pytest.raises(ModelError, match="not a plain file"):
        load(path)


def test_external_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*w\.bin"):
        load(external(tmp_path / "m", location="w.bin"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"length": "44"}, "needs 48 bytes but its length says 44"),
        ({"length": "-1"}, "length '-1'"),
        ({"offset": "-8"}, "offset '-8'"),
        ({"offset": "x"}, "offset 'x'"),
        ({"offset": "9" * 30}, "offset '999"),
        ({"offset": "1"}, "bytes 1..49 are not in w.bin"),
        ({"offset": "9223372036854775807"}, "are not in w.bin"),
    ],
)
def test_external_data_that_does_not_fit(entries: dict[str, str], message: str, tmp_path: Path) -> None:
    path = external(tmp_path / "m", location="w.bin", **entries)
    (tmp_path / "m" / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelError, match=message):
        load(path)


def test_external_data_of_a_model_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = external(tmp_path / "m", location="w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    monkeypatch.chdir(tmp_path)
    for source in (data, onnx.ModelProto.FromString(data)):
        with pytest.raises(ModelError, match="load it by its path"):
            load(source)


# ---- anything at all


def settle(data: bytes) -> None:
    """Load and prepare: a Model or a QrtError, and soon."""
    start = time.monotonic()
    with contextlib.suppress(QrtError):
        prepare(load(data))
    assert time.monotonic() - start < 5


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SMALL)))
def test_any_truncation(end: int) -> None:
    settle(SMALL[:end])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for place, byte in flips:
        data[place] = byte
    settle(bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    settle(data)
