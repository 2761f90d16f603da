"""ObserverBase and UniformQuantizationObserverBase: taps that see arrays, learn their range and turn it into QParams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np

from qrt.core.dtypes import QDType, QScheme, per_tensor_affine, quint8
from qrt.core.errors import CalibrationError, QuantizationError
from qrt.core.qparams import QParams
from qrt.observers._qparams import calculate_qparams, quant_range
from qrt.observers.partial import Configurable

__all__ = ["ObserverBase", "UniformQuantizationObserverBase"]

F32 = np.float32
EPS = float(np.finfo(F32).eps)  # 2⁻²³, the smallest scale unless the user asks for another


class ObserverBase(Configurable, ABC):
    """Base of every observer, one's own included: write `forward` and `calculate_qparams`.

    `dtype`: what the codes will be, or a float dtype of NumPy where there will be none. `is_dynamic`: whether qparams are computed anew for
    each array that is quantized. `site`: where the observer sits, for error messages.
    """

    site: str = ""

    def __init__(self, dtype: QDType | np.dtype[Any], is_dynamic: bool = False) -> None:
        self.dtype: QDType | np.dtype[Any] = dtype
        self.is_dynamic = is_dynamic

    @property
    def axis(self) -> int | None:
        """The channel axis; None for one range per tensor."""
        return None

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Observe `array` and return it."""
        return self.forward(array)

    @abstractmethod
    def forward(self, array: np.ndarray) -> np.ndarray:
        """Learn from `array` and return it unchanged."""

    @abstractmethod
    def calculate_qparams(self) -> QParams:
        """Scale and zero point for what was seen."""

    def state_dict(self, *, mergeable: bool = False) -> dict[str, np.ndarray]:
        """What was learned, as copies, under the names that torch.ao.quantization's observer of this name uses.

        `mergeable`: with what `merge` needs beyond that.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over the state of another observer of the same kind, from `state_dict` or as torch saved it.

        Raises QuantizationError for the state of something else.
        """
        self._check_keys(state, self.state_dict(mergeable=True).keys(), self.state_dict().keys())

    def merge(self, other: Self) -> None:
        """Learn what `other` has learned, as if this observer had seen its arrays after its own. `other` stays as it is.

        Raises QuantizationError if that is an observer of another kind or with other options.
        """
        self._check_same(other)

    @property
    def settings(self) -> str:
        """Class and options in words: the same for observers of a kind, which `merge` takes."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._options().items())})"

    @property
    def _where(self) -> str:
        return self.site or type(self).__name__

    def _check_same(self, other: ObserverBase) -> None:
        if type(other) is not type(self):
            raise QuantizationError(f"{self._where}: a {type(self).__name__} cannot merge a {type(other).__name__}")
        mine, theirs = self._options(), other._options()
        different = [name for name in mine if mine[name] != theirs[name]]
        if different:
            raise QuantizationError(f"{self._where}: cannot merge an observer that differs in {', '.join(different)}")

    def _options(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "is_dynamic": self.is_dynamic}

    def _check_keys(self, state: Mapping[str, np.ndarray], known: Any, needed: Any) -> None:
        missing, unexpected = sorted(set(needed) - set(state)), sorted(set(state) - set(known))
        if missing or unexpected:
            what = f"lacks {missing}" if missing else f"holds {unexpected}, which it does not know"
            raise QuantizationError(f"{self._where}: the state is not that of a {type(self).__name__}: it {what}")


# Elements looked at for both extremes in turn: they fit a core's L2 cache, so that memory is read once and not twice.
_AT_ONCE = 1 << 17


def _extremes(x: np.ndarray) -> tuple[np.float32, np.float32]:
    """Smallest and largest of `x`, float32, contiguous, not empty; NaN if it holds any."""
    if x.size <= _AT_ONCE:
        return x.min(), x.max()
    flat = x.reshape(-1)
    parts = [flat[start : start + _AT_ONCE] for start in range(0, x.size, _AT_ONCE)]
    found = np.array([(part.min(), part.max()) for part in parts], F32)
    return found[:, 0].min(), found[:, 1].max()


@dataclass(eq=False)
class UniformQuantizationObserverBase(ObserverBase):
    """Base of observers of one range per tensor or channel. Call it with arrays; ask `calculate_qparams` when all have been seen.

    The options mean what they mean in torch.ao.quantization:
    `dtype`, `qscheme`: what the codes will be. `reduce_range`: use one bit less. `quant_min`, `quant_max`: a custom range
    of codes, both ends included. `factory_kwargs`: must be None, for NumPy knows no devices. `eps`: the smallest scale.
    `is_dynamic`: see ObserverBase.

    Whatever the data, the state of one observer has a fixed size. Raises QuantizationError for options that contradict
    each other.
    """

    dtype: QDType = quint8
    qscheme: QScheme = per_tensor_affine
    reduce_range: bool = False
    quant_min: int | None = None
    quant_max: int | None = None
    factory_kwargs: None = None
    eps: float = EPS
    is_dynamic: bool = False
    site: str = field(default="", kw_only=True)

    _may_cross: ClassVar[bool] = False  # whether what was learned may have min_val above max_val

    def __post_init__(self) -> None:
        if self.qscheme.per_channel != (self.axis is not None):
            raise QuantizationError(f"{type(self).__name__} cannot give {self.qscheme!r} qparams")
        if not 0 < self.eps < np.inf:
            raise QuantizationError(f"eps must be a positive number, not {self.eps}")
        if self.factory_kwargs is not None:
            raise QuantizationError(f"factory_kwargs must be None, not {self.factory_kwargs}: arrays have no device, and float32 is fixed")
        self._qmin, self._qmax = quant_range(self.dtype, self.qscheme, self.reduce_range, self.quant_min, self.quant_max)
        self._seen = False
        self._min: np.ndarray = np.array(np.inf, F32)
        self._max: np.ndarray = np.array(-np.inf, F32)

    @property
    def code_range(self) -> tuple[int, int]:
        """First and last code that observed values may take."""
        return self._qmin, self._qmax

    @property
    def min_val(self) -> np.ndarray:
        """Smallest value learned, float32 of shape () or (C,); +inf, or without elements, before the first call."""
        return self._min

    @property
    def max_val(self) -> np.ndarray:
        """Largest value learned, float32 of shape () or (C,); −inf, or without elements, before the first call."""
        return self._max

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Observe `array` (float32, any shape; empty arrays teach nothing) and return it unchanged.

        Raises CalibrationError if it holds NaN or infinity, unless the observer says that it leaves infinities out.
        """
        x = np.asarray(array)
        if x.dtype.kind not in "fiub":
            raise CalibrationError(f"{self._where}: cannot observe values of dtype {x.dtype}")
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(x, F32)
        known = self._count_within(x) if self._seen and x.size else 0
        if known < x.size:
            low, high = _extremes(x.reshape(-1)[known:])
            # NaN passes through min and max, so these two numbers tell of any value that is not finite.
            if not (np.isfinite(low) and np.isfinite(high)):
                x = self._finite(x, "NaN" if np.isnan(low) else "infinity")
                if not x.size:
                    return array
                low, high = _extremes(x)
            self._update(x, low, high)
            self._seen = True
        return array

    def calculate_qparams(self) -> QParams:
        """Scale and zero point for what was seen. Raises CalibrationError if nothing was."""
        if not self._seen:
            raise CalibrationError(f"{self._where}: saw no data; give calibration data that reaches it")
        low, high = self._range()
        return calculate_qparams(
            low,
            high,
            dtype=self.dtype,
            qscheme=self.qscheme,
            qmin=self._qmin,
            qmax=self._qmax,
            custom=self.quant_min is not None,
            eps=self.eps,
            axis=self.axis,
            site=self._where,
        )

    def state_dict(self, *, mergeable: bool = False) -> dict[str, np.ndarray]:
        return {"eps": np.array([self.eps], F32), **self._counts(mergeable), "min_val": self._min.copy(), "max_val": self._max.copy()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        super().load_state_dict(state)
        arrays = {name: np.asarray(value) for name, value in state.items()}
        low, high, eps = (arrays[name].astype(F32) for name in ("min_val", "max_val", "eps"))
        if low.shape != high.shape or low.ndim != self._min.ndim or eps.size != 1:
            shapes = f"min_val {low.shape}, max_val {high.shape}, eps {eps.shape}"
            raise QuantizationError(f"{self._where}: the state is not that of a {type(self).__name__}: it has {shapes}")
        seen = bool(low.size) and not np.isinf(low).all()
        if seen and not (np.isfinite(low).all() and np.isfinite(high).all() and (self._may_cross or (low <= high).all())):
            raise QuantizationError(f"{self._where}: the state holds no range: min_val {low}, max_val {high}")
        self._load_counts(arrays)
        self._min, self._max, self._seen = low, high, seen
        if eps.reshape(()) != F32(self.eps):  # a state holds it rounded, and that makes no other observer
            self.eps = float(eps.reshape(()))

    def merge(self, other: Self) -> None:
        super().merge(other)
        if not other._seen:
            return
        if not self._seen:
            self.load_state_dict(other.state_dict(mergeable=True))
            return
        if self._min.shape != other._min.shape:
            raise QuantizationError(f"{self._where}: cannot merge {other._min.size} channels into {self._min.size}")
        self._merge(other)

    def _options(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "site"}

    def _finite(self, x: np.ndarray, kind: str) -> np.ndarray:
        """What to learn from an array that holds NaN or infinity: nothing."""
        raise CalibrationError(f"{self._where}: saw {kind}; remove the sample or mend the model before this site")

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """The range to quantize: what was learned, unless the observer clips it."""
        return self._min, self._max

    def _counts(self, mergeable: bool) -> dict[str, np.ndarray]:
        """What the state holds beside the extremes."""
        return {}

    def _load_counts(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `_counts`, called before the extremes change; raises QuantizationError for shapes that do not fit."""

    def _merge(self, other: Self) -> None:
        """Learn what `other` has learned; both have seen something, and channels agree."""
        self._min = np.asarray(np.minimum(self._min, other._min))
        self._max = np.asarray(np.maximum(self._max, other._max))

    def _count_within(self, x: np.ndarray) -> int:
        """Learn all of `x`, whose extremes are not known, and give its size; or learn nothing, and give how many of its first elements are
        known to lie within what was seen."""
        return 0

    @abstractmethod
    def _update(self, x: np.ndarray, low: np.float32, high: np.float32) -> None:
        """Learn from `x`: float32, contiguous, not empty, finite, with smallest value `low` and largest `high`, but for the elements that
        `_count_within` knows of."""
