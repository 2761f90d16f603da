"""Bad calibration data: a CalibrationError that names batch and input, or the exception of who made it; nothing is half-written."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from data import ASSETS, digits
from graphs import images, make, reference

import qrt
from qrt.cli.app import run
from qrt.observers import MinMaxObserver
from qrt.quantization import default_qrt_qconfig

WEIGHTS = {"w": images(3, 4), "v": images(4, 5, seed=1)}
ONE = make("(float[N,3] x) => (float[N,5] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }", **WEIGHTS)
TWO = make("(float[N,3] x, float[N,4] z) => (float[N,5] y) { a = MatMul(x, w) b = Add(a, z) y = MatMul(b, v) }", **WEIGHTS)
X, Z = images(6, 3, seed=2), images(6, 4, seed=3)


def quantized(data: Any, model: onnx.ModelProto = ONE) -> bytes:
    """The int8 model, as bytes."""
    return qrt.quantize(qrt.load(model), data, progress=False).to_proto().SerializeToString(deterministic=True)


def at(array: np.ndarray, place: int, value: float) -> np.ndarray:
    """A copy with one element changed."""
    changed = array.copy()
    changed.flat[place] = value
    return changed


# ---- what is not finite


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_a_value_that_is_not_finite(value: float, place: int) -> None:
    with pytest.raises(qrt.CalibrationError, match="calibration batch 2, input 'x' holds NaN or infinity; remove the sample"):
        quantized([X, X, at(X, place, value), X])


@pytest.mark.parametrize("name", ["x", "z"])
def test_either_input_is_looked_at(name: str) -> None:
    batch = {"x": X, "z": Z}
    with pytest.raises(qrt.CalibrationError, match=f"batch 0, input '{name}' holds NaN"):
        quantized([batch | {name: at(batch[name], 1, np.nan)}], TWO)


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_floats_of_every_width_are_looked_at(kind: str) -> None:
    model = make(f"({kind}[N,3] h) => (float[N,5] y) {{ x = Cast<to=1>(h) a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }}", **WEIGHTS)
    with pytest.raises(qrt.CalibrationError, match="input 'h' holds NaN or infinity"):
        quantized([at(X.astype("float64" if kind == "double" else kind), 2, np.inf)], model)


@pytest.mark.parametrize(
    ("operator", "feed", "seen"),
    [("Log", -X * X - 1, "NaN"), ("Reciprocal", X * 0, "infinity"), ("Exp", X + 1000, "infinity"), ("Sqrt", -X * X - 1, "NaN")],
)
def test_what_stops_being_finite_inside_the_model(operator: str, feed: np.ndarray, seen: str) -> None:
    model = make(f"(float[N,3] x) => (float[N,5] y) {{ l = {operator}(x) a = MatMul(l, w) y = MatMul(a, v) }}", **WEIGHTS)
    extremes = default_qrt_qconfig._replace(activation=MinMaxObserver)
    with pytest.raises(qrt.CalibrationError, match=f"saw {seen}"):
        qrt.quantize(qrt.load(model), [feed], qrt.QConfigMapping().set_global(extremes), progress=False)


def test_infinities_inside_the_model_are_told_of_and_left_out_of_histograms() -> None:
    model = make("(float[N,3] x) => (float[N,3] y) { l = Exp(x) y = MatMul(l, w) }", w=np.eye(3, dtype=np.float32))
    with pytest.warns(qrt.QrtWarning, match="l: saw infinity, which its histogram leaves out; remove the sample or mend the model"):
        int8 = qrt.quantize(qrt.load(model), [X, at(X, 2, 1000)], progress=False)
    (y,) = qrt.InferenceSession(int8, num_threads=1).run(None, {"x": X})
    np.testing.assert_allclose(y, np.exp(X), atol=np.exp(X).max() / 100)


def test_numbers_at_the_ends_of_float32_are_numbers() -> None:
    """The largest, the smallest and both zeros: int8 models come out, and give numbers."""
    for value in (np.float32(1e38), np.float32(1e-45), np.float32(-0.0)):
        model = make("(float[N,3] x) => (float[N,3] y) { y = MatMul(x, w) }", w=np.eye(3, dtype=np.float32))
        int8 = qrt.quantize(qrt.load(model), [np.full((2, 3), value)], progress=False)
        onnx.checker.check_model(int8.to_proto(), full_check=True)
        (y,) = qrt.InferenceSession(int8, num_threads=1).run(None, {"x": np.full((2, 3), value)})
        np.testing.assert_allclose(y, np.full((2, 3), value), rtol=0.01, atol=1e-30)


# ---- no data


def nothing() -> Iterator[np.ndarray]:
    yield from ()


@pytest.mark.parametrize("data", [[], (), {}, np.zeros((0, 2, 3), np.float32), iter([]), nothing()], ids=lambda data: type(data).__name__)
def test_no_data(data: Iterable[Any]) -> None:
    with pytest.raises(qrt.CalibrationError, match="no calibration data: give at least one batch"):
        quantized(data)


def test_batches_of_nothing() -> None:
    with pytest.raises(qrt.CalibrationError, match="saw no data"):
        quantized([np.zeros((0, 3), np.float32)] * 3)
    assert quantized([X[:0], X, X[:0]]) == quantized([X])


# ---- data that does not fit


class Unwilling:
    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("not an array today")


BAD: dict[str, tuple[onnx.ModelProto, Any, str]] = {
    "double": (ONE, X.astype(np.float64), "'x' has dtype float64: give float32"),
    "half": (ONE, X.astype(np.float16), "'x' has dtype float16"),
    "integers": (ONE, np.ones((2, 3), np.int32), "'x' has dtype int32"),
    "bytes of the other order": (ONE, X.astype(">f4"), "'x' has dtype >f4"),
    "objects": (ONE, np.full((2, 3), None), "'x' has dtype object"),
    "nothing": (ONE, None, "'x' has dtype object"),
    "text": (ONE, "images", "'x' has dtype <U6"),
    "records": (ONE, np.zeros(2, [("re", "f4"), ("im", "f4")]), "'x' has dtype"),
    "lists of no one length": (ONE, [[1.0, 2.0, 3.0], [4.0]], "'x' cannot become an array"),
    "a sample without its batch": (ONE, X[0], r"'x' has shape \(3,\), which does not fit \('N', 3\)"),
    "batches stacked": (ONE, X.reshape(2, 3, 3), r"'x' has shape \(2, 3, 3\)"),
    "transposed": (ONE, X.T, r"'x' has shape \(3, 6\)"),
    "a scalar": (ONE, np.float32(1), r"'x' has shape \(\)"),
    "a name too many": (ONE, {"x": X, "labels": Z}, r"names \['labels'\]; the inputs of test are x"),
    "names that are none": (ONE, {"x": X, 7: Z, "b": Z}, r"names \['b', 7\]"),
    "another name": (ONE, {"X": X}, r"lacks \['x'\]"),
    "no names": (ONE, {}, r"lacks \['x'\]"),
    "one of two": (TWO, {"x": X}, r"lacks \['z'\]"),
    "an array for two inputs": (TWO, X, "inputs x, z: give dicts"),
    "a tuple for two inputs": (TWO, (X, Z), "inputs x, z: give dicts"),
    "two sizes of one batch": (
        TWO,
        {"x": X, "z": Z[:2]},
        r"'z' has shape \(2, 4\), .* \('N', 4\): in this batch, \(6, 4\)",
    ),
    "a batch of one beside six": (TWO, {"x": X, "z": Z[:1]}, r"'z' has shape \(1, 4\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_batch_that_does_not_fit(case: str) -> None:
    model, batch, message = BAD[case]
    with pytest.raises(qrt.CalibrationError, match=f"batch 0.*{message}"):
        quantized([batch], model)
    good: Any = X if model is ONE else {"x": X, "z": Z}
    with pytest.raises(qrt.CalibrationError, match=f"batch 1.*{message}"):
        quantized([good, batch, good], model)


@pytest.mark.parametrize("data", [None, 5, X.dtype, nothing, qrt], ids=lambda data: type(data).__name__)
def test_what_is_no_collection_of_batches(data: Any) -> None:
    with pytest.raises(qrt.InvalidInput, match=r"calibration_data is a .*: give a list or a generator"):
        quantized(data)


# ---- data that is made while it is read


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken, KeyError, MemoryError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("good", [0, 3])
def test_an_exception_of_the_data_passes_and_leaves_the_model_alone(error: type[BaseException], good: int) -> None:
    def data() -> Iterator[np.ndarray]:
        for _ in range(good):
            yield X
        raise error("the disk is gone")

    model = qrt.load(ONE)
    before = model.to_proto().SerializeToString(deterministic=True)
    with pytest.raises(error, match="the disk is gone"):
        qrt.quantize(model, data(), progress=False)
    assert model.to_proto().SerializeToString(deterministic=True) == before
    again = qrt.quantize(model, [X], progress=False)
    assert again.to_proto().SerializeToString(deterministic=True) == quantized([X])


def test_an_array_that_refuses_says_so_itself() -> None:
    with pytest.raises(RuntimeError, match="not an array today"):
        quantized([X, Unwilling()])


def test_data_is_read_once_and_one_batch_at_a_time() -> None:
    batches = [X, -X, 2 * X]
    turns: list[int] = []

    class Once:
        def __iter__(self) -> Iterator[np.ndarray]:
            assert not turns, "read twice"
            for k, batch in enumerate(batches):
                turns.append(k)
                yield batch

    expected = quantized(batches)
    assert quantized(Once()) == expected
    assert turns == [0, 1, 2]
    assert quantized(iter(batches)) == expected
    assert quantized(batch for batch in batches) == expected
    assert quantized(np.stack(batches)) == expected


def test_a_buffer_that_is_filled_again_for_every_batch() -> None:
    batches = [X, -3 * X, X + 2]
    buffer = np.empty_like(X)

    def refilled() -> Iterator[np.ndarray]:
        for batch in batches:
            buffer[...] = batch
            yield buffer
        buffer[...] = np.nan

    assert quantized(refilled()) == quantized(batches)


def test_arrays_of_the_caller_are_not_written_to() -> None:
    given = X.copy()
    given.flags.writeable = False
    strided = np.asfortranarray(X)
    assert quantized([given, strided]) == quantized([X, X])
    np.testing.assert_array_equal(given, X)
    np.testing.assert_array_equal(strided, X)
    assert strided.flags.f_contiguous


# ---- the command line

DIGITS = str(ASSETS / "digits.onnx")


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def npz() -> bytes:
    """A good file of samples."""
    file = io.BytesIO()
    np.savez(file, image=digits()["calibration"][0][:8])
    return file.getvalue()


def archived(path: Path, name: str, data: bytes) -> None:
    """An archive of one member."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)


def header(text: str) -> bytes:
    """An .npy file that has only a header."""
    line = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


def trapped(path: Path) -> None:
    """An archive whose array is to be unpickled."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([Trap(path.parent / "mark")], object), allow_pickle=True)
    archived(path, "image.npy", file.getvalue())


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "cannot read"),
    "cut off": (lambda p: p.write_bytes(npz()[: len(npz()) // 2]), "cannot read"),
    "the last byte missing": (lambda p: p.write_bytes(npz()[:-1]), "cannot read"),
    "bytes flipped": (lambda p: p.write_bytes(npz()[:400] + bytes(b ^ 255 for b in npz()[400:500]) + npz()[500:]), "cannot read"),
    "no archive": (lambda p: p.write_bytes(b"once upon a time" * 99), "cannot read"),
    "an archive of nothing": (lambda p: np.savez(p), "holds nothing"),
    "an archive of text": (lambda p: archived(p, "image.txt", b"5"), "'image.txt' in it is no array"),
    "text under an array's name": (lambda p: archived(p, "image.npy", b"5"), "cannot read"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps(Trap(p.parent / "mark"))), "cannot read"),
    "an archive of pickles": (trapped, "cannot read"),
    "a member that says it is huge": (
        lambda p: archived(p, "image.npy", header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 64)}")),
        "cannot read",
    ),
    "a header that is code": (
        lambda p: archived(p, "image.npy", header(f"__import__('os').mkdir({str(p.parent / 'mark')!r})")),
        "cannot read",
    ),
    "a folder": (lambda p: p.mkdir(), "cannot read"),
    "a pipe": (lambda p: os.mkfifo(p), "cannot read"),
    "absent": (lambda p: None, "cannot read"),
    "other names": (lambda p: np.savez(p, a=np.zeros(3), b=np.zeros(3)), "name its arrays after the inputs, 'image'"),
    "no samples": (lambda p: np.savez(p, image=np.zeros((0, 1, 8, 8), np.float32)), "1 or more"),
    "a scalar": (lambda p: np.savez(p, image=np.float32(1)), "stack samples"),
    "another shape": (lambda p: np.savez(p, image=np.zeros((4, 1, 9, 8), np.float32)), "does not fit"),
    "doubles": (lambda p: np.savez(p, image=np.zeros((4, 1, 8, 8))), "has dtype float64"),
    "text inside": (lambda p: np.savez(p, image=np.full((4, 1, 8, 8), "a")), "has dtype <U1"),
    "NaN": (lambda p: np.savez(p, image=np.full((4, 1, 8, 8), np.nan, np.float32)), "NaN or infinity"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_samples_that_is_none(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, message = FILES[case]
    data, output = tmp_path / "calib.npz", tmp_path / "out" / "int8.onnx"
    output.parent.mkdir()
    write(data)
    assert run(["quantize", DIGITS, "-o", str(output), "--data", str(data)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("qrt: error: ")
    assert message in err
    assert list(output.parent.iterdir()) == []
    assert not (tmp_path / "mark").exists()


def test_a_good_file_of_samples_is_taken(tmp_path: Path) -> None:
    data, output = tmp_path / "calib.npz", tmp_path / "int8.onnx"
    data.write_bytes(npz())
    assert run(["quantize", DIGITS, "-o", str(output), "--data", str(data), "--json"]) == 0
    image = digits()["test"][0][:50]
    (y,) = qrt.InferenceSession(output, num_threads=1).run(None, {"image": image})
    (real,) = reference(onnx.load(DIGITS), image=image)
    assert (y.argmax(1) == real.argmax(1)).mean() > 0.9


def test_a_file_that_was_there_stays_as_it_was(tmp_path: Path) -> None:
    data, output = tmp_path / "calib.npz", tmp_path / "int8.onnx"
    data.write_bytes(npz()[:-1])
    output.write_bytes(b"what was there")
    assert run(["quantize", DIGITS, "-o", str(output), "--data", str(data)]) == 1
    assert output.read_bytes() == b"what was there"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calib.npz", "int8.onnx"]
