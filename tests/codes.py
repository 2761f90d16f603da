"""How far two quantized outputs are apart, in codes; and a quantized model cut into its layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx.utils import Extractor

__all__ = ["assert_same_codes", "layers", "steps_apart"]


def steps_apart(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How many codes two outputs differ by. Float outputs count in 1/255 of their range, as 8-bit codes of them would."""
    if theirs.dtype.kind != "f":
        return np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
    return np.abs(ours - theirs) * (255 / float(np.ptp(theirs)))


def assert_same_codes(ours: np.ndarray, theirs: np.ndarray, where: str = "") -> None:
    """Never more than 1 apart, at least 99.9 % equal."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), where
    apart = steps_apart(ours, theirs)
    assert apart.max() <= 1.001, f"{where}: {apart.max()} codes apart"
    assert (apart < 0.5).mean() >= 0.999, f"{where}: {(apart < 0.5).mean():.4%} equal"


def _gives_codes(node: onnx.NodeProto) -> bool:
    return node.op_type == "QuantizeLinear" or node.op_type.startswith(("QLinear", "QGemm"))


def with_all_codes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every quantized value among its outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {o.name for o in shown.graph.output}
    for node in model.graph.node:
        if _gives_codes(node) and node.output[0] not in known:
            shown.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    return shown


def layers(model: onnx.ModelProto, codes: dict[str, np.ndarray]) -> Iterator[tuple[list[str], str, onnx.ModelProto]]:
    """Each quantized value as a model of its own: the quantized values (or graph inputs) that it is computed from, its name, the model.

    `codes`: every quantized value, for its dtype and shape.
    """
    inferred = onnx.ModelProto()
    inferred.CopyFrom(model)
    for name, array in codes.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        inferred.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    producers = {name: node for node in inferred.graph.node for name in node.output}
    constants = {tensor.name for tensor in inferred.graph.initializer}
    stops = {i.name for i in inferred.graph.input} | {n.output[0] for n in inferred.graph.node if _gives_codes(n)}
    extractor = Extractor(inferred)
    for node in inferred.graph.node:
        if not _gives_codes(node):
            continue
        sources: list[str] = []
        open_ = list(node.input)
        while open_:
            name = open_.pop()
            if name in stops:
                sources.append(name)
            elif name and name not in constants and name in producers:
                open_ += list(producers[name].input)
        sources = list(dict.fromkeys(sources))
        if sources:
            yield sources, node.output[0], extractor.extract_model(sources, [node.output[0]])
