"""From a constructor, as a QConfig holds it, to a spec; and from a spec to its observer or fake-quantize."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from qrt.core.errors import QuantizationError
from qrt.core.qparams import QParams
from qrt.observers import FakeQuantizeBase, ObserverBase, ObserverOrFakeQuantize, PartialWrapper
from qrt.quantization.quantizer import DerivedQuantizationSpec, FixedQParamsQuantizationSpec, QuantizationSpec

__all__ = [
    "Known",
    "derive",
    "fixed_qparams",
    "is_dynamic",
    "is_per_channel",
    "make_observer",
    "name_site",
    "observed",
    "sample",
    "spec_of",
]


class Known(ObserverBase):
    """Stands for qparams that are known: what a `derive_qparams_fn` is given."""

    def __init__(self, qparams: QParams) -> None:
        super().__init__(qparams.dtype)
        self._qparams = qparams

    def forward(self, array: np.ndarray) -> np.ndarray:
        return array

    def calculate_qparams(self) -> QParams:
        return self._qparams


def sample(ctr: Callable[..., Any], what: str) -> Any:
    """One object of what `ctr` makes, to be asked what it is.

    Raises QuantizationError, which names `what`, if that makes neither an observer nor a fake-quantize, or one without a dtype.
    """
    if isinstance(ctr, ObserverOrFakeQuantize):
        name = type(ctr).__name__
        raise QuantizationError(f"{what} holds a {name} that is made already: give the class, or {name}.with_args(…)")
    try:
        made = ctr()
    except TypeError as error:
        raise QuantizationError(f"{what}: {ctr!r} makes no observer: {error}") from error
    if not isinstance(made, ObserverOrFakeQuantize) or not hasattr(made, "dtype"):
        lacks = "that has no dtype" if isinstance(made, ObserverOrFakeQuantize) else "which is neither an observer nor a fake-quantize"
        raise QuantizationError(f"{what}: {ctr!r} makes a {type(made).__name__}, {lacks}: give a subclass of ObserverBase with a dtype")
    return made


def is_per_channel(observer: Any) -> bool:
    """Whether an observer or fake-quantize has a range for each channel."""
    return observer.ch_axis >= 0 if hasattr(observer, "is_per_channel") else getattr(observer, "axis", None) is not None


def is_dynamic(observer: Any) -> bool:
    """Whether an observer or fake-quantize stands for qparams that are computed in each run."""
    return bool(getattr(observer, "is_dynamic", False))


def spec_of(ctr: Callable[..., Any], made: Any, axis: int | None = None) -> QuantizationSpec:
    """The spec that a constructor of a QConfig stands for; `made`: a sample of what it makes. `axis`: the channel axis there."""
    return QuantizationSpec(made.dtype, ctr, ch_axis=axis, is_dynamic=is_dynamic(made))


def make_observer(spec: QuantizationSpec, where: str) -> ObserverOrFakeQuantize:
    """The observer or fake-quantize of a spec, for the site `where`.

    Its constructor gets those fields of the spec that are given and that it has parameters for. Raises QuantizationError if it makes
    something else, or something of another dtype.
    """
    fields = {"dtype": spec.dtype, "quant_min": spec.quant_min, "quant_max": spec.quant_max, "qscheme": spec.qscheme}
    fields |= {"ch_axis": spec.ch_axis, "is_dynamic": spec.is_dynamic or None}
    accepted = _accepted(spec.observer_or_fake_quant_ctr)
    try:
        made = spec.observer_or_fake_quant_ctr(**{k: v for k, v in fields.items() if v is not None and k in accepted})
    except TypeError as error:
        raise QuantizationError(f"{where}: its observer cannot be made: {error}") from error
    if not isinstance(made, ObserverOrFakeQuantize):
        raise QuantizationError(f"{where}: its spec makes a {type(made).__name__}: give what makes an observer or a fake-quantize")
    if getattr(made, "dtype", spec.dtype) != spec.dtype:
        raise QuantizationError(f"{where}: its spec says {spec.dtype!r}, and its observer gives another: make them agree")
    return name_site(made, where)


def name_site(made: ObserverOrFakeQuantize, where: str) -> ObserverOrFakeQuantize:
    """`made`, which says `where` it sits when it complains."""
    inner = getattr(made, "activation_post_process", made)
    if isinstance(inner, ObserverBase):
        inner.site = where
    return made


def observed(made: Any) -> ObserverBase:
    """The observer itself: of a fake-quantize, the one inside."""
    if isinstance(made, FakeQuantizeBase):
        inner = getattr(made, "activation_post_process", None)
        return inner if isinstance(inner, ObserverBase) else Known(made.calculate_qparams())
    if not isinstance(made, ObserverBase):
        raise QuantizationError(f"a {type(made).__name__} stands where an observer should")
    return made


def _accepted(ctr: Callable[..., Any]) -> set[str]:
    """The names of the arguments that a constructor takes; a fake-quantize takes those of its observer too."""
    given: dict[str, Any] = {}
    inner: Any = ctr
    while isinstance(inner, PartialWrapper | partial):
        call = inner.p if isinstance(inner, PartialWrapper) else inner
        given = {**call.keywords, **given}
        inner = call.func
    try:
        parameters = inspect.signature(inner).parameters
    except (TypeError, ValueError):  # what cannot be called, and most of Python's own classes
        return set()
    names = {p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if "observer" in names:
        observer = given.get("observer", parameters["observer"].default)
        if observer is not inspect.Parameter.empty:
            names |= _accepted(observer)
    return names


def fixed_qparams(spec: FixedQParamsQuantizationSpec) -> QParams:
    """The qparams that a spec fixes."""
    return QParams(np.asarray(spec.scale, np.float32), np.asarray(spec.zero_point, np.int64), spec.dtype)


def derive(spec: DerivedQuantizationSpec, sources: list[QParams], where: str) -> QParams:
    """The qparams that a spec derives from those of its sources. Raises QuantizationError if what it gives are none."""
    try:
        scale, zero_point = (np.asarray(part) for part in spec.derive_qparams_fn([Known(params) for params in sources]))
    except Exception as error:  # whatever a user's function may raise
        raise QuantizationError(f"{where}: its derive_qparams_fn fails: {error!r}; it has to return scale and zero point") from error
    if scale.shape == zero_point.shape == (1,) and spec.ch_axis is None and all(params.axis is None for params in sources):
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    try:
        return QParams(scale, zero_point, spec.dtype, (spec.ch_axis or 0) if scale.ndim else None)
    except QuantizationError as error:
        raise QuantizationError(f"{where}: its derive_qparams_fn gives no qparams: {error}") from error
