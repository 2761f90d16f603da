"""Models of float16 and bfloat16, made of float32 ones."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["halved"]

# Operator → which of its inputs are float32 in every model.
_ALWAYS_FLOAT = {"Resize": (2,), "Upsample": (1,)}


def halved(model: onnx.ModelProto, to: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """The model with every float32 in it as `to`: inputs, outputs, weights, the dtypes that nodes name, and bodies."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for graph in _graphs(made.graph):
        kept = {node.input[k] for node in graph.node for k in _ALWAYS_FLOAT.get(node.op_type, ()) if k < len(node.input)}
        del graph.value_info[:]
        for tensor in graph.initializer:
            if tensor.name not in kept:
                _halve(tensor, to)
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in kept:
                value.type.tensor_type.elem_type = to
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                    attribute.i = to
                if attribute.type == onnx.AttributeProto.TENSOR and not kept.intersection(node.output):
                    _halve(attribute.t, to)
    return made


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []), *attribute.graphs):
                yield from _graphs(body)


def _halve(tensor: onnx.TensorProto, to: int) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        array, dtype = numpy_helper.to_array(tensor), helper.tensor_dtype_to_np_dtype(to)
        limits = ml_dtypes.finfo(dtype)
        # As converters do it: the epsilon of a norm does not become 0, nor a mask infinite.
        size = np.clip(np.abs(array), np.where(array == 0, 0, float(limits.smallest_subnormal)), float(limits.max))
        tensor.CopyFrom(numpy_helper.from_array(np.copysign(size, array).astype(dtype), tensor.name))
