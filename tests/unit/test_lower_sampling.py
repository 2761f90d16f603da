"""GridSample, AffineGrid and RoiAlign through the lowering, beside ONNX Runtime and onnx.reference."""

import numpy as np
import onnxruntime as ort
import pytest
from lowered import check_node, one_node

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample(mode: str, padding: str, align: int) -> None:
    x = RNG.normal(size=(2, 3, 5, 8)).astype(np.float32)
    grid = RNG.uniform(-1.7, 1.7, (2, 6, 7, 2)).astype(np.float32)
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": align}
    model, feeds = one_node("GridSample", [x, grid], **attributes)
    wanted = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    check_node("GridSample", [x, grid], rtol=1e-4, atol=2e-5, wanted=wanted, **attributes)


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 5, 6), (2, 3, 4, 5, 6)])
def test_affine_grid(size: tuple[int, ...], align: int) -> None:
    theta = RNG.normal(size=(2, len(size) - 2, len(size) - 1)).astype(np.float32)
    model, feeds = one_node("AffineGrid", [theta, np.array(size)], (1,), align_corners=align)
    wanted = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    for constants in ((1,), ()):
        check_node("AffineGrid", [theta, np.array(size)], constants, rtol=1e-5, atol=1e-5, wanted=wanted, align_corners=align)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("corners", ["half_pixel", "output_half_pixel"])
def test_roi_align(mode: str, sampling: int, corners: str) -> None:
    x = np.abs(RNG.normal(size=(2, 3, 14, 17))).astype(np.float32)
    low = RNG.uniform(-1, 8, (12, 2))
    rois = np.concatenate([low, low + RNG.uniform(0.2, 12, (12, 2))], axis=1).astype(np.float32)
    inputs = [x, rois, RNG.integers(0, 2, 12)]
    attributes = {"mode": mode, "coordinate_transformation_mode": corners, "sampling_ratio": sampling, "spatial_scale": 0.8}
    attributes |= {"output_height": 4, "output_width": 5}
    model, feeds = one_node("RoiAlign", inputs, **attributes)
    wanted = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    check_node("RoiAlign", inputs, rtol=1e-4, atol=1e-5, wanted=wanted, **attributes)
