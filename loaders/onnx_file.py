"""ONNX file, bytes or ModelProto → Model. What is taken, and up to which size, is in `_limits.py`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships without stubs

from qrt.core.errors import InvalidInput, ModelError, QrtError, UnsupportedOp
from qrt.core.sections import MAGIC
from qrt.graph import Model, all_graphs, ir
from qrt.graph.passes.infer_shapes import infer_shapes
from qrt.graph.passes.inline_functions import inline_functions
from qrt.graph.proto import outline, skeleton
from qrt.loaders._limits import MAX_FILE_BYTES
from qrt.loaders._structure import check_structure, disown
from qrt.loaders._tensors import check_tensors, hold_arrays, put_back
from qrt.loaders._wire import without_weights

__all__ = ["load"]

_NOT_COMPUTED = (ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)


def load(source: str | os.PathLike[str] | bytes | onnx.ModelProto | Model) -> Model:
    """A model from an ONNX file (with its external data), from the bytes of one, or from a proto, which stays untouched.

    Nodes come in order, calls of the file's own functions are written out, and shapes are inferred as far as they can be.
    A Model comes back as it is. Initializers listed among the inputs (IR version 3) are constants, not inputs.
    Raises ModelError for what cannot be read or is not a sound model, UnsupportedOp for what qrt cannot run, InvalidInput for another type.
    """
    if isinstance(source, Model):
        return source
    folder: Path | None = None
    held: dict[int, memoryview] = {}
    if isinstance(source, onnx.ModelProto):
        where = source.graph.name or "<ModelProto>"
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
    elif isinstance(source, bytes):
        where = "<bytes>"
        proto, held = _parse(source, where)
    elif not isinstance(source, str | os.PathLike):
        raise InvalidInput(f"a model is given as a path, as bytes or as an onnx.ModelProto, not as a {type(source).__name__}")
    else:
        # First of all: what a relative path means must not change while the file is read.
        path = Path(os.path.abspath(source))
        where, folder = path.name, path.parent
        proto, held = _parse(_read(path), str(path))
    try:
        in_one_file = check_tensors(proto, held, folder, where)
        disown(proto)
        check_structure(proto, where)
        model = _build(proto, where, in_one_file)
        _check_graph(proto, model)
        inline_functions(model)
        hold_arrays(model.graph, {proto.graph.initializer[position].name: raw for position, raw in held.items()})
        for graph in model.graph.subgraphs():
            hold_arrays(graph, {})
        _check_types(model)
    except QrtError:
        raise
    except Exception as error:  # whatever a damaged message makes the libraries below say
        raise ModelError(
            f"{where} is not a sound ONNX model: {_first_line(error)}; check it with onnx.checker or export it again"
        ) from error
    return model


def _read(path: Path) -> bytes:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ModelError(f"{path} is not a file; give the path of an ONNX file")
        if info.st_size > MAX_FILE_BYTES:
            raise ModelError(f"{path} has {info.st_size:,} bytes, and an ONNX file ends at 2 GiB; save it with external data")
        return path.read_bytes()
    except ModelError:  # a ValueError too
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; give the path of an ONNX file") from error


def _parse(data: bytes, where: str) -> tuple[onnx.ModelProto, dict[int, memoryview]]:
    """The message in `data`, and the raw data of its big initializers, by position, which the message lacks then."""
    if not data:
        raise ModelError(f"{where} is empty; export or download the model again")
    if data.startswith(MAGIC[:-2]):  # of any version
        raise ModelError(f"{where} is a compiled model, which sessions run and nothing else takes; give the ONNX file it was made of")
    try:
        proto = onnx.ModelProto()
        rest, cut = without_weights(data)
        proto.ParseFromString(rest)
        return proto, put_back(proto, cut)
    except DecodeError as error:
        raise ModelError(f"{where} is no ONNX file, or it is cut off or damaged ({error}); export or download it again") from error


def _build(proto: onnx.ModelProto, where: str, in_one_file: bool) -> Model:
    for imports in (proto.opset_import, *(f.opset_import for f in proto.functions)):
        for entry in imports:
            entry.domain = "" if entry.domain == "ai.onnx" else entry.domain  # its long name
    _forget_claims(proto.graph)
    model = ir.from_proto(proto)
    graph = model.graph
    for value in list(graph.inputs):
        if value.is_initializer():
            graph.inputs.remove(value)
    # From IR version 4 on, an initializer need not be an input.
    model.ir_version = max(model.ir_version, 4)
    for inner in all_graphs(graph):
        try:
            inner.sort()
        except ValueError as error:
            raise ModelError(f"{where}: graph {inner.name!r} has a cycle: a node needs its own result; export the model again") from error
    return Model(model, where, in_one_file)


def _forget_claims(graph: onnx.GraphProto) -> None:
    """What the file says of initializers besides the tensors themselves, and many exporters say of each."""
    names = {tensor.name for tensor in graph.initializer}
    told = [value for value in graph.value_info if value.name not in names]
    if len(told) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(told)


def _check_graph(proto: onnx.ModelProto, model: Model) -> None:
    """What onnx knows about the graph: attributes and arities."""
    try:
        _check_proto(outline(proto))
    except (onnx.checker.ValidationError, ValueError):
        _check_proto(skeleton(model)[0])  # in which nodes are in order


def _check_proto(proto: onnx.ModelProto) -> None:
    for info in proto.graph.output:
        # The checker wants types and shapes where ONNX Runtime and inference do without; it does not compare them with anything.
        if not info.HasField("type"):
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(proto, full_check=False)


def _check_types(model: Model) -> None:
    """What inference finds out, and that qrt computes with all of it."""
    infer_shapes(model)
    for value in model.graph.inputs:
        if value.type is None:
            raise ModelError(f"{model.name}: input {value.name!r} has no type; export the model again")
    for node in model.graph.all_nodes():
        for operand in (*node.inputs, *node.outputs):
            if operand is not None and operand.dtype in _NOT_COMPUTED:
                raise UnsupportedOp(
                    f"{model.name}: node {node.name!r} ({node.op_type}) works on {operand.name!r}, a {operand.dtype.name.lower()}; "
                    "qrt computes with real numbers and booleans: leave this part of the model outside"
                )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
