"""JIT mode on a loaded Model: a dict of QConfigs, by module name, "" for all.

The same engine as the other doors; functions that torch has for TorchScript take a Model here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qrt.core.errors import InvalidInput, QuantizationError
from qrt.graph import Model
from qrt.graph.passes import prepare
from qrt.quantization.placement import QrtQuantizer
from qrt.quantization.prepared import PreparedModel, prepare_model
from qrt.quantization.qconfig import QConfig, QConfigAny
from qrt.quantization.qconfig_mapping import QConfigMapping

__all__ = [
    "convert_dynamic_jit",
    "convert_jit",
    "fuse_conv_bn_jit",
    "prepare_dynamic_jit",
    "prepare_jit",
    "quantize_dynamic_jit",
    "quantize_jit",
    "script_qconfig",
    "script_qconfig_dict",
]


def prepare_jit(model: Model, qconfig_dict: Mapping[str, QConfigAny], inplace: bool = False) -> PreparedModel:
    """The model with observers. Call it with samples, then give it to `convert_jit`.

    `qconfig_dict`: module name → QConfig, or None for what stays float; "" is everything else. `inplace`: a prepared model is always an
    object of its own, and `model` stays as it is. Raises InvalidInput for arguments of other types, QuantizationError for names of nothing.
    """
    if not isinstance(qconfig_dict, Mapping):
        raise InvalidInput(f"qconfig_dict is a {type(qconfig_dict).__name__}: give a dict of module name → QConfig, with '' for all")
    mapping = QConfigMapping().set_global(qconfig_dict.get(""))
    for name, qconfig in qconfig_dict.items():
        if name != "":
            mapping.set_module_name(name, qconfig)
    return prepare_model(model, QrtQuantizer(mapping))


def prepare_dynamic_jit(model: Model, qconfig_dict: Mapping[str, QConfigAny], inplace: bool = False) -> PreparedModel:
    """As `prepare_jit`, for QConfigs whose activations are quantized in each run, such as `default_dynamic_qconfig`.

    Raises QuantizationError too for one whose are not.
    """
    prepared = prepare_jit(model, qconfig_dict, inplace)
    if prepared.learns:
        name = next(group.name for group in prepared.groups if not group.held and not group.spec.is_dynamic)
        raise QuantizationError(f"{name!r} would be quantized statically: prepare_dynamic_jit takes dynamic QConfigs; or use prepare_jit")
    return prepared


def convert_jit(model: PreparedModel, inplace: bool = False, debug: bool = False, preserved_attrs: Sequence[str] | None = None) -> Model:
    """The prepared model in QDQ form, standard ONNX, with what its observers learned.

    `inplace`: see `prepare_jit`. `debug`: torch leaves float operators between Q and DQ then, which here is always so. `preserved_attrs`: a
    Model keeps all its metadata.
    """
    if not isinstance(model, PreparedModel):
        raise InvalidInput(f"convert_jit takes what prepare_jit gives, not a {type(model).__name__}")
    return model.convert()


def convert_dynamic_jit(
    model: PreparedModel, inplace: bool = False, debug: bool = False, preserved_attrs: Sequence[str] | None = None
) -> Model:
    """As `convert_jit`, for a model of `prepare_dynamic_jit`."""
    return convert_jit(model, inplace, debug, preserved_attrs)


def quantize_jit(
    model: Model,
    qconfig_dict: Mapping[str, QConfigAny],
    run_fn: Callable[..., Any],
    run_args: Sequence[Any],
    inplace: bool = False,
    debug: bool = False,
) -> Model:
    """`prepare_jit`, `run_fn(prepared, *run_args)`, `convert_jit`. `inplace`: `model` becomes the quantized one, and is returned."""
    prepared = prepare_jit(model, qconfig_dict)
    run_fn(prepared, *run_args)
    return _result(model, convert_jit(prepared, debug=debug), inplace)


def quantize_dynamic_jit(model: Model, qconfig_dict: Mapping[str, QConfigAny], inplace: bool = False, debug: bool = False) -> Model:
    """`prepare_dynamic_jit` and `convert_dynamic_jit`. `inplace`: as in `quantize_jit`."""
    return _result(model, convert_dynamic_jit(prepare_dynamic_jit(model, qconfig_dict), debug=debug), inplace)


def fuse_conv_bn_jit(model: Model, inplace: bool = False) -> Model:
    """The model with BatchNorm folded into the products before it. `inplace`: as in `quantize_jit`."""
    return _result(model, prepare(model), inplace)


def script_qconfig(qconfig: QConfig) -> QConfig:
    """A QConfig of one observer of each kind rather than of what makes them."""
    return tuple.__new__(QConfig, (qconfig.activation(), qconfig.weight()))


def script_qconfig_dict(qconfig_dict: Mapping[str, QConfigAny]) -> dict[str, QConfigAny]:
    """`script_qconfig` of every QConfig of a dict; None stays None."""
    return {name: None if qconfig is None else script_qconfig(qconfig) for name, qconfig in qconfig_dict.items()}


def _result(model: Model, made: Model, inplace: bool) -> Model:
    if inplace:
        model.ir = made.ir
        return model
    return made
