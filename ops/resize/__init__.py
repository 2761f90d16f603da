"""Resizing: nearest and linear, in float32 and on codes."""

from qrt.ops.resize.resize import KERNELS, Linear, Nearest, QLinear

__all__ = ["KERNELS", "Linear", "Nearest", "QLinear"]
