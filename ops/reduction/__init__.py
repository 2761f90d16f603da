"""Ops that fold an axis: sums and their kin, the place of the largest, running sums."""

from qrt.ops.reduction.arg import ArgReduce
from qrt.ops.reduction.cumsum import CumSum
from qrt.ops.reduction.reduce import KINDS, Reduce

__all__ = ["KINDS", "ArgReduce", "CumSum", "Reduce"]
