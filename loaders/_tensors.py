"""The data of tensors: its length against shape and type, and the files beside a model."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from qrt.core.errors import ModelError, UnsupportedOp
from qrt.graph import ir
from qrt.loaders._limits import MAX_MODEL_BYTES, MAX_RANK

__all__ = ["attribute_graphs", "check_tensors", "hold_arrays", "put_back"]

_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_INT32 = "int32_data"
# The typed field that holds a tensor's data when `raw_data` does not (onnx.proto, TensorProto).
_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
# Codes in int32_data that do not fit their type.
_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.FLOAT16: (0, 65535),
    TensorProto.BFLOAT16: (0, 65535),
    TensorProto.BOOL: (0, 1),
}
# Elements that NumPy reads where they lie.
_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "f4",
    TensorProto.DOUBLE: "f8",
    TensorProto.FLOAT16: "f2",
    TensorProto.UINT8: "u1",
    TensorProto.INT8: "i1",
    TensorProto.INT16: "i2",
    TensorProto.INT32: "i4",
    TensorProto.INT64: "i8",
}


def attribute_graphs(attribute: AttributeProto) -> Iterator[GraphProto]:
    """The graphs that an attribute carries."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def put_back(proto: ModelProto, cut: Mapping[int, memoryview]) -> dict[int, memoryview]:
    """Of the raw data `cut` from the initializers at these positions, what an array can be made of where it lies; the rest returns to the
    message."""
    held = {}
    for position, raw in cut.items():
        tensor = proto.graph.initializer[position]
        if tensor.data_type in _DTYPES:
            held[position] = raw
        else:
            tensor.raw_data = bytes(raw)
    return held


def check_tensors(proto: ModelProto, held: Mapping[int, memoryview], folder: Path | None, where: str) -> bool:
    """Check every tensor of a model, and read into it what lies in files of `folder` (None: the model has no folder).

    `held`: raw data of initializers, by position, that is not in the message. Gives whether all data was in the model itself.
    Raises ModelError naming `where`, the tensor and what is wrong; UnsupportedOp for sparse tensors.
    """
    total, in_one_file = 0, True
    for position, tensor in enumerate(_tensors(proto, where)):  # the initializers come first
        label = f"{where}: tensor {tensor.name!r}"
        size = _byte_size(tensor, label)
        total += size
        if total > MAX_MODEL_BYTES:
            raise ModelError(
                f"{where}: its tensors take more than {MAX_MODEL_BYTES >> 30} GiB, which is more than qrt loads; split the model"
            )
        if tensor.data_location == TensorProto.EXTERNAL:
            _read_external(tensor, size, folder, label)
            in_one_file = False
        elif position in held:
            _check_count(tensor, len(held[position]), size, "bytes", label)
        else:
            _check_length(tensor, size, label)
    return in_one_file


def hold_arrays(graph: ir.Graph, held: Mapping[str, memoryview]) -> None:
    """Turn the graph's tensors into arrays: one that lies in a message is copied whenever it is looked at, and holds all of the message.

    `held`: raw data of initializers, by name, that is not in the message; arrays are made where it lies.
    """
    for name, value in graph.initializers.items():
        if name in held and value.const_value is not None:
            value.const_value = _view(value.const_value, held[name])
        elif value.const_value is not None:
            value.const_value = _array(value.const_value)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                node.attributes[name] = ir.AttrTensor(name, _array(attribute.as_tensor()), attribute.doc_string)


def _array(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensor if tensor.dtype == ir.DataType.STRING else _holding(tensor, tensor.numpy())


def _view(tensor: ir.TensorProtocol, raw: memoryview) -> ir.TensorProtocol:
    array = np.frombuffer(raw, _DTYPES[tensor.dtype]).reshape(tensor.shape.numpy())
    return _holding(tensor, array if array.flags.aligned else array.copy())


def _holding(tensor: ir.TensorProtocol, array: np.ndarray) -> ir.TensorProtocol:
    """`tensor`, its contents in `array`."""
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props))


def _tensors(proto: ModelProto, where: str) -> Iterator[TensorProto]:
    yield from _graph_tensors(proto.graph, where)
    for function in proto.functions:
        yield from _node_tensors(function.node, where)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute, where)


def _graph_tensors(graph: GraphProto, where: str) -> Iterator[TensorProto]:
    if graph.sparse_initializer:
        raise UnsupportedOp(f"{where}: graph {graph.name!r} has sparse initializers, which qrt does not take; store them dense")
    yield from graph.initializer
    yield from _node_tensors(graph.node, where)


def _node_tensors(nodes: Iterable[NodeProto], where: str) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute, where)


def _attribute_tensors(attribute: AttributeProto, where: str) -> Iterator[TensorProto]:
    if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
        raise UnsupportedOp(f"{where}: attribute {attribute.name!r} is a sparse tensor, which qrt does not take; store it dense")
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for graph in attribute_graphs(attribute):
        yield from _graph_tensors(graph, where)


def _byte_size(tensor: TensorProto, label: str) -> int:
    """The bytes that shape and type call for."""
    if len(tensor.dims) > MAX_RANK:
        raise ModelError(f"{label} has {len(tensor.dims)} dimensions; qrt takes {MAX_RANK} at most")
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{label} has a negative dimension in its shape {list(tensor.dims)}; export the model again")
    if tensor.data_type not in _TYPES:
        raise ModelError(f"{label} has the element type {tensor.data_type}, which ONNX does not know; export the model again")
    if tensor.HasField("segment"):
        raise ModelError(f"{label} is stored in segments, which no tool writes; export the model again")
    bits: int = 8 if tensor.data_type == TensorProto.STRING else ir.DataType(tensor.data_type).bitwidth
    elements: int = math.prod(tensor.dims)
    return -(-elements * bits // 8)


def _check_length(tensor: TensorProto, size: int, label: str) -> None:
    elements = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        if tensor.data_type == TensorProto.STRING:
            raise ModelError(f"{label} stores strings as raw bytes, which ONNX forbids; export the model again")
        have, want, unit = len(tensor.raw_data), size, "bytes"
    else:
        field = _FIELDS.get(tensor.data_type, _INT32)
        have, want, unit = len(getattr(tensor, field)), elements, f"entries in {field}"
        if tensor.data_type in _COMPLEX:
            want *= 2
        elif field == _INT32 and ir.DataType(tensor.data_type).bitwidth < 8:
            want = size
    _check_count(tensor, have, want, unit, label)
    if tensor.data_type in _RANGES and tensor.int32_data:
        low, high = _RANGES[tensor.data_type]
        if min(tensor.int32_data) < low or max(tensor.int32_data) > high:
            raise ModelError(f"{label} holds values outside its type's range {low}..{high}: the file is damaged; export it again")


def _check_count(tensor: TensorProto, have: int, want: int, unit: str, label: str) -> None:
    if have != want:
        raise ModelError(f"{label} of shape {list(tensor.dims)} needs {want} {unit} but has {have}: the file is damaged; export it again")


def _read_external(tensor: TensorProto, size: int, folder: Path | None, label: str) -> None:
    """Replace the reference to a file by the file's bytes."""
    if folder is None:
        raise ModelError(f"{label} lies in a file of its own, and a model given as bytes or proto has no folder; load it by its path")
    if tensor.data_type == TensorProto.STRING:
        raise ModelError(f"{label} stores strings in a file of its own, which ONNX forbids; export the model again")
    entries = {e.key: e.value for e in tensor.external_data}
    path = _inside(folder, entries.get("location", ""), label)
    offset = _count(entries.get("offset", "0"), "offset", label)
    length = _count(entries.get("length", str(size)), "length", label)
    if length != size:
        raise ModelError(f"{label} of shape {list(tensor.dims)} needs {size} bytes but its length says {length}; export the model again")
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode) or offset + length > info.st_size:
                raise ModelError(f"{label}: bytes {offset}..{offset + length} are not in {path.name} ({info.st_size} bytes); copy it whole")
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise ModelError(f"{label}: cannot read {path}: {error.strerror or error}; put the file beside the model") from error
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT
    tensor.raw_data = data


def _inside(folder: Path, location: str, label: str) -> Path:
    """The file at `location`, if it is a plain file in `folder` or below, wherever symbolic links lead."""
    parts = location.replace("\\", "/").split("/")
    if not location or os.path.isabs(location) or parts[0] == "" or ":" in parts[0] or ".." in parts or "\0" in location:
        raise ModelError(f"{label} names the file {location!r}, which is not a path inside the model's folder; export the model again")
    path = Path(os.path.realpath(folder / location))
    if not path.is_relative_to(os.path.realpath(folder)):
        raise ModelError(f"{label}: {location!r} leads out of the model's folder {folder}; copy the file itself beside the model")
    # Opening a named pipe would wait for a writer for ever.
    if path.exists() and not path.is_file():
        raise ModelError(f"{label}: {path} is not a plain file; put the tensor's file beside the model")
    return path


def _count(text: str, what: str, label: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{label} has the {what} {text[:40]!r}, which is not a number of bytes; export the model again")
    return int(text)
