"""How movement is quantized: codes are moved as they are."""

from __future__ import annotations

from qrt.ops.rule import Kind, QuantRule

__all__ = ["RULES"]

_MOVE = QuantRule(Kind.MOVE, (0,))

RULES: dict[str, QuantRule] = {
    "Concat": QuantRule(Kind.JOIN),
    # Rows of a constant table are an embedding, whose weight may be codes.
    "Gather": QuantRule(Kind.MOVE, (0,), weight=0),
    **dict.fromkeys(("DepthToSpace", "Expand", "Flatten", "Pad", "Reshape", "Slice", "SpaceToDepth", "Split"), _MOVE),
    **dict.fromkeys(("Squeeze", "Tile", "Transpose", "Unsqueeze"), _MOVE),
}
