"""How reductions are quantized."""

from __future__ import annotations

from qrt.ops.rule import Kind, QuantRule

__all__ = ["RULES"]

RULES: dict[str, QuantRule] = {"ReduceMean": QuantRule(Kind.COMPUTE, (0,))}
