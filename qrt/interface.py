"""What a model looks like from outside: its inputs, outputs and what its file says about itself. Needs no ONNX to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qrt.core.errors import UnsupportedOp
from qrt.core.record import record
from qrt.feeds import Declared

if TYPE_CHECKING:
    from qrt.graph import Model, TensorInfo

__all__ = ["Interface", "ModelMetadata", "NodeArg", "declared", "interface_of"]


@record
class NodeArg:
    """An input or output. `shape`: ints, names of symbolic dimensions, None for what is not known; [] also for an unknown rank.

    `type`: for instance "tensor(float)".
    """

    name: str
    shape: list[int | str | None]
    type: str


@record
class ModelMetadata:
    """What a model file says about itself."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


@record
class Interface:
    """`feeds`: what is fed, as it is checked; `inputs` and `outputs`: the same and what comes out, as it is told."""

    feeds: list[Declared]
    inputs: list[NodeArg]
    outputs: list[NodeArg]
    metadata: ModelMetadata


def declared(model: Model) -> list[Declared]:
    """The inputs of a model. Raises UnsupportedOp for an input that is no tensor."""
    found = []
    for value, info in zip(model.graph.inputs, model.inputs, strict=True):
        if value.dtype is None or not info.dtype.startswith("tensor("):
            raise UnsupportedOp(
                f"{model.name}: input {value.name!r} is of type {value.type}; qrt takes tensors only: leave this part of the model outside"
            )
        found.append(Declared(info.name, np.dtype(value.dtype.numpy()), info.shape))
    return found


def interface_of(model: Model) -> Interface:
    """The interface of a model. Raises UnsupportedOp for an input that is no tensor."""
    head, graph = model.ir, model.graph
    metadata = ModelMetadata(
        producer_name=head.producer_name or "",
        graph_name=graph.name or "",
        domain=head.domain or "",
        description=head.doc_string or "",
        graph_description=graph.doc_string or "",
        version=head.model_version or 0,
        custom_metadata_map=dict(head.metadata_props),
    )
    return Interface(declared(model), [_node_arg(info) for info in model.inputs], [_node_arg(info) for info in model.outputs], metadata)


def _node_arg(info: TensorInfo) -> NodeArg:
    return NodeArg(info.name, list(info.shape or ()), info.dtype)
