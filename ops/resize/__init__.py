"""Resizing: nearest and linear, in float32 and on codes; images read at computed places."""

from qrt.ops.resize.resize import KERNELS, Linear, Nearest, QLinear
from qrt.ops.resize.sample import Sample

__all__ = ["KERNELS", "Linear", "Nearest", "QLinear", "Sample"]
