"""A small valid model that tests damage."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser


def model(text: str, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{text}')


def small() -> onnx.ModelProto:
    """A valid model with a weight in raw data, a typed bias, a subgraph and a Constant node."""
    proto = model("""
        g (float[N,4] x, bool c) => (float[N,3] y) {
            k = Constant <value = float {2.0}> ()
            h = Gemm (x, w, b)
            s = Mul (h, k)
            y = If (c) <then_branch = t () => (float[N,3] a) { a = Relu (s) }, else_branch = e () => (float[N,3] n) { n = Neg (s) }>
        }""")
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w"))
    proto.graph.initializer.append(helper.make_tensor("b", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]))
    return proto


SMALL = small().SerializeToString()
