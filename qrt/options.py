"""The settings of ONNX Runtime's API, so that a client written for it works after `import qrt as ort`.

Names, defaults and enum values are ONNX Runtime's. What has an effect here says so; the rest is accepted and kept, because results do not
depend on it: qrt has one optimisation level, runs nodes in order, and logs nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from qrt.core.errors import InvalidInput, QrtWarning

__all__ = [
    "ExecutionMode",
    "GraphOptimizationLevel",
    "RunOptions",
    "SessionOptions",
    "get_all_providers",
    "get_available_providers",
    "get_device",
    "set_default_logger_severity",
    "set_default_logger_verbosity",
    "target_of",
]

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

# ONNX Runtime's own list. Asking for one that is not here (in both senses) is common and harmless: the CPU takes over.
_PROVIDERS = (
    "NvTensorRTRTXExecutionProvider",
    "TensorrtExecutionProvider",
    _CUDA,
    "MIGraphXExecutionProvider",
    "ROCMExecutionProvider",
    "OpenVINOExecutionProvider",
    "DnnlExecutionProvider",
    "VitisAIExecutionProvider",
    "QNNExecutionProvider",
    "CoreMLExecutionProvider",
    "ACLExecutionProvider",
    "DmlExecutionProvider",
    "XnnpackExecutionProvider",
    "CANNExecutionProvider",
    "AzureExecutionProvider",
    _CPU,
)


class GraphOptimizationLevel(IntEnum):
    """Accepted without effect."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(IntEnum):
    """Accepted without effect."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


@dataclass(slots=True)
class SessionOptions:
    """Settings of a session; read when the session is made.

    With effect: `intra_op_num_threads` (threads of a run; 0: one per processor), `enable_profiling` and `profile_file_prefix` (see
    `InferenceSession.end_profiling`). The others are accepted without effect.
    """

    intra_op_num_threads: int = 0
    enable_profiling: bool = False
    profile_file_prefix: str = "qrt_profile"
    inter_op_num_threads: int = 0
    graph_optimization_level: GraphOptimizationLevel = GraphOptimizationLevel.ORT_ENABLE_ALL
    execution_mode: ExecutionMode = ExecutionMode.ORT_SEQUENTIAL
    enable_cpu_mem_arena: bool = True
    enable_mem_pattern: bool = True
    enable_mem_reuse: bool = True
    use_deterministic_compute: bool = False
    log_severity_level: int = -1
    log_verbosity_level: int = 0
    logid: str = ""
    _entries: dict[str, str] = field(default_factory=dict, repr=False)

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Keeps a setting by its name; without effect."""
        self._entries[key] = value

    def get_session_config_entry(self, key: str) -> str:
        """A setting that was added. Raises InvalidInput for one that was not."""
        return _entry(self._entries, key)


@dataclass(slots=True)
class RunOptions:
    """Settings of one run, accepted without effect."""

    log_severity_level: int = -1
    log_verbosity_level: int = 0
    logid: str = ""
    only_execute_path_to_fetches: bool = False
    terminate: bool = False
    _entries: dict[str, str] = field(default_factory=dict, repr=False)

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Keeps a setting by its name; without effect."""
        self._entries[key] = value

    def get_run_config_entry(self, key: str) -> str:
        """A setting that was added. Raises InvalidInput for one that was not."""
        return _entry(self._entries, key)


def _entry(entries: dict[str, str], key: str) -> str:
    if key not in entries:
        raise InvalidInput(f"no config entry {key!r} was added; there are: {', '.join(entries) or 'none'}")
    return entries[key]


def get_all_providers() -> list[str]:
    """The names that `providers=` takes."""
    return list(_PROVIDERS)


def get_available_providers() -> list[str]:
    """What runs models here, best first."""
    return [_CUDA, _CPU] if _cuda_is_here() else [_CPU]


def get_device() -> str:
    """ "GPU" where one can be used, else "CPU"."""
    return "GPU" if _cuda_is_here() else "CPU"


def _cuda_is_here() -> bool:
    from qrt.jit.cuda import available  # here: nothing of CUDA is touched before somebody asks

    return available()


def target_of(providers: Sequence[str | tuple[str, dict[str, object]]]) -> str | None:
    """The target that a client asks for by names, or pairs of a name and options, in the order of its preference: "cuda", or None for the
    CPU. Where the CPU is among them, it stands in for a GPU that is not there.

    Raises InvalidInput for what ONNX Runtime does not know either, and for a GPU that is not the first; warns if the CPU has to stand in
    for something else.
    """
    if isinstance(providers, str) or not isinstance(providers, Sequence):
        raise InvalidInput(f"providers is {providers!r}: give a list of names, such as ['{_CPU}']")
    names = []
    for provider in providers:
        name, options = provider if isinstance(provider, tuple) and len(provider) == 2 else (provider, {})
        if name not in _PROVIDERS:
            raise InvalidInput(f"unknown provider {name!r}: qrt has {_CUDA} and {_CPU}")
        if name == _CUDA and isinstance(options, Mapping) and str(options.get("device_id", 0)) != "0":
            raise InvalidInput(f"device_id is {options['device_id']!r}: qrt uses the first GPU; CUDA_VISIBLE_DEVICES says which that is")
        names.append(name)
    if _CUDA in names and (_CPU not in names or (names.index(_CUDA) < names.index(_CPU) and _cuda_is_here())):
        return "cuda"
    if names and _CPU not in names:
        warnings.warn(f"{', '.join(map(str, names))} is not available in qrt; {_CPU} runs the model", QrtWarning, stacklevel=3)
    return None


def set_default_logger_severity(severity: int) -> None:
    """Accepted without effect: qrt logs nothing."""


def set_default_logger_verbosity(verbosity: int) -> None:
    """Accepted without effect: qrt logs nothing."""
