"""QConfig and its presets, against what torch 2.13.0's are made of (tools/make_golden_qconfigs.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from observer_streams import CONFIGS, FAKE_CONFIGS, FAKE_QUANTS, PRESETS
from qconfigs import GOLDEN, both, fake_quantize, observer_of

import qrt
from qrt import quantization
from qrt.core.errors import InvalidInput
from qrt.observers import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    NoopObserver,
    ObserverOrFakeQuantize,
    PartialWrapper,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    RecordingObserver,
    ReuseInputObserver,
    default_observer,
)
from qrt.quantization import QConfig, QConfigDynamic, default_qconfig, qconfig_equals
from qrt.quantization.qconfig import identity


@pytest.mark.parametrize("name", GOLDEN["presets"])
def test_presets_are_made_of_what_torchs_are(name: str) -> None:
    qconfig = getattr(quantization, name)
    assert both(qconfig) == GOLDEN["presets"][name]
    assert all(isinstance(make(), ObserverOrFakeQuantize) for make in qconfig)


@pytest.mark.parametrize("name", GOLDEN["backends"])
def test_presets_of_backends_are_made_of_what_torchs_are(name: str) -> None:
    function, backend, version = name.split()
    qconfig = getattr(quantization, function)(backend, int(version))
    assert both(qconfig) == GOLDEN["backends"][name]
    assert all(isinstance(make(), ObserverOrFakeQuantize) for make in qconfig)


def kind(made: Any) -> str:
    """What an observer or fake-quantize is, with all its options."""
    observer = getattr(made, "activation_post_process", made)
    return f"{type(made).__name__} of {type(observer).__name__} {sorted(observer._options().items())}"


def test_every_presets_qparams_are_compared_with_torchs() -> None:
    """tests/golden holds answers of torch for whatever a preset makes that gives qparams."""
    fake_quantizes = [fake_quantize(name) for name in (*FAKE_QUANTS, *FAKE_CONFIGS)]
    observers = [*(observer_of(config) for config in CONFIGS), *(getattr(quantization, name)() for name in PRESETS)]
    compared = {kind(made) for made in (*fake_quantizes, *observers)}
    named = [(name, getattr(quantization, name)) for name in (*GOLDEN["presets"], "default_qrt_qconfig")]
    for words in GOLDEN["backends"]:
        function, backend, version = words.split()
        named.append((words, getattr(quantization, function)(backend, int(version))))
    for name, qconfig in named:
        for made in (make() for make in qconfig):
            passive = isinstance(made, NoopObserver | PlaceholderObserver | RecordingObserver | ReuseInputObserver)
            assert passive or kind(made) in compared, name


def test_defaults_of_backends() -> None:
    assert qconfig_equals(quantization.get_default_qconfig(), quantization.get_default_qconfig("x86", 0))
    assert qconfig_equals(quantization.get_default_qat_qconfig(), quantization.get_default_qat_qconfig("x86", 1))


@pytest.mark.parametrize("function", [quantization.get_default_qconfig, quantization.get_default_qat_qconfig])
def test_unknown_backends_and_versions(function: Any) -> None:
    with pytest.raises(InvalidInput, match=r"backend 'tpu' is not known: give one of \['fbgemm', 'onednn', 'qnnpack', 'x86'\]"):
        function("tpu")
    with pytest.raises(InvalidInput, match="version 7 is not known: give one of"):
        function("x86", 7)


def test_a_qconfig_is_a_named_pair() -> None:
    qconfig = QConfig(weight=MinMaxObserver, activation=HistogramObserver)
    activation, weight = qconfig
    assert (activation, weight) == (HistogramObserver, MinMaxObserver)
    assert qconfig == QConfig(HistogramObserver, MinMaxObserver)
    assert qconfig._replace(weight=NoopObserver).weight is NoopObserver
    assert repr(qconfig).startswith("QConfig(activation=<class")
    with pytest.raises(TypeError, match="weight"):
        QConfig(HistogramObserver)  # type: ignore[call-arg]


@pytest.mark.parametrize("made", [MinMaxObserver(), FakeQuantize()])
@pytest.mark.parametrize("role", ["activation", "weight"])
def test_observers_already_made_are_refused(made: object, role: str) -> None:
    parts: dict[str, Any] = {"activation": HistogramObserver, "weight": MinMaxObserver, role: made}
    name = type(made).__name__
    with pytest.raises(InvalidInput, match=rf"QConfig: {role} is an instance of {name}: give the class, or {name}\.with_args"):
        QConfig(**parts)


@pytest.mark.parametrize("made", [None, "histogram", 8])
def test_what_makes_nothing_is_refused(made: Any) -> None:
    with pytest.raises(InvalidInput, match=r"weight is .*, which makes no observer: give a class such as MinMaxObserver"):
        QConfig(HistogramObserver, made)


def test_the_deprecated_dynamic_one() -> None:
    with pytest.warns(FutureWarning, match="use QConfig"):
        qconfig = QConfigDynamic(weight=MinMaxObserver)
    assert isinstance(qconfig, QConfig)
    assert qconfig == (identity, MinMaxObserver)
    with pytest.warns(FutureWarning, match="use QConfig"), pytest.raises(InvalidInput, match="QConfigDynamic: weight is an instance"):
        QConfigDynamic(weight=MinMaxObserver())  # type: ignore[arg-type]


def test_what_stands_where_torch_has_identity_lets_arrays_pass() -> None:
    x = np.ones(3, np.float32)
    made = quantization.default_weight_only_qconfig.activation()
    assert made(x) is x
    assert made.dtype == np.float32


def test_qrts_own_preset_is_not_torchs() -> None:
    assert both(quantization.default_qrt_qconfig) == [
        "HistogramObserver()",
        "PerChannelMinMaxObserver(dtype=qint8, qscheme=per_channel_symmetric, quant_max=127, quant_min=-127)",
    ]
    assert not qconfig_equals(quantization.default_qrt_qconfig, default_qconfig)


def test_equality_compares_what_is_made() -> None:
    def fake(**options: Any) -> PartialWrapper:
        return FakeQuantize.with_args(observer=MovingAverageMinMaxObserver.with_args(**options), quant_min=0)

    weight = default_qconfig.weight
    assert qconfig_equals(None, None)
    assert not qconfig_equals(default_qconfig, None)
    assert not qconfig_equals(None, default_qconfig)
    assert qconfig_equals(default_qconfig, QConfig(MinMaxObserver.with_args(quant_max=127, quant_min=0), weight))
    assert not qconfig_equals(default_qconfig, QConfig(default_observer.with_args(quant_max=255), weight))
    assert not qconfig_equals(QConfig(MinMaxObserver, weight), QConfig(MinMaxObserver.with_args(), weight))
    assert not qconfig_equals(QConfig(MinMaxObserver, weight), QConfig(HistogramObserver, weight))
    assert not qconfig_equals(QConfig(weight, MinMaxObserver), QConfig(weight, PerChannelMinMaxObserver))
    assert qconfig_equals(QConfig(fake(dtype=qrt.qint8), weight), QConfig(fake(dtype=qrt.qint8), weight))
    assert not qconfig_equals(QConfig(fake(dtype=qrt.qint8), weight), QConfig(fake(dtype=qrt.quint8), weight))
    late = default_observer.with_callable_args(eps=lambda: 1e-3)
    assert qconfig_equals(default_qconfig, QConfig(late, weight))
