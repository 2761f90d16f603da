"""ONNX file → Model."""

from __future__ import annotations

import os

import onnx

from qrt.graph import Model, ir


def load(source: str | os.PathLike[str] | bytes | onnx.ModelProto | Model) -> Model:
    """Read a model."""
    proto = onnx.load(source)
    m = ir.from_proto(proto)
    for v in list(m.graph.inputs):
        if v.is_initializer():
            m.graph.inputs.remove(v)
    m.ir_version = max(m.ir_version, 4)
    return Model(m, os.path.basename(source))
