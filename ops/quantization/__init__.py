"""Ops between real numbers and codes, and on codes: quantize, dequantize, tables, sums and products."""

from qrt.ops.quantization.binary import QBinary
from qrt.ops.quantization.dynamic import DynamicQuantize
from qrt.ops.quantization.lut import Lut, requantizing
from qrt.ops.quantization.quantize import Dequantize, Quantize

__all__ = ["Dequantize", "DynamicQuantize", "Lut", "QBinary", "Quantize", "requantizing"]
