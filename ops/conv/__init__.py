"""Convolutions of any rank, plain and transposed: the matrix product with rows found through a window; depthwise apart."""

from qrt.ops.conv.conv import Conv
from qrt.ops.conv.depthwise import Depthwise
from qrt.ops.conv.window import Window

__all__ = ["Conv", "Depthwise", "Window"]
