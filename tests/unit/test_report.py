"""Reports as plain data: example feeds, samples from files, layers compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data import ASSETS, digits
from graphs import make

import qrt
from qrt.core.accuracy import compute_sqnr
from qrt.report.bench import bench_model
from qrt.report.compare import Difference, compare_models
from qrt.report.example import example_feeds
from qrt.report.samples import Samples

SCALE = np.float32(0.05)


def test_example_feeds() -> None:
    text = "(float[N,3,H,W] x, int64[N,T] tokens, float[2,N] state, bool b) => (float[N,3,H,W] y) { y = Identity(x) }"
    feeds = example_feeds(qrt.load(make(text)))
    assert {name: (array.shape, array.dtype.name) for name, array in feeds.items()} == {
        "x": ((1, 3, 64, 64), "float32"),
        "tokens": ((1, 64), "int64"),
        "state": ((2, 1), "float32"),
        "b": ((), "bool"),
    }
    assert feeds["tokens"].min() == feeds["tokens"].max() == 1
    again = example_feeds(qrt.load(make(text)))
    np.testing.assert_array_equal(feeds["x"], again["x"])


@pytest.mark.parametrize(
    ("declared", "shape", "count", "fed"),
    [
        ("float[N,3]", (6, 3), 6, (1, 3)),
        ("float[2,3]", (7, 3), 3, (2, 3)),  # what does not fill a batch is left out
        ("float[N,3]", (6, 4, 3), 6, (4, 3)),
        ("float[3]", (6, 3), 6, (3,)),
        ("float", (6,), 6, ()),
    ],
)
def test_samples(tmp_path: Path, declared: str, shape: tuple[int, ...], count: int, fed: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.savez(tmp_path / "x.npz", x=array)
    samples = Samples(tmp_path / "x.npz", qrt.load(make(f"({declared} x) => ({declared} y) {{ y = Identity(x) }}")))
    found = [sample["x"] for sample in samples]
    assert len(samples) == len(found) == count
    assert {one.shape for one in found} == {fed}
    np.testing.assert_array_equal(np.concatenate([one.ravel() for one in found]), array.ravel()[: count * int(np.prod(fed))])


def test_samples_of_two_inputs(tmp_path: Path) -> None:
    model = qrt.load(make("(float[N,3] x, float[2] s) => (float[N,3] y, float[2] z) { y = Identity(x) z = Identity(s) }"))
    np.savez(tmp_path / "x.npz", x=np.zeros((5, 3), np.float32), s=np.ones((5, 2), np.float32))
    assert [(sample["x"].shape, sample["s"].shape) for sample in Samples(tmp_path / "x.npz", model)] == [((1, 3), (2,))] * 5
    np.savez(tmp_path / "x.npz", x=np.zeros((5, 3), np.float32), s=np.ones((4, 2), np.float32))
    with pytest.raises(qrt.InvalidInput, match="'x': 5, 's': 4"):
        Samples(tmp_path / "x.npz", model)


def test_shards_of_samples(tmp_path: Path) -> None:
    """Parts that follow each other, none empty, and all together the samples."""
    np.save(tmp_path / "x.npy", np.arange(10, dtype=np.float32))
    samples = Samples(tmp_path / "x.npy", qrt.load(make("(float x) => (float y) { y = Identity(x) }")))
    for count in range(1, 11):
        shards = [samples.shard(number, count) for number in range(1, count + 1)]
        assert [float(sample["x"]) for shard in shards for sample in shard] == list(range(10))
        assert {len(shard) for shard in shards} <= {10 // count, -(-10 // count)}
    with pytest.raises(qrt.InvalidInput, match="holds 10 samples: they cannot make 11 shards"):
        samples.shard(1, 11)


def test_difference() -> None:
    difference = Difference("x")
    difference.add(np.array([[3.0, 0.0]]), np.array([[3.0, 0.0]]))
    assert (difference.sqnr, difference.cosine, difference.agreement) == (np.inf, 1.0, 1.0)
    difference.add(np.array([[0.0, 4.0]]), np.array([[1.0, 0.5]]))
    assert difference.sqnr == pytest.approx(10 * np.log10(25 / (1 + 3.5**2)))
    assert difference.largest == 3.5
    assert difference.agreement == 0.5
    with pytest.raises(qrt.InvalidInput, match="two different models"):
        difference.add(np.zeros(2), np.zeros(3))


def test_difference_of_masks() -> None:
    """Infinities that both have are no error; SQNR is that of the numeric debugger."""
    difference = Difference("x")
    a, b = np.array([[-np.inf, 3.0, 4.0]], np.float32), np.array([[-np.inf, 3.0, 4.5]], np.float32)
    difference.add(a, b)
    assert (difference.noise, difference.largest, difference.sqnr) == (0.25, 0.5, compute_sqnr(a, b))
    difference = Difference("x")
    difference.add(a[:, 1:], b[:, 1:])
    assert difference.sqnr == compute_sqnr(a[:, 1:], b[:, 1:]) == pytest.approx(20.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_layers_are_found_behind_codes(dtype: type) -> None:
    """Signed codes too, which the fused form holds as unsigned ones."""
    zero = dtype(130 if dtype is np.uint8 else 2)
    weight = np.eye(4, dtype=np.float32)
    real = qrt.load(make("(float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) y = Neg(h) }", w=weight))
    text = (
        "(float[N,4] x) => (float[N,4] y) { xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, t, i)"
        " h = MatMul(xd, wd) hq = QuantizeLinear(h, s, z) hd = DequantizeLinear(hq, s, z) y = Neg(hd) }"
    )
    int8 = qrt.load(make(text, s=SCALE, z=zero, w=np.eye(4, dtype=np.int8), t=1.0, i=np.int8(0)))
    x = np.random.default_rng(0).uniform(-1, 1, (9, 4)).astype(np.float32)
    found = compare_models(real, int8, [{"x": x}])
    assert {layer.name for layer in found.layers} == {"h", "y"}
    assert all(20 < layer.sqnr < 40 and layer.largest <= SCALE / 2 + 1e-6 for layer in found.layers)


def test_compare_wants_samples() -> None:
    model = qrt.load(ASSETS / "digits.onnx")
    with pytest.raises(qrt.InvalidInput, match="no samples"):
        compare_models(model, model, [])
    with pytest.raises(qrt.InvalidInput, match="dtype"):
        compare_models(model, model, [{"image": digits()["test"][0][:1].astype(np.float64)}])


def test_bench_times_nothing_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from qrt.report import bench

    monkeypatch.setitem(bench.PEERS, "onnxruntime", lambda model, feeds, threads: lambda: [np.zeros((1, 10), np.float32)])
    with pytest.raises(qrt.QrtError, match="differs from qrt's by"):
        bench_model(qrt.load(ASSETS / "digits.onnx"), ["onnxruntime"])
    monkeypatch.setitem(bench.PEERS, "onnxruntime", lambda model, feeds, threads: lambda: [np.zeros((2, 10), np.float32)])
    with pytest.raises(qrt.QrtError, match=r"shape \(1, 10\) in qrt"):
        bench_model(qrt.load(ASSETS / "digits.onnx"), ["onnxruntime"])
