"""What one node computes from arrays, by onnx's reference implementation: slow and right."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

__all__ = ["evaluate"]


def evaluate(node: ir.Node, inputs: Sequence[np.ndarray | None], opsets: Mapping[str, int]) -> list[np.ndarray] | None:
    """The outputs of `node` fed with `inputs` (None: omitted), or None where the reference cannot run it or gives no plain arrays."""
    from onnx.reference import ReferenceEvaluator  # here, because it takes 12 MB, and most models fold nothing that needs it

    proto = ir.serde.serialize_node(node)
    feeds = {f"i{k}": a for k, a in enumerate(inputs) if a is not None}
    del proto.input[:]
    proto.input.extend("" if a is None else f"i{k}" for k, a in enumerate(inputs))
    infos = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in feeds.items()]
    graph = helper.make_graph([proto], "single", infos, [onnx.ValueInfoProto(name=name) for name in proto.output if name])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()])
    try:
        # A constant that overflows or divides by zero does so in silence, as it would at run time.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(model).run(None, feeds)
    except Exception:
        return None
    if not all(isinstance(r, (np.ndarray, np.generic)) for r in results):
        return None
    return [np.asarray(r) for r in results]
