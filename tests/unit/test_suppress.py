"""NonMaxSuppression in a model: beside ONNX Runtime, with fed and constant thresholds, and what errors say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
import pytest
from lowered import as_model, one_node

from qrt.core.errors import InvalidInput, QrtError
from qrt.jit.host import host_target
from qrt.lower import Executable
from qrt.lower.counted import SuppressStep

RNG = np.random.default_rng(0)


def scored(images: int, classes: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of boxes, and scores of which no two are equal."""
    centre = RNG.integers(0, 5, (images, n, 2))
    low = (centre + RNG.uniform(-0.3, 0.3, (images, n, 2))).astype(np.float32)
    boxes = np.concatenate([low, low + RNG.uniform(0.3, 1.5, (images, n, 2)).astype(np.float32)], axis=-1)
    scores = RNG.permutation(images * classes * n).reshape(images, classes, n).astype(np.float32) / np.float32(images * classes * n)
    return boxes, scores


def run(inputs: Sequence[np.ndarray | None], constants: Sequence[int], **attributes: int) -> tuple[np.ndarray, np.ndarray]:
    """Ours and ONNX Runtime's."""
    model, feeds = one_node("NonMaxSuppression", inputs, constants, **attributes)
    executable = Executable(as_model(model), host_target(), 2)
    assert [type(stage) for stage in executable._stages] == [SuppressStep]
    theirs = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    return executable.run(feeds)[0], theirs


def number(value: float | int) -> np.ndarray:
    return np.array([value], np.int64 if isinstance(value, int) else np.float32)


@pytest.mark.parametrize("centers", [0, 1])
@pytest.mark.parametrize("least", [None, 0.25])
@pytest.mark.parametrize("most", [None, 0, -3, 4, 2**62])
@pytest.mark.parametrize("constants", [(), (2, 3, 4)])
def test_as_onnx_runtime(centers: int, least: float | None, most: int | None, constants: tuple[int, ...]) -> None:
    boxes, scores = scored(2, 3, 70)
    inputs = [boxes, scores, None if most is None else number(most), number(0.45), None if least is None else number(least)]
    found, wanted = run(inputs, [k for k in constants if inputs[k] is not None], center_point_box=centers)
    np.testing.assert_array_equal(found, wanted)
    assert (found.dtype, found.flags.c_contiguous) == (np.int64, True)


def test_without_boxes_or_classes() -> None:
    for images, classes, n in ((1, 1, 0), (1, 0, 5), (0, 2, 5)):
        found, wanted = run([*scored(images, classes, n), number(5), number(0.5)], ())
        assert found.shape == wanted.shape == (0, 3)


def test_boxes_that_are_no_numbers() -> None:
    boxes, scores = scored(1, 2, 50)
    boxes[0, ::7, 1] = np.nan
    boxes[0, 3::9, 2] = np.inf
    boxes[0, 5] = 0
    for centers in (0, 1):
        np.testing.assert_array_equal(*run([boxes, scores, number(50), number(0.3), number(0.1)], (), center_point_box=centers))


def test_scores_that_are_no_numbers_are_below_any_threshold() -> None:
    boxes, scores = scored(1, 2, 50)
    scores[0, 0, ::5] = np.nan
    np.testing.assert_array_equal(*run([boxes, scores, number(50), number(0.5), number(0.1)], ()))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({3: number(1.5)}, InvalidInput),
        ({3: number(np.nan)}, InvalidInput),
        ({3: np.zeros(2, np.float32)}, QrtError),
        ({1: np.zeros((1, 2, 9), np.float32)}, QrtError),
        ({0: np.zeros((1, 8, 3), np.float32)}, QrtError),
    ],
)
def test_refused(changed: dict[int, np.ndarray], error: type[QrtError]) -> None:
    given: dict[int, np.ndarray] = dict(enumerate([*scored(1, 2, 8), number(5), number(0.5)])) | changed
    model, feeds = one_node("NonMaxSuppression", [given[k] for k in range(4)])
    with pytest.raises(error):
        Executable(as_model(model), host_target(), 1).run(feeds)
