"""QTensor against torch 2.13.0's recorded codes (tools/make_golden_qtensor.py), and its methods against NumPy on codes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from observer_streams import QTENSORS, STREAMS, channel_qparams, stream

import qrt
from qrt import QTensor
from qrt.core import dtypes
from qrt.core.errors import QuantizationError

F32 = np.float32
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "qtensor.npz")
CODES = np.array([[3, 1, 2, 3], [7, 7, 0, 250], [9, 8, 5, 6]], np.uint8)
ONE = QTensor(CODES, 0.1, 3, qrt.quint8)
MANY = QTensor(CODES, np.array([0.1, 0.2, 0.3]), np.array([1, 2, 3]), qrt.quint8, 0)


def unpacked(codes: np.ndarray, dtype: str) -> np.ndarray:
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(-1) if dtype == "quint4x2" else codes


@pytest.mark.parametrize("case", QTENSORS)
def test_codes_equal_torch_but_at_ties(case: str) -> None:
    dtype, channels, floating = QTENSORS[case]
    recorded = unpacked(GOLDEN[f"{case}/codes"], dtype)
    at, ties = 0, 0
    for seed in range(STREAMS):
        x = stream(seed)[0][:, :20]
        scales, zero_points = channel_qparams(x, dtype, floating)
        qdtype = getattr(dtypes, dtype)
        if channels:
            ours = qrt.quantize_per_channel(x, scales, zero_points, 0, qdtype)
            steps = x / scales.astype(F32)[:, None] + (zero_points[:, None] if floating else 0)
        else:
            ours = qrt.quantize_per_tensor(x, float(scales[0]), int(zero_points[0]), qdtype)
            steps = x / F32(scales[0])
        # quint4x2 packs whole bytes.
        padded = x.size + (x.size % 2 if dtype == "quint4x2" else 0)
        theirs = recorded[at : at + x.size].reshape(x.shape)
        at += padded
        codes = unpacked(ours.int_repr(), dtype)[: x.size].reshape(x.shape)
        different = codes != theirs
        from_middle = np.abs(np.abs(steps - np.floor(steps)) - 0.5)
        # The zero point of 32-bit codes is added in float32, where it costs some last bits.
        assert (from_middle[different] < (1e-3 if dtype == "qint32" else 2e-5)).all(), seed
        assert (np.abs(codes.astype(np.int64) - theirs) <= 1).all(), seed
        ties += int(different.sum())
        args = (scales, zero_points, qdtype, 0) if channels else (scales[0], zero_points[0], qdtype)
        assert zlib.crc32(QTensor(theirs, *args).dequantize().tobytes()) == GOLDEN[f"{case}/values_crc32"][seed]
    assert at == recorded.size
    assert ties < 0.01 * at


def test_special_values() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30], F32)
    assert qrt.quantize_per_tensor(x, 0.1, 3, qrt.qint8).int_repr().tolist() == [-128, 127, -128, 127, -128]


def test_the_tie_rule() -> None:
    x = np.array([0.5, 1.5, -0.5], F32)
    assert qrt.quantize_per_tensor(x, 1.0, 1, qrt.quint8).int_repr().tolist() == [1, 3, 1]


def test_qparams_are_kept_as_given() -> None:
    assert (ONE.q_scale(), ONE.q_zero_point(), ONE.qscheme()) == (0.1, 3, qrt.per_tensor_affine)
    assert isinstance(ONE.qscheme(), qrt.qscheme)
    assert qrt.quantize_per_tensor(np.ones(2, F32), np.array([0.1], F32), np.array([3]), qrt.quint8).q_scale() == float(F32(0.1))
    assert MANY.q_per_channel_scales().tolist() == [0.1, 0.2, 0.3]
    assert MANY.q_per_channel_scales().dtype == np.float64
    assert MANY.q_per_channel_zero_points().dtype == np.int64
    assert (MANY.q_per_channel_axis(), MANY.qscheme()) == (0, qrt.per_channel_affine)
    floating = qrt.quantize_per_channel(np.ones((2, 3), F32), np.ones(2), np.array([0.5, 1.5]), 0, qrt.quint8)
    assert floating.qscheme() is qrt.per_channel_affine_float_qparams
    assert floating.q_per_channel_zero_points().dtype == floating.q_per_channel_scales().dtype == F32
    assert "scale=0.1, zero_point=3" in repr(ONE)
    assert "axis=0" in repr(MANY)


def test_dequantize() -> None:
    np.testing.assert_array_equal(ONE.dequantize(), (CODES.astype(F32) - 3) * F32(0.1))
    np.testing.assert_array_equal(MANY.dequantize(), ((CODES.astype(float) - [[1], [2], [3]]) * [[0.1], [0.2], [0.3]]).astype(F32))
    both = qrt.dequantize([ONE, np.ones(2)])
    assert [part.dtype for part in both] == [F32, F32]
    assert qrt.dequantize(MANY).tobytes() == MANY.dequantize().tobytes()
    pair = qrt.quantize_per_tensor([np.ones(2, F32), np.ones(3, F32)], [0.5, 0.25], [0, 1], qrt.quint8)
    assert [part.int_repr().tolist() for part in pair] == [[2, 2], [5, 5, 5]]


def test_packed_codes() -> None:
    assert QTensor(np.array([1, 2, 15]), 1.0, 0, qrt.quint4x2).int_repr().tolist() == [0x21, 0x0F]


def test_views_share_memory_and_copies_do_not() -> None:
    q = ONE.clone()
    zero = np.zeros((2, 6), F32)
    q.view(2, 6).copy_(zero)
    assert (q.int_repr() == 3).all()
    assert (ONE.int_repr() == CODES).all()
    assert q.flatten().shape == (12,)
    assert ONE.view([6, -1]).shape == (6, 2)
    cube = QTensor(np.zeros((2, 3, 4), np.uint8), 1.0, 0, qrt.quint8)
    assert cube.flatten(1).shape == (2, 12)
    assert cube.flatten(0, 1).shape == (6, 4)


def test_copy() -> None:
    q = ONE.clone()
    q.copy_(np.full(4, 0.5, F32))
    assert (q.int_repr() == 8).all()
    q.copy_(MANY)
    assert q.equal(MANY)
    with pytest.raises(QuantizationError, match="cannot copy"):
        q.copy_(QTensor(CODES.astype(np.int8) // 4, 1.0, 0, qrt.qint8))


def test_strides() -> None:
    assert ONE.as_strided((2, 3), (1, 2), 1).int_repr().tolist() == [[1, 3, 7], [2, 7, 0]]
    assert ONE.as_strided((), ()).int_repr().tolist() == 3
    for size, stride, offset in (((3, 4), (4, 1), 1), ((2,), (-1,), 5), ((2,), (1, 1), 0), ((13,), (1,), 0), ((1,), (1,), -1)):
        with pytest.raises(QuantizationError):
            ONE.as_strided(size, stride, offset)


def test_expand_and_resize() -> None:
    row = QTensor(CODES[:1], 0.1, 3, qrt.quint8)
    assert row.expand(2, -1, 4).int_repr().tolist() == [[CODES[0].tolist()]] * 2
    for wanted in ((2, 5), (4,)):
        with pytest.raises(QuantizationError, match="expand"):
            row.expand(*wanted)
    q = ONE.clone().resize_(2, 2)
    assert q.int_repr().tolist() == [[3, 1], [2, 3]]
    assert q.resize_([5]).dequantize()[4] == 0


def test_select() -> None:
    assert MANY.select(0, -1).q_scale() == 0.3
    np.testing.assert_array_equal(MANY.select(0, 1).int_repr(), CODES[1])
    assert MANY.select(1, 2).q_per_channel_axis() == 0
    last = QTensor(CODES, np.ones(4), np.zeros(4, int), qrt.quint8, -1)
    assert last.select(0, 0).q_per_channel_axis() == 0
    with pytest.raises(QuantizationError, match="outside axis"):
        ONE.select(0, 3)


@pytest.mark.parametrize("name", ["eq", "ne", "ge", "gt", "le", "lt"])
@pytest.mark.parametrize("other", [0.4, MANY, np.arange(4, dtype=F32)])
def test_comparisons_are_of_real_values(name: str, other: Any) -> None:
    full = {"eq": np.equal, "ne": np.not_equal, "ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less}
    value = other.dequantize() if isinstance(other, QTensor) else F32(other)
    result = getattr(ONE, name)(other)
    assert result.dtype == bool
    np.testing.assert_array_equal(result, full[name](ONE.dequantize(), value))


def test_equal() -> None:
    assert ONE.equal(ONE.clone())
    for other in (MANY, QTensor(CODES, 0.2, 3, qrt.quint8), QTensor(CODES, 0.1, 4, qrt.quint8), ONE.view(12), ONE.select(0, 0)):
        assert not ONE.equal(other)


def test_order() -> None:
    assert int(ONE.max().int_repr()) == 250
    assert int(ONE.min().int_repr()) == 0
    values, where = ONE.max(1)
    assert (values.int_repr().tolist(), where.tolist()) == ([3, 250, 9], [0, 3, 0])
    values, where = ONE.min(0, keepdim=True)
    assert (values.int_repr().tolist(), where.tolist()) == ([[3, 1, 0, 3]], [[0, 0, 1, 0]])
    values, where = ONE.sort()
    assert (values.int_repr()[0].tolist(), where[0].tolist()) == ([1, 2, 3, 3], [1, 2, 0, 3])
    values, where = ONE.sort(0, descending=True)
    np.testing.assert_array_equal(values.int_repr(), -np.sort(-CODES.astype(int), axis=0))
    values, where = ONE.topk(2)
    assert (values.int_repr().tolist(), where.tolist()) == ([[3, 3], [250, 7], [9, 8]], [[0, 3], [3, 0], [0, 1]])
    assert ONE.topk(1, 0, largest=False)[0].int_repr().tolist() == [[3, 1, 0, 3]]
    assert values.q_scale() == 0.1


def test_mean() -> None:
    assert ONE.mean(1).int_repr().tolist() == [2, 66, 7]
    assert int(ONE.mean().int_repr()) == 25
    assert ONE.mean([0, 1], keepdim=True).shape == (1, 1)
    assert ONE.mean((0,)).int_repr().tolist() == [6, 5, 2, 86]


@pytest.mark.parametrize(
    "use",
    [
        lambda q: q.as_strided((1,), (1,)),
        lambda q: q.expand(3, 4),
        lambda q: q.max(),
        lambda q: q.min(0),
        lambda q: q.mean(),
        lambda q: q.sort(),
        lambda q: q.topk(1),
        lambda q: q.resize_(2),
        lambda q: q.q_scale(),
        lambda q: q.q_zero_point(),
    ],
)
def test_what_needs_one_scale(use: Callable[[QTensor], Any]) -> None:
    use(ONE.clone())
    with pytest.raises(QuantizationError, match="needs one scale"):
        use(MANY.clone())


def test_channels_that_a_view_would_tear() -> None:
    assert MANY.view(3, 2, 2).q_per_channel_axis() == 0
    with pytest.raises(QuantizationError, match="tears the channels"):
        MANY.flatten()
    with pytest.raises(QuantizationError, match="no view"):
        ONE.view(5, 5)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: qrt.quantize_per_tensor(np.ones(2), 0.1, 0, qrt.quint8), "only float32"),
        (lambda: qrt.quantize_per_tensor(np.ones(2, F32), 0.0, 0, qrt.quint8), "positive"),
        (lambda: qrt.quantize_per_tensor(np.ones(2, F32), 0.1, 256, qrt.quint8), "outside"),
        (lambda: qrt.quantize_per_channel(np.ones((2, 2), F32), np.ones(3), np.zeros(3, int), 0, qrt.quint8), "do not fit"),
        (lambda: qrt.quantize_per_channel(np.ones((2, 2), F32), np.ones(2), np.zeros(2, int), 2, qrt.quint8), "do not fit"),
        (lambda: QTensor(np.array([256]), 1.0, 0, qrt.quint8), "do not fit"),
        (lambda: ONE.clone(memory_format=1), "memory_format"),  # type: ignore[arg-type]
        (lambda: ONE.q_per_channel_axis(), "no channel axis"),
        (lambda: ONE.max(2), "no axis 2"),
        (lambda: ONE.topk(5), "k must be"),
        (lambda: ONE.flatten(1, 0), "comes after"),
        (lambda: ONE.clone().resize_(0).mean(), "elements"),
        (lambda: ONE.clone().resize_(0).max(), "without elements"),
    ],
)
def test_errors(use: Callable[[], Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        use()
