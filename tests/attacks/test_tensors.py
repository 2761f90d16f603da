"""Tensors that are not what they say, and tensors in other files: a typed error that names the tensor, and no look outside the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small import SMALL, model, small

from qrt.core.errors import ModelError
from qrt.loaders import _tensors, load


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
