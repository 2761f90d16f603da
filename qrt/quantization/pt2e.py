"""Export quantization (pt2e) on a loaded Model: a Quantizer annotates, `prepare_pt2e` puts observers in, `convert_pt2e` writes Q/DQ.

prepared = prepare_pt2e(model, QrtQuantizer())
for x in samples:
    prepared(x)
int8 = convert_pt2e(prepared)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qrt.core.errors import InvalidInput, QuantizationError
from qrt.graph import Model
from qrt.graph.passes import prepare
from qrt.graph.rules import fuse
from qrt.jit.host import host_target
from qrt.lower import Executable
from qrt.observers import FakeQuantizeBase
from qrt.quantization.batches import Batch, feeds_of
from qrt.quantization.prepared import PreparedModel, prepare_model, sample_feeds
from qrt.quantization.quantizer import Quantizer

__all__ = ["convert_pt2e", "lower_pt2e_quantized_to_x86", "prepare_pt2e", "prepare_qat_pt2e"]


def prepare_pt2e(model: Model, quantizer: Quantizer) -> PreparedModel:
    """The model as `quantizer` annotates it, with observers. Call it with samples, then give it to `convert_pt2e`.

    `model`: a loaded float Model, which stays as it is. Raises InvalidInput for arguments of other types, QuantizationError for annotations
    that contradict each other, or that the operators have no kernels for.
    """
    return prepare_model(model, quantizer)


def prepare_qat_pt2e(model: Model, quantizer: Quantizer) -> PreparedModel:
    """As `prepare_pt2e`, for a quantizer whose specs make fake-quantizes: calling the result gives what the quantized model will.

    Raises QuantizationError too where no spec makes one.
    """
    return check_fake_quantizes(prepare_model(model, quantizer), "specs whose observer_or_fake_quant_ctr makes a FakeQuantize")


def check_fake_quantizes(prepared: PreparedModel, remedy: str) -> PreparedModel:
    """`prepared`, if something in it fake-quantizes."""
    if not any(isinstance(module, FakeQuantizeBase) for _, module in prepared.named_modules()):
        raise QuantizationError(f"nothing in {prepared.model.name} would be fake-quantized: use {remedy}")
    return prepared


def convert_pt2e(model: PreparedModel, use_reference_representation: bool = False, fold_quantize: bool = True) -> Model:
    """The prepared model in QDQ form, standard ONNX, with what its observers learned.

    `fold_quantize`: weights become int8 now; otherwise they stay float in the file, behind QuantizeLinear and DequantizeLinear.
    `use_reference_representation`: must be False; integer arithmetic spelled out is what qrt's own fused form is for.
    Raises CalibrationError for an observer that saw nothing, QuantizationError for qparams that an operator cannot take.
    """
    if not isinstance(model, PreparedModel):
        raise InvalidInput(f"convert_pt2e takes what prepare_pt2e gives, not a {type(model).__name__}")
    if use_reference_representation:
        raise InvalidInput("use_reference_representation: qrt writes the QDQ form alone; leave it False")
    return model.convert(fold_weights=fold_quantize)


def lower_pt2e_quantized_to_x86(model: Model, example_inputs: Sequence[np.ndarray] | Batch) -> _Lowered:
    """A quantized model as a function of arrays, planned and compiled for this machine with the shapes of `example_inputs`."""
    lowered = _Lowered(model)
    lowered(*example_inputs) if isinstance(example_inputs, tuple | list) else lowered(example_inputs)
    return lowered


class _Lowered:
    """A model that runs when it is called: inputs in order, or by name; its output, or a tuple of several."""

    def __init__(self, model: Model) -> None:
        clean = prepare(model)
        self.model = clean.clone()
        fuse(clean)
        self._executable = Executable(clean, host_target(), 1)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        results = self._executable.run(feeds_of(self.model, sample_feeds(self.model, args, kwargs), "the call"))
        return results[0] if len(results) == 1 else tuple(results)
