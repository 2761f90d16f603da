"""Replace calls of the model's own functions by their bodies."""

from __future__ import annotations

from qrt.core.errors import ModelError
from qrt.graph.model import Model

__all__ = ["inline_functions"]


def inline_functions(model: Model) -> bool:
    """Ensures: the model holds no functions. Raises ModelError where they call each other in a ring."""
    if not model.ir.functions:
        return False
    import onnx_ir.passes.common as common  # here: it brings every pass, and few models have functions

    try:
        common.InlinePass()(model.ir)
    except Exception as error:
        raise ModelError(f"{model.name}: its functions cannot be inlined: {error}") from error
    model.ir.functions.clear()
    return True
