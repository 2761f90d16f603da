"""Kernels of depthwise convolution, and the row of codes that padding reads."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from qrt.jit.lanes import LANES
from qrt.jit.lang import fields, share, u8
from qrt.jit.lang.simd import F32, I8, I64, Simd
from qrt.ops.gemm.cpu_micro import Micro, numbers, places, tile
from qrt.ops.gemm.table import CODES


class _Depthwise(Micro):
    """A tile of output pixels times vectors of channels: for each tap, x · w lane by lane."""

    def build(self) -> None:
        b, v = self.b, self.v
        self.index = [self.row_index(i) for i in range(self.rows)]
        whole = b.icmp_signed("==", v["columns"], I64(self.vectors * self.s.lanes))
        with b.if_else(whole) as (then, otherwise):
            with then:
                self._tile(masked=False)
            with otherwise:
                self._tile(masked=True)

    def _tile(self, masked: bool) -> None:
        b, s, v = self.b, self.s, self.v
        masks = [s.mask(b.sub(v["columns"], I64(j * s.lanes))) if masked else None for j in range(self.vectors)]
        start = [self._start(j) for j in range(self.vectors)]
        entry, loop, done = b.block, b.append_basic_block("tap"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        tap, w = b.phi(I64), b.phi(I64)
        tap.add_incoming(I64(0), entry)
        w.add_incoming(v["w"], entry)
        phis = [[b.phi(self.kind) for _ in range(self.vectors)] for _ in range(self.rows)]
        weights = [s.load(s.at(w, 4 * s.lanes * j), self.kind) for j in range(self.vectors)]
        acc = []
        for i in range(self.rows):
            pixel = self._indirect(i, tap)
            acc.append([self._multiply_add(phis[i][j], pixel, j, weights[j], masks[j]) for j in range(self.vectors)])
        tap_next, w_next = b.add(tap, I64(1)), b.add(w, v["k4"])
        tap.add_incoming(tap_next, loop)
        w.add_incoming(w_next, loop)
        for i in range(self.rows):
            for j in range(self.vectors):
                phis[i][j].add_incoming(start[j], entry)
                phis[i][j].add_incoming(acc[i][j], loop)
        b.cbranch(b.icmp_signed("<", tap_next, v["taps"]), loop, done)
        b.position_at_end(done)
        self._finish(acc, masked)

    def _multiply_add(self, acc: Any, pixel: Any, j: int, w: Any, mask: Any) -> Any:
        s = self.s
        size, element = (4, F32) if self.floats else (1, I8)
        kind, address = ir.VectorType(element, s.lanes), s.at(pixel, size * s.lanes * j)
        x = s.load(address, kind) if mask is None else s.load_masked(address, kind, mask)
        return s.fma(acc, x, w) if self.floats else s.multiply_add(acc, s.widen_u8(x), w)


def depthwise(isa, tile_rows, tile_vectors, epilogue):  # type: ignore[no-untyped-def]
    """All tiles of one image batch: threads share the (image, pixel block) rows, channels innermost."""

    def build(builder: Any, values: dict[str, Any]) -> None:
        _Depthwise(Simd(isa, builder), tile_rows, tile_vectors, "indirect", epilogue, values).build()

    compute = tile(build)
    lanes = tile_vectors * LANES[isa]
    size = 1 if epilogue in CODES else 4
    x_size = 4 if epilogue in ("f32", "f32add") else 1

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        blocks = (r.m + tile_rows - 1) // tile_rows
        lo, hi = share(r.batch * blocks, tid, nthreads)
        shared = (r.x_row, *places(r), r.taps, r.k4, 0, 0, *numbers(r))
        for block in range(lo, hi):
            m = block % blocks * tile_rows
            image = block // blocks
            for c in range(0, r.n, lanes):
                at = image * r.y_batch + m * r.y_row + c * size
                own = (
                    r.x + image * r.x_batch + c * x_size,
                    r.offsets + 4 * m * r.taps,
                    r.w + 4 * c,
                    r.bias + 4 * c,
                    r.scale + 4 * c,
                    r.y + at,
                    r.r + at,
                    r.column_sums + 4 * c,
                    0,
                    0,
                    min(tile_rows, r.m - m),
                    min(lanes, r.n - c),
                )
                compute(own + shared)

    return kernel


def fill():  # type: ignore[no-untyped-def]
    """y[:n] = the byte at address `code`."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        y, code = u8(r.y), u8(r.code)[0]
        for i in range(r.n):
            y[i] = code

    return kernel


def pad():  # type: ignore[no-untyped-def]
    """Images with padding around their rows: threads share the rows, those of padding included."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        code = u8(r.code)[0]
        n, gap = r.piece, r.gap
        rows, pitch = r.top + r.height + r.bottom, gap + r.pieces * n
        lo, hi = share(r.batch * rows, tid, nthreads)
        for item in range(lo, hi):
            image, row = item // rows, item % rows
            start = r.y + image * (gap + rows * pitch) + row * pitch
            y = u8(start)
            inside = row >= r.top and row < r.top + r.height
            for i in range(gap if inside else pitch):
                y[i] = code
            if inside:
                first = r.x + image * r.x_image + (row - r.top) * r.pieces * r.x_piece
                for piece in range(r.pieces):
                    x, to = u8(first + piece * r.x_piece), u8(start + gap + piece * n)
                    for i in range(n):
                        to[i] = x[i]
            if row == rows - 1:
                for i in range(pitch, pitch + gap):
                    y[i] = code

    return kernel


def sort():  # type: ignore[no-untyped-def]
    """The pixels of padded images by phase: threads share the rows of all phases."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        code, n = u8(r.code)[0], r.piece
        lo, hi = share(r.batch * r.row_phases * r.column_phases * r.rows, tid, nthreads)
        for item in range(lo, hi):
            phase = item // r.rows
            across, down = phase % r.column_phases, phase // r.column_phases % r.row_phases
            image = phase // r.column_phases // r.row_phases
            line = item % r.rows * r.down + down - r.top
            for j in range(r.pitch):
                column = j * r.across + across - r.left
                y = u8(r.y + (item * r.pitch + j) * n)
                if line >= 0 and line < r.height and column >= 0 and column < r.width:
                    x = u8(r.x + image * r.x_image + (line * r.width + column) * r.x_piece)
                    for i in range(n):
                        y[i] = x[i]
                else:
                    for i in range(n):
                        y[i] = code

    return kernel
