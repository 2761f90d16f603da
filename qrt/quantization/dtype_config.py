"""DTypeConfig: dtypes that a pattern can be quantized with, and whether an observer fits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from qrt.core.dtypes import QDType
from qrt.core.errors import InvalidInput
from qrt.observers import FixedQParamsObserver

__all__ = ["DType", "DTypeConfig", "DTypeWithConstraints", "check_keys", "mismatch"]

DType: TypeAlias = QDType | np.dtype[Any]

FLOAT32 = np.dtype(np.float32)


@dataclass
class DTypeWithConstraints:
    """A dtype, and what its qparams have to be; None asks nothing.

    `quant_min_lower_bound`, `quant_max_upper_bound`: codes must lie between them. `scale_min_lower_bound`: the observer's eps must be
    at least that; `scale_max_upper_bound` is not enforced. `scale_exact_match`, `zero_point_exact_match`: the qparams have to be fixed
    to these.
    """

    dtype: DType | None = None
    quant_min_lower_bound: float | None = None
    quant_max_upper_bound: float | None = None
    scale_min_lower_bound: float | None = None
    scale_max_upper_bound: float | None = None
    scale_exact_match: float | None = None
    zero_point_exact_match: int | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None:
            self.dtype = _dtype("dtype", self.dtype)

    def __repr__(self) -> str:
        return f"DTypeWithConstraints({', '.join(f'{name}={value!r}' for name, value in vars(self).items() if value is not None)})"


class DTypeConfig:
    """One choice of dtypes that a pattern can be quantized with: what a QConfig's observers must have. None asks nothing.

    `input_dtype`, `output_dtype`, `weight_dtype`: a dtype of qrt, a float dtype of NumPy, or one of these with constraints. `is_dynamic`:
    whether the input is quantized in each run. Raises InvalidInput for what is no dtype.
    """

    def __init__(
        self,
        input_dtype: DType | DTypeWithConstraints | None = None,
        output_dtype: DType | DTypeWithConstraints | None = None,
        weight_dtype: DType | DTypeWithConstraints | None = None,
        bias_dtype: DType | None = None,
        is_dynamic: bool | None = None,
    ) -> None:
        self.input_dtype_with_constraints = _constrained("input_dtype", input_dtype)
        self.output_dtype_with_constraints = _constrained("output_dtype", output_dtype)
        self.weight_dtype_with_constraints = _constrained("weight_dtype", weight_dtype)
        self.bias_dtype = None if bias_dtype is None else _dtype("bias_dtype", bias_dtype)
        self.is_dynamic = is_dynamic

    @property
    def input_dtype(self) -> DType | None:
        """The dtype of the input, without constraints."""
        return self.input_dtype_with_constraints.dtype

    @property
    def output_dtype(self) -> DType | None:
        """The dtype of the output, without constraints."""
        return self.output_dtype_with_constraints.dtype

    @property
    def weight_dtype(self) -> DType | None:
        """The dtype of the weight, without constraints."""
        return self.weight_dtype_with_constraints.dtype

    @classmethod
    def from_dict(cls, dtype_config_dict: Mapping[str, Any]) -> DTypeConfig:
        """What `to_dict` wrote: the constructor's arguments, all of which may be missing. Raises InvalidInput for other keys or values."""
        check_keys("a DTypeConfig", dtype_config_dict, ("input_dtype", "output_dtype", "weight_dtype", "bias_dtype", "is_dynamic"))
        return cls(**dtype_config_dict)

    def to_dict(self) -> dict[str, Any]:
        """The arguments that were given, by name; dtypes with their constraints."""
        parts = {
            "input_dtype": self.input_dtype_with_constraints if self.input_dtype is not None else None,
            "output_dtype": self.output_dtype_with_constraints if self.output_dtype is not None else None,
            "weight_dtype": self.weight_dtype_with_constraints if self.weight_dtype is not None else None,
            "bias_dtype": self.bias_dtype,
            "is_dynamic": self.is_dynamic,
        }
        return {name: value for name, value in parts.items() if value is not None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DTypeConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment] # it can change

    def __repr__(self) -> str:
        return f"DTypeConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"


def mismatch(activation: Any, weight: Any, choice: DTypeConfig) -> tuple[int, str] | None:
    """The first demand of a choice that a QConfig's observers do not meet, in words, and how many they meet before; None for none."""
    dtype, dynamic = getattr(activation, "dtype", None), getattr(activation, "is_dynamic", False)
    if dynamic != bool(choice.is_dynamic):
        return 0, f"its activation is {'not ' if choice.is_dynamic else ''}quantized in each run"
    dtypes = (
        ("activation", dtype, choice.input_dtype),
        ("output", FLOAT32 if dynamic else dtype, choice.output_dtype),
        ("weight", getattr(weight, "dtype", None), choice.weight_dtype),
    )
    for met, (what, given, wanted) in enumerate(dtypes, start=1):
        if wanted is not None and given != wanted:
            return met, f"its {what} is {given}, not {wanted}"
    constrained = (
        ("activation", activation, choice.input_dtype_with_constraints),
        ("activation", activation, choice.output_dtype_with_constraints),
        ("weight", weight, choice.weight_dtype_with_constraints),
    )
    for what, made, constraints in constrained:
        broken = _violation(what, made, constraints)
        if broken is not None:
            return 1 + len(dtypes), broken
    return None


def _violation(what: str, made: Any, wanted: DTypeWithConstraints) -> str | None:
    """What constraint an observer or fake-quantize breaks; None where its dtype is not the one that is constrained."""
    observer = getattr(made, "activation_post_process", made)
    if getattr(observer, "dtype", None) != wanted.dtype:
        return None
    low, high = wanted.quant_min_lower_bound, wanted.quant_max_upper_bound
    if low is not None and high is not None:
        first, last = getattr(observer, "code_range", (getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)))
        if first is None or last is None:
            return f"its {what} has to give quant_min and quant_max"
        if first < low or last > high:
            return f"the codes of its {what} are {first}..{last}, not within {low}..{high}"
    if wanted.scale_min_lower_bound is not None:
        eps = getattr(observer, "eps", None)
        if eps is None or eps < wanted.scale_min_lower_bound:
            return f"the eps of its {what} is {eps}, and has to be {wanted.scale_min_lower_bound} or more"
    if wanted.scale_exact_match is not None and wanted.zero_point_exact_match is not None:
        exact = f"scale {wanted.scale_exact_match} and zero point {wanted.zero_point_exact_match}"
        if not isinstance(observer, FixedQParamsObserver):
            return f"its {what} has to be fixed, with a FixedQParamsObserver, to {exact}"
        scale, zero_point = observer.calculate_qparams()
        if scale != np.float32(wanted.scale_exact_match) or zero_point != wanted.zero_point_exact_match:
            return f"its {what} is fixed to scale {scale} and zero point {zero_point}, not to {exact}"
    return None


def check_keys(what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raises InvalidInput for what is no dict, or has other keys than those known."""
    if not isinstance(given, Mapping):
        raise InvalidInput(f"{what} cannot be made of a {type(given).__name__}: give a dict")
    unknown = [key for key in given if key not in known]
    if unknown:
        raise InvalidInput(f"the dict of {what} has no key {unknown[0]!r}: give {list(known)}")


def _dtype(what: str, dtype: Any) -> DType:
    """A dtype of qrt, or a float dtype of NumPy."""
    if isinstance(dtype, QDType):
        return dtype
    if isinstance(dtype, np.dtype) or (isinstance(dtype, type) and issubclass(dtype, np.floating)):
        return np.dtype(dtype)
    raise InvalidInput(f"{what} is {dtype!r}: give a dtype such as qrt.quint8 or numpy.float32, or DTypeWithConstraints")


def _constrained(what: str, dtype: DType | DTypeWithConstraints | None) -> DTypeWithConstraints:
    if isinstance(dtype, DTypeWithConstraints):
        return dtype
    return DTypeWithConstraints(None if dtype is None else _dtype(what, dtype))
