"""Pooling: the largest or the mean of windows of an image, in float32 and on codes."""

from qrt.ops.pool.pool import KERNELS, AveragePool, MaxPool, QAveragePool

__all__ = ["KERNELS", "AveragePool", "MaxPool", "QAveragePool"]
