"""Kernels of recurrent cells: the loop over time runs inside; threads share directions and batch rows, which do not meet."""

from __future__ import annotations

import numpy as np
from numba import types

from qrt.jit.lang import device, f32, fields, i32, share
from qrt.jit.lang.math import sigmoid, tanh

_ONE = np.float32(1)


@device
def accumulate(acc, h, r, size, width, begin, end):  # type: ignore[no-untyped-def]
    """acc[j] += Σ_i h[i] · r[i, j] for begin ≤ j < end, in order of i; `r`: [size, width]."""
    whole = size // 4 * 4
    for i in range(0, whole, 4):
        a, b, c, d = h[i], h[i + 1], h[i + 2], h[i + 3]
        at = i * width
        for j in range(begin, end):
            acc[j] = (((acc[j] + a * r[at + j]) + b * r[at + width + j]) + c * r[at + 2 * width + j]) + d * r[at + 3 * width + j]
    for i in range(whole, size):
        for j in range(begin, end):
            acc[j] = acc[j] + h[i] * r[i * width + j]


@device
def within(x, limit, bounded):  # type: ignore[no-untyped-def]
    """x, brought to -limit … limit if `bounded`; NaN stays."""
    if bounded and x > limit:
        return limit
    if bounded and x < -limit:
        return -limit
    return x


@device
def lstm_cell(gates, h, c, y, peepholes, n, peeping, clip, coupled, general):  # type: ignore[no-untyped-def]
    """Gates i, o, f, c before their activations → the next states."""
    for j in range(n):
        i, o, f, g = gates[j], gates[n + j], gates[2 * n + j], gates[3 * n + j]
        if peeping:
            i, f = i + peepholes[j] * c[j], f + peepholes[2 * n + j] * c[j]
        enters, stays = sigmoid(within(i, clip, general)), sigmoid(within(f, clip, general))
        if general and coupled != 0:
            stays = _ONE - enters
        cell = stays * c[j] + enters * tanh(within(g, clip, general))
        if peeping:
            o = o + peepholes[n + j] * cell
        c[j] = cell
        h[j] = sigmoid(within(o, clip, general)) * tanh(cell)
        y[j] = h[j]


@device
def length_of(lengths, row, time):  # type: ignore[no-untyped-def]
    """How many steps the sequence `row` has: 0 … time; and its entry if that says otherwise, else 0."""
    if lengths == 0:
        return time, types.int64(0)
    given = types.int64(i32(lengths)[row])
    length = max(0, min(given, time))
    return length, given if length != given else types.int64(0)


def recurrent(cell, general):  # type: ignore[no-untyped-def]
    """`cell`: lstm, lstm_peeping, gru, gru_reset_after, rnn_tanh or rnn_relu. `general`: with lengths, clip and coupled gates."""
    lstm, gru, peeping = cell.startswith("lstm"), cell.startswith("gru"), cell == "lstm_peeping"
    reset_after, relu = cell == "gru_reset_after", cell == "rnn_relu"

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        n, width, clip, coupled = r.n, r.width, r.clip, r.coupled
        gates = f32(r.gates + tid * 2 * width * 4)
        own = f32(r.gates + tid * 2 * width * 4 + width * 4)
        lo, hi = share(r.directions * r.batch, tid, nthreads)
        for unit in range(lo, hi):
            direction, row = unit // r.batch, unit % r.batch
            h, c = f32(r.h + unit * n * 4), f32(r.c + unit * n * 4)
            h0, c0 = f32(r.h0 + unit * n * 4), f32(r.c0 + unit * n * 4)
            weights = f32(r.weights + direction * n * width * 4)
            extra = f32(r.extra + direction * r.extra_n * 4)
            length = r.time
            if general:
                length, wrong = length_of(r.lengths, row, r.time)
                if wrong != 0:
                    r.refused = wrong
            empty = general and length == 0 and r.time != 0
            for j in range(n):
                h[j] = np.float32(0) if empty else h0[j]
            if lstm:
                for j in range(n):
                    c[j] = np.float32(0) if empty else c0[j]
            if general:
                for t in range(length, r.time):
                    y = f32(r.y + ((t * r.directions + direction) * r.batch + row) * n * 4)
                    for j in range(n):
                        y[j] = np.float32(0)
            for step in range(length):
                t = length - 1 - step if direction == 1 or r.reverse != 0 else step
                x = f32(r.x + ((t * r.batch + row) * r.directions + direction) * width * 4)
                y = f32(r.y + ((t * r.directions + direction) * r.batch + row) * n * 4)
                for j in range(width):
                    gates[j] = x[j]
                if lstm:
                    accumulate(gates, h, weights, n, width, 0, width)
                    lstm_cell(gates, h, c, y, extra, n, peeping, clip, coupled, general)
                elif gru:
                    accumulate(gates, h, weights, n, width, 0, 2 * n)
                    if reset_after:
                        # The hidden gate's recurrent part has a bias of its own, and is reset as a whole.
                        for j in range(n):
                            own[2 * n + j] = extra[j]
                        accumulate(own, h, weights, n, width, 2 * n, 3 * n)
                        for j in range(n):
                            gates[2 * n + j] = gates[2 * n + j] + sigmoid(within(gates[n + j], clip, general)) * own[2 * n + j]
                    else:
                        for j in range(n):
                            own[j] = sigmoid(within(gates[n + j], clip, general)) * h[j]
                        accumulate(gates, own, weights, n, width, 2 * n, 3 * n)
                    for j in range(n):
                        z = sigmoid(within(gates[j], clip, general))
                        h[j] = (_ONE - z) * tanh(within(gates[2 * n + j], clip, general)) + z * h[j]
                        y[j] = h[j]
                else:
                    accumulate(gates, h, weights, n, width, 0, width)
                    for j in range(n):
                        gate = within(gates[j], clip, general)
                        if relu:
                            h[j] = gate if gate > np.float32(0) else np.float32(0)
                        else:
                            h[j] = tanh(gate)
                        y[j] = h[j]

    return kernel
