"""Models of one node through the lowering, beside onnx.reference and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from qrt.graph import Model, ir
from qrt.graph.passes import prepare
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower.executable import Executable

OPSET = 21


def one_node(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    constants: Sequence[int] = (),
    outputs: int = 1,
    opset: int = OPSET,
    domain: str = "",
    result: tuple[type, int] | None = None,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node and its feeds. Inputs at the positions `constants` are initializers, None is an omitted input.

    `result`: dtype and rank of the output, for a `domain` whose operators nobody infers the types of.
    """
    names = [f"i{k}" if array is not None else "" for k, array in enumerate(inputs)]
    node = helper.make_node(op_type, names, [f"o{k}" for k in range(outputs)], domain=domain, **attributes)
    given = [
        (name, np.asarray(array), k in constants) for k, (name, array) in enumerate(zip(names, inputs, strict=True)) if array is not None
    ]
    graph = helper.make_graph(
        [node],
        op_type,
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a, known in given if not known],
        [helper.make_empty_tensor_value_info(f"o{k}") for k in range(outputs)] if result is None else [_declared("o0", *result)],
        [onnx.numpy_helper.from_array(a, name) for name, a, known in given if known],
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    feeds = {name: a for name, a, known in given if not known}
    if domain == "" and not all(o.type.tensor_type.HasField("shape") for o in model.graph.output):
        # The rank hangs on what is fed: declare the one that comes out.
        for output, array in zip(model.graph.output, ReferenceEvaluator(model).run(None, feeds), strict=True):
            output.CopyFrom(_declared(output.name, array.dtype, array.ndim))
    return model, feeds


def _declared(name: str, dtype: Any, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [None] * rank)


def as_model(proto: onnx.ModelProto) -> Model:
    """The proto as the lowering takes it. One in the fused form is what rules make, not what a file may hold: it stays as it is."""
    if any(node.domain == "ai.qrt" for node in proto.graph.node):
        return Model(ir.from_proto(proto))
    return prepare(load(proto))


def run_model(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], threads: int = 1) -> tuple[list[np.ndarray], dict[str, str]]:
    """The outputs by our kernels, and why nodes ran in Python, if some did."""
    executable = Executable(as_model(model), host_target(), threads)
    return executable.run({name: np.ascontiguousarray(a).reshape(a.shape) for name, a in feeds.items()}), executable.why


def check_node(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    constants: Sequence[int] = (),
    outputs: int = 1,
    rtol: float = 0,
    atol: float = 0,
    wanted: Sequence[np.ndarray] | None = None,
    **attributes: Any,
) -> list[np.ndarray]:
    """The node runs natively and gives what onnx.reference (or `wanted`) says, within `rtol` and `atol`."""
    model, feeds = one_node(op_type, inputs, constants, outputs, **attributes)
    found, why = run_model(model, feeds)
    assert not why
    expected = ReferenceEvaluator(model).run(None, feeds) if wanted is None else wanted
    for got, result in zip(found, expected, strict=True):
        result = np.asarray(result)
        assert (got.shape, got.dtype) == (result.shape, result.dtype)
        np.testing.assert_allclose(got, result, rtol, atol)
    return found
