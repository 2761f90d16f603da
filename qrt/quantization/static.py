"""Static quantization: float model and calibration data → the same model in QDQ form."""

from __future__ import annotations

from collections.abc import Iterable

from qrt.core.errors import InvalidInput, QuantizationError
from qrt.graph import Model
from qrt.graph.passes import prepare
from qrt.graph.passes.drop_dead import drop_dead
from qrt.graph.passes.name_everything import name_everything
from qrt.quantization.absorb import absorb_bias
from qrt.quantization.calibrate import Batch, calibrate
from qrt.quantization.convert import convert
from qrt.quantization.placement import excluded_nodes, place
from qrt.quantization.qconfig_mapping import QConfigMapping, get_default_qrt_qconfig_mapping

__all__ = ["quantize"]


def quantize(
    model: Model,
    calibration_data: Iterable[Batch],
    qconfig_mapping: QConfigMapping | None = None,
    *,
    exclude: Iterable[str] = (),
    progress: bool = True,
) -> Model:
    """Quantize a float model to 8 bits: activations uint8 with one scale, weights int8 with a scale per output channel, biases int32.

    `calibration_data`: batches of real inputs, each a dict of name → array, or one array for a model with one input. A few hundred samples
    are enough; they are read once.
    `qconfig_mapping`: which observers to use where; by default histograms for activations and extremes for weights.
    `exclude`: names or globs of nodes to leave float. `progress`: show a bar on standard error while calibrating.

    Returns a new model in standard ONNX (QuantizeLinear and DequantizeLinear around float operators) with the same inputs and outputs.
    Raises CalibrationError for data that is missing, does not fit or is not finite, QuantizationError where nothing can be quantized or
    `exclude` matches nothing, InvalidInput for arguments of other types.
    """
    if not isinstance(calibration_data, Iterable):
        raise InvalidInput(f"calibration_data is a {type(calibration_data).__name__}: give a list or a generator of inputs")
    if qconfig_mapping is not None and not isinstance(qconfig_mapping, QConfigMapping):
        raise InvalidInput(f"qconfig_mapping is a {type(qconfig_mapping).__name__}: give a qrt.QConfigMapping")
    prepared = prepare(model)
    excluded = excluded_nodes(prepared, exclude)
    absorb_bias(prepared)
    placement = place(prepared, qconfig_mapping or get_default_qrt_qconfig_mapping(), excluded)
    if not placement.products:
        raise QuantizationError(
            f"{model.name}: nothing to quantize: no Conv, ConvTranspose, Gemm or MatMul of float32 with a constant weight is left; "
            "see `qrt inspect --why`"
        )
    learned = calibrate(prepared, placement, calibration_data, progress=progress)
    convert(prepared, placement, learned)
    drop_dead(prepared)
    name_everything(prepared)
    return prepared
