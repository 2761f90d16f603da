"""Ops that fold an axis: sums and their kin, the place of the largest, the largest few, running sums."""

from qrt.ops.reduction.arg import ArgReduce
from qrt.ops.reduction.cumsum import CumSum
from qrt.ops.reduction.reduce import KINDS, Reduce
from qrt.ops.reduction.top import Top

__all__ = ["KINDS", "ArgReduce", "CumSum", "Reduce", "Top"]
