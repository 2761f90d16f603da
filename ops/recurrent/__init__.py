"""Recurrent cells over sequences: LSTM, GRU, RNN."""

from qrt.ops.recurrent.recurrent import GATES, KERNELS, Recurrent

__all__ = ["GATES", "KERNELS", "Recurrent"]
