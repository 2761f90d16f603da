"""Ops that move bytes and compute nothing: transpose, copy, concat, slice, gather, scatter, pad, expand."""

from qrt.ops.movement import gather, strided
from qrt.ops.movement.gather import Gather, GatherElements, GatherND, ScatterElements, ScatterND, Triangle, require_indices
from qrt.ops.movement.join import Concat, Pad
from qrt.ops.movement.strided import SERIAL_BYTES, contiguous, emit_strided
from qrt.ops.movement.transpose import Copy, Expand, Slice, Transpose

__all__ = [
    "KERNELS",
    "SERIAL_BYTES",
    "Concat",
    "Copy",
    "Expand",
    "Gather",
    "GatherElements",
    "GatherND",
    "Pad",
    "ScatterElements",
    "ScatterND",
    "Slice",
    "Transpose",
    "Triangle",
    "contiguous",
    "emit_strided",
    "require_indices",
]

KERNELS = (*strided.KERNELS, *gather.KERNELS)
