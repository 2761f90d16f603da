"""Calibration in shards: merged, it is calibration in one run; and files that do not belong together are told apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import ASSETS, digits
from graphs import images, make
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from qrt.core.errors import CalibrationError, InvalidInput, ModelError, OutputError, QrtError, QuantizationError
from qrt.loaders import load
from qrt.observers import (
    EntropyObserver,
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    ObserverBase,
    PercentileObserver,
    RecordingObserver,
)
from qrt.quantization import (
    PreparedModel,
    QConfig,
    QConfigMapping,
    QrtQuantizer,
    calibration_state,
    default_fake_quant,
    default_weight_fake_quant,
    merge_shards,
    merge_state,
    per_channel_weight_observer,
    save_shard,
)
from qrt.quantization.prepared import prepare_model

PAD = "pads: ints = [1,1,1,1]"
GRAPH = f"(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ a = Conv<{PAD}>(x, w) r = Relu(a) y = Conv<{PAD}>(r, v) }}"
FIXED = FixedQParamsObserver.with_args(scale=0.02, zero_point=3)
SMALL = make(GRAPH, w=images(8, 3, 3, 3), v=images(8, 8, 3, 3, seed=1))


def _prepared(observer: Any = MinMaxObserver, model: Any = SMALL, weight: Any = per_channel_weight_observer, **more: Any) -> PreparedModel:
    mapping = QConfigMapping().set_global(QConfig(observer, weight))
    return prepare_model(load(model), QrtQuantizer(mapping, **more))


def _digits(observer: Any, samples: np.ndarray | None = None) -> PreparedModel:
    prepared = _prepared(observer, ASSETS / "digits.onnx")
    if samples is not None:
        prepared.calibrate(samples[:, None])
    return prepared


def _bytes(prepared: PreparedModel) -> bytes:
    return prepared.convert().to_proto().SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return digits()["calibration"][0][:60]


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """The small model, calibrated in three shards."""
    paths = [tmp_path / f"{k}.safetensors" for k in (1, 2, 3)]
    for number, path in enumerate(paths, 1):
        prepared = _prepared()
        prepared.calibrate([images(2, 3, 8, 8, seed=number)])
        save_shard(prepared, path, number, 3)
    return paths


@pytest.mark.parametrize("observer", [MinMaxObserver, EntropyObserver, PercentileObserver, MinMaxObserver.with_args(eps=0.001), FIXED])
def test_exact(observer: Any, samples: np.ndarray, tmp_path: Path) -> None:
    """Extremes and exact counts: byte for byte the model of one run, whatever the order of the files."""
    paths = [tmp_path / name for name in "bca"]
    for number, (path, part) in enumerate(zip(paths, np.split(samples, [10, 45]), strict=True), 1):
        save_shard(_digits(observer, part), path, number, 3)
    merged = _digits(observer)
    assert merge_shards(merged, sorted(paths)) == 3
    assert _bytes(merged) == _bytes(_digits(observer, samples))


def _in_three(observer: Any, samples: np.ndarray, folder: Path) -> Iterator[tuple[Any, Any]]:
    """Each observer, merged from three shards, beside that of one run."""
    for number, part in enumerate(np.split(samples, 3), 1):
        save_shard(_digits(observer, part), folder / str(number), number, 3)
    merged, whole = _digits(observer), _digits(observer, samples)
    merge_shards(merged, folder.iterdir())
    for name, mine in merged.observers.items():
        yield mine, whole.observers[name]


def test_histograms(samples: np.ndarray, tmp_path: Path) -> None:
    """Extremes are exact; a value moves by at most a bin for each time that either range grew: 60 samples, so 60 times at most."""
    for mine, other in _in_three(HistogramObserver, samples, tmp_path):
        assert (mine.min_val, mine.max_val) == (other.min_val, other.max_val)
        np.testing.assert_allclose(mine.histogram.sum(), other.histogram.sum(), rtol=1e-6)
        moved = np.abs(np.cumsum(mine.histogram - other.histogram, dtype=np.float64)).sum()
        assert moved <= 2 * len(samples) * other.histogram.sum()
        # That is the bound; what to expect is far less, and a range that is hardly another.
        assert moved <= 0.1 * other.histogram.sum()
        np.testing.assert_allclose(mine.calculate_qparams().scale, other.calculate_qparams().scale, rtol=0.02)


def test_moving_averages(samples: np.ndarray, tmp_path: Path) -> None:
    """Within the rounding of 60 updates."""
    for mine, other in _in_three(MovingAverageMinMaxObserver, samples, tmp_path):
        bound = len(samples) * 2.0**-23 * max(abs(other.min_val), abs(other.max_val))
        assert abs(mine.min_val - other.min_val) <= bound
        assert abs(mine.max_val - other.max_val) <= bound


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_any_split(cuts: list[int], seed: int) -> None:
    """Any split, shards that saw nothing included, in memory."""
    data = images(12, 3, 8, 8, seed=seed)
    whole, merged = _prepared(), _prepared()
    whole.calibrate(data[:, None])
    for part in np.split(data, sorted(cuts)):
        other = _prepared()
        if len(part):
            other.calibrate(part[:, None])
        merge_state(merged, calibration_state(other))
    assert _bytes(merged) == _bytes(whole)


def test_what_a_file_holds(shards: list[Path]) -> None:
    """Keys as torch names them, and the same bytes for the same shard."""
    state = load_file(shards[0])
    assert {key.rsplit(".", 2)[1] for key in state} == {"activation_post_process"}
    assert {key.rsplit(".", 1)[1] for key in state} == {"eps", "min_val", "max_val"}
    prepared = _prepared()
    prepared.calibrate([images(2, 3, 8, 8, seed=1)])
    written = shards[0].read_bytes()
    save_shard(prepared, shards[0], 1, 3)
    assert shards[0].read_bytes() == written


# -- what does not belong together ------------------------------------------------------------------------------------------
def _check_refused(prepared: PreparedModel, paths: list[Path], kind: type[QrtError], message: str) -> None:
    with pytest.raises(kind, match=message):
        merge_shards(prepared, paths)
    with pytest.raises(CalibrationError, match="saw no data"):  # and nothing was learned
        prepared.qparams()


def test_missing_and_duplicate(shards: list[Path], tmp_path: Path) -> None:
    _check_refused(_prepared(), [], InvalidInput, "no shards are given")
    _check_refused(_prepared(), shards[:2], QuantizationError, "shard 3 of 3 is missing: give the state files of all 3")
    _check_refused(_prepared(), shards[1:], QuantizationError, "shard 1 of 3 is missing")
    _check_refused(_prepared(), [shards[2], shards[0]], QuantizationError, "shard 2 of 3 is missing")
    _check_refused(_prepared(), [*shards, shards[1]], QuantizationError, "are both shard 2")
    other = tmp_path / "other"
    save_shard(_prepared(), other, 2, 2)
    _check_refused(_prepared(), [shards[0], other], QuantizationError, "merge those of one run")


def test_other_models_and_settings(shards: list[Path]) -> None:
    weights = make(GRAPH, w=images(8, 3, 3, 3), v=images(8, 8, 3, 3, seed=2))
    large = make(GRAPH.replace("8,8", "9,9"), w=images(8, 3, 3, 3), v=images(8, 8, 3, 3, seed=1))
    for model in (weights, large, ASSETS / "digits.onnx"):
        _check_refused(_prepared(model=model), shards, QuantizationError, f"{shards[0].name} was learned on another model")
    message = "was learned with other settings: of 'r' by MinMaxObserver.*now there is "
    _check_refused(_prepared(HistogramObserver), shards, QuantizationError, message + "HistogramObserver.*give the same observer")
    _check_refused(_prepared(MinMaxObserver.with_args(eps=1e-3)), shards, QuantizationError, message + "MinMaxObserver.*eps=0.001")
    first = next(node.name for node in _prepared().model.graph)
    _check_refused(_prepared(exclude=[first]), shards, QuantizationError, "other settings: of 'x' by MinMaxObserver.*now there is none")


def test_damaged_files(shards: list[Path], tmp_path: Path) -> None:
    whole = shards[1].read_bytes()
    for content in (b"", whole[:7], whole[:-1], whole[: len(whole) // 2], whole + b"\0", b"\xff" * 100):
        shards[1].write_bytes(content)
        _check_refused(_prepared(), shards, ModelError, f"cannot read .*{shards[1].name}.*write it again")
    _check_refused(_prepared(), [tmp_path / "no"], ModelError, "there is no such file")
    _check_refused(_prepared(), [tmp_path], ModelError, "there is no such file")
    shards[1].write_bytes(whole)

    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    content, state = json.loads(header["__metadata__"]["calibration"]), load_file(shards[1])
    key = next(key for key in state if key.endswith("min_val"))
    for text, message in [
        ("{", "no calibration state of this version"),
        ("[" * 100_000, "no calibration state of this version"),
        ("9" * 5000, "no calibration state of this version"),
        ("[1]", "no calibration state of this version"),
        ("{}", "no calibration state of this version"),
        (json.dumps({**content, "format": 2}), "no calibration state of this version"),
        (json.dumps({"format": 1}), "no calibration state of this version"),
        (json.dumps({**content, "shard": "2"}), "does not say which shard"),
        (json.dumps({**content, "shard": 4}), "does not say which shard"),
        (json.dumps({**content, "shard": True}), "does not say which shard"),
        (json.dumps({**content, "observers": [1]}), "of which observers"),
    ]:
        save_file(state, shards[1], {"calibration": text})
        _check_refused(_prepared(), shards, ModelError, message)
    save_file(state, shards[1])
    _check_refused(_prepared(), shards, ModelError, "no calibration state of this version")
    for change, message in [
        ({"shards": 10**9}, "merge those of one run"),
        ({"observers": {}}, "by no observer"),
        ({"model": 1}, "another"),
    ]:
        save_file(state, shards[1], {"calibration": json.dumps({**content, **change})})
        _check_refused(_prepared(), shards, QuantizationError, message)
    tensors = [
        ({}, "lacks"),
        ({key: np.array(np.nan, np.float32)}, "no range"),
        ({key: np.array(1e9, np.float32)}, "no range"),
        ({key: np.zeros(2, np.float32)}, "it has min_val"),
        ({"z.activation_post_process.min_val": np.zeros(2, np.float32)}, "no such observer"),
        ({key: np.array(True)}, "holds no numbers"),
        ({key: np.array(1j, np.complex64)}, "holds no numbers"),
    ]
    for more, message in tensors:
        save_file({**state, **more} if more else {key: state[key]}, shards[1], {"calibration": json.dumps(content)})
        with pytest.raises((ModelError, QuantizationError), match=message):
            merge_shards(_prepared(), shards)


def test_hostile_counts() -> None:
    """Numbers that an observer would compute with, had it not looked."""
    for observer, key, value in [
        (HistogramObserver, "histogram", np.full(2048, -1, np.float32)),
        (HistogramObserver, "histogram", np.full(2048, np.nan, np.float32)),
        (EntropyObserver, "exponent", np.array(10**12)),
        (EntropyObserver, "counts", np.full(4096, -1)),
        (HistogramObserver, "eps", np.zeros(1, np.float32)),
    ]:
        prepared = _prepared(observer)
        prepared.calibrate([images(2, 3, 8, 8)])
        state = calibration_state(prepared)
        state[next(name for name in state if name.endswith(key))] = value
        with pytest.raises(QuantizationError, match=f"count|width|{key}"):
            merge_state(prepared, state)


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1), byte=st.integers(0, 255))
def test_flipped_bytes(tmp_path_factory: pytest.TempPathFactory, where: float, byte: int) -> None:
    """One byte of a file changed: it is refused, or what it says can still be a range."""
    prepared = _prepared()
    prepared.calibrate([images(2, 3, 8, 8)])
    path = tmp_path_factory.getbasetemp() / "one shard"
    save_shard(prepared, path, 1, 1)
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] = byte
    path.write_bytes(content)
    merged = _prepared()
    try:
        merge_shards(merged, [path])
    except (ModelError, QuantizationError):
        return
    merged.convert()
    assert all(np.isfinite(params.scale).all() and (params.scale > 0).all() for params in merged.qparams().values())


def test_observers_that_cannot_be_merged(tmp_path: Path) -> None:
    class Mine(MinMaxObserver):
        """An observer of a user who forgot about states."""

        state_dict = ObserverBase.state_dict

    for observer, weight, message in [
        (RecordingObserver, per_channel_weight_observer, "gives no state"),
        (Mine, per_channel_weight_observer, "'x'.*Mine gives no state"),
        (default_fake_quant, default_weight_fake_quant, "calibrate this model in one run"),
    ]:
        prepared = _prepared(observer, weight=weight)
        with pytest.raises(QuantizationError, match=message):
            save_shard(prepared, tmp_path / "s", 1, 2)
        with pytest.raises(QuantizationError, match=message):
            merge_state(prepared, {})
    assert not list(tmp_path.iterdir())


def test_saving(tmp_path: Path) -> None:
    for number, count in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(InvalidInput, match="give a number from 1"):
            save_shard(_prepared(), tmp_path / "s", number, count)
    with pytest.raises(OutputError):
        save_shard(_prepared(), tmp_path / "no" / "s", 1, 1)
    (tmp_path / "x").write_bytes(save({}))
    with pytest.raises(ModelError):
        merge_shards(_prepared(), [tmp_path / "x"])
