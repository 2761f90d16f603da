"""How sums of codes whose scale and zero point were measured in the run become floats, on the tensor cores' way out."""

from __future__ import annotations

from typing import Any

from qrt.jit.lang.cuda import add, as_bits, device, int32, int64, load_f32, load_i32, load_u8, multiply, to_float

__all__ = ["in_floats"]


def in_floats(bn: int, warps_m: int, warps_n: int, m_tiles: int) -> Any:
    """What replaces a thread's accumulators by the bits of epilogue.DynamicFloat's results."""
    tile_n = bn // warps_n
    n_tiles = tile_n // 8

    @device
    def real(acc, correction, factor, addend):  # type: ignore[no-untyped-def]
        return as_bits(add(multiply(to_float(int32(acc - correction)), factor), addend))

    @device
    def finish(acc, thread, first_n, scale, addend, column_sums, a_scale, a_zero_point):  # type: ignore[no-untyped-def]
        lane, warp_n = int32(thread & int32(31)), int32(int32(thread >> int32(5)) // int32(warps_m))
        measured, zero = load_f32(a_scale), load_u8(a_zero_point)
        for j in range(n_tiles):
            column = int64(4) * int64(int32(first_n + warp_n * int32(tile_n) + int32(8 * j) + (lane & int32(3)) * int32(2)))
            for e in range(2):
                at = column + int64(4 * e)
                factor, more = multiply(measured, load_f32(scale + at)), load_f32(addend + at)
                correction = int32(zero * load_i32(column_sums + at))
                for i in range(m_tiles):
                    acc[i, j, e] = real(acc[i, j, e], correction, factor, more)
                    acc[i, j, 2 + e] = real(acc[i, j, 2 + e], correction, factor, more)

    return finish
