"""Remove what no output needs."""

from __future__ import annotations

import onnx_ir.passes.common as common

from qrt.graph.model import Model

__all__ = ["drop_dead"]


def drop_dead(model: Model) -> bool:
    """Requires: no functions. Ensures: every node and initializer leads to a graph output; only domains in use are imported."""
    changed = bool(common.RemoveUnusedNodesPass()(model.ir).modified)
    common.RemoveUnusedOpsetsPass(process_functions=False)(model.ir)
    return changed
