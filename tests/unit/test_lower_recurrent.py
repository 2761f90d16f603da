"""LSTM, GRU and RNN nodes through the lowering, beside ONNX Runtime."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from data import ort_session
from lowered import as_model, check_node, one_node, run_model

from qrt.core.errors import ModelError
from qrt.jit.host import host_target
from qrt.lower.executable import Executable

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


@pytest.mark.parametrize(
    ("attributes", "why"),
    [({"clip": 0.5}, "clipped"), ({"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "hardsigmoid"), ({"input_forget": 1}, "coupled")],
)
def test_what_has_no_kernel_says_why(attributes: dict[str, Any], why: str) -> None:
    model, feeds = one_node("LSTM", inputs_of("LSTM"), (1, 2, 3), 3, hidden_size=HIDDEN, **attributes)
    executable = Executable(as_model(model), host_target(), 1)
    with contextlib.suppress(ModelError, RuntimeWarning):  # onnx.reference cannot always run it either
        executable.run(feeds)
    assert why in next(iter(executable.why.values()))


def test_weights_that_do_not_fit() -> None:
    inputs = inputs_of("LSTM")
    inputs[2] = real(1, 4 * HIDDEN, HIDDEN + 1)
    model, feeds = one_node("LSTM", inputs, (1, 2, 3), 3, hidden_size=HIDDEN)
    with pytest.raises(ModelError):
        run_model(model, feeds)
