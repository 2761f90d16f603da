"""Ops of object detectors: which boxes stay, and the images in boxes."""

from qrt.ops.detection.roi import RoiAlign
from qrt.ops.detection.suppress import Suppress

__all__ = ["RoiAlign", "Suppress"]
