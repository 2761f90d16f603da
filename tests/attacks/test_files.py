"""Files that are no models, or of versions and operators that qrt does not take: a typed error that says where and what to do, soon."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small import SMALL, model, small

from qrt.core.errors import ModelError, QrtError, UnsupportedOp
from qrt.graph import Model
from qrt.graph.passes import prepare
from qrt.loaders import load


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


@pytest.mark.parametrize(("domain", "op_type"), [("my.domain", "Magic"), ("ai.onnx.ml", "Scaler"), ("com.microsoft", "Tokenizer")])
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


# ---- anything at all


def check_settles(data: bytes) -> None:
    """Load and prepare: a Model or a QrtError, and soon."""
    start = time.monotonic()
    with contextlib.suppress(QrtError):
        prepare(load(data))
    assert time.monotonic() - start < 5


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SMALL)))
def test_any_truncation(end: int) -> None:
    check_settles(SMALL[:end])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for place, byte in flips:
        data[place] = byte
    check_settles(bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check_settles(data)
