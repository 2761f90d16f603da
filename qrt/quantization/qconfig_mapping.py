"""QConfigMapping: which node gets which QConfig; and the default mappings of torch.ao.quantization."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from qrt.core.errors import InvalidInput
from qrt.observers import (
    FixedQParamsFakeQuantize,
    PartialWrapper,
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
    default_placeholder_observer,
    default_weight_fake_quant,
    default_weight_observer,
)
from qrt.quantization.qconfig import (
    QConfig,
    QConfigAny,
    default_qrt_qconfig,
    default_quint8_weight_qconfig,
    default_reuse_input_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
)

__all__ = [
    "QConfigMapping",
    "get_default_qat_qconfig_dict",
    "get_default_qat_qconfig_mapping",
    "get_default_qconfig_dict",
    "get_default_qconfig_mapping",
    "get_default_qrt_qconfig_mapping",
    "op_types",
]

ObjectType: TypeAlias = str | Callable[..., Any]

# ONNX operators → what torch calls them: functions, methods and modules. A trailing underscore (in place) means the same.
_TORCH_NAMES: dict[tuple[str, ...], str] = {
    ("Add",): "add iadd",
    ("AveragePool",): "avg_pool1d avg_pool2d avg_pool3d AvgPool1d AvgPool2d AvgPool3d",
    ("BatchNormalization",): "batch_norm BatchNorm1d BatchNorm2d BatchNorm3d",
    ("Clip",): "clamp clip hardtanh Hardtanh relu6 ReLU6",
    ("Concat",): "cat concat",
    ("Conv",): "conv1d conv2d conv3d Conv1d Conv2d Conv3d",
    ("ConvTranspose",): "conv_transpose1d conv_transpose2d conv_transpose3d ConvTranspose1d ConvTranspose2d ConvTranspose3d",
    ("Div",): "div truediv",
    ("Elu",): "elu ELU",
    ("Flatten",): "flatten",
    ("Gather",): "embedding Embedding index_select",
    ("Gelu",): "gelu GELU",
    ("Gemm", "MatMul"): "linear Linear",
    ("GlobalAveragePool",): "adaptive_avg_pool1d adaptive_avg_pool2d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d",
    ("HardSigmoid",): "hardsigmoid Hardsigmoid",
    ("HardSwish",): "hardswish Hardswish",
    ("InstanceNormalization",): "instance_norm InstanceNorm1d InstanceNorm2d InstanceNorm3d",
    ("LayerNormalization",): "layer_norm LayerNorm",
    ("LeakyRelu",): "leaky_relu LeakyReLU",
    ("MatMul",): "matmul bmm",
    ("MaxPool",): "max_pool1d max_pool2d max_pool3d MaxPool1d MaxPool2d MaxPool3d",
    ("Mul",): "mul imul",
    ("PRelu",): "prelu PReLU",
    ("ReduceMean",): "mean",
    ("Relu",): "relu ReLU",
    ("Reshape",): "reshape view",
    ("Resize",): "interpolate Upsample",
    ("Sigmoid",): "sigmoid",
    ("Softmax",): "softmax",
    ("Split",): "chunk split",
    ("Squeeze",): "squeeze",
    ("Sub",): "sub",
    ("Tanh",): "tanh",
    ("Transpose",): "permute transpose",
    ("Unsqueeze",): "unsqueeze",
}
_OP_TYPES = {name: types for types, names in _TORCH_NAMES.items() for name in names.split()}

_FIXED: dict[str, PartialWrapper] = {
    "HardSigmoid": default_fixed_qparams_range_0to1_observer,
    "Sigmoid": default_fixed_qparams_range_0to1_observer,
    "Softmax": default_fixed_qparams_range_0to1_observer,
    "Tanh": default_fixed_qparams_range_neg1to1_observer,
}
# The default mappings speak of these, so a model need not have them.
_DEFAULT_TYPES = frozenset({"Reshape", "ConvTranspose", "LayerNormalization", "PRelu", *_FIXED})


def op_types(object_type: ObjectType) -> tuple[str, ...]:
    """The ONNX operators that an object type stands for: "Conv" for itself, and for torch's names ("conv2d", "Linear", "sigmoid_", a
    class or function of such a name) what they become in an ONNX graph."""
    name = object_type if isinstance(object_type, str) else getattr(object_type, "__name__", "")
    return _OP_TYPES.get(name) or _OP_TYPES.get(name.removesuffix("_")) or (name,)


class QConfigMapping:
    """Which QConfig each node gets; None leaves a node float, and so does a mapping that says nothing of it.

    In rising priority: the global one, those of object types, of regexes, of module names, and of one node counted by type below
    a module. A module name is a node's name or the beginning of its path: "layer1.0" and "/layer1/layer1.0" both cover the node
    "/layer1/layer1.0/conv1/Conv", and the longest one that covers a node counts.
    """

    def __init__(self) -> None:
        self.global_qconfig: QConfigAny = None
        self.object_type_qconfigs: dict[ObjectType, QConfigAny] = {}
        self.module_name_regex_qconfigs: dict[str, QConfigAny] = {}
        self.module_name_qconfigs: dict[str, QConfigAny] = {}
        self.module_name_object_type_order_qconfigs: dict[tuple[str, ObjectType, int], QConfigAny] = {}

    def set_global(self, global_qconfig: QConfigAny) -> QConfigMapping:
        """The QConfig of every node of which nothing else is said."""
        self.global_qconfig = _checked(global_qconfig)
        return self

    def set_object_type(self, object_type: ObjectType, qconfig: QConfigAny) -> QConfigMapping:
        """The QConfig of every node of a type: an ONNX operator ("Conv") or torch's name for one ("conv2d"); see `op_types`.

        What is set later counts.
        """
        _check_type(object_type)
        self.object_type_qconfigs.pop(object_type, None)
        self.object_type_qconfigs[object_type] = _checked(qconfig)
        return self

    def set_module_name_regex(self, module_name_regex: str, qconfig: QConfigAny) -> QConfigMapping:
        """The QConfig of every node whose name, or dotted path, begins with a match of the regex. The first that matches counts.

        Raises InvalidInput for what is no regex.
        """
        try:
            re.compile(module_name_regex)
        except (re.error, TypeError) as error:
            raise InvalidInput(f"{module_name_regex!r} is no regular expression: {error}") from error
        self.module_name_regex_qconfigs[module_name_regex] = _checked(qconfig)
        return self

    def set_module_name(self, module_name: str, qconfig: QConfigAny) -> QConfigMapping:
        """The QConfig of the node of that name, or of all nodes below that module."""
        _check_name(module_name)
        self.module_name_qconfigs[module_name] = _checked(qconfig)
        return self

    def set_module_name_object_type_order(
        self, module_name: str, object_type: ObjectType, index: int, qconfig: QConfigAny
    ) -> QConfigMapping:
        """The QConfig of one node: the one that `index` others of its type precede below the module ("" is the whole model)."""
        _check_name(module_name)
        _check_type(object_type)
        if not isinstance(index, int) or index < 0:
            raise InvalidInput(f"index is {index!r}: give how many nodes of type {object_type!r} come before, from 0 on")
        self.module_name_object_type_order_qconfigs[module_name, object_type, index] = _checked(qconfig)
        return self

    def resolve(self, nodes: Iterable[tuple[str, str]]) -> list[QConfigAny]:
        """The QConfig of each node of a graph, given the name and operator of all, in their order."""
        seen: Counter[tuple[str, ObjectType]] = Counter()
        found = []
        for name, op_type in nodes:
            groups = self._groups(name, op_type)
            found.append(self._of(name, op_type, {group: seen[group] for group in groups}))
            seen.update(groups)
        return found

    def of(self, name: str, op_type: str, index: int = 0) -> QConfigAny:
        """The QConfig of one node. `index`: how many nodes of its type come before it, below whichever module is asked for."""
        return self._of(name, op_type, dict.fromkeys(self._groups(name, op_type), index))

    def unmatched(self, nodes: Iterable[tuple[str, str]]) -> list[str]:
        """The entries that speak of none of these nodes (name, operator), in words.

        Types that the default mappings override are not missed.
        """
        nodes = list(nodes)
        names = [name for name, _ in nodes]
        present = {op_type for _, op_type in nodes}
        groups = Counter(group for name, op_type in nodes for group in self._groups(name, op_type))
        types = [key for key in self.object_type_qconfigs if not present & set(op_types(key)) and not set(op_types(key)) <= _DEFAULT_TYPES]
        regexes = [key for key in self.module_name_regex_qconfigs if not any(_matches(key, name) for name in names)]
        modules = [key for key in self.module_name_qconfigs if not any(covers(key, name) for name in names)]
        orders = [key for key in self.module_name_object_type_order_qconfigs if groups[key[:2]] <= key[2]]
        return [
            *(f"object type {key!r}" for key in types),
            *(f"module name regex {key!r}" for key in regexes),
            *(f"module name {key!r}" for key in modules),
            *(f"number {index} of type {kind!r} below {module!r}" for module, kind, index in orders),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The mapping as a dict: "" → the global QConfig; "object_type", "module_name_regex", "module_name" → lists of (key, QConfig);
        "module_name_object_type_order" → a list of (module name, type, index, QConfig)."""
        return {
            "": self.global_qconfig,
            "object_type": list(self.object_type_qconfigs.items()),
            "module_name_regex": list(self.module_name_regex_qconfigs.items()),
            "module_name": list(self.module_name_qconfigs.items()),
            "module_name_object_type_order": [(*key, q) for key, q in self.module_name_object_type_order_qconfigs.items()],
        }

    @classmethod
    def from_dict(cls, qconfig_dict: Mapping[str, Any]) -> QConfigMapping:
        """The mapping that `to_dict` wrote; all keys may be missing. Raises InvalidInput for others, and for entries of another form."""
        made = cls()
        setters: dict[str, Callable[..., QConfigMapping]] = {
            "object_type": made.set_object_type,
            "module_name_regex": made.set_module_name_regex,
            "module_name": made.set_module_name,
            "module_name_object_type_order": made.set_module_name_object_type_order,
        }
        unknown = sorted(set(qconfig_dict) - {"", *setters})
        if unknown:
            raise InvalidInput(f"a qconfig dict has no key {unknown[0]!r}: give {['', *setters]}")
        made.set_global(qconfig_dict.get(""))
        for key, setter in setters.items():
            length = 4 if setter == made.set_module_name_object_type_order else 2
            for entry in qconfig_dict.get(key, []):
                if not isinstance(entry, tuple | list) or len(entry) != length:
                    raise InvalidInput(f"{key} holds {entry!r}: give tuples of {length}, the last a QConfig or None")
                setter(*entry)
        return made

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for style, qconfigs in vars(self).items():
            entries = [f"{key}: {q}" for key, q in qconfigs.items()] if isinstance(qconfigs, dict) else [str(qconfigs)]
            lines += [f" {style}", *(f"  {entry}" for entry in entries or ["{}"])]
        return "\n".join([*lines, ")"])

    def _of(self, name: str, op_type: str, indexes: Mapping[tuple[str, ObjectType], int]) -> QConfigAny:
        """The QConfig of a node; `indexes`: its number in each group that counts it."""
        numbered = [(group, (*group, index)) for group, index in indexes.items()]
        numbered = [(group, key) for group, key in numbered if key in self.module_name_object_type_order_qconfigs]
        if numbered:
            _, key = max(numbered, key=lambda pair: len(_path(pair[0][0])))
            return self.module_name_object_type_order_qconfigs[key]
        modules = [module for module in self.module_name_qconfigs if covers(module, name)]
        if modules:
            return self.module_name_qconfigs[max(modules, key=lambda module: len(_path(module)))]
        for regex, qconfig in self.module_name_regex_qconfigs.items():
            if _matches(regex, name):
                return qconfig
        for object_type, qconfig in reversed(self.object_type_qconfigs.items()):
            if op_type in op_types(object_type):
                return qconfig
        return self.global_qconfig

    def _groups(self, name: str, op_type: str) -> set[tuple[str, ObjectType]]:
        """The (module name, type) of entries that count this node."""
        groups = {(module, kind) for module, kind, _ in self.module_name_object_type_order_qconfigs}
        return {(module, kind) for module, kind in groups if op_type in op_types(kind) and covers(module, name)}


def get_default_qconfig_mapping(backend: str = "x86", version: int = 0) -> QConfigMapping:
    """torch's mapping for quantizing after training: `get_default_qconfig`, and what some operators need instead.

    Reshape takes over its input's qparams; Sigmoid, HardSigmoid, Softmax and Tanh have fixed ones; LayerNormalization's weight
    stays float; PRelu's is uint8; ConvTranspose's is per tensor for "x86" and "fbgemm". Raises InvalidInput for another backend.
    """
    return _default_mapping(get_default_qconfig(backend, version), backend, qat=False)


def get_default_qat_qconfig_mapping(backend: str = "x86", version: int = 1) -> QConfigMapping:
    """torch's mapping for training with fake quantization: `get_default_qat_qconfig`, with the same exceptions."""
    return _default_mapping(get_default_qat_qconfig(backend, version), backend, qat=True)


def get_default_qrt_qconfig_mapping() -> QConfigMapping:
    """What `qrt.quantize` uses where no mapping is given: `default_qrt_qconfig` for every node; the operators' rules know the rest."""
    return QConfigMapping().set_global(default_qrt_qconfig)


def get_default_qconfig_dict(backend: str = "x86", version: int = 0) -> dict[str, Any]:
    """Deprecated: `get_default_qconfig_mapping(backend, version).to_dict()`."""
    warnings.warn("get_default_qconfig_dict is deprecated: use get_default_qconfig_mapping", FutureWarning, stacklevel=2)
    return get_default_qconfig_mapping(backend, version).to_dict()


def get_default_qat_qconfig_dict(backend: str = "x86", version: int = 1) -> dict[str, Any]:
    """Deprecated: `get_default_qat_qconfig_mapping(backend, version).to_dict()`."""
    warnings.warn("get_default_qat_qconfig_dict is deprecated: use get_default_qat_qconfig_mapping", FutureWarning, stacklevel=2)
    return get_default_qat_qconfig_mapping(backend, version).to_dict()


def _default_mapping(qconfig: QConfig, backend: str, *, qat: bool) -> QConfigMapping:
    weight = default_weight_fake_quant if qat else default_weight_observer
    transposed = QConfig(qconfig.activation, weight) if backend in ("fbgemm", "x86") else qconfig
    mapping = (
        QConfigMapping()
        .set_global(qconfig)
        .set_object_type("Reshape", default_reuse_input_qconfig)
        .set_object_type("ConvTranspose", transposed)
        .set_object_type("LayerNormalization", QConfig(qconfig.activation, default_placeholder_observer))
        .set_object_type("PRelu", default_quint8_weight_qconfig)
    )
    for op_type, observer in _FIXED.items():
        activation = FixedQParamsFakeQuantize.with_args(observer=observer) if qat else observer
        mapping.set_object_type(op_type, QConfig(activation, weight))
    return mapping


def _path(name: str) -> str:
    """A node's or module's name as a dotted path. Exporters repeat a list's name in its elements': "layer1/layer1.0" is "layer1.0"."""
    parts = [part for part in name.split("/") if part]
    return ".".join(part.removeprefix(f"{before}.") for before, part in zip(["", *parts], parts, strict=False))


def covers(module: str, name: str) -> bool:
    """Whether a module's name is a node's name, or the beginning of its path."""
    prefix, path = _path(module), _path(name)
    return prefix in ("", path) or path.startswith(f"{prefix}.")


def _matches(regex: str, name: str) -> bool:
    return bool(re.match(regex, name) or re.match(regex, _path(name)))


def _checked(qconfig: QConfigAny) -> QConfigAny:
    if qconfig is not None and not isinstance(qconfig, QConfig):
        raise InvalidInput(f"{qconfig!r} is no QConfig: give QConfig(activation, weight), or None to leave nodes float")
    return qconfig


def _check_name(module_name: str) -> None:
    if not isinstance(module_name, str):
        raise InvalidInput(f"{module_name!r} is no module name: give a string")


def _check_type(object_type: ObjectType) -> None:
    if not isinstance(object_type, str) and not hasattr(object_type, "__name__"):
        raise InvalidInput(f"{object_type!r} is no object type: give an operator's name, or a class or function")
