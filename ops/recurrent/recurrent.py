"""Recurrent: LSTM, GRU and RNN over a whole sequence, float32, from inputs that are already projected to the gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qrt.core.errors import InvalidInput, ModelError, UnsupportedOp
from qrt.core.record import record
from qrt.jit import Kernel, record_dtype
from qrt.ops.op import Array, DeviceSteps, Op, Operand, Spec, Steps, refusal

__all__ = ["GATES", "KERNELS", "Recurrent"]

_RECORD = record_dtype(
    *((name, "i8") for name in ("x", "y", "h", "c", "h0", "c0", "weights", "extra", "gates")),
    *((name, "i8") for name in ("time", "batch", "directions", "n", "width", "extra_n", "reverse", "lengths", "refused", "coupled")),
    ("clip", "f4"),
)
# Gates of each cell, in the order of ONNX: i o f c, z r h, or the state itself.
GATES = {"lstm": 4, "lstm_peeping": 4, "gru": 3, "gru_reset_after": 3, "rnn_tanh": 1, "rnn_relu": 1}
_CELLS = {
    (cell, general): Kernel(
        f"recurrent_f32_{cell}{'_general' if general else ''}__generic", _RECORD, "qrt.ops.recurrent.cpu:recurrent", (cell, general)
    )
    for cell in GATES
    for general in (False, True)
}
KERNELS: tuple[Kernel, ...] = tuple(_CELLS.values())

F32 = np.dtype(np.float32)
ONE = np.float32(1)
# Fewer multiply-accumulates than this are not worth a second thread.
SERIAL_MACS = 1 << 15


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return ONE / (ONE + np.exp(-x))


@record(eq=False)
class Recurrent(Op):
    """Inputs: projected inputs with biases [T, B, D, G·n] and the first states [D, B, n] (h; for an LSTM also c), float32; perhaps the
    lengths of the sequences [B], int32 in 0 … T: past its length a sequence has states of 0, and its last ones are those before (0 if
    there are none).
    Outputs: all states h [T, D, B, n], the last h [D, B, n] and, for an LSTM, the last c [D, B, n].

    `cell`: a key of GATES (G). `weights`: recurrence [D, G·n, n]. `extra`: peepholes i, o, f [D, 3·n] of "lstm_peeping", the
    recurrence bias of the hidden gate [D, n] of "gru_reset_after". `reverse`: the one direction runs backwards; the second
    of two always does. `clip`: gates are brought to −clip … clip before their activations. `coupled`: an LSTM's f is 1 − i. `label`:
    what errors call the lengths. Formulas as in ONNX's operators LSTM, GRU and RNN with their default activations.
    """

    cell: str
    weights: Array
    extra: Array | None = None
    reverse: bool = False
    clip: float = float("inf")
    coupled: bool = False
    label: str = "lengths"

    @property
    def has_cell_state(self) -> bool:
        """Whether there is a second state, c."""
        return self.cell.startswith("lstm")

    def infer(self, inputs: Sequence[Spec]) -> tuple[Spec, ...]:
        directions, width, n = self.weights.shape
        x, *states = inputs[: 2 + self.has_cell_state]
        lengths = inputs[2 + self.has_cell_state :]
        if lengths not in ([], [Spec(x.shape[1:2], np.dtype(np.int32))]):
            raise ModelError(f"lengths {[f'{v.dtype}{v.shape}' for v in lengths]} of {x.shape[1:2]} sequences")
        if any(i.dtype != F32 for i in (x, *states)) or self.weights.dtype != F32:
            raise UnsupportedOp(f"a recurrence over {[str(i.dtype) for i in inputs]}: there are kernels for float32")
        if len(x.shape) != 4 or x.shape[2:] != (directions, width) or width != GATES[self.cell] * n or directions not in (1, 2):
            raise ModelError(f"projected inputs of shape {x.shape} do not fit weights of shape {self.weights.shape}")
        state = Spec((directions, x.shape[1], n), F32)
        if states != [state] * (1 + self.has_cell_state):
            raise ModelError(f"first states of shapes {[s.shape for s in states]}: expected {state.shape}")
        extra = {"lstm_peeping": 3 * n, "gru_reset_after": n}.get(self.cell)
        given = None if self.extra is None else self.extra.shape
        if given != ((directions, extra) if extra else None):
            raise ModelError(f"peepholes or bias of shape {given} do not fit {directions} cells of {n}")
        return (Spec((x.shape[0], directions, x.shape[1], n), F32), *[state] * (1 + self.has_cell_state))

    def macs(self, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> int:
        return inputs[0].size * int(self.weights.shape[2])

    def reference(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        x, h, *rest = (array.copy() for array in inputs[: 2 + self.has_cell_state])
        c = rest[0] if rest else h
        lengths = self._lengths(inputs)
        if x.shape[0]:
            h[:, lengths == 0] = c[:, lengths == 0] = 0
        y = np.zeros((x.shape[0], self.weights.shape[0], x.shape[1], self.weights.shape[2]), F32)
        for d in range(self.weights.shape[0]):
            backwards = d == 1 or self.reverse
            for t in range(x.shape[0])[:: -1 if backwards else 1]:
                live = t < lengths
                h[d, live], c[d, live] = self._step(d, x[t, live, d], h[d, live], c[d, live])
                y[t, d, live] = h[d, live]
        return (y, h, c) if rest else (y, h)

    def _lengths(self, inputs: Sequence[Array]) -> Array:
        """[B]; InvalidInput where they are not 0 … T."""
        time, batch = inputs[0].shape[:2]
        if len(inputs) == 2 + self.has_cell_state:
            return np.full(batch, time)
        lengths = inputs[-1].astype(np.int64)
        wrong = lengths[(lengths < 0) | (lengths > time)]
        if wrong.size:
            raise InvalidInput(refusal(self._rule(time), int(wrong[-1])))
        return lengths

    def _rule(self, time: int) -> str:
        return f"{self.label} must be within 0 … {time}"

    def _step(self, d: int, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        """One step of direction `d`: the next h and c. Without a cell state c is h."""
        n = h.shape[1]
        recurrence = self.weights[d].T
        extra = self.extra[d] if self.extra is not None else np.zeros(3 * n, F32)
        limit = np.float32(self.clip)

        def sigmoid(x: Array) -> Array:
            return _sigmoid(np.clip(x, -limit, limit))

        def tanh(x: Array) -> Array:
            return np.asarray(np.tanh(np.clip(x, -limit, limit)))

        if self.cell.startswith("gru"):
            z, r = np.split(sigmoid(x[:, : 2 * n] + h @ recurrence[:, : 2 * n]), 2, 1)
            if self.cell == "gru":
                hidden = tanh(x[:, 2 * n :] + (r * h) @ recurrence[:, 2 * n :])
            else:
                hidden = tanh(x[:, 2 * n :] + r * (h @ recurrence[:, 2 * n :] + extra))
            h = (ONE - z) * hidden + z * h
            return h, h
        gates = x + h @ recurrence
        if not self.has_cell_state:
            h = tanh(gates) if self.cell == "rnn_tanh" else np.clip(gates, np.float32(0), limit)
            return h, h
        i, o, f, g = np.split(gates, 4, 1)
        peep_i, peep_o, peep_f = np.split(extra, 3)
        enters = sigmoid(i + peep_i * c)
        c = (ONE - enters if self.coupled else sigmoid(f + peep_f * c)) * c + enters * tanh(g)
        return sigmoid(o + peep_o * c) * np.tanh(c), c

    def emit(self, steps: Steps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        x, lengths, width = inputs[0], inputs[2 + self.has_cell_state :], self.weights.shape[1]
        if outputs[1].spec.size == 0:
            return
        general = bool(lengths) or self.coupled or self.clip != float("inf")
        steps.step(
            _CELLS[self.cell, general],
            1 if x.spec.size * self.weights.shape[2] < SERIAL_MACS else None,
            **self._fields(steps, inputs, outputs),
            gates=steps.scratch(steps.threads * 2 * width * 4),
            lengths=lengths[0].ref if lengths else 0,
            refused=0,
            coupled=int(self.coupled),
            clip=self.clip,
        )
        if general:
            steps.rule(self._rule(x.spec.shape[0]))

    def emit_device(self, steps: DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> None:
        from qrt.ops.recurrent.device import CELLS

        if len(inputs) > 2 + self.has_cell_state or self.coupled or self.clip != float("inf"):
            raise UnsupportedOp("no kernel for CUDA has sequences of different lengths, clipped gates or coupled ones")
        if outputs[1].spec.size == 0:
            return
        fields = self._fields(steps, inputs, outputs)
        cells = fields["directions"] * fields["batch"]
        steps.launch(CELLS[self.cell], (cells, 1), **fields, gates=steps.scratch(cells * (fields["width"] + fields["n"]) * 4))

    def _fields(self, steps: Steps | DeviceSteps, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> dict[str, Any]:
        """The words of the record that kernels of both processors have."""
        x, first, last = inputs[0], inputs[1 : 2 + self.has_cell_state], outputs[1:]
        directions, width, n = self.weights.shape
        extra = self.extra
        return {
            "x": x.ref,
            "y": outputs[0].ref,
            "h": last[0].ref,
            "c": last[-1].ref,
            "h0": first[0].ref,
            "c0": first[-1].ref,
            "weights": steps.packed(self.weights, "columns", lambda: np.ascontiguousarray(self.weights.transpose(0, 2, 1))),
            "extra": 0 if extra is None else steps.packed(extra, "extra", extra.copy),
            "extra_n": 0 if extra is None else extra.shape[1],
            "time": x.spec.shape[0],
            "batch": x.spec.shape[1],
            "directions": directions,
            "n": n,
            "width": width,
            "reverse": int(self.reverse),
        }
