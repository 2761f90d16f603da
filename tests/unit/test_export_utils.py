"""Training and inference forms of a model, and the small helpers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from data import ort_session
from graphs import images, make, reference

import qrt
from qrt.core.errors import InvalidInput
from qrt.quantization.export_utils import (
    allow_exported_model_train_eval,
    model_is_exported,
    move_exported_model_to_eval,
    move_exported_model_to_train,
)
from qrt.quantization.utils import MatchAllNode, default_eval_fn, get_combined_dict

F32 = np.float32
X = images(4, 3, 5, 5)
STATISTICS = {
    "s": np.array([1.0, 2.0, 0.5], F32),
    "b": np.array([0.0, -1.0, 3.0], F32),
    "m": np.array([0.5, -0.25, 2.0], F32),
    "v": np.array([1.0, 4.0, 0.25], F32),
}


def normalization(outputs: str = "y", attributes: str = "", opset: int = 21) -> onnx.ModelProto:
    """One BatchNormalization."""
    declared = ", ".join(f"float[{'n, 3, 5, 5' if name == 'y' else '3'}] {name}" for name in outputs.split(", "))
    text = f"(float[n, 3, 5, 5] x) => ({declared}) {{ {outputs} = BatchNormalization{attributes}(x, s, b, m, v) }}"
    return make(text, opset, **STATISTICS)


def dropout(inputs: str = "x", opset: int = 21, **constants: np.ndarray | float) -> onnx.ModelProto:
    """A Dropout, seeded, between two other nodes."""
    return make(
        f"(float[64] x) => (float[64] y) {{ a = Neg({inputs[0]}) d = Dropout<seed = 5>({inputs.replace('x', 'a')}) y = Neg(d) }}",
        opset,
        **constants,
    )


def evaluate(model: qrt.Model, x: np.ndarray) -> list[np.ndarray]:
    return reference(model.to_proto(), x=x)


def ort(model: qrt.Model, x: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(array) for array in ort_session(model.to_proto().SerializeToString()).run(None, {"x": x})]


def normalized(mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    s, b, mean, var = (a.reshape(1, 3, 1, 1) for a in (STATISTICS["s"], STATISTICS["b"], mean, var))
    return np.asarray((X - mean) / np.sqrt(var + 1e-5) * s + b)


def twice(move: Callable[[qrt.Model], qrt.Model], model: qrt.Model) -> None:
    """Moves the model and finds that doing so again changes nothing."""
    assert move(model) is model
    onnx.checker.check_model(model.to_proto(), full_check=True)
    once = model.to_proto().SerializeToString()
    assert move(model).to_proto().SerializeToString() == once


@pytest.mark.parametrize("opset", [9, 13, 15, 21])
def test_batch_normalization_takes_the_statistics_of_its_batch_and_back(opset: int) -> None:
    model = qrt.load(normalization(opset=opset))
    running = normalized(STATISTICS["m"], STATISTICS["v"])
    twice(move_exported_model_to_eval, model)
    np.testing.assert_allclose(ort(model, X)[0], running, rtol=1e-4, atol=1e-5)
    twice(move_exported_model_to_train, model)
    np.testing.assert_allclose(evaluate(model, X)[0], normalized(X.mean((0, 2, 3)), X.var((0, 2, 3))), rtol=1e-4, atol=1e-5)
    twice(move_exported_model_to_eval, model)
    np.testing.assert_allclose(evaluate(model, X)[0], running, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ort(model, X)[0], running, rtol=1e-4, atol=1e-5)


def test_renewed_statistics_become_the_old_ones() -> None:
    model = qrt.load(normalization("y, rm, rv", "<training_mode = 1, momentum = 0.5>"))
    before = evaluate(model, X)
    np.testing.assert_allclose(before[1], (STATISTICS["m"] + X.mean((0, 2, 3))) / 2, rtol=1e-5)
    twice(move_exported_model_to_eval, model)
    for outputs in (evaluate(model, X), ort(model, X)):
        np.testing.assert_allclose(outputs[0], normalized(STATISTICS["m"], STATISTICS["v"]), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(outputs[1], STATISTICS["m"])
        np.testing.assert_array_equal(outputs[2], STATISTICS["v"])


@pytest.mark.parametrize(("inputs", "opset"), [("x", 10), ("x", 13), ("x, ratio", 21), ("x, ratio, off", 21), ("x, ratio, on", 21)])
def test_dropout_drops_and_back(inputs: str, opset: int) -> None:
    constants = {"ratio": 0.25, "off": np.array(False), "on": np.array(True)}
    given = {name: constants[name] for name in inputs.split(", ")[1:]}
    proto = dropout(inputs, opset, **given)
    if opset < 12:
        del proto.graph.node[1].attribute[:]
    model, x = qrt.load(proto), np.arange(1, 65, dtype=F32)
    twice(move_exported_model_to_train, model)
    (dropped,) = evaluate(model, x)
    ratio = 0.25 if "ratio" in inputs else 0.5
    kept = dropped != 0
    assert 0.1 < 1 - kept.mean() < 0.7
    np.testing.assert_allclose(dropped[kept], x[kept] / (1 - ratio), rtol=1e-6)
    twice(move_exported_model_to_eval, model)
    np.testing.assert_array_equal(evaluate(model, x)[0], x)
    np.testing.assert_array_equal(ort(model, x)[0], x)
    (result,) = qrt.InferenceSession(model).run(None, {"x": x})
    np.testing.assert_array_equal(result, x)


def test_bodies_and_functions_are_moved_too() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 21, "own" : 1]> g (float[8] x, bool c) => (float[8] y) {
            y = If(c) <then_branch = t () => (float[8] u) { u = own.drop(x) }, else_branch = e () => (float[8] w) { w = Dropout(x) }>
        }
        <domain: "own", opset_import: ["" : 21]> drop (a) => (b) {
            r = Constant<value = float {0.5}>() t = Constant<value = bool {1}>() b = Dropout(a, r, t)
        }
    """
    model = qrt.load(onnx.parser.parse_model(text))
    x = np.arange(8, dtype=F32)
    move_exported_model_to_eval(model)
    for c in (True, False):
        np.testing.assert_array_equal(reference(model.to_proto(), x=x, c=np.array(c))[0], x)
    move_exported_model_to_train(model)
    assert not model.ir.functions
    training = [len(node.inputs) for node in model.graph.all_nodes() if node.op_type == "Dropout"]
    assert training == [3, 3]


def test_methods_like_those_of_a_module() -> None:
    model = allow_exported_model_train_eval(qrt.load(dropout()))
    x = np.arange(1, 65, dtype=F32)
    for move, drops in (
        (lambda: model.train(), True),
        (lambda: model.train(False), False),
        (lambda: model.train(True), True),
        (lambda: model.eval(), False),
    ):  # type: ignore[attr-defined]
        assert move() is model
        assert (evaluate(model, x)[0] == 0).any() == drops


def test_what_is_exported() -> None:
    assert model_is_exported(qrt.load(dropout()))
    assert not model_is_exported(dropout())
    assert not model_is_exported(len)
    for function in (move_exported_model_to_eval, move_exported_model_to_train, allow_exported_model_train_eval):
        with pytest.raises(InvalidInput, match=r"give a qrt\.Model"):
            function(dropout())  # type: ignore[arg-type]


def test_default_eval_fn_runs_pairs_and_inputs() -> None:
    seen: list[object] = []
    pair = np.zeros((2, 3))
    default_eval_fn(seen.append, iter([("x", 1), ["y", 2], {"a": "b"}, pair]))
    assert seen[:3] == ["x", "y", {"a": "b"}]
    assert seen[3] is pair


def test_combined_dicts() -> None:
    one, other = {"a": 1, "b": 2}, {"b": 3}
    assert get_combined_dict(one, other) == {"a": 1, "b": 3}
    assert (one, other) == ({"a": 1, "b": 2}, {"b": 3})
    assert MatchAllNode() is not None
