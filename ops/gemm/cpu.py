"""The matrix product's kernels: the loops around its micro-kernel (`cpu_micro.py`)."""

from __future__ import annotations

from qrt.jit.lanes import LANES
from qrt.jit.lang import fields, share
from qrt.ops.gemm.cpu_micro import Micro, numbers, places, row_block_tiles, whole_blocks
from qrt.ops.gemm.table import CODES, ROW_BLOCKS


def gemm(isa, tile_rows, tile_vectors, addressing, epilogue, packed):  # type: ignore[no-untyped-def]
    """All tiles of one product, in order of (`together` row blocks, batch, group, column block, row block). Threads share the row blocks
    where there are many, so that none writes to another's cache lines; else all tiles. Row blocks are of `tile_rows` rows, then of one
    less: as many of each as leave no row over, if there are; else the last one has as many as are left."""
    whole, less = row_block_tiles(Micro, isa, tile_rows, tile_vectors, addressing, epilogue, packed)
    nr = tile_vectors * LANES[isa]
    size = 1 if epilogue in CODES else 4
    indirect = addressing == "indirect"

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        blocks = (r.m + tile_rows - 1) // tile_rows
        column_blocks = (r.n + nr - 1) // nr
        k_steps = r.taps * r.k4
        wholes = whole_blocks(blocks, r.m, tile_rows)
        first, last = share(blocks, tid, nthreads) if blocks >= ROW_BLOCKS * nthreads else (0, blocks)
        together = max(min(r.together, last - first), 1)
        # At two steps as much is asked for, of the rows that follow and of the next block of B, as is there by their turn. Few rows stay in
        # the cache, and rows far apart are no piece of memory: then both ask for B.
        by_rows = not indirect and r.m >= nr and r.x_row <= 8 * k_steps
        piece = (4 * nr + together - 1) // together
        pace, also_pace = 2 * tile_rows * r.x_row // k_steps if by_rows else 2 * piece, 2 * piece
        shared = (r.x_row, *places(r), r.taps, r.k4, pace, also_pace, *numbers(r))
        outer = r.batch * r.groups * column_blocks
        for pass_ in range((last - first + together - 1) // together):
            begin = first + pass_ * together
            rows = min(together, last - begin)
            unit, end = share(outer * rows, tid, nthreads) if last - first == blocks else (0, outer * rows)
            while unit < end:
                rest, start = unit // rows, begin + unit % rows
                stop = min(begin + rows, start + end - unit)
                unit += stop - start
                n = rest % column_blocks * nr
                rest //= column_blocks
                group, image = rest % r.groups, rest // r.groups
                x = r.x + image * r.x_batch + group * r.x_group
                w = r.w + image * r.w_batch + group * r.w_group + n // nr * r.w_block
                y = image * r.y_batch + group * r.y_group + n * size
                column = 4 * (group * column_blocks * nr + n)
                for block in range(start, stop):
                    ahead = w + r.w_block + (block - begin) * k_steps * piece
                    m = block * tile_rows - max(block - wholes, 0)
                    at = y + m * r.y_row
                    own = (
                        x if indirect else x + m * r.x_row,
                        r.offsets + 4 * m * r.taps,
                        w,
                        r.bias + image * r.bias_batch + m * r.bias_row + column,
                        r.scale + column,
                        r.y + at,
                        r.r + at,
                        r.column_sums + column,
                        x + (m + tile_rows) * r.x_row if by_rows else ahead,
                        ahead if by_rows else ahead + piece,
                        min(tile_rows - 1, r.m - m),
                        min(nr, r.n - n),
                    )
                    if tile_rows == 1 or block < wholes:
                        whole(own + shared)
                    else:
                        less(own + shared)

    return kernel
