"""Granularities, and observers of blocks against their definition and against the observers of tensors and channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from observer_streams import STREAMS, stream

from qrt.core.dtypes import qint8, quint8
from qrt.core.errors import CalibrationError, QuantizationError
from qrt.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
    Granularity,
    MappingType,
    MinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerAxis,
    PerBlock,
    PerChannelMinMaxObserver,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
    TorchAODType,
    ZeroPointDomain,
    get_block_size,
)

F32 = np.float32
ASYMMETRIC, SYMMETRIC = MappingType.ASYMMETRIC, MappingType.SYMMETRIC
X = np.arange(-8, 16, dtype=F32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("granularity", "block"),
    [
        (PerTensor(), (2, 3, 4)),
        (PerAxis(0), (1, 3, 4)),
        (PerAxis(-1), (2, 3, 1)),
        (PerRow(), (1, 1, 4)),
        (PerToken(), (1, 1, 4)),
        (PerGroup(2), (1, 1, 2)),
        (PerBlock((3, 2)), (1, 3, 2)),
    ],
)
def test_block_sizes(granularity: Granularity, block: tuple[int, ...]) -> None:
    assert get_block_size(X.shape, granularity) == block
    observer = AffineQuantizedMinMaxObserver(ASYMMETRIC, quint8, granularity)
    assert observer(X) is X
    low = np.array([X[tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, block, strict=True))].min() for at in blocks(block)])
    assert observer.min_val is not None
    np.testing.assert_array_equal(observer.min_val.reshape(-1), low)


def blocks(block: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(np.ndindex(*(n // b for n, b in zip(X.shape, block, strict=True))))


@pytest.mark.parametrize("granularity", [PerAxis(3), PerGroup(3), PerGroup(0), PerBlock((1, 1, 1, 1)), PerBlock((2, 3)), Granularity()])
def test_blocks_that_do_not_fit(granularity: Granularity) -> None:
    with pytest.raises(QuantizationError):
        get_block_size(X.shape, granularity)


def test_tensors_and_channels_get_the_qparams_of_their_observers() -> None:
    average: dict[str, Any] = {"averaging_constant": 0.25}
    pairs: list[tuple[Any, Any]] = [
        (lambda: AffineQuantizedMinMaxObserver(ASYMMETRIC, quint8, PerTensor()), MinMaxObserver),
        (lambda: AffineQuantizedMinMaxObserver(ASYMMETRIC, quint8, PerAxis(0)), PerChannelMinMaxObserver),
        (
            lambda: AffineQuantizedMovingAverageMinMaxObserver(ASYMMETRIC, quint8, PerAxis(0), **average),
            lambda: MovingAveragePerChannelMinMaxObserver(**average),
        ),
    ]
    for make, make_other in pairs:
        for seed in range(STREAMS):
            one, other = make(), make_other()
            for array in stream(seed):
                one(array)
                other(array)
            scale, zero_point = one.calculate_qparams()
            wanted = other.calculate_qparams()
            np.testing.assert_array_equal(scale, wanted.scale)
            np.testing.assert_array_equal(zero_point, wanted.zero_point)


def test_mappings() -> None:
    x = np.array([[-1.0, 0.5], [0.5, 2.0]], F32)

    def qparams(mapping: MappingType, **options: Any) -> tuple[Any, Any]:
        observer = AffineQuantizedMinMaxObserver(mapping, options.pop("dtype", qint8), PerRow(), **options)
        observer(x)
        return observer.calculate_qparams()

    scale, zero_point = qparams(SYMMETRIC)
    np.testing.assert_allclose(scale, [1 / 127.5, 2 / 127.5], rtol=1e-6)
    assert zero_point.tolist() == [0, 0]
    scale, zero_point = qparams(MappingType.SYMMETRIC_NO_CLIPPING_ERR, dtype=TorchAODType.INT4)
    np.testing.assert_allclose(scale, [1 / 8, 2 / 7], rtol=1e-6)
    scale, zero_point = qparams(SYMMETRIC, zero_point_domain=ZeroPointDomain.NONE, scale_dtype=np.float64)
    assert (zero_point, scale.dtype) == (None, np.float64)
    scale, zero_point = qparams(ASYMMETRIC, dtype=TorchAODType.INT4, preserve_zero=False, zero_point_domain=ZeroPointDomain.FLOAT)
    np.testing.assert_allclose(scale, [0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(zero_point, [-1, 0.5], rtol=1e-6)
    assert zero_point.dtype == F32


def test_errors() -> None:
    observer = AffineQuantizedMinMaxObserver(ASYMMETRIC, quint8, PerRow())
    with pytest.raises(CalibrationError, match="saw no data"):
        observer.calculate_qparams()
    observer(X)
    observer(X[:, :0])
    np.testing.assert_array_equal(observer.min_val, X.min(axis=-1))
    for bad in (np.full((2, 3, 4), np.nan, F32), X[:1]):
        with pytest.raises(CalibrationError):
            observer(bad)
    with pytest.raises(QuantizationError, match="kind and options"):
        observer.merge(AffineQuantizedMinMaxObserver(SYMMETRIC, quint8, PerRow()))
    other = AffineQuantizedMinMaxObserver.with_args(granularity=PerRow())(ASYMMETRIC, quint8)
    other(X[0])
    with pytest.raises(QuantizationError, match="cannot merge blocks"):
        observer.merge(other)
    options: list[dict[str, Any]] = [{"quant_min": 5, "quant_max": 5}, {"quant_max": 300}, {"preserve_zero": False}]
    for wrong in options:
        with pytest.raises(QuantizationError):
            AffineQuantizedMinMaxObserver(ASYMMETRIC, quint8, PerRow(), **wrong)
    with pytest.raises(QuantizationError, match="is_dynamic"):
        AffineQuantizedMovingAverageMinMaxObserver(ASYMMETRIC, quint8, PerRow(), is_dynamic=True)
