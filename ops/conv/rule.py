"""How convolutions are quantized."""

from __future__ import annotations

from qrt.ops.rule import Kind, QuantRule

__all__ = ["RULES"]

RULES: dict[str, QuantRule] = {
    "Conv": QuantRule(Kind.PRODUCT, (0,), weight=1, bias=2, dynamic=True),
    "ConvTranspose": QuantRule(Kind.PRODUCT, (0,), weight=1, bias=2),
}
