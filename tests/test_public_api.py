"""What users may rely on: the names qrt exports and the parameters they take. A change here is a change for every user."""

from __future__ import annotations

import inspect
import statistics
import subprocess
import sys

import pytest

import qrt

# name → parameters; * marks where keywords begin. None: a constant, a class without a constructor to call, or a module.
SURFACE: dict[str, str | None] = {
    "CalibrationError": None,
    "DeviceError": None,
    "ExecutionMode": None,
    "GraphOptimizationLevel": None,
    "InferenceSession": "path_or_bytes, sess_options=, providers=, provider_options=, *, num_threads=, target=",
    "InferenceSession.bind": "stream=",
    "InferenceSession.close": "",
    "InferenceSession.end_profiling": "",
    "InferenceSession.get_inputs": "",
    "InferenceSession.get_modelmeta": "",
    "InferenceSession.get_outputs": "",
    "InferenceSession.get_overridable_initializers": "",
    "InferenceSession.get_provider_options": "",
    "InferenceSession.get_providers": "",
    "InferenceSession.get_session_options": "",
    "InferenceSession.io_binding": "",
    "InferenceSession.run": "output_names, input_feed, run_options=",
    "InferenceSession.run_with_iobinding": "iobinding, run_options=",
    "InferenceSession.set_providers": "providers, provider_options=",
    "InvalidInput": None,
    "KernelCacheWarning": None,
    "KernelError": None,
    "Model": None,
    "Model.save": "path",
    "ModelError": None,
    "ModelMetadata": None,
    "NodeArg": None,
    "OutputError": None,
    "QConfig": "activation, weight",
    "QConfigMapping": "",
    "QDType": None,
    "QParams": "scale, zero_point, dtype, axis=",
    "QScheme": None,
    "QTensor": "codes, scale, zero_point, dtype, axis=",
    "QrtError": None,
    "QrtWarning": None,
    "QuantizationError": None,
    "RunOptions": None,
    "RunOptions.add_run_config_entry": "key, value",
    "SessionOptions": None,
    "SessionOptions.add_session_config_entry": "key, value",
    "SessionOptions.get_session_config_entry": "key",
    "UnsupportedOp": None,
    "__version__": None,
    "compile": "model, path, shapes=, *, num_threads=, target=",
    "dequantize": "tensor",
    "get_all_providers": "",
    "get_available_providers": "",
    "get_device": "",
    "load": "source",
    "observers": None,
    "per_channel_affine": None,
    "per_channel_affine_float_qparams": None,
    "per_channel_symmetric": None,
    "per_tensor_affine": None,
    "per_tensor_symmetric": None,
    "qint16": None,
    "qint32": None,
    "qscheme": None,
    "qint8": None,
    "quantization": None,
    "quantize": "model, calibration_data, qconfig_mapping=, *, exclude=, never_slower=, progress=",
    "quantize_dynamic": "model, *, exclude=, per_channel=",
    "quantize_per_channel": "input, scales, zero_points, axis, dtype",
    "quantize_per_tensor": "input, scale, zero_point, dtype",
    "quint16": None,
    "quint4x2": None,
    "quint8": None,
    "set_default_logger_severity": "severity",
    "set_default_logger_verbosity": "verbosity",
}


def parameters(function: object) -> str:
    """The parameters as the table above writes them."""
    words = []
    for p in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if p.name == "self":
            continue
        if p.kind is p.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(p.name if p.default is p.empty else f"{p.name}=")
    return ", ".join(words)


def test_exported_names() -> None:
    assert set(qrt.__all__) == {name for name in SURFACE if "." not in name}
    assert set(dir(qrt)) == set(qrt.__all__)


@pytest.mark.parametrize("name", SURFACE)
def test_every_name_is_there_and_documented(name: str) -> None:
    found: object = qrt
    for part in name.split("."):
        found = getattr(found, part)
    if SURFACE[name] is not None:
        assert parameters(found) == SURFACE[name]
    if inspect.isroutine(found) or inspect.isclass(found) or inspect.ismodule(found):
        assert inspect.getdoc(found), f"{name} has no docstring"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = qrt.quantise  # type: ignore[attr-defined]


def test_errors_are_what_python_users_catch() -> None:
    assert issubclass(qrt.InvalidInput, ValueError)
    assert issubclass(qrt.ModelError, ValueError)
    assert issubclass(qrt.OutputError, OSError)
    assert issubclass(qrt.UnsupportedOp, qrt.ModelError)
    assert all(issubclass(getattr(qrt, name), qrt.QrtError) for name in qrt.__all__ if name.endswith(("Error", "Input", "Op")))


def _seconds(module: str) -> float:
    program = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True).stdout)


def test_import_costs_no_more_than_numpy() -> None:
    """`import qrt` takes no more than 1.5 × `import numpy`."""
    numpy = statistics.median(_seconds("numpy") for _ in range(3))
    assert statistics.median(_seconds("qrt") for _ in range(3)) <= 1.5 * numpy
