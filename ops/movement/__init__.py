"""Ops that move bytes and compute nothing: transpose, copy, concat, slice, pad, expand; those that do so by indices are in `gather.py`."""

from qrt.ops.movement.join import Concat, Pad
from qrt.ops.movement.transpose import Copy, Expand, Slice, Transpose

__all__ = ["Concat", "Copy", "Expand", "Pad", "Slice", "Transpose"]
