"""QParams, dtypes, qschemes and targets: what they accept, what they refuse, what they say."""

from __future__ import annotations

import numpy as np
import pytest

from qrt.core import dtypes
from qrt.core.dtypes import QDType, QScheme, qint8, qint32, quint4x2, quint8
from qrt.core.errors import InvalidInput, QrtError, QuantizationError
from qrt.core.qparams import QParams
from qrt.core.target import LADDERS, TARGETS, choose_target

F32 = np.float32
ALL = [dtypes.quint8, dtypes.qint8, dtypes.quint16, dtypes.qint16, dtypes.qint32, dtypes.quint4x2]


@pytest.mark.parametrize("dtype", ALL, ids=repr)
def test_dtype_range_fits_its_storage(dtype: QDType) -> None:
    info = np.iinfo(dtype.storage)
    assert info.min <= dtype.qmin < dtype.qmax <= info.max
    assert dtype.signed == (info.min < 0)
    assert dtype.bits == (4 if dtype is quint4x2 else info.bits)
    assert repr(dtype) == f"qrt.{dtype.name}"
    assert getattr(dtypes, dtype.name) is dtype


def test_qschemes() -> None:
    assert [s.name for s in QScheme if s.symmetric] == ["per_tensor_symmetric", "per_channel_symmetric"]
    assert [s.name for s in QScheme if not s.per_channel] == ["per_tensor_affine", "per_tensor_symmetric"]
    assert repr(dtypes.per_channel_affine_float_qparams) == "qrt.per_channel_affine_float_qparams"
    assert all(getattr(dtypes, s.name) is s for s in QScheme)


def test_qparams_hold_float32_and_int32() -> None:
    qparams = QParams(np.array([0.1, 0.2]), np.array([1, 2], np.uint8), quint8, 1)
    assert qparams.scale.dtype == F32
    assert qparams.zero_point.dtype == np.int32
    scale, zero_point = qparams.along((7, 2, 5))
    assert scale.shape == zero_point.shape == (1, 2, 1)
    assert QParams(np.float64(0.1), np.int64(3), qint8).along((7, 5))[0].shape == ()


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, -np.inf, 1e-60, 1e60])
def test_scale_must_be_finite_and_positive(scale: float) -> None:
    with pytest.raises(QuantizationError, match="finite and positive"):
        QParams(np.float64(scale), np.int32(0), quint8)
    with pytest.raises(QuantizationError, match="finite and positive"):
        QParams(np.array([1.0, scale]), np.zeros(2, np.int32), quint8, 0)


@pytest.mark.parametrize(
    ("dtype", "zero_point"), [(quint8, -1), (quint8, 256), (qint8, 128), (qint8, -129), (quint4x2, 16), (qint32, 2**31), (quint8, 2**40)]
)
def test_zero_point_must_be_a_code(dtype: QDType, zero_point: int) -> None:
    with pytest.raises(QuantizationError, match="outside"):
        QParams(F32(1), np.int64(zero_point), dtype)


@pytest.mark.parametrize("zero_point", [1.5, 1.0, np.nan, True])
def test_zero_point_must_be_an_integer(zero_point: float) -> None:
    with pytest.raises(QuantizationError, match="give integers"):
        QParams(F32(1), np.asarray(zero_point), quint8)


@pytest.mark.parametrize(
    ("scale", "zero_point", "axis"),
    [((), (), 0), ((3,), (3,), None), ((3,), (2,), 0), ((3,), (), 0), ((1, 3), (1, 3), 0), ((), (1,), None)],
)
def test_shapes_must_agree(scale: tuple[int, ...], zero_point: tuple[int, ...], axis: int | None) -> None:
    with pytest.raises(QuantizationError, match="do not fit"):
        QParams(np.ones(scale, F32), np.zeros(zero_point, np.int32), quint8, axis)


def features(isa: str) -> frozenset[str]:
    return next(t.needs for t in TARGETS if t.isa == isa)


def test_targets_follow_their_ladders() -> None:
    for arch, ladder in LADDERS.items():
        assert tuple(t.isa for t in TARGETS if t.arch == arch) == ladder
        assert next(t for t in TARGETS if t.arch == arch and t.isa == ladder[-1]).needs == frozenset()
    assert len({(t.arch, t.isa) for t in TARGETS}) == len(TARGETS)


@pytest.mark.parametrize("isa", ["avx512vnni", "avxvnni", "avx2", "generic"])
def test_best_rung_is_chosen(isa: str) -> None:
    target = choose_target("x86_64", features(isa) | {"unknown-feature"})
    assert target.isa == isa
    assert target.ladder[0] == isa
    assert target.ladder[-1] == "generic"


def test_a_lower_rung_can_be_forced() -> None:
    host = features("avx512vnni")
    assert choose_target("x86_64", host, "avx2").isa == "avx2"
    assert choose_target("x86_64", host, "generic").isa == "generic"
    assert choose_target("aarch64", frozenset({"dotprod"})).isa == "neon_dot"
    assert choose_target("aarch64", frozenset()).isa == "generic"


def test_targets_that_cannot_run_are_refused() -> None:
    with pytest.raises(InvalidInput, match="lacks; it can run avx2, generic"):
        choose_target("x86_64", features("avx2"), "avx512vnni")
    with pytest.raises(InvalidInput, match="unknown target 'neon_dot'"):
        choose_target("x86_64", features("avx2"), "neon_dot")
    with pytest.raises(InvalidInput, match="no kernels for architecture 'vax'"):
        choose_target("vax", frozenset())


def test_errors_form_one_tree() -> None:
    from qrt.core import errors

    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, QrtError if issubclass(kind, Exception) and not issubclass(kind, Warning) else errors.QrtWarning)
