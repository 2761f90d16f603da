"""Ops that compute each element from the elements at its place: unary, binary with broadcasting, where, cast."""

from qrt.ops.elementwise.binary import BINARY, Binary, Where
from qrt.ops.elementwise.unary import CASTS, SIXTEEN, UNARY, Cast, Unary

__all__ = ["BINARY", "CASTS", "SIXTEEN", "UNARY", "Binary", "Cast", "Unary", "Where"]
