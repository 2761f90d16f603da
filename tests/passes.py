"""What tests of graph passes share: models as text, and what a pass must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from qrt.graph import Model
from qrt.graph.passes import OPSET
from qrt.loaders import load

Arrays = dict[str, np.ndarray]


def proto(text: str, opset: int = OPSET, **tensors: np.ndarray) -> onnx.ModelProto:
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{text}')
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    return made


def feeds(model: onnx.ModelProto, **sizes: int) -> Arrays:
    """Random inputs; `sizes` are those of symbolic dimensions."""
    rng = np.random.default_rng(7)
    found: Arrays = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else sizes.get(d.dim_param, 3) for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        found[value.name] = np.asarray(rng.normal(size=shape) * (1 if dtype == np.float32 else 20)).astype(dtype)
    return found


def runtime(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, inputs)


def reference(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    return ReferenceEvaluator(model).run(None, inputs)


def check_same(
    before: onnx.ModelProto,
    *passes: Callable[[Model], bool],
    run: Callable[[onnx.ModelProto, Arrays], list[np.ndarray]] = reference,
    **sizes: int,
) -> Model:
    """The model after `passes`, once it is seen to be valid, to keep its inputs and outputs and to compute the same."""
    model = load(before)
    for one in passes:
        one(model)
    after = model.to_proto()
    onnx.checker.check_model(after)
    assert [v.name for v in after.graph.input] == [v.name for v in before.graph.input]
    assert [v.name for v in after.graph.output] == [v.name for v in before.graph.output]
    inputs = feeds(before, **sizes)
    for x, y in zip(run(before, inputs), run(after, inputs), strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5)
    return model


def ops(model: Model) -> Counter[str]:
    return Counter(n.op_type for n in model.graph)


def shape(model: Model, name: str) -> list[int | str | None] | None:
    value = next(v for n in model.graph.all_nodes() for v in n.outputs if v.name == name)
    return None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
