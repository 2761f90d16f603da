"""The two functions most users need: static quantization with calibration data, and dynamic quantization without."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sized
from itertools import chain, islice

from qrt.core.errors import InvalidInput, QrtWarning
from qrt.graph import Model
from qrt.quantization.batches import Batch
from qrt.quantization.never_slower import time_layers
from qrt.quantization.placement import QrtQuantizer
from qrt.quantization.prepared import prepare_model
from qrt.quantization.qconfig import QConfig, default_dynamic_qconfig, per_channel_weight_observer, weight_observer
from qrt.quantization.qconfig_mapping import QConfigMapping

__all__ = ["quantize", "quantize_dynamic"]


def quantize(
    model: Model,
    calibration_data: Iterable[Batch],
    qconfig_mapping: QConfigMapping | None = None,
    *,
    exclude: Iterable[str] = (),
    never_slower: bool = False,
    progress: bool = True,
) -> Model:
    """Quantize a float model to 8 bits: activations uint8 with one scale, weights int8 with a scale per output channel, biases int32.

    `calibration_data`: batches of real inputs, each a dict of name → array, or one array for a model with one input. A few hundred samples
    are enough; they are read once.
    `qconfig_mapping`: which observers to use where; by default histograms for activations and extremes for weights.
    `exclude`: names or globs of nodes to leave float. `progress`: show a bar on standard error while calibrating.
    `never_slower`: time each layer in both forms on the first batch, and leave those float that int8 makes slower on this machine; so two
    runs may differ. If that is all of them, a copy of `model` is returned, with a QrtWarning. `qrt.quantization.time_layers` tells more.

    Returns a new model in standard ONNX (QuantizeLinear and DequantizeLinear around float operators) with the same inputs and outputs.
    Raises CalibrationError for data that is missing, does not fit or is not finite, QuantizationError where nothing can be quantized, or
    `exclude` or the mapping names nothing; InvalidInput for arguments of other types.
    """
    if not isinstance(calibration_data, Iterable):
        raise InvalidInput(f"calibration_data is a {type(calibration_data).__name__}: give a list or a generator of inputs")
    total = len(calibration_data) if isinstance(calibration_data, Sized) else None
    quantizer = QrtQuantizer(qconfig_mapping, exclude=exclude)
    if never_slower:
        batches = iter(calibration_data)
        first = list(islice(batches, 1))
        calibration_data = chain(first, batches)
        for batch in first:
            found = time_layers(model, batch, quantizer.mapping, exclude=quantizer.exclude)
            if found.all_float:
                warnings.warn(f"{model.name} stays float: on this machine, int8 makes nothing of it faster", QrtWarning, stacklevel=2)
                return model.clone()
            quantizer.exclude += found.exclude
    prepared = prepare_model(model, quantizer)
    prepared.calibrate(_watched(calibration_data, total, progress))
    return prepared.convert()


def quantize_dynamic(model: Model, *, exclude: Iterable[str] = (), per_channel: bool = True) -> Model:
    """Quantize the constant weights of MatMul, Gemm and Conv to int8, and their inputs to uint8 at run time, by the range of each input.

    `exclude`: names or globs of nodes to leave float. `per_channel`: a scale per output channel rather than one per weight.

    Returns a new model in standard ONNX (DynamicQuantizeLinear, MatMulInteger or ConvInteger, Cast, Mul) with the same inputs and outputs.
    Raises QuantizationError where nothing can be quantized or `exclude` matches nothing.
    """
    weight = per_channel_weight_observer if per_channel else weight_observer
    mapping = QConfigMapping().set_global(QConfig(default_dynamic_qconfig.activation, weight))
    return prepare_model(model, QrtQuantizer(mapping, exclude=exclude)).convert()


def _watched(data: Iterable[Batch], total: int | None, progress: bool) -> Iterator[Batch]:
    """`data`, of `total` batches, with a bar on standard error while it is consumed, if that is a terminal."""
    if not progress or not sys.stderr.isatty():
        yield from data
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(data, "Calibrating", total=total, console=Console(stderr=True), transient=True)
