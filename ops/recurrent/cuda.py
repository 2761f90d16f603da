"""Device kernels of recurrent cells: a block takes one direction of one sequence through all of time, its threads share the gates' columns.

Sums are in the order of the CPU's kernels. States lie in the outputs, gates in scratch memory: barriers make them known to the block.
"""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import cuda, device, float32, int32, int64, load_f32, quotient, store_f32
from qrt.jit.lang.cuda_math import sigmoid, tanh


@device
def at(x, j):  # type: ignore[no-untyped-def]
    """Where float j of x is."""
    return x + int64(4) * int64(j)


@device
def dot(start, h, column, n, width):  # type: ignore[no-untyped-def]
    """start + Σ_i h[i] · column[i], the column's elements `width` apart, in order of i."""
    total = start
    for i in range(n):
        total = total + load_f32(at(h, i)) * load_f32(column + int64(4) * int64(i) * int64(width))
    return total


@device
def lstm_cell(gates, h, c, y, peepholes, n, j, peeping):  # type: ignore[no-untyped-def]
    """Unit j's gates i, o, f, c before their activations → its next states."""
    i, o = load_f32(at(gates, j)), load_f32(at(gates, int32(n + j)))
    f, g = load_f32(at(gates, int32(2 * n + j))), load_f32(at(gates, int32(3 * n + j)))
    before = load_f32(at(c, j))
    if peeping:
        i, f = i + load_f32(at(peepholes, j)) * before, f + load_f32(at(peepholes, int32(2 * n + j))) * before
    cell = sigmoid(f) * before + sigmoid(i) * tanh(g)
    if peeping:
        o = o + load_f32(at(peepholes, int32(n + j))) * cell
    state = sigmoid(o) * tanh(cell)
    store_f32(at(c, j), cell)
    store_f32(at(h, j), state)
    store_f32(at(y, j), state)


def recurrent(cell: str, threads: int) -> Any:
    """`cell`: a key of recurrent.GATES; the record is `device.RECORD`."""
    lstm, gru, peeping = cell.startswith("lstm"), cell.startswith("gru"), cell == "lstm_peeping"
    reset_after, relu = cell == "gru_reset_after", cell == "rnn_relu"

    @device
    def gru_cell(x, gates, own, h, y, weights, extra, n, width, thread):  # type: ignore[no-untyped-def]
        """The next states of all units, after the gates z and r."""
        for j in range(thread, n, threads):
            if reset_after:
                inner = dot(load_f32(at(extra, j)), h, at(weights, int32(2 * n + j)), n, width)
                store_f32(at(own, j), load_f32(at(x, int32(2 * n + j))) + sigmoid(load_f32(at(gates, int32(n + j)))) * inner)
            else:
                store_f32(at(own, j), sigmoid(load_f32(at(gates, int32(n + j)))) * load_f32(at(h, j)))
        cuda.syncthreads()
        for j in range(thread, n, threads):
            if reset_after:
                hidden = load_f32(at(own, j))
            else:
                hidden = dot(load_f32(at(x, int32(2 * n + j))), own, at(weights, int32(2 * n + j)), n, width)
            z = sigmoid(load_f32(at(gates, j)))
            state = (float32(1) - z) * tanh(hidden) + z * load_f32(at(h, j))
            store_f32(at(h, j), state)
            store_f32(at(y, j), state)

    def kernel(x, y, h, c, h0, c0, weights, extra, gates, time, batch, directions, n, width, extra_n, reverse):  # type: ignore[no-untyped-def]
        unit, thread = int32(cuda.blockIdx.x), int32(cuda.threadIdx.x)
        direction = quotient(unit, batch)
        row = int32(unit - direction * batch)
        states = int64(4) * int64(unit) * int64(n)
        h_at, c_at = h + states, c + states
        weights_at = weights + int64(4) * int64(direction) * int64(n) * int64(width)
        extra_at = extra + int64(4) * int64(direction) * int64(extra_n)
        gates_at = gates + int64(4) * int64(unit) * int64(int32(width + n))
        own = at(gates_at, width)
        for j in range(thread, n, threads):
            store_f32(at(h_at, j), load_f32(at(h0 + states, j)))
            if lstm:
                store_f32(at(c_at, j), load_f32(at(c0 + states, j)))
        cuda.syncthreads()
        for step in range(time):
            t = int32(int32(time - int32(1)) - int32(step)) if direction == int32(1) or reverse != int32(0) else int32(step)
            x_at = x + int64(4) * (((int64(t) * int64(batch) + int64(row)) * int64(directions)) + int64(direction)) * int64(width)
            y_at = y + int64(4) * (((int64(t) * int64(directions) + int64(direction)) * int64(batch)) + int64(row)) * int64(n)
            columns = int32(2 * n) if gru else width
            for j in range(thread, columns, threads):
                store_f32(at(gates_at, j), dot(load_f32(at(x_at, j)), h_at, at(weights_at, j), n, width))
            cuda.syncthreads()
            if gru:
                gru_cell(x_at, gates_at, own, h_at, y_at, weights_at, extra_at, n, width, thread)
            else:
                for j in range(thread, n, threads):
                    if lstm:
                        lstm_cell(gates_at, h_at, c_at, y_at, extra_at, n, int32(j), peeping)
                    else:
                        gate = load_f32(at(gates_at, j))
                        positive = gate if gate > float32(0) else float32(0)
                        state = positive if relu else tanh(gate)
                        store_f32(at(h_at, j), state)
                        store_f32(at(y_at, j), state)
            cuda.syncthreads()

    return kernel
