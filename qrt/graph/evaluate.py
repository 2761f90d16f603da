"""What one node computes from arrays, by onnx's reference implementation: slow and right."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import defs, helper, shape_inference
from onnx.reference import ReferenceEvaluator

__all__ = ["evaluate", "output_bytes"]


def evaluate(node: ir.Node, inputs: Sequence[np.ndarray | None], opsets: Mapping[str, int]) -> list[np.ndarray] | None:
    """The outputs of `node` fed with `inputs` (None: omitted), or None where the reference cannot run it or gives no plain arrays."""
    proto, feeds = _single(node, inputs)
    infos = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in feeds.items()]
    graph = helper.make_graph([proto], "single", infos, [onnx.ValueInfoProto(name=name) for name in proto.output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()])
    try:
        # A constant that overflows or divides by zero does so in silence, as it would at run time.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(model).run(None, feeds)
    except Exception:
        return None
    arrays = [np.asarray(r) if isinstance(r, (np.ndarray, np.generic)) else None for r in results]
    return None if any(a is None for a in arrays) else [a for a in arrays if a is not None]


def output_bytes(node: ir.Node, inputs: Sequence[np.ndarray | None], opsets: Mapping[str, int]) -> int | None:
    """The bytes that the outputs of `node` would take, without running it; None where inference cannot tell."""
    proto, feeds = _single(node, inputs)
    types = {n: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()}
    data = {n: onnx.numpy_helper.from_array(a, n) for n, a in feeds.items() if a.nbytes <= 8192}
    try:
        schema = defs.get_schema(proto.op_type, opsets[""], proto.domain)
        found = shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()], ir_version=10
        )
    except Exception:
        return None
    total = 0
    for name in proto.output:
        tensor = found[name].tensor_type if name in found else None
        if tensor is None or not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
            return None
        elements = 1
        for d in tensor.shape.dim:
            elements *= d.dim_value
        total += elements * ir.DataType(tensor.elem_type).bitwidth // 8
    return total


def _single(node: ir.Node, inputs: Sequence[np.ndarray | None]) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
    """The node alone, its values renamed by position, and what to feed it."""
    proto = ir.serde.serialize_node(node)
    names = ["" if a is None else f"i{k}" for k, a in enumerate(inputs)]
    del proto.input[:]
    proto.input.extend(names)
    outputs = [f"o{k}" for k in range(len(proto.output))]
    del proto.output[:]
    proto.output.extend(outputs)
    return proto, {name: a for name, a in zip(names, inputs, strict=True) if a is not None}
