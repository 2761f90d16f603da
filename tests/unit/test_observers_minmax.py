"""What all observers share, and the min/max family against its definition."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qrt.core import dtypes
from qrt.core.dtypes import qint8, qint32, quint4x2, quint8, quint16
from qrt.core.errors import CalibrationError, QuantizationError
from qrt.core.numerics import fake_quantize, quantize
from qrt.observers import (
    OBSERVERS,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    UniformQuantizationObserverBase,
)

F32 = np.float32
Uniform = UniformQuantizationObserverBase
ALL: list[Callable[..., Uniform]] = [
    *OBSERVERS.values(),
    PerChannelMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
]
every_observer = pytest.mark.parametrize("make", ALL)
values = st.floats(-1e6, 1e6, width=32)


def extremes(observer: Uniform) -> tuple[float, float]:
    return float(observer.min_val), float(observer.max_val)


@every_observer
def test_an_observer_is_a_tap(make: Callable[..., Uniform]) -> None:
    x = np.arange(-6, 6, dtype=F32).reshape(2, 2, 3)
    x.flags.writeable = False
    observer = make()
    assert observer(x) is x
    views = [x[:, ::-1], x.transpose(0, 2, 1), np.asfortranarray(x), x.astype(np.float64), x.astype(np.int8), x.astype(np.float16)]
    for view in views:
        before = view.copy()
        assert observer(view) is view
        np.testing.assert_array_equal(view, before)
    assert observer.min_val.min() == -6
    assert observer.max_val.max() == 5
    assert observer.min_val.dtype == observer.max_val.dtype == F32


# A histogram leaves infinities out, and tells: test_observers_histogram.py.
NOT_FINITE = [
    (make, bad, kind)
    for make in ALL
    for bad, kind in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity"), (1e300, "infinity"))
    if kind == "NaN" or make is not HistogramObserver
]


@pytest.mark.parametrize(("make", "bad", "kind"), NOT_FINITE)
def test_values_that_are_not_finite_are_refused(make: Callable[..., Uniform], bad: float, kind: str) -> None:
    observer = make(site="conv1/output")
    x = np.ones((2, 500))
    observer(x)
    for position in (0, 499):
        broken = x.copy()
        broken[1, position] = bad
        with pytest.raises(CalibrationError, match=f"conv1/output: saw {kind}"):
            observer(broken)
    assert observer.max_val.max() == 1, "what was refused must leave no trace"


@every_observer
def test_without_data_there_are_no_qparams(make: Callable[..., Uniform]) -> None:
    observer = make(site="gemm")
    with pytest.raises(CalibrationError, match="gemm: saw no data"):
        observer.calculate_qparams()
    observer(np.zeros((0, 3), F32))
    with pytest.raises(CalibrationError, match="gemm: saw no data"):
        observer.calculate_qparams()


@every_observer
@pytest.mark.parametrize("x", [np.array(["a"]), np.array([1j]), np.array([None]), np.array([b"x"])])
def test_what_is_not_a_number_is_refused(make: Callable[..., Uniform], x: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="cannot observe values of dtype"):
        make()(x)


@every_observer
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -3.0, 1e-42, -1e-42, 1e30, 3.4e38, -3.4e38])
def test_a_constant_gives_usable_qparams(make: Callable[..., Uniform], value: float) -> None:
    observer = make()
    x = np.full((1, 16), value, F32)
    for _ in range(3):
        observer(x)
    qparams = observer.calculate_qparams()
    error = np.abs(fake_quantize(x, qparams) - x)
    assert (error <= np.abs(x) * 1e-2 + 2.0**-23).all()
    assert (fake_quantize(np.zeros((1, 16), F32), qparams) == 0).all()


@every_observer
def test_a_range_too_wide_for_float32_is_reported(make: Callable[..., Uniform]) -> None:
    observer = make(site="mask")
    for value in (-3.4e38, 3.4e38, 3.4e38):
        observer(np.full((1, 4), value, F32))
        observer(np.array([[-3.4e38, 3.4e38]], F32))
    with pytest.raises(CalibrationError, match=r"mask: the range .* is too wide for float32"):
        observer.calculate_qparams()


@pytest.mark.parametrize("make", OBSERVERS.values())
def test_state_does_not_grow_with_the_data(make: Callable[..., Uniform]) -> None:
    rng = np.random.default_rng(0)
    observer = make()
    observer(rng.normal(size=100).astype(F32))
    size = len(pickle.dumps(observer))
    for i in range(40):
        observer(rng.normal(size=1000 * (i + 1)).astype(F32) * F32(3**i))
    assert len(pickle.dumps(observer)) <= size + 64


@pytest.mark.parametrize("make", OBSERVERS.values())
@settings(deadline=None)
@given(data=st.lists(hnp.arrays(F32, st.integers(1, 12), elements=values), min_size=1, max_size=4))
def test_learned_range_lies_inside_the_data(make: Callable[..., Uniform], data: list[np.ndarray]) -> None:
    observer = make()
    for x in data:
        observer(x)
    low, high = observer._range()
    everything = np.concatenate(data)
    slack = 1e-6 * np.abs(everything).max()
    assert everything.min() - slack <= low <= high <= everything.max() + slack
    qparams = observer.calculate_qparams()
    assert qparams.dtype is quint8
    assert qparams.axis is None
    assert fake_quantize(np.zeros(1, F32), qparams)[0] == 0


@settings(deadline=None)
@given(data=st.lists(hnp.arrays(F32, st.integers(1, 12), elements=values), min_size=1, max_size=5))
def test_minmax_is_the_range_of_everything(data: list[np.ndarray]) -> None:
    observer = MinMaxObserver()
    for x in data:
        observer(x)
    everything = np.concatenate(data)
    assert extremes(observer) == (everything.min(), everything.max())
    qparams = observer.calculate_qparams()
    codes = quantize(everything, qparams).astype(int)
    assert np.abs((codes - int(qparams.zero_point)) * float(qparams.scale) - everything).max() <= qparams.scale * 0.51


def test_affine_formula() -> None:
    observer = MinMaxObserver(dtype=qint8)
    observer(np.array([-1.0, 3.0], F32))
    qparams = observer.calculate_qparams()
    assert qparams.scale == F32(4) / F32(255)
    assert qparams.zero_point == -128 + round(1 / (4 / 255))


@pytest.mark.parametrize(
    ("options", "divisor", "zero_point"),
    [
        ({"dtype": qint8}, 127.5, 0),
        ({"dtype": qint8, "quant_min": -127, "quant_max": 127}, 127, 0),
        ({"dtype": qint8, "reduce_range": True}, 63.5, 0),
        ({"dtype": quint8}, 127.5, 128),
        ({"dtype": quint8, "quant_min": 0, "quant_max": 100}, 50, 50),
        ({"dtype": quint16}, 32767.5, 32768),
        ({"dtype": quint4x2}, 7.5, 8),
    ],
)
def test_symmetric_formula(options: dict[str, object], divisor: float, zero_point: int) -> None:
    observer = MinMaxObserver(qscheme=dtypes.per_tensor_symmetric, **options)
    observer(np.array([-1.0, 3.0], F32))
    qparams = observer.calculate_qparams()
    assert qparams.scale == F32(3) / F32(divisor)
    assert qparams.zero_point == zero_point


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ({}, 255),
        ({"reduce_range": True}, 127),
        ({"quant_min": 0, "quant_max": 15}, 15),
        ({"quant_min": 0, "quant_max": 255, "reduce_range": True}, 127),
    ],
)
def test_code_range(options: dict[str, object], last: int) -> None:
    observer = MinMaxObserver(**options)
    observer(np.array([0.0, 1.0], F32))
    qparams = observer.calculate_qparams()
    assert qparams.scale == F32(1) / F32(last)
    assert quantize(np.ones(1, F32), qparams) == last


def test_wide_codes_clamp_their_zero_point() -> None:
    observer = MinMaxObserver(dtype=qint32)
    observer(np.array([-5e9], F32))
    qparams = observer.calculate_qparams()
    assert qparams.zero_point == 2**31 - 1
    assert qparams.scale == F32(5e9) / F32(2**32 - 1)


@pytest.mark.parametrize("eps", [1e-3, 2.0**-12])
def test_eps_is_the_smallest_scale(eps: float) -> None:
    observer = MinMaxObserver(eps=eps)
    observer(np.array([1e-9], F32))
    assert observer.calculate_qparams().scale == F32(eps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant_min": 0}, "both quant_min and quant_max"),
        ({"quant_max": 9}, "both quant_min and quant_max"),
        ({"quant_min": 1, "quant_max": 9}, "must hold 0"),
        ({"quant_min": 0, "quant_max": 0}, "more than one code"),
        ({"quant_min": 9, "quant_max": 0}, "must hold 0"),
        ({"quant_min": 0, "quant_max": 256}, "not inside"),
        ({"quant_min": -1, "quant_max": 9}, "not inside"),
        ({"dtype": qint8, "quant_min": -129, "quant_max": 126}, "not inside"),
        ({"reduce_range": True, "qscheme": dtypes.per_tensor_symmetric}, "no middle"),
        ({"qscheme": dtypes.per_channel_affine}, "cannot give"),
        ({"eps": 0.0}, "eps"),
        ({"eps": np.nan}, "eps"),
    ],
)
@pytest.mark.parametrize("make", OBSERVERS.values())
def test_options_that_contradict_each_other(make: Callable[..., Uniform], options: dict[str, object], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        make(**options)


@pytest.mark.parametrize("qscheme", [dtypes.per_tensor_affine, dtypes.per_tensor_symmetric])
def test_per_channel_observers_want_a_per_channel_qscheme(qscheme: dtypes.QScheme) -> None:
    with pytest.raises(QuantizationError):
        PerChannelMinMaxObserver(qscheme=qscheme)


@settings(deadline=None)
@given(data=st.lists(hnp.arrays(F32, st.integers(1, 6), elements=values), min_size=1, max_size=6), c=st.floats(0.015625, 1, width=32))
def test_moving_average(data: list[np.ndarray], c: float) -> None:
    observer = MovingAverageMinMaxObserver(c)
    low, high = F32(data[0].min()), F32(data[0].max())
    observer(data[0])
    for x in data[1:]:
        observer(x)
        low = low + F32(c) * (x.min() - low)
        high = high + F32(c) * (x.max() - high)
    assert extremes(observer) == (low, high)


@pytest.mark.parametrize("make", [MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver])
@pytest.mark.parametrize("constant", [0.0, -0.1, 1.1, np.nan])
def test_averaging_constant_is_a_share(make: Callable[..., Uniform], constant: float) -> None:
    with pytest.raises(QuantizationError, match="averaging_constant"):
        make(averaging_constant=constant)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("make", [PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver])
def test_per_channel_is_per_tensor_of_each_channel(make: Callable[..., Uniform], axis: int) -> None:
    rng = np.random.default_rng(5)
    options = {"dtype": qint8, "quant_min": -127, "quant_max": 127}
    observer = make(ch_axis=axis, **options)
    twin = MinMaxObserver if make is PerChannelMinMaxObserver else MovingAverageMinMaxObserver
    shape = (3, 4, 5)
    singles = [twin(**options) for _ in range(shape[axis])]
    for _ in range(3):
        x = rng.normal(size=shape).astype(F32)
        observer(x)
        for i, single in enumerate(singles):
            single(np.take(x, i, axis))
    qparams = observer.calculate_qparams()
    assert qparams.axis == axis
    assert qparams.scale.tolist() == [float(s.calculate_qparams().scale) for s in singles]
    assert qparams.zero_point.tolist() == [int(s.calculate_qparams().zero_point) for s in singles]
    assert fake_quantize(x, qparams).shape == x.shape


def test_channels_may_not_change() -> None:
    observer = PerChannelMinMaxObserver(ch_axis=1, site="w")
    observer(np.zeros((2, 3), F32))
    with pytest.raises(CalibrationError, match="w: axis 1 had 3 channels and now has 4"):
        observer(np.zeros((2, 4), F32))
    with pytest.raises(CalibrationError, match=r"w: an array of shape .* has no axis 1"):
        observer(np.zeros(3, F32))


def test_a_channel_of_zeros_is_usable() -> None:
    observer = PerChannelMinMaxObserver(dtype=qint8, qscheme=dtypes.per_channel_symmetric)
    observer(np.array([[0, 0], [1, -2]], F32))
    assert observer.calculate_qparams().scale.tolist() == [2.0**-23, float(F32(2) / F32(127.5))]


@pytest.mark.parametrize("at", [0, (1 << 17) - 1, 1 << 17, 299_999])
def test_extremes_of_large_arrays_lie_anywhere(at: int) -> None:
    x = np.zeros((3, 100_000), np.float32)
    x.flat[at], x.flat[(at + 7) % x.size] = -3, 5
    observer = MinMaxObserver()
    observer(x)
    assert (float(observer.min_val), float(observer.max_val)) == (-3, 5)
    x.flat[at] = np.nan
    with pytest.raises(CalibrationError, match="NaN"):
        MinMaxObserver()(x)
