"""Ops that scale values by what their neighbours are: softmax, and the norms of layers, rows and images."""

from qrt.ops.normalization.image import ImageNorm
from qrt.ops.normalization.rows import LayerNorm, LpNorm, RmsNorm
from qrt.ops.normalization.softmax import ScaledSoftmax, Softmax

__all__ = ["ImageNorm", "LayerNorm", "LpNorm", "RmsNorm", "ScaledSoftmax", "Softmax"]
