"""Handlers of LSTM, GRU and RNN: one product projects the whole sequence to the gates, one op runs the recurrence."""

from __future__ import annotations

import numpy as np

from qrt.core.errors import ModelError
from qrt.graph import attr_float, attr_int, attr_str, ir
from qrt.lower.handlers.reading import optional, required
from qrt.lower.lowering import Handler, Lowering, NotNative
from qrt.ops.gemm import Dense, Float, Weights
from qrt.ops.op import Array, View
from qrt.ops.recurrent import GATES, Recurrent

__all__ = ["HANDLERS"]

_DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


def _cell(low: Lowering, node: ir.Node, directions: int) -> str:
    """The kernels' name of the cell. NotNative for what they do not do."""
    attr = node.attributes.get("activations")
    activations = [name.lower() for name in attr.as_strings()] if attr is not None else _DEFAULTS[node.op_type] * directions
    if node.op_type == "RNN" and activations in (["tanh"] * directions, ["relu"] * directions):
        return f"rnn_{activations[0]}"
    if activations != _DEFAULTS[node.op_type] * directions:
        raise NotNative(f"activations {activations}")
    if node.op_type == "GRU":
        return "gru_reset_after" if attr_int(node, "linear_before_reset", 0) else "gru"
    return "lstm" if optional(node, 7) is None else "lstm_peeping"


def _bias(low: Lowering, node: ir.Node, cell: str, weights: Array) -> tuple[Array, Array | None]:
    """The bias of the projection, [D · G · n], and the one that a GRU adds before it resets, [D, n]."""
    directions, width, n = weights.shape
    value = optional(node, 3)
    bias = np.zeros((directions, 2 * width), np.float32) if value is None else low.require_const(value, "the bias")
    if bias.shape != (directions, 2 * width):
        raise ModelError(f"node {node.name!r}: a bias of shape {bias.shape}, expected {(directions, 2 * width)}")
    source = weights if value is None else bias
    late = n if cell == "gru_reset_after" else 0

    def projected() -> Array:
        recurrent = bias[:, width:].copy()
        recurrent[:, width - late :] = 0
        return np.asarray(bias[:, :width] + recurrent).reshape(-1)

    def reset() -> Array:
        return np.ascontiguousarray(bias[:, 2 * width - n :])

    own = low.constants.derived(source, ("gates", late), projected)
    return own, low.constants.derived(source, "reset", reset) if late else None


def _state(low: Lowering, node: ir.Node, index: int, shape: tuple[int, ...], batch_first: bool) -> int:
    """A first state [D, B, n]: input `index`, or zeros."""
    value = optional(node, index)
    if value is None:
        return low.constant(np.zeros(shape, np.float32))
    if len(low.shape(value)) != 3:
        raise ModelError(f"node {node.name!r}: a first state of shape {low.shape(value)}")
    return low.get(value, (1, 0, 2) if batch_first else None)


def _lengths(low: Lowering, node: ir.Node, time: int) -> list[int]:
    """The lengths of the sequences, if they may be shorter than `time`."""
    value = optional(node, 4)
    if value is None:
        return []
    known = low.const(value)
    if known is not None and ((known < 0) | (known > time)).any():
        raise ModelError(f"node {node.name!r}: lengths {value.name!r} must be within 0 … {time}")
    return [] if known is not None and (known == time).all() else [low.get(value)]


def _recurrent(low: Lowering, node: ir.Node) -> None:
    x, batch_first = required(node), bool(attr_int(node, "layout", 0))
    w, r = (low.require_const(required(node, k), "the weights") for k in (1, 2))
    direction = attr_str(node, "direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ModelError(f"node {node.name!r}: no direction is called {direction!r}")
    directions = 2 if direction == "bidirectional" else 1
    cell = _cell(low, node, directions)
    gates = GATES[cell]
    if w.dtype != np.float32 or low.dtype(x) != np.float32:
        raise NotNative(f"a recurrence over {low.dtype(x)}")
    n = attr_int(node, "hidden_size", r.shape[-1])
    if len(low.shape(x)) != 3 or w.shape != (directions, gates * n, low.shape(x)[2]) or r.shape != (directions, gates * n, n):
        raise ModelError(f"node {node.name!r}: weights of shapes {w.shape} and {r.shape} do not fit an input of shape {low.shape(x)}")
    bias, extra = _bias(low, node, cell, r)
    if cell == "lstm_peeping":
        extra = low.require_const(required(node, 7), "the peepholes")

    index = low.get(x, (1, 0, 2) if batch_first else None)
    time, batch, inputs = low.program.specs[index].shape
    matrix = low.constants.derived(w, "projection", lambda: np.ascontiguousarray(w.reshape(-1, inputs).T)[None, None])
    projected = low.call(Dense(Weights(matrix, None, bias), Float()), [index])[0]
    projected = low.call(View((time, batch, directions, gates * n)), [projected])[0]
    lengths = optional(node, 4)
    label = "lengths" if lengths is None else f"lengths {lengths.name!r}"
    clip = attr_float(node, "clip", 0.0) or float("inf")
    op = Recurrent(cell, r, extra, direction == "reverse", clip, bool(attr_int(node, "input_forget", 0)), label)
    states = [_state(low, node, k, (directions, batch, n), batch_first) for k in (5, 6)[: 1 + op.has_cell_state]]
    y, *last = low.call(op, [projected, *states, *_lengths(low, node, time)])
    layouts = ((1, 2, 0, 3), (1, 0, 2)) if batch_first else (None, None)
    for target, result, perm in zip(node.outputs, (y, *last), (layouts[0], layouts[1], layouts[1]), strict=False):
        if target.name:
            low.bind(target, result, perm)


HANDLERS: dict[tuple[str, str], Handler] = {("", name): _recurrent for name in _DEFAULTS}
