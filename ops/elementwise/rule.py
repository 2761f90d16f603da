"""How element-wise operators are quantized: sums and products of codes, and tables of 256 codes for all else."""

from __future__ import annotations

from qrt.ops.rule import Kind, QuantRule

__all__ = ["RULES"]

_CURVE = QuantRule(Kind.CURVE)

RULES: dict[str, QuantRule] = {
    "Add": QuantRule(Kind.COMPUTE),
    "Mul": QuantRule(Kind.COMPUTE),
    "Sigmoid": QuantRule(Kind.CURVE, fixed=(1 / 256, 0)),
    "HardSigmoid": QuantRule(Kind.CURVE, fixed=(1 / 256, 0)),
    "Tanh": QuantRule(Kind.CURVE, fixed=(1 / 128, 128)),
    **dict.fromkeys(
        ("Clip", "Elu", "Erf", "Gelu", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Softplus", "Softsign"), _CURVE
    ),
    **dict.fromkeys(("Abs", "Div", "Exp", "Max", "Min", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub"), _CURVE),
}
