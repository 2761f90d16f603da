"""QTensor: codes with the scale and zero point that give them meaning, and the methods that torch's quantized tensors have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np

from qrt.core.dtypes import QDType, QScheme, per_channel_affine, per_channel_affine_float_qparams, per_tensor_affine
from qrt.core.errors import QuantizationError
from qrt.core.numerics import nearest, quantize
from qrt.core.qparams import QParams

__all__ = ["QTensor", "dequantize", "quantize_per_channel", "quantize_per_tensor"]

F32 = np.float32


class QTensor:
    """Codes of one dtype, with one scale and zero point, or with one pair for each index of an axis (per channel).

    `codes`: integers of any shape, inside the range of `dtype`, one element a code (also of quint4x2).
    `scale`: float64, kept as given, () or (C,). `zero_point`: int64 of the same shape, or float32 per channel.
    `axis`: the channel axis, None per tensor.
    Names ending in _ change the tensor itself. What needs one scale raises QuantizationError for a tensor with channels.
    """

    def __init__(self, codes: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int, dtype: QDType, axis: int | None = None):
        codes = np.asarray(codes)
        params = QParams(np.asarray(scale, F32), np.asarray(zero_point), dtype, axis)
        params.along(codes.shape)
        if codes.dtype.kind not in "iu" or (codes.size and (codes.min() < dtype.qmin or codes.max() > dtype.qmax)):
            raise QuantizationError(f"codes of dtype {codes.dtype} do not fit {dtype!r} ({dtype.qmin}..{dtype.qmax})")
        floating = params.zero_point.dtype.kind == "f"
        self._codes = codes.astype(dtype.storage, copy=False)
        self._scale: np.ndarray = np.asarray(scale, F32 if floating else np.float64)
        self._zero_point: np.ndarray = np.asarray(zero_point, F32 if floating else np.int64)
        self.dtype = dtype
        self._axis = None if axis is None else axis % codes.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of the axes."""
        return self._codes.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._codes.ndim

    def __repr__(self) -> str:
        values = np.array2string(self.dequantize(), separator=", ", prefix="QTensor(")
        axis = "" if self._axis is None else f", axis={self._axis}"
        return (
            f"QTensor({values}, size={self.shape}, dtype={self.dtype!r}, quantization_scheme={self.qscheme()!r}, "
            f"scale={self._scale.tolist()}, zero_point={self._zero_point.tolist()}{axis})"
        )

    def qscheme(self) -> QScheme:
        """Per tensor or per channel; never symmetric, which is how an observer chooses and not how codes are read."""
        if self._axis is None:
            return per_tensor_affine
        return per_channel_affine_float_qparams if self._zero_point.dtype.kind == "f" else per_channel_affine

    def q_scale(self) -> float:
        """The scale, as it was given."""
        return float(self._one("q_scale")._scale)

    def q_zero_point(self) -> int:
        """The zero point."""
        return int(self._one("q_zero_point")._zero_point)

    def q_per_channel_scales(self) -> np.ndarray:
        """The scales, float64 (C,); float32 where zero points are floats."""
        self.q_per_channel_axis()
        return self._scale.copy()

    def q_per_channel_zero_points(self) -> np.ndarray:
        """The zero points, int64 (C,), or float32."""
        self.q_per_channel_axis()
        return self._zero_point.copy()

    def q_per_channel_axis(self) -> int:
        """The channel axis."""
        if self._axis is None:
            raise QuantizationError("this QTensor has one scale and no channel axis: ask q_scale and q_zero_point")
        return self._axis

    def int_repr(self) -> np.ndarray:
        """The codes, as stored: of quint4x2, bytes of two codes, the first in the low half, (ceil(numel / 2),)."""
        if self.dtype.bits > 4:
            return self._codes.copy()
        flat = np.append(self._codes.reshape(-1), np.zeros(self._codes.size % 2, np.uint8))
        return np.asarray(flat[::2] | flat[1::2] << 4)

    def dequantize(self) -> np.ndarray:
        """The real values, float32: (code − zero_point) · scale; with channels and integer zero points, multiplied in float64."""
        if self._axis is None:
            return np.asarray((self._codes.astype(np.int64) - self._zero_point).astype(F32) * self._scale.astype(F32))
        along = [1] * self.ndim
        along[self._axis] = -1
        steps = self._codes.astype(F32) - self._zero_point.astype(F32).reshape(along)
        return np.asarray(steps * self._scale.reshape(along), F32)

    def clone(self, *, memory_format: None = None) -> QTensor:
        """A copy with its own memory, axes in the same order there. `memory_format` is torch's and must be None."""
        if memory_format is not None:
            raise QuantizationError(f"memory_format must be None, not {memory_format}: a clone keeps the order of its axes in memory")
        return self._with(self._codes.copy())

    def copy_(self, src: np.ndarray | QTensor, non_blocking: bool = False) -> QTensor:
        """Take over the values of `src`, broadcast: floats are quantized with this tensor's qparams, a QTensor brings its own.

        `non_blocking` is torch's and without effect.
        """
        if isinstance(src, QTensor):
            if src.dtype != self.dtype or src.shape != self.shape:
                raise QuantizationError(f"cannot copy a {src.dtype!r} of shape {src.shape} into a {self.dtype!r} of shape {self.shape}")
            self._codes[...] = src._codes
            self._scale, self._zero_point, self._axis = src._scale, src._zero_point, src._axis
        else:
            self._codes[...] = quantize(np.broadcast_to(_floats(src), self.shape), self._params())
        return self

    def view(self, *shape: int | Sequence[int]) -> QTensor:
        """The same codes in another shape. Channels must stay together: QuantizationError if the channel axis changes."""
        return self._reshaped(_sizes(shape))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> QTensor:
        """Axes start_dim..end_dim as one; as `view`."""
        first, last = _axis(start_dim, self.ndim), _axis(end_dim, self.ndim)
        if first > last:
            raise QuantizationError(f"start_dim {start_dim} comes after end_dim {end_dim}")
        return self._reshaped((*self.shape[:first], math.prod(self.shape[first : last + 1]), *self.shape[last + 1 :]))

    def as_strided(self, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> QTensor:
        """A view of the codes in row-major order: element i lies `storage_offset` + Σ i·stride elements from the first."""
        flat, offset = np.ascontiguousarray(self._one("as_strided")._codes).reshape(-1), storage_offset or 0
        if len(size) != len(stride) or min([*size, *stride, offset], default=0) < 0:
            raise QuantizationError(f"size {tuple(size)}, stride {tuple(stride)} and offset {offset} must be as many, and not negative")
        if math.prod(size) and offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) >= flat.size:
            raise QuantizationError(f"size {tuple(size)} and stride {tuple(stride)} reach past the {flat.size} codes from {offset}")
        steps = [s * flat.itemsize for s in stride]
        return self._with(np.lib.stride_tricks.as_strided(flat[offset:], tuple(size), steps))

    def expand(self, *sizes: int | Sequence[int]) -> QTensor:
        """A read-only view with axes of extent 1 repeated, and new ones in front; −1 keeps an extent."""
        wanted, codes = _sizes(sizes), self._one("expand")._codes
        given = (1,) * (len(wanted) - self.ndim) + self.shape
        try:
            return self._with(np.broadcast_to(codes, [g if w == -1 else w for g, w in zip(given, wanted, strict=True)]))
        except ValueError as error:
            raise QuantizationError(f"a QTensor of shape {self.shape} does not expand to {wanted}") from error

    def resize_(self, *sizes: int | Sequence[int]) -> QTensor:
        """Another shape, in place: codes stay in row-major order, new ones stand for 0."""
        wanted = _sizes(sizes)
        flat = self._one("resize_")._codes.reshape(-1)[: math.prod(wanted)]
        codes = np.full(math.prod(wanted), int(self._zero_point), self.dtype.storage)
        codes[: flat.size] = flat
        self._codes = codes.reshape(wanted)
        return self

    def select(self, dim: int, index: int) -> QTensor:
        """Index `index` of axis `dim`, without that axis; of the channel axis, a tensor with that channel's qparams."""
        dim = _axis(dim, self.ndim)
        if not -self.shape[dim] <= index < self.shape[dim]:
            raise QuantizationError(f"index {index} is outside axis {dim} of extent {self.shape[dim]}")
        codes = np.take(self._codes, index, dim)
        if self._axis == dim:
            if self._zero_point.dtype.kind == "f":
                raise QuantizationError("a channel with a float zero point is no tensor of its own: dequantize first")
            return QTensor(codes, self._scale[index], self._zero_point[index], self.dtype)
        return self._with(codes, None if self._axis is None else self._axis - (dim < self._axis))

    def eq(self, other: Any) -> np.ndarray:
        """Where the real values are equal, bool; `other`: a number, an array or a QTensor."""
        return self._compare(np.equal, other)

    def ne(self, other: Any) -> np.ndarray:
        """Where the real values differ."""
        return self._compare(np.not_equal, other)

    def ge(self, other: Any) -> np.ndarray:
        """Where the real values are greater or equal."""
        return self._compare(np.greater_equal, other)

    def gt(self, other: Any) -> np.ndarray:
        """Where the real values are greater."""
        return self._compare(np.greater, other)

    def le(self, other: Any) -> np.ndarray:
        """Where the real values are less or equal."""
        return self._compare(np.less_equal, other)

    def lt(self, other: Any) -> np.ndarray:
        """Where the real values are less."""
        return self._compare(np.less, other)

    def equal(self, other: QTensor) -> bool:
        """Whether dtype, qparams, shape and codes are all the same."""
        mine, theirs = (self._scale, self._zero_point, self._codes), (other._scale, other._zero_point, other._codes)
        same = all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
        return same and self.dtype == other.dtype and self.qscheme() == other.qscheme() and self._axis == other._axis

    def max(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The largest element; along `dim`, values and their first indices (int64)."""
        return self._extreme(np.argmax, "max", dim, keepdim)

    def min(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The smallest element; along `dim`, values and their first indices (int64)."""
        return self._extreme(np.argmin, "min", dim, keepdim)

    def mean(self, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: None = None) -> QTensor:
        """The average, with this tensor's qparams: clamp(rint(Σ(code − zero_point) / n + zero_point)). `dtype` must be None."""
        codes = self._one("mean")._codes
        dims = range(self.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
        axes = tuple(_axis(d, self.ndim) for d in dims)
        n = math.prod(self.shape[a] for a in axes)
        if dtype is not None or not n:
            raise QuantizationError("the mean of a QTensor needs elements, and has the QTensor's dtype")
        total = (codes.astype(np.int64) - self._zero_point).sum(axis=axes, keepdims=keepdim)
        average = nearest(np.asarray(total).astype(F32) / F32(n) + self._zero_point.astype(F32))
        return self._with(np.clip(average, self.dtype.qmin, self.dtype.qmax).astype(self.dtype.storage))

    def sort(self, dim: int = -1, descending: bool = False) -> tuple[QTensor, np.ndarray]:
        """Values in order along `dim`, and the indices (int64) where they were; equal ones keep their order."""
        codes, dim = self._one("sort")._codes, _axis(dim, self.ndim)
        keys = -codes.astype(np.int64) if descending else codes
        order = np.argsort(keys, axis=dim, kind="stable")
        return self._with(np.take_along_axis(codes, order, dim)), order

    def topk(self, k: int, dim: int | None = None, largest: bool = True, sorted: bool = True) -> tuple[QTensor, np.ndarray]:
        """The `k` largest, or smallest, along `dim` (the last), and their indices; in order whether `sorted` or not."""
        dim = _axis(-1 if dim is None else dim, self._one("topk").ndim)
        if not 0 <= k <= self.shape[dim]:
            raise QuantizationError(f"k must be in 0..{self.shape[dim]}, not {k}")
        values, order = self.sort(dim, descending=largest)
        first = (slice(None),) * dim + (slice(k),)
        return self._with(values._codes[first]), order[first]

    def _one(self, what: str) -> QTensor:
        """This tensor, if it has one scale."""
        if self._axis is not None:
            raise QuantizationError(
                f"{what} needs one scale, and this QTensor has {self._scale.size} along axis {self._axis}: dequantize first"
            )
        return self

    def _params(self) -> QParams:
        return QParams(self._scale.astype(F32), self._zero_point, self.dtype, self._axis)

    def _with(self, codes: np.ndarray, axis: int | None = None) -> QTensor:
        """Other codes with the same qparams; `axis` where the channel axis has moved."""
        return QTensor(codes, self._scale, self._zero_point, self.dtype, self._axis if axis is None else axis)

    def _reshaped(self, shape: tuple[int, ...]) -> QTensor:
        try:
            codes = self._codes.reshape(shape)
        except ValueError as error:
            raise QuantizationError(f"a QTensor of shape {self.shape} has no view of shape {shape}") from error
        if self._axis is not None and codes.shape[: self._axis + 1] != self.shape[: self._axis + 1]:
            raise QuantizationError(f"a view of shape {shape} tears the channels of axis {self._axis} of {self.shape}: dequantize first")
        return self._with(codes)

    def _compare(self, compare: Callable[..., Any], other: Any) -> np.ndarray:
        return np.asarray(compare(self.dequantize(), other.dequantize() if isinstance(other, QTensor) else np.asarray(other, F32)))

    def _extreme(self, find: Callable[..., Any], what: str, dim: int | None, keepdim: bool) -> Any:
        codes = self._one(what)._codes
        if not codes.size:
            raise QuantizationError(f"{what} of a QTensor without elements")
        if dim is None:
            return self._with(codes.reshape(-1)[find(codes)])
        dim = _axis(dim, self.ndim)
        where = find(codes, axis=dim, keepdims=True)
        values = np.take_along_axis(codes, where, dim)
        if not keepdim:
            values, where = values.squeeze(dim), where.squeeze(dim)
        return self._with(values), where


@overload
def quantize_per_tensor(input: np.ndarray, scale: Any, zero_point: Any, dtype: QDType) -> QTensor: ...
@overload
def quantize_per_tensor(input: list[np.ndarray], scale: Any, zero_point: Any, dtype: QDType) -> list[QTensor]: ...
def quantize_per_tensor(input: np.ndarray | list[np.ndarray], scale: Any, zero_point: Any, dtype: QDType) -> QTensor | list[QTensor]:
    """`input` (float32, any shape) as codes with one scale and zero point, by ONNX: clamp(rint(input / scale) + zero_point).

    A list of arrays takes as many scales and zero points. torch adds the zero point before it rounds: where input / scale lies in
    the middle between two codes, and the zero point is odd, its code is one higher or lower.
    Raises QuantizationError for another dtype, a scale that is not positive or a zero point outside `dtype`.
    """
    if isinstance(input, list):
        return [quantize_per_tensor(x, s, z, dtype) for x, s, z in zip(input, scale, zero_point, strict=True)]
    scale, zero_point = np.asarray(scale).reshape(()), np.asarray(zero_point).reshape(())
    return QTensor(quantize(_floats(input), QParams(np.asarray(scale, F32), zero_point, dtype)), scale, zero_point, dtype)


def quantize_per_channel(input: np.ndarray, scales: np.ndarray, zero_points: np.ndarray, axis: int, dtype: QDType) -> QTensor:
    """`input` (float32) as codes with a scale and zero point for each index of `axis`; as `quantize_per_tensor`.

    Float zero points are added before rounding, as embeddings want them.
    """
    scales, zero_points = np.asarray(scales), np.asarray(zero_points)
    codes = quantize(_floats(input), QParams(scales.astype(F32), zero_points, dtype, axis))
    return QTensor(codes, scales, zero_points, dtype, axis)


@overload
def dequantize(tensor: np.ndarray | QTensor) -> np.ndarray: ...
@overload
def dequantize(tensor: Sequence[np.ndarray | QTensor]) -> list[np.ndarray]: ...
def dequantize(tensor: np.ndarray | QTensor | Sequence[np.ndarray | QTensor]) -> np.ndarray | list[np.ndarray]:
    """The real values, float32, of a QTensor or of each of several; arrays of floats are returned as float32."""
    if isinstance(tensor, QTensor):
        return tensor.dequantize()
    if isinstance(tensor, np.ndarray):
        return np.asarray(tensor, F32)
    return [dequantize(part) for part in tensor]


def _floats(x: Any) -> np.ndarray:
    array = np.asarray(x)
    if array.dtype != F32:
        raise QuantizationError(f"only float32 is quantized, not {array.dtype}: cast with astype(np.float32)")
    return array


def _axis(dim: int, ndim: int) -> int:
    if not -ndim <= dim < ndim:
        raise QuantizationError(f"a QTensor of {ndim} axes has no axis {dim}")
    return dim % ndim


def _sizes(sizes: tuple[int | Sequence[int], ...]) -> tuple[int, ...]:
    """The extents, given as several numbers or as one sequence."""
    if len(sizes) == 1 and not isinstance(sizes[0], int):
        return tuple(sizes[0])
    return tuple(size for size in sizes if isinstance(size, int))
