"""Ops that move bytes and compute nothing: transpose, copy, concat, slice, gather, pad, tile."""

from qrt.ops.movement.transpose import Copy, Transpose

__all__ = ["Copy", "Transpose"]
