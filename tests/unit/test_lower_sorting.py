"""TopK and OneHot through the lowering, beside onnx.reference and ONNX Runtime."""

import numpy as np
import onnxruntime as ort
import pytest
from lowered import check_node, one_node, run_model
from onnx import numpy_helper

from qrt.core.errors import InvalidInput, ModelError

RNG = np.random.default_rng(0)


def runtime(op_type: str, inputs: list[np.ndarray], constants: tuple[int, ...], outputs: int, **attributes: int) -> list[np.ndarray]:
    model, feeds = one_node(op_type, inputs, constants, outputs, **attributes)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "int64", "int32", "uint8"])
def test_top_k(axis: int, largest: int, dtype: str) -> None:
    x = RNG.integers(0, 20, (6, 8, 7)).astype(dtype)  # with ties
    inputs = [x, np.array([5])]
    wanted = runtime("TopK", inputs, (1,), 2, axis=axis, largest=largest)
    check_node("TopK", inputs, (1,), outputs=2, axis=axis, largest=largest, wanted=wanted)
    check_node("TopK", inputs, (), outputs=2, axis=axis, largest=largest, wanted=wanted)  # k is fed


def test_top_k_unsorted_has_the_same_elements() -> None:
    x = RNG.normal(size=(3, 50)).astype(np.float32)
    found, _ = run_model(*one_node("TopK", [x, np.array([5])], (1,), 2, sorted=0))
    for got, wanted in zip(found, runtime("TopK", [x, np.array([5])], (1,), 2, sorted=0), strict=True):
        np.testing.assert_array_equal(np.sort(got), np.sort(wanted))


def test_nan_is_the_largest() -> None:
    x = np.array([1, np.nan, 3, np.inf, np.nan, -np.inf], np.float32)
    for largest, wanted in ((1, [1, 4, 3, 2]), (0, [5, 0, 2, 3])):
        found, _ = run_model(*one_node("TopK", [x, np.array([4])], (1,), 2, largest=largest))
        assert found[1].tolist() == wanted


@pytest.mark.parametrize("k", [-1, 8])
def test_a_k_out_of_range(k: int) -> None:
    model, feeds = one_node("TopK", [np.zeros((2, 7), np.float32), np.array([1])], (), 2)
    with pytest.raises(InvalidInput, match="k must be one number within 0 … 7"):
        run_model(model, {**feeds, "i1": np.array([k])})
    model.graph.initializer.append(numpy_helper.from_array(np.array([k]), "i1"))
    del model.graph.input[1]
    with pytest.raises(ModelError):
        run_model(model, {"i0": feeds["i0"]})


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_one_hot(axis: int, index: type, dtype: str) -> None:
    inputs = [RNG.integers(-12, 12, (5, 6)).astype(index), np.array(10), np.array([3, 7]).astype(dtype)]
    check_node("OneHot", inputs, (1,), axis=axis)
    check_node("OneHot", inputs, (1, 2), axis=axis)
    if (index, dtype) in ((np.int64, "float32"), (np.int64, "int64")):
        check_node("OneHot", inputs, (1,), axis=axis, wanted=runtime("OneHot", inputs, (1,), 1, axis=axis))
