"""The types of what one node makes, by onnx's inference of that operator, with guards around it.

Inference is asked node by node, never for a whole graph: between two nodes stand the checks that onnx's own code lacks. A vector of
2**40 entries used as a shape makes it build 2**40 dimensions, and a Slice of an empty tensor can abort the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import onnx
from onnx import NodeProto, TensorProto, TypeProto, defs, helper, shape_inference

from qrt.core.errors import ModelError
from qrt.core.record import record

__all__ = ["check_dims", "infer_node"]

# More elements than any machine holds; products of dimensions below it stay far from 64 bits.
_MAX_ELEMENTS = 2**40
_MAX_RANK = 32
# Operators for which the length of a vector becomes a rank.
_LENGTH_IS_RANK = frozenset(
    {"AffineGrid", "CenterCropPad", "Col2Im", "ConstantOfShape", "Expand", "MaxUnpool", "Pad", "Reshape", "Resize", "Slice"}
    | {"Squeeze", "Tile", "Unsqueeze", "Upsample"}
)
# Standard operators that onnx has no inference for: their output is like their first input.
_LIKE_INPUT = frozenset({"GroupNormalization", "MeanVarianceNormalization"})
_NAMES: dict[int, str] = {TensorProto.FLOAT: "float", TensorProto.DOUBLE: "double"}


@record
class _Formal:
    """A parameter of an operator: the type variable it shares with others, what that may be, whether all of a variadic one are alike."""

    variable: str
    allowed: frozenset[str]
    alike: bool


@cache
def _formals(op_type: str, version: int) -> tuple[_Formal, ...]:
    schema = defs.get_schema(op_type, version, "")
    return tuple(_Formal(p.type_str, frozenset(p.types), p.is_homogeneous) for p in schema.inputs)


def infer_node(
    node: NodeProto, types: Mapping[str, TypeProto], data: Mapping[str, TensorProto], opsets: Mapping[str, int], label: str
) -> dict[str, TypeProto]:
    """Output name → type, as far as it follows from the input `types` and the values `data` of constant inputs.

    `node` is of the standard domain and carries no graph. Raises ModelError, naming `label`, for inputs that do not fit it.
    """
    version = opsets[""]
    known = {name: types[name] for name in node.input if name in types}
    _check_inputs(node, known, version, label)
    if any(name and name not in known for name in node.input):
        # onnx's inference may take a missing type for a missing input: it is not asked.
        return {}
    if node.op_type in _LIKE_INPUT:
        return {node.output[0]: known[node.input[0]]}
    if node.op_type == "Slice" and any(d.dim_value == 0 for d in _dims(known[node.input[0]]) if d.HasField("dim_value")):
        return {node.output[0]: _slice_of_nothing(known[node.input[0]])}
    try:
        found = shape_inference.infer_node_outputs(
            defs.get_schema(node.op_type, version, ""),
            node,
            known,
            {name: data[name] for name in node.input if name in data},
            opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()],
        )
    except Exception as error:
        raise ModelError(f"{label} is ill-typed: {_reason(error)}; export the model again") from error
    for name, made in found.items():
        check_dims([d.dim_value for d in _dims(made) if d.HasField("dim_value")], f"{label} would make {name!r}, which")
    return found


def check_dims(dims: Iterable[int], what: str) -> None:
    """Raises ModelError where `dims`, the known dimensions of `what`, are negative or too big or too many for any tensor."""
    elements, rank = 1, 0
    for dim in dims:
        if dim < 0:
            raise ModelError(f"{what} has the negative dimension {dim}; export the model again")
        elements, rank = elements * max(dim, 1), rank + 1
    if elements > _MAX_ELEMENTS or rank > _MAX_RANK:
        raise ModelError(
            f"{what} has {rank} dimensions and {elements:,} elements; no tensor has more than {_MAX_RANK} and {_MAX_ELEMENTS:,}"
        )


def _check_inputs(node: NodeProto, known: Mapping[str, TypeProto], version: int, label: str) -> None:
    formals = _formals(node.op_type, version)
    bound: dict[str, str] = {}
    for place, name in enumerate(node.input):
        if name not in known or not known[name].HasField("tensor_type") or not formals:
            continue
        tensor = known[name].tensor_type
        formal = formals[min(place, len(formals) - 1)]
        number = tensor.elem_type
        spelled = f"tensor({_NAMES.get(number) or TensorProto.DataType.Name(number).lower()})"
        expected = bound.setdefault(formal.variable, spelled) if formal.alike else spelled
        if spelled not in formal.allowed or spelled != expected:
            wanted = expected if spelled != expected else " or ".join(sorted(formal.allowed))
            raise ModelError(f"{label} is ill-typed: its input {name!r} is a {spelled} and should be a {wanted}; export the model again")
        dims = _dims(known[name])
        if place > 0 or node.op_type == "ConstantOfShape":
            _check_length(node, dims, name, label)


def _check_length(node: NodeProto, dims: Sequence[onnx.TensorShapeProto.Dimension], name: str, label: str) -> None:
    # A Pad or Resize has two numbers per dimension.
    if node.op_type in _LENGTH_IS_RANK and len(dims) == 1 and dims[0].dim_value > 2 * _MAX_RANK:
        raise ModelError(f"{label} reads a shape of {dims[0].dim_value:,} dimensions from {name!r}; no tensor has more than {_MAX_RANK}")


def _dims(type_: TypeProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    dims: Sequence[onnx.TensorShapeProto.Dimension] = type_.tensor_type.shape.dim
    return dims


def _slice_of_nothing(source: TypeProto) -> TypeProto:
    """The type of a Slice of an empty tensor: empty axes stay so, nothing is said about the others."""
    made = TypeProto()
    made.tensor_type.elem_type = source.tensor_type.elem_type
    made.tensor_type.shape.SetInParent()
    for dim in _dims(source):
        new = made.tensor_type.shape.dim.add()
        if dim.HasField("dim_value") and dim.dim_value == 0:
            new.dim_value = 0
    return made


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
