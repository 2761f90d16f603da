"""LSTM, GRU and RNN nodes through the lowering, beside ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data import ort_session
from lowered import check_node, one_node, run_model

from qrt.core.errors import InvalidInput, ModelError, UnsupportedOp

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
TIME, BATCH, INPUTS, HIDDEN = 5, 3, 6, 7


def real(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / 2).astype(np.float32)


def inputs_of(
    op_type: str, directions: int = 1, bias: bool = True, states: bool = True, peepholes: bool = False
) -> list[np.ndarray | None]:
    width = GATES[op_type] * HIDDEN
    inputs: list[np.ndarray | None] = [
        real(TIME, BATCH, INPUTS),
        real(directions, width, INPUTS, seed=1),
        real(directions, width, HIDDEN, seed=2),
    ]
    inputs += [real(directions, 2 * width, seed=3) if bias else None, None]
    inputs += [real(directions, BATCH, HIDDEN, seed=4) if states else None]
    if op_type == "LSTM":
        inputs += [real(directions, BATCH, HIDDEN, seed=5) if states else None]
        inputs += [real(directions, 3 * HIDDEN, seed=6) if peepholes else None]
    return inputs


def check(op_type: str, inputs: list[np.ndarray | None], **attributes: Any) -> None:
    outputs = 3 if op_type == "LSTM" else 2
    attributes = {"hidden_size": HIDDEN, **attributes}
    constants = (1, 2, 3, 4, 7)
    model, feeds = one_node(op_type, inputs, constants, outputs, **attributes)
    wanted = ort_session(model.SerializeToString()).run(None, feeds)
    check_node(op_type, inputs, constants, outputs, wanted=wanted, rtol=1e-4, atol=1e-5, **attributes)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("bias", "states"), [(True, True), (False, False)])
@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {}), ("RNN", {"activations": ["Relu"]})],
)
def test_as_onnx_runtime(op_type: str, attributes: dict[str, Any], direction: str, bias: bool, states: bool) -> None:
    directions = 2 if direction == "bidirectional" else 1
    if "activations" in attributes:
        attributes = {"activations": attributes["activations"] * directions}
    check(op_type, inputs_of(op_type, directions, bias, states), direction=direction, **attributes)


def test_peepholes() -> None:
    check("LSTM", inputs_of("LSTM", peepholes=True))


def test_sequences_of_full_length() -> None:
    inputs = inputs_of("LSTM")
    inputs[4] = np.full(BATCH, TIME, np.int32)
    check("LSTM", inputs)


@pytest.mark.parametrize("op_type", list(GATES))
def test_batch_first(op_type: str) -> None:
    """`layout` 1 is layout 0 with time and batch exchanged."""
    inputs = inputs_of(op_type)
    outputs, constants = (3 if op_type == "LSTM" else 2), (1, 2, 3)
    model, feeds = one_node(op_type, inputs, constants, outputs, hidden_size=HIDDEN)
    y, *last = ort_session(model.SerializeToString()).run(None, feeds)
    swapped = [a.swapaxes(0, 1) if a is not None and k in (0, 5, 6) else a for k, a in enumerate(inputs)]
    wanted = [y.transpose(2, 0, 1, 3), *[state.swapaxes(0, 1) for state in last]]
    check_node(op_type, swapped, constants, outputs, wanted=wanted, rtol=1e-4, atol=1e-5, hidden_size=HIDDEN, layout=1)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op_type", list(GATES))
@pytest.mark.parametrize("known", [True, False])
def test_sequences_that_end_early(op_type: str, direction: str, known: bool) -> None:
    inputs = inputs_of(op_type, 2 if direction == "bidirectional" else 1)
    inputs[4] = np.array([2, TIME, 0], np.int32)
    constants = (1, 2, 3, 4) if known else (1, 2, 3)
    outputs = 3 if op_type == "LSTM" else 2
    attributes: dict[str, Any] = {"hidden_size": HIDDEN, "direction": direction}
    model, feeds = one_node(op_type, inputs, constants, outputs, **attributes)
    wanted = ort_session(model.SerializeToString()).run(None, feeds)
    check_node(op_type, inputs, constants, outputs, wanted=wanted, rtol=1e-4, atol=1e-5, **attributes)


@pytest.mark.parametrize("wrong", [-1, TIME + 1, 2**31 - 1, -(2**31)])
def test_lengths_that_no_sequence_has(wrong: int) -> None:
    inputs = inputs_of("GRU")
    inputs[4] = np.array([TIME, wrong, 1], np.int32)
    model, feeds = one_node("GRU", inputs, (1, 2, 3), 2, hidden_size=HIDDEN)
    with pytest.raises(InvalidInput, match=f"lengths 'i4' must be within 0 … {TIME}; one is {wrong}"):
        run_model(model, feeds)
    model, feeds = one_node("GRU", inputs, (1, 2, 3, 4), 2, hidden_size=HIDDEN)
    with pytest.raises(ModelError, match=f"lengths 'i4' must be within 0 … {TIME}"):
        run_model(model, feeds)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("LSTM", {"clip": 0.3}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"input_forget": 1, "clip": 0.2}),
        ("GRU", {"clip": 0.3}),
        ("GRU", {"clip": 0.3, "linear_before_reset": 1}),
        ("RNN", {"clip": 0.3}),
        ("RNN", {"clip": 0.3, "activations": ["Relu"]}),
    ],
)
def test_clipped_and_coupled_gates(op_type: str, attributes: dict[str, Any]) -> None:
    check(op_type, inputs_of(op_type), **attributes)
    if op_type == "LSTM":
        check(op_type, inputs_of(op_type, peepholes=True), **attributes)


@pytest.mark.parametrize(
    ("op_type", "lengths", "attributes", "what"),
    [
        ("LSTM", None, {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "activations hardsigmoid, tanh, tanh"),
        ("RNN", None, {"activations": ["Softsign"]}, "activations softsign"),
        ("GRU", None, {"clip": 0.5}, "clip"),
        ("LSTM", None, {"input_forget": 1}, "input_forget"),
        ("RNN", [1, 2, 3], {}, "lengths of sequences"),
    ],
)
def test_what_neither_kernels_nor_the_reference_do_is_refused(
    op_type: str, lengths: list[int] | None, attributes: dict[str, Any], what: str
) -> None:
    """onnx.reference would leave it out without a word. Weights that are fed are for it to run."""
    inputs = inputs_of(op_type)
    inputs[4] = None if lengths is None else np.array(lengths, np.int32)
    model, feeds = one_node(op_type, inputs, (), 3 if op_type == "LSTM" else 2, hidden_size=HIDDEN, **attributes)
    with pytest.raises(UnsupportedOp, match=f"can run {op_type} with {what}"):
        run_model(model, feeds)


@pytest.mark.parametrize("op_type", list(GATES))
def test_weights_that_are_fed(op_type: str) -> None:
    model, feeds = one_node(op_type, inputs_of(op_type), (), 3 if op_type == "LSTM" else 2, hidden_size=HIDDEN)
    found, why = run_model(model, feeds)
    assert "not a constant" in next(iter(why.values()))
    for got, wanted in zip(found, ort_session(model.SerializeToString()).run(None, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit() -> None:
    inputs = inputs_of("LSTM")
    inputs[2] = real(1, 4 * HIDDEN, HIDDEN + 1)
    model, feeds = one_node("LSTM", inputs, (1, 2, 3), 3, hidden_size=HIDDEN)
    with pytest.raises(ModelError):
        run_model(model, feeds)
