"""How normalizations are quantized."""

from __future__ import annotations

from qrt.ops.rule import Kind, QuantRule

__all__ = ["RULES"]

RULES: dict[str, QuantRule] = {"Softmax": QuantRule(Kind.COMPUTE, (0,), fixed=(1 / 256, 0))}
