"""How pooling is quantized."""

from __future__ import annotations

from qrt.ops.rule import Kind, QuantRule

__all__ = ["RULES"]

RULES: dict[str, QuantRule] = {
    "AveragePool": QuantRule(Kind.COMPUTE, (0,)),
    "GlobalAveragePool": QuantRule(Kind.COMPUTE, (0,)),
    "MaxPool": QuantRule(Kind.MOVE, (0,)),
}
