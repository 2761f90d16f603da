"""Kernels that pack a B that is computed in the run, and the byte copy."""

from __future__ import annotations

from qrt.jit.lang import f32, fields, i8, i32, share, u8
from qrt.jit.lang.streams import read, write
from qrt.ops.movement.cpu import square
from qrt.ops.movement.strided import SIDES


def pack_float():  # type: ignore[no-untyped-def]
    """B [k, n] by strides (in elements) → [n / nr][k][nr], zeros beyond n. Squares are transposed in registers where k has stride 1."""
    side = SIDES[4]
    tile = square(4, side)

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        nr, k_stride, n_stride = r.nr, r.b_k, r.b_n
        blocks = (r.n + nr - 1) // nr
        lo, hi = share(r.batch * r.groups * blocks, tid, nthreads)
        for item in range(lo, hi):
            block = item % blocks
            group = item // blocks % r.groups
            image = item // blocks // r.groups
            source = r.b + 4 * (image * r.b_batch + group * r.b_group + block * nr * n_stride)
            target = r.w + 4 * item * r.k * nr
            b, w = f32(source), f32(target)
            count = min(nr, r.n - block * nr)
            k_whole, n_whole = (r.k // side * side, count // side * side) if k_stride == 1 else (0, 0)
            for n in range(0, n_whole, side):
                for k in range(0, k_whole, side):
                    tile(source + 4 * (n * n_stride + k), 4 * n_stride, target + 4 * (k * nr + n), 4 * nr)
            for k in range(r.k):
                if n_stride == 1:
                    for n in range(count):
                        write(w, k * nr + n, read(b, k * k_stride + n))
                else:
                    for n in range(n_whole if k < k_whole else 0, count):
                        w[k * nr + n] = b[k * k_stride + n * n_stride]
                for n in range(count, nr):
                    w[k * nr + n] = 0

    return kernel


def pack_codes():  # type: ignore[no-untyped-def]
    """uint8 B [k, n] by strides → `parts` int8 taps that sum to B − b_zero_point, [n / nr][parts · stretch / step][nr][step], of which each
    has `stretch` codes (zeros beyond k); and the bias of each column, less a_zero_point · Σ of the column."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        nr = r.nr
        blocks = (r.n + nr - 1) // nr
        step = r.step
        k_steps = (r.parts * r.stretch + step - 1) // step
        lo, hi = share(r.batch * r.groups * blocks, tid, nthreads)
        for item in range(lo, hi):
            block = item % blocks
            group = item // blocks % r.groups
            image = item // blocks // r.groups
            b = u8(r.b + image * r.b_batch + group * r.b_group + block * nr * r.b_n)
            w = i8(r.w + item * k_steps * nr * step)
            count = min(nr, r.n - block * nr)
            start = i32(r.start + 4 * item * nr)
            bias = i32(r.bias + 4 * block * nr)
            for n in range(nr):
                total = 0
                w[(k_steps * nr - nr + n) * step + step - 1] = 0  # beyond the last code, or overwritten
                for k in range(r.stretch):
                    rest = 0
                    if n < count and k < r.k:
                        rest = int(b[k * r.b_k + n * r.b_n]) - r.b_zero_point
                    total += rest
                    for part in range(r.parts):
                        value = min(max(rest, -128), 127)
                        rest -= value
                        at = part * r.stretch + k
                        w[(at // step * nr + n) * step + at % step] = value
                start[n] = bias[n] - r.a_zero_point * total

    return kernel


def copy():  # type: ignore[no-untyped-def]
    """y = x, n bytes."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        x, y = u8(r.x), u8(r.y)
        lo, hi = share(r.n, tid, nthreads)
        for i in range(lo, hi):
            y[i] = x[i]

    return kernel
