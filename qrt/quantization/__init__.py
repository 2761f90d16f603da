"""Quantization of whole models: static (with calibration data) and dynamic; and the configuration that torch.ao.quantization knows.

What needs the graph is loaded when it is first used.
"""
# ruff: noqa: F403 - each module lists its public names in its __all__; here stand only those that are loaded late

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qrt import observers
from qrt.observers import *
from qrt.quantization import backend_config, custom_config, qconfig, qconfig_mapping
from qrt.quantization.backend_config import *
from qrt.quantization.custom_config import *
from qrt.quantization.qconfig import *
from qrt.quantization.qconfig_mapping import *

if TYPE_CHECKING:
    from qrt.quantization.export_utils import *
    from qrt.quantization.jit import *
    from qrt.quantization.never_slower import *
    from qrt.quantization.numeric_debugger import *
    from qrt.quantization.placement import *
    from qrt.quantization.prepared import *
    from qrt.quantization.pt2e import *
    from qrt.quantization.quantize_fx import *
    from qrt.quantization.quantizer import *
    from qrt.quantization.shards import *
    from qrt.quantization.static import *
    from qrt.quantization.utils import *

# Module → the names that are loaded from it when they are first used.
_LATE = {
    "export_utils": (
        "allow_exported_model_train_eval",
        "model_is_exported",
        "move_exported_model_to_eval",
        "move_exported_model_to_train",
    ),
    "jit": (
        "convert_dynamic_jit",
        "convert_jit",
        "fuse_conv_bn_jit",
        "prepare_dynamic_jit",
        "prepare_jit",
        "quantize_dynamic_jit",
        "quantize_jit",
        "script_qconfig",
        "script_qconfig_dict",
    ),
    "numeric_debugger": (
        "CUSTOM_KEY",
        "NUMERIC_DEBUG_HANDLE_KEY",
        "LoggedModel",
        "NodeAccuracySummary",
        "NodeSourceDebugInfo",
        "OutputLogger",
        "QuantizationComparisonResult",
        "compare_results",
        "compute_sqnr",
        "extract_results_from_loggers",
        "generate_numeric_debug_handle",
        "prepare_for_propagation_comparison",
    ),
    "never_slower": ("LayerTimes", "NeverSlower", "time_layers"),
    "placement": ("QrtQuantizer",),
    "prepared": ("PreparedModel",),
    "pt2e": ("convert_pt2e", "lower_pt2e_quantized_to_x86", "prepare_pt2e", "prepare_qat_pt2e"),
    "quantize_fx": ("convert_fx", "fuse_fx", "prepare_fx", "prepare_qat_fx"),
    "quantizer": (
        "ComposableQuantizer",
        "DerivedQuantizationSpec",
        "EdgeOrNode",
        "EmbeddingQuantizer",
        "FixedQParamsQuantizationSpec",
        "QuantizationAnnotation",
        "QuantizationSpec",
        "QuantizationSpecBase",
        "Quantizer",
        "SharedQuantizationSpec",
        "annotate_input_qspec_map",
        "annotate_output_qspec",
    ),
    "shards": ("calibration_state", "merge_shards", "merge_state", "save_shard"),
    "static": ("quantize", "quantize_dynamic"),
    "utils": ("MatchAllNode", "Pattern", "default_eval_fn", "get_combined_dict", "get_fuser_method_new"),
}
_HOME_OF = {name: home for home, names in _LATE.items() for name in names}

if not TYPE_CHECKING:  # mypy follows the imports, but no computed list; and it shall tell of names that are not there
    __all__ = [
        *observers.__all__,
        *qconfig.__all__,
        *qconfig_mapping.__all__,
        *backend_config.__all__,
        *custom_config.__all__,
        *_HOME_OF,
    ]

    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return __all__
