"""How Resize is quantized."""

from __future__ import annotations

from qrt.ops.rule import Kind, QuantRule

__all__ = ["RULES"]

RULES: dict[str, QuantRule] = {"Resize": QuantRule(Kind.COMPUTE, (0,))}
