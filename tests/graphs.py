"""Small models for tests of rules and quantization, written as text."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from qrt.graph import Model
from qrt.graph.passes import prepare
from qrt.loaders import load

U8, I8, I32, F32 = np.uint8, np.int8, np.int32, np.float32


def make(text: str, opset: int = 21, **constants: np.ndarray | float | int) -> onnx.ModelProto:
    """The model of `text`, "inputs => outputs { nodes }" in onnx.parser's language, with `constants` as initializers.

    Python floats become float32 scalars.
    """
    body = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> test {text}'
    model = parser.parse_model(body)
    for name, value in constants.items():
        array = np.asarray(value, F32) if isinstance(value, float) else np.asarray(value)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def prepared(model: onnx.ModelProto) -> Model:
    """The model, loaded and cleaned."""
    return prepare(load(model))


def reference(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    """What onnx.reference computes."""
    return [np.asarray(r) for r in ReferenceEvaluator(model).run(None, feeds)]


def ops(model: Model) -> dict[str, int]:
    """Operator → how many nodes."""
    return dict(Counter(node.op_type for node in model.graph))


def images(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def codes(*shape: int, seed: int = 0, dtype: type = I8, limit: int = 127) -> np.ndarray:
    """Codes drawn evenly from -limit..limit, or 0..limit for uint8."""
    low = 0 if dtype is U8 else -limit
    return np.random.default_rng(seed).integers(low, limit + 1, shape).astype(dtype)
