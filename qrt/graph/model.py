"""Model: an ONNX graph with the words users need around it. Every other floor sees models through this class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import onnx
import onnx_ir as ir

from qrt.core.files import write_together, write_whole
from qrt.core.record import record
from qrt.graph.nodes import all_graphs

__all__ = ["Model", "TensorInfo"]

# A protobuf message cannot pass 2 GiB; what is left under it is room for nodes and names.
_EMBED_LIMIT = 2**31 - 2**26

_ORT_NAMES = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}


@record
class TensorInfo:
    """One input or output of a model.

    `shape`: an entry per dimension, an int, the name of a symbolic dimension, or None where nothing is known; None for an unknown rank.
    `dtype`: as ONNX Runtime spells it: "tensor(float)", "tensor(int64)", "seq(tensor(float))" …
    """

    name: str
    shape: tuple[int | str | None, ...] | None
    dtype: str


class Model:
    """A model: `ir` is its onnx_ir form, which passes and rules change in place; `name` is its file's name, for messages.

    `in_one_file`: whether the file that it came from held all its weights.
    """

    # Other forms a model can be saved in, by suffix: floors above, which know how, add theirs.
    savers: ClassVar[dict[str, Callable[[Model, Path], None]]] = {}

    def __init__(self, model: ir.Model, name: str = "model", in_one_file: bool = True) -> None:
        self.ir = model
        self.name = name
        self.in_one_file = in_one_file

    @property
    def graph(self) -> ir.Graph:
        """The top graph."""
        return self.ir.graph

    @property
    def inputs(self) -> list[TensorInfo]:
        """What a caller must feed, in order."""
        return [_tensor_info(v) for v in self.graph.inputs]

    @property
    def outputs(self) -> list[TensorInfo]:
        """What a run returns, in order."""
        return [_tensor_info(v) for v in self.graph.outputs]

    def clone(self) -> Model:
        """A copy that may be changed without changing this one; the weights, which nobody changes in place, are shared."""
        return Model(self.ir.clone(), self.name, self.in_one_file)

    def to_proto(self) -> onnx.ModelProto:
        """The model as a new ModelProto with all weights inside (it cannot be serialized past 2 GiB; `save` can)."""
        return ir.to_proto(self.ir)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ONNX file. It appears whole or not at all. Weights past 2 GiB go to `<file name>.data` beside it.

        A path that ends in .qrt becomes a compiled model instead: see `qrt.compile`, which can be told for which shapes.
        Raises OutputError if it cannot be written.
        """
        target = Path(os.path.abspath(path))
        if target.suffix in self.savers:
            self.savers[target.suffix](self, target)
            return
        if self._weight_bytes() > _EMBED_LIMIT:
            data = f"{target.name}.data"
            write_together(target, data, lambda part: ir.save(self.ir, part, format="protobuf", external_data=data))
        else:
            whole = self.to_proto().SerializeToString()
            write_whole(target, lambda part: part.write_bytes(whole))

    def _tensors(self) -> Iterable[ir.TensorProtocol]:
        for graph in all_graphs(self.graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield value.const_value
            for node in graph:
                for attr in node.attributes.values():
                    if attr.type == ir.AttributeType.TENSOR and not attr.is_ref():
                        yield attr.as_tensor()

    def _weight_bytes(self) -> int:
        return sum(t.nbytes for t in self._tensors())

    def __repr__(self) -> str:
        nodes = sum(len(g) for g in all_graphs(self.graph))
        parameters = sum(t.size for t in self._tensors())
        return f"<qrt.Model {self.name!r}: {nodes} nodes, {parameters:,} parameters, {self._weight_bytes():,} bytes>"


def _tensor_info(value: ir.Value) -> TensorInfo:
    shape = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return TensorInfo(value.name or "", shape, _dtype_name(value.type))


def _dtype_name(type_: ir.TypeProtocol | None) -> str:
    match type_:
        case None:
            return "unknown"
        case ir.SequenceType():
            return f"seq({_dtype_name(type_.elem_type)})"
        case ir.OptionalType():
            return f"optional({_dtype_name(type_.elem_type)})"
        case _:
            dtype = type_.dtype
            kind = "sparse_tensor" if isinstance(type_, ir.SparseTensorType) else "tensor"
            return f"{kind}({_ORT_NAMES.get(dtype, dtype.name.lower())})"
