"""Cutting big weights out of a message: what is left is the same model without them, and nothing but protobuf says what is damaged."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from graphs import make
from onnx import ModelProto, TensorProto

from qrt.core.errors import ModelError
from qrt.loaders import load
from qrt.loaders._wire import without_weights

BIG = np.arange(30_000, dtype=np.float32).reshape(3, 10_000)


def network(**weights: np.ndarray) -> ModelProto:
    return make("(float[1,3] x) => (float[1,10000] y) { h = MatMul(x, w) g = Add(h, b) y = Mul(g, s) }", **weights)


def proto() -> ModelProto:
    return network(w=BIG, b=np.ones(10_000, np.float32), s=np.float32(2))


def whole(rest: bytes, held: dict[int, memoryview]) -> ModelProto:
    """The message with its weights put back."""
    model = onnx.load_from_string(rest)
    for position, raw in held.items():
        assert not model.graph.initializer[position].HasField("raw_data")
        model.graph.initializer[position].raw_data = bytes(raw)
    return model


def test_what_is_cut_and_what_is_left_are_the_model() -> None:
    model = proto()
    model.producer_name, model.metadata_props.add().key = "somebody", "k"
    data = model.SerializeToString()
    rest, held = without_weights(data)
    assert [len(raw) for raw in held.values()] == [120_000, 40_000]
    assert len(rest) < 1000
    assert whole(rest, held) == model


def test_small_models_stay_as_they_are() -> None:
    data = network(w=BIG[:, :1], b=np.ones(1, np.float32), s=np.float32(2)).SerializeToString()
    assert without_weights(data) == (data, {})


def add_field(model: ModelProto) -> None:
    model.graph.initializer[0].float_data.append(1)


def lie_elsewhere(model: ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def no_data(model: ModelProto) -> None:
    model.graph.initializer[0].ClearField("raw_data")


@pytest.mark.parametrize("change", [add_field, lie_elsewhere, no_data])
def test_tensors_that_say_more_are_left_to_protobuf(change) -> None:  # type: ignore[no-untyped-def]
    model = proto()
    change(model)
    rest, held = without_weights(model.SerializeToString())
    assert list(held) == [1]
    assert whole(rest, held) == model


def test_data_that_comes_twice_is_left_to_protobuf() -> None:
    """Protobuf takes the last of two fields, and merges two messages."""
    model = proto()
    twice = ModelProto(graph=onnx.GraphProto(initializer=[TensorProto(name="more", raw_data=b"m" * 9000)]))
    data = model.SerializeToString() + twice.SerializeToString()
    assert without_weights(data) == (data, {})
    tensor = model.graph.initializer[0].SerializeToString() + TensorProto(raw_data=b"r" * 9000).SerializeToString()
    odd = bytes([0x3A, *_length(len(tensor) + 4), 0x2A, *_length(len(tensor))]) + tensor
    assert without_weights(odd) == (odd, {})


def _length(value: int) -> list[int]:
    return [value & 127 | 128, value >> 7 & 127 | 128, value >> 14]


def test_a_damaged_message_is_refused_or_read_as_protobuf_reads_it() -> None:
    data, chance = proto().SerializeToString(deterministic=True), random.Random(0)
    # Damage goes where the message says what it is, and not into the weights.
    structure = [at for at in range(len(data)) if at < 400 or at > len(data) - 400 or 120_000 < at < 120_900]
    for _ in range(400):
        bad = bytearray(data)
        for at in chance.sample(structure, 2):
            bad[at] = chance.randrange(256)
        bad = bad[: chance.choice((len(bad), len(bad), chance.randrange(len(bad))))]
        try:
            wanted = onnx.load_from_string(bytes(bad))
        except DecodeError:
            rest, _ = without_weights(bytes(bad))
            with pytest.raises(DecodeError):
                onnx.load_from_string(rest)
        else:
            assert whole(*without_weights(bytes(bad))).SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_, np.uint16]
)
def test_weights_of_every_type_are_what_the_file_holds(dtype: type) -> None:
    held = np.random.default_rng(0).integers(0, 2, (3, 10_000)).astype(dtype)
    model = make("(float[1,3] x) => (float[1,3] y) { y = Identity(x) }", w=held)
    for name in ("", "n", "na", "nam"):  # the same data at several distances from a multiple of its size
        model.producer_name = name
        loaded = load(model.SerializeToString()).graph.initializers["w"].const_value
        assert loaded is not None
        array = loaded.numpy()
        assert array.dtype == held.dtype
        assert array.flags.aligned
        np.testing.assert_array_equal(array, held)


@pytest.mark.parametrize(("shape", "size"), [((3, 9_999), 119_988), ((3, 10_001), 120_012), ((2**20, 2**20), 2**42)])
def test_weights_of_another_length_than_their_shape_says_are_refused(shape: tuple[int, ...], size: int) -> None:
    model = proto()
    model.graph.initializer[0].dims[:] = shape
    for source in (model.SerializeToString(), model):
        with pytest.raises(ModelError, match=f"needs {size} bytes but has 120000" if size < 2**35 else "more than 32 GiB"):
            load(source)


def test_bytes_as_strings_are_refused() -> None:
    model = proto()
    tensor = TensorProto(name="text", data_type=TensorProto.STRING, dims=[9000], raw_data=b"t" * 9000)
    model.graph.initializer.append(tensor)
    with pytest.raises(ModelError, match="stores strings as raw bytes"):
        load(model.SerializeToString())


def test_arrays_lie_in_the_bytes_that_were_given() -> None:
    data = make("(float[1,3] x) => (float[1,3] y) { y = Identity(x) }", w=BIG.astype(np.int8)).SerializeToString()
    held = load(data).graph.initializers["w"].const_value
    assert held is not None
    assert np.may_share_memory(held.numpy(), np.frombuffer(data, np.uint8))
