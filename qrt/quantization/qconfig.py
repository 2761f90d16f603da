"""QConfig: what makes the observers of a node's activations and of its weight; and the presets of torch.ao.quantization."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from qrt.core.dtypes import qint8
from qrt.core.errors import InvalidInput
from qrt.observers import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    NoopObserver,
    ObserverOrFakeQuantize,
    PartialWrapper,
    PlaceholderObserver,
    default_debug_observer,
    default_dynamic_fake_quant,
    default_dynamic_quant_observer,
    default_embedding_fake_quant,
    default_embedding_fake_quant_4bit,
    default_fake_quant,
    default_float_qparams_observer,
    default_float_qparams_observer_4bit,
    default_fused_act_fake_quant,
    default_fused_per_channel_wt_fake_quant,
    default_fused_wt_fake_quant,
    default_observer,
    default_per_channel_weight_fake_quant,
    default_per_channel_weight_observer,
    default_placeholder_observer,
    default_reuse_input_observer,
    default_weight_fake_quant,
    default_weight_observer,
    fused_per_channel_wt_fake_quant_range_neg_127_to_127,
    fused_wt_fake_quant_range_neg_127_to_127,
    per_channel_weight_observer_range_neg_127_to_127,
    weight_observer_range_neg_127_to_127,
)

__all__ = [
    "Constructor",
    "QConfig",
    "QConfigAny",
    "QConfigDynamic",
    "default_activation_only_qconfig",
    "default_debug_qconfig",
    "default_dynamic_qat_qconfig",
    "default_dynamic_qconfig",
    "default_embedding_qat_qconfig",
    "default_embedding_qat_qconfig_4bit",
    "default_per_channel_qconfig",
    "default_per_channel_symmetric_qnnpack_qat_qconfig",
    "default_per_channel_symmetric_qnnpack_qconfig",
    "default_qat_qconfig",
    "default_qat_qconfig_v2",
    "default_qconfig",
    "default_qrt_qconfig",
    "default_quint8_weight_qconfig",
    "default_reuse_input_qconfig",
    "default_symmetric_qnnpack_qat_qconfig",
    "default_symmetric_qnnpack_qconfig",
    "default_weight_only_qconfig",
    "float16_dynamic_qconfig",
    "float16_static_qconfig",
    "float_qparams_weight_only_qconfig",
    "float_qparams_weight_only_qconfig_4bit",
    "get_default_qat_qconfig",
    "get_default_qconfig",
    "per_channel_dynamic_qconfig",
    "per_channel_weight_observer",
    "qconfig_equals",
    "weight_observer",
]

FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
SMALL = 2.0**-12  # the smallest scale that QNNPACK's kernels take

# What makes an observer or a fake-quantize: a class, or what its `with_args` returns.
Constructor: TypeAlias = Callable[..., Any]

# Where torch's presets have nn.Identity: the value stays float32.
identity = NoopObserver.with_args(dtype=FLOAT32)


class _Pair(NamedTuple):
    activation: Constructor
    weight: Constructor


class QConfig(_Pair):
    """How a node is quantized: what makes the observers of its activations, and of its weight.

    Both are constructors, for each site gets an observer of its own: a class, or `MyObserver.with_args(dtype=qrt.qint8)`.
    NoopObserver or PlaceholderObserver of a float dtype stand for what stays float. Raises InvalidInput for an observer that
    is already made.
    """

    __slots__ = ()

    def __new__(cls, activation: Constructor, weight: Constructor) -> Self:
        for role, made in (("activation", activation), ("weight", weight)):
            if isinstance(made, ObserverOrFakeQuantize):
                name = type(made).__name__
                raise InvalidInput(f"{cls.__name__}: {role} is an instance of {name}: give the class, or {name}.with_args(…)")
            if not callable(made):
                raise InvalidInput(
                    f"{cls.__name__}: {role} is {made!r}, which makes no observer: give a class such as MinMaxObserver, or "
                    "NoopObserver for what stays float"
                )
        return super().__new__(cls, activation, weight)


class QConfigDynamic(QConfig):
    """Deprecated: QConfig for dynamic quantization, whose parts stay float where they are not given."""

    __slots__ = ()

    def __new__(cls, activation: Constructor = identity, weight: Constructor = identity) -> Self:
        warnings.warn("QConfigDynamic is deprecated: use QConfig", FutureWarning, stacklevel=2)
        return super().__new__(cls, activation, weight)


QConfigAny: TypeAlias = QConfig | None

# What qrt.quantize uses: all codes of activations, for its kernels' sums do not saturate; codes −127..127 of weights, as ONNX
# Runtime writes them. A weight whose channels cannot have scales of their own gets `weight_observer`.
per_channel_weight_observer = default_per_channel_weight_observer.with_args(quant_min=-127, quant_max=127)
weight_observer = default_weight_observer.with_args(quant_min=-127, quant_max=127)
default_qrt_qconfig = QConfig(HistogramObserver, per_channel_weight_observer)

# Static quantization.
default_qconfig = QConfig(default_observer, default_weight_observer)
default_per_channel_qconfig = QConfig(default_observer, default_per_channel_weight_observer)
default_debug_qconfig = QConfig(default_debug_observer, default_weight_observer)
default_quint8_weight_qconfig = QConfig(HistogramObserver, MinMaxObserver)
default_reuse_input_qconfig = QConfig(default_reuse_input_observer, NoopObserver)
_signed_histogram = HistogramObserver.with_args(dtype=qint8, reduce_range=False, eps=SMALL)
default_symmetric_qnnpack_qconfig = QConfig(_signed_histogram, weight_observer_range_neg_127_to_127)
default_per_channel_symmetric_qnnpack_qconfig = QConfig(_signed_histogram, per_channel_weight_observer_range_neg_127_to_127)
float16_static_qconfig = QConfig(PlaceholderObserver.with_args(dtype=FLOAT16), PlaceholderObserver.with_args(dtype=FLOAT16))

# Dynamic quantization, and of weights alone.
default_dynamic_qconfig = QConfig(default_dynamic_quant_observer, default_weight_observer)
per_channel_dynamic_qconfig = QConfig(default_dynamic_quant_observer, default_per_channel_weight_observer)
float16_dynamic_qconfig = QConfig(
    PlaceholderObserver.with_args(dtype=FLOAT16, is_dynamic=True), PlaceholderObserver.with_args(dtype=FLOAT16)
)
float_qparams_weight_only_qconfig = QConfig(default_placeholder_observer, default_float_qparams_observer)
float_qparams_weight_only_qconfig_4bit = QConfig(default_placeholder_observer, default_float_qparams_observer_4bit)

# Training with fake quantization.
default_qat_qconfig = QConfig(default_fake_quant, default_weight_fake_quant)
default_qat_qconfig_v2 = QConfig(default_fused_act_fake_quant, default_fused_wt_fake_quant)
default_dynamic_qat_qconfig = QConfig(default_dynamic_fake_quant, default_weight_fake_quant)
default_weight_only_qconfig = QConfig(identity, default_weight_fake_quant)
default_activation_only_qconfig = QConfig(default_fake_quant, identity)
default_embedding_qat_qconfig = QConfig(NoopObserver.with_args(dtype=FLOAT32), default_embedding_fake_quant)
default_embedding_qat_qconfig_4bit = QConfig(NoopObserver.with_args(dtype=FLOAT32), default_embedding_fake_quant_4bit)
_signed_fused = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, quant_min=-128, quant_max=127, dtype=qint8, reduce_range=False, eps=SMALL
)
default_symmetric_qnnpack_qat_qconfig = QConfig(_signed_fused, fused_wt_fake_quant_range_neg_127_to_127)
default_per_channel_symmetric_qnnpack_qat_qconfig = QConfig(_signed_fused, fused_per_channel_wt_fake_quant_range_neg_127_to_127)

# backend → whether activations have one bit less, against sums that saturate.
_REDUCED: dict[str, bool] = {"fbgemm": True, "onednn": False, "qnnpack": False, "x86": True}


def get_default_qconfig(backend: str = "x86", version: int = 0) -> QConfig:
    """torch's preset for quantizing after training, by the name of the backend it was made for.

    `backend`: "x86", "fbgemm" (both: activations 0..127), "qnnpack" (weights per tensor) or "onednn". `version`: 0. What qrt itself
    prefers is `default_qrt_qconfig`. Raises InvalidInput for others.
    """
    _check(backend, version, (0,))
    weight = default_weight_observer if backend == "qnnpack" else default_per_channel_weight_observer
    return QConfig(HistogramObserver.with_args(reduce_range=_REDUCED[backend]), weight)


def get_default_qat_qconfig(backend: str = "x86", version: int = 1) -> QConfig:
    """torch's preset for training with fake quantization. `version`: 0, or 1 for the fused fake-quantize.

    `backend` as for `get_default_qconfig`. Raises InvalidInput for others.
    """
    _check(backend, version, (0, 1))
    fake = FusedMovingAvgObsFakeQuantize if version else FakeQuantize
    reduced = {} if backend == "onednn" else {"reduce_range": _REDUCED[backend]}
    activation = fake.with_args(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, **reduced)
    if backend == "qnnpack":
        return QConfig(activation, default_fused_wt_fake_quant if version else default_weight_fake_quant)
    return QConfig(activation, default_fused_per_channel_wt_fake_quant if version else default_per_channel_weight_fake_quant)


def qconfig_equals(q1: QConfigAny, q2: QConfigAny) -> bool:
    """Whether two qconfigs make the same observers: constructors are compared by class and by the arguments given beforehand.

    As in torch, `with_callable_args` does not count.
    """
    if q1 is None or q2 is None:
        return q1 is q2
    return _same(q1.activation, q2.activation) and _same(q1.weight, q2.weight)


def _same(one: Any, other: Any) -> bool:
    if not (isinstance(one, PartialWrapper) and isinstance(other, PartialWrapper)):
        return bool(one == other)
    mine, theirs = dict(one.p.keywords), dict(other.p.keywords)
    observers = mine.pop("observer", None), theirs.pop("observer", None)
    return one.p.func == other.p.func and one.p.args == other.p.args and mine == theirs and _same(*observers)


def _check(backend: str, version: int, versions: tuple[int, ...]) -> None:
    if backend not in _REDUCED:
        raise InvalidInput(f"backend {backend!r} is not known: give one of {sorted(_REDUCED)}")
    if version not in versions:
        raise InvalidInput(f"version {version!r} is not known: give one of {list(versions)}")
