"""SIMD for micro-kernels: what each instruction set offers, behind one set of names that build LLVM IR.

A micro-kernel is built in Python loops that unroll into IR. `Simd(isa)` knows the vector width and the best instruction
for each step. Every method that computes stands in TWINS beside the NumPy function that it equals bit for bit; one
table-driven test holds them together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from qrt.jit.lanes import FOUR_ORDER, LANES, QUAD_ORDER

__all__ = ["FOUR_TWINS", "QUAD_TWINS", "TWINS", "Simd"]

I1, I8, I16, I32, I64, F32 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


# LLVM's names of the instruction that multiplies and adds pairs of words.
_MULTIPLIES_PAIRS = {"avx512vnni": "avx512.pmaddw.d.512", "avxvnni": "avx2.pmadd.wd", "avx2": "avx2.pmadd.wd"}


class Simd:
    """Vectors of LANES[isa] 32-bit lanes, built with the IR builder `b`."""

    def __init__(self, isa: str, b: Any) -> None:
        self.isa, self.b, self.lanes = isa, b, LANES[isa]
        self.i32 = ir.VectorType(I32, self.lanes)
        self.f32 = ir.VectorType(F32, self.lanes)

    def call(self, name: str, result: ir.Type, *args: Any) -> Any:
        """Calls the LLVM intrinsic `name`."""
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    # -- memory -----------------------------------------------------------------------------------------------------------
    def at(self, address: Any, offset: int = 0) -> Any:
        """`address` + a constant."""
        return self.b.add(address, I64(offset)) if offset else address

    def load(self, address: Any, kind: ir.Type) -> Any:
        """Unaligned load of a vector or scalar."""
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = 1
        return value

    def store(self, address: Any, value: Any) -> None:
        """Unaligned store."""
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = 1

    def prefetch(self, address: Any) -> None:
        """Asks for the cache line at `address`, which is read soon; any address will do."""
        pointer = self.b.inttoptr(address, I8.as_pointer())
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))

    def opaque(self, value: Any) -> Any:
        """An address or a vector of 512 bits, of which the optimiser knows nothing any more."""
        constraint = "r" if value.type == I64 else "v"
        return self.b.call(ir.InlineAsm(ir.FunctionType(value.type, [value.type]), "", f"={constraint},0"), [value])

    def mask(self, count: Any) -> Any:
        """The lanes below `count` (int64)."""
        lanes = ir.Constant(self.i32, list(range(self.lanes)))
        return self.b.icmp_signed("<", lanes, self.splat(self.b.trunc(count, I32)))

    def load_masked(self, address: Any, kind: ir.VectorType, mask: Any) -> Any:
        """Load of the lanes in `mask`; the others are 0 and their memory is not touched."""
        pointer = self.b.inttoptr(address, kind.as_pointer())
        name = f"llvm.masked.load.v{kind.count}{_short(kind.element)}.p0"
        return self.call(name, kind, pointer, mask, ir.Constant(kind, None))

    def store_masked(self, address: Any, value: Any, mask: Any) -> None:
        """Store of the lanes in `mask`."""
        kind = value.type
        pointer = self.b.inttoptr(address, kind.as_pointer())
        self.call(f"llvm.masked.store.v{kind.count}{_short(kind.element)}.p0", ir.VoidType(), value, pointer, mask)

    # -- codes, four vectors at a time (avx2) ---------------------------------------------------------------------------------
    # Packing works within 128 bits: lane i of vector v ends as byte FOUR_ORDER[8·v + i] of the 32.
    def pack_four(self, steps: list[Any], zero_point: Any, low: Any) -> Any:
        """max(saturate_u8(steps + zero_point), low) of four int32 vectors as 32 bytes; the scalars are int32."""
        b, words, codes = self.b, ir.VectorType(I16, 16), ir.VectorType(I8, 32)
        halves = [self.call("llvm.x86.avx2.packssdw", words, steps[2 * h], steps[2 * h + 1]) for h in range(2)]
        point = self._splat(b.trunc(zero_point, I16), 16)
        shifted = [self.call("llvm.sadd.sat.v16i16", words, half, point) for half in halves]
        packed = self.call("llvm.x86.avx2.packuswb", codes, *shifted)
        return self.call("llvm.umax.v32i8", codes, packed, self._splat(b.trunc(low, I8), 32))

    def in_order(self, packed: Any) -> Any:
        """What `pack_four` gives, vector after vector."""
        b, order = self.b, ir.Constant(self.i32, [0, 4, 1, 5, 2, 6, 3, 7])
        return b.bitcast(b.shuffle_vector(b.bitcast(packed, self.i32), ir.Constant(self.i32, ir.Undefined), order), packed.type)

    def pairs_of(self, x: Any, y: Any) -> list[Any]:
        """Four vectors of 32 bytes of x beside those of y: pairs of words, in FOUR_ORDER."""
        b, zero = self.b, ir.Constant(ir.VectorType(I8, 32), None)
        pairs = [b.shuffle_vector(x, y, _interleaved(32, high, 2)) for high in (False, True)]
        return [b.bitcast(b.shuffle_vector(pair, zero, _interleaved(32, high, 2)), self.i32) for pair in pairs for high in (False, True)]

    # -- codes, four vectors at a time (avx512vnni) ---------------------------------------------------------------------------
    # Packing works within 128 bits: lane i of vector v ends as byte QUAD_ORDER[16·v + i] of the 64.
    def pack_codes(self, steps: list[Any], zero_point: Any, low: Any, high: Any) -> Any:
        """min(max(saturate_u8(steps + zero_point), low), high) of four int32 vectors as 64 bytes; the scalars are int32."""
        b, words, codes = self.b, ir.VectorType(I16, 32), ir.VectorType(I8, 64)
        halves = [self.call("llvm.x86.avx512.packssdw.512", words, steps[2 * h], steps[2 * h + 1]) for h in range(2)]
        point = self._splat(b.trunc(zero_point, I16), 32)
        shifted = [self.call("llvm.sadd.sat.v32i16", words, half, point) for half in halves]
        packed = self.call("llvm.x86.avx512.packuswb.512", codes, *shifted)
        packed = self.call("llvm.umax.v64i8", codes, packed, self._splat(b.trunc(low, I8), 64))
        return self.call("llvm.umin.v64i8", codes, packed, self._splat(b.trunc(high, I8), 64))

    def saturate(self, steps: list[Any], signed: bool) -> Any:
        """pack_codes for all codes and the zero point 0, or 128 where `signed`: packs saturate to the bounds themselves."""
        b, words, codes = self.b, ir.VectorType(I16, 32), ir.VectorType(I8, 64)
        halves = [self.call("llvm.x86.avx512.packssdw.512", words, steps[2 * h], steps[2 * h + 1]) for h in range(2)]
        packed = self.call(f"llvm.x86.avx512.pack{'ss' if signed else 'us'}wb.512", codes, *halves)
        return b.xor(packed, ir.Constant(codes, [128] * 64)) if signed else packed

    def interleave(self, rows: list[Any]) -> list[Any]:
        """Four vectors of dwords from four vectors of 64 bytes: each lane holds a byte of each row, in QUAD_ORDER."""
        b, words = self.b, ir.VectorType(I16, 32)
        pairs = []
        for high in (False, True):
            first, second = (b.shuffle_vector(rows[r], rows[r + 1], _interleaved(64, high)) for r in (0, 2))
            pairs.append((b.bitcast(first, words), b.bitcast(second, words)))
        return [b.bitcast(b.shuffle_vector(f, g, _interleaved(32, high)), self.i32) for f, g in pairs for high in (False, True)]

    def mask_bytes(self, count: Any) -> Any:
        """The first `count` (int64, below 64) of 64 bytes."""
        b = self.b
        return b.bitcast(b.sub(b.shl(I64(1), count), I64(1)), ir.VectorType(I1, 64))

    # -- arithmetic -------------------------------------------------------------------------------------------------------
    def splat(self, scalar: Any) -> Any:
        """A scalar in every lane."""
        return self._splat(scalar, self.lanes)

    def _splat(self, scalar: Any, count: int) -> Any:
        undefined = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
        picked = ir.Constant(ir.VectorType(I32, count), [0] * count)
        return self.b.shuffle_vector(self.b.insert_element(undefined, scalar, I32(0)), undefined, picked)

    def dot(self, acc: Any, a: Any, w: Any) -> Any:
        """acc + Σ of the four products of a lane's u8 bytes of `a` and s8 bytes of `w`, in int32, exact."""
        b = self.b
        if self.isa in ("avx512vnni", "avxvnni"):
            bits = 32 * self.lanes
            bytes_ = ir.VectorType(I8, 4 * self.lanes)
            return self.call(f"llvm.x86.avx512.vpdpbusd.{bits}", self.i32, acc, b.bitcast(a, bytes_), b.bitcast(w, bytes_))
        if self.isa == "neon_dot":  # w = (w + 128) − 128: both products are of unsigned bytes
            bytes_ = ir.VectorType(I8, 4 * self.lanes)
            zero, half = ir.Constant(self.i32, [0] * self.lanes), ir.Constant(bytes_, [128] * 4 * self.lanes)
            codes, name = b.bitcast(a, bytes_), "llvm.aarch64.neon.udot.v4i32.v16i8"
            shifted = self.call(name, self.i32, acc, codes, b.xor(b.bitcast(w, bytes_), half))
            return b.sub(shifted, self.call(name, self.i32, zero, codes, half))
        for byte in range(4):
            low, high = ir.Constant(self.i32, [8 * byte] * self.lanes), ir.Constant(self.i32, [24 - 8 * byte] * self.lanes)
            u = b.and_(b.lshr(a, low), ir.Constant(self.i32, [255] * self.lanes))
            s = b.ashr(b.shl(w, high), ir.Constant(self.i32, [24] * self.lanes))
            acc = b.add(acc, b.mul(u, s))
        return acc

    def multiply_add(self, acc: Any, a: Any, w: Any) -> Any:
        """acc + a · w in int32 for a in 0..255 and w in int16's range: a 16-bit multiply, whose upper halves add 0."""
        if self.isa in _MULTIPLIES_PAIRS:
            return self.dot_pairs(acc, a, w)
        return self.b.add(acc, self.b.mul(a, w))

    def dot_pairs(self, acc: Any, a: Any, w: Any) -> Any:
        """acc + Σ of the two products of a lane's int16 words of `a` and of `w`, in int32."""
        b = self.b
        if self.isa in _MULTIPLIES_PAIRS:
            pairs, name = ir.VectorType(I16, 2 * self.lanes), _MULTIPLIES_PAIRS[self.isa]
            return b.add(acc, self.call(f"llvm.x86.{name}", self.i32, b.bitcast(a, pairs), b.bitcast(w, pairs)))
        half = ir.Constant(self.i32, [16] * self.lanes)
        low = b.mul(b.ashr(b.shl(a, half), half), b.ashr(b.shl(w, half), half))
        return b.add(acc, b.add(low, b.mul(b.ashr(a, half), b.ashr(w, half))))

    def fma(self, acc: Any, a: Any, w: Any) -> Any:
        """acc + a · w in float32: one rounding where the instruction set has FMA, two on `generic`."""
        if self.isa == "generic":
            return self.b.fadd(acc, self.b.fmul(a, w))
        return self.call(f"llvm.fma.v{self.lanes}f32", self.f32, a, w, acc)

    def fma_code(self, acc: Any, a: Any, w: Any) -> Any:
        """acc + a · w for `a` in 0..255, rounded once: in float64 and back where there is no FMA."""
        if self.isa != "generic":
            return self.fma(acc, a, w)
        b, wide = self.b, ir.VectorType(ir.DoubleType(), self.lanes)
        return b.fptrunc(b.fadd(b.fpext(acc, wide), b.fmul(b.fpext(a, wide), b.fpext(w, wide))), self.f32)

    def bound(self, x: Any, lo: Any, hi: Any) -> Any:
        """min(max(x, lo), hi) in float32; a NaN passes."""
        x = self.b.select(self.b.fcmp_ordered("<", x, lo), lo, x)
        return self.b.select(self.b.fcmp_ordered(">", x, hi), hi, x)

    def clamp(self, x: Any, lo: Any, hi: Any) -> Any:
        """min(max(x, lo), hi) in float32; a NaN gives `lo`."""
        x = self.b.select(self.b.fcmp_ordered(">", x, lo), x, lo)
        return self.b.select(self.b.fcmp_ordered("<", x, hi), x, hi)

    def round(self, x: Any) -> Any:
        """float32 → int32, half to even; |x| < 2**31."""
        if self.isa == "avx512vnni":
            undefined = ir.Constant(self.i32, ir.Undefined)
            return self.call("llvm.x86.avx512.mask.cvtps2dq.512", self.i32, x, undefined, I16(-1), I32(4))
        if self.isa in ("avxvnni", "avx2"):
            return self.call("llvm.x86.avx.cvt.ps2dq.256", self.i32, x)
        return self.b.fptosi(self.call(f"llvm.roundeven.v{self.lanes}f32", self.f32, x), self.i32)

    def to_float(self, x: Any) -> Any:
        """int32 → float32, half to even."""
        return self.b.sitofp(x, self.f32)

    def widen_u8(self, x: Any) -> Any:
        """u8 lanes → int32."""
        return self.b.zext(x, self.i32)

    def narrow_u8(self, x: Any) -> Any:
        """int32 lanes of 0..255 → u8."""
        return self.b.trunc(x, ir.VectorType(I8, self.lanes))

    def part(self, vector: Any, start: int, count: int) -> Any:
        """`count` elements of a vector."""
        picked = ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
        return self.b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), picked)


def _interleaved(count: int, high: bool, lanes: int = 4) -> ir.Constant:
    """The shuffle that interleaves the low or high halves of every 128 bits of two vectors: of `lanes` such, and `count` elements."""
    per = count // lanes
    starts = [lane * per + (per // 2 if high else 0) for lane in range(lanes)]
    picked = [at for start in starts for i in range(start, start + per // 2) for at in (i, count + i)]
    return ir.Constant(ir.VectorType(I32, count), picked)


def _short(kind: ir.Type) -> str:
    return "f32" if isinstance(kind, ir.FloatType) else f"i{kind.width}"


def _dot(acc: np.ndarray, a: np.ndarray, w: np.ndarray) -> np.ndarray:
    u, s = a.view(np.uint8).astype(np.int64), w.view(np.int8).astype(np.int64)
    total: np.ndarray = (acc + (u * s).reshape(-1, 4).sum(1)).astype(np.int32)
    return total


def _dot_pairs(acc: np.ndarray, a: np.ndarray, w: np.ndarray) -> np.ndarray:
    products = a.view(np.int16).astype(np.int64) * w.view(np.int16)
    total: np.ndarray = (acc + products.reshape(-1, 2).sum(1)).astype(np.int32)
    return total


def _fma_code(acc: np.ndarray, a: np.ndarray, w: np.ndarray) -> np.ndarray:
    total: np.ndarray = (acc.astype(np.float64) + a.astype(np.float64) * w).astype(np.float32)
    return total


def _clamp(x: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    x = np.where(x > lo, x, lo)
    return np.where(x < hi, x, hi)


# name: (operand kinds, result kind, the NumPy function that it equals)
TWINS: dict[str, tuple[str, str, Callable[..., np.ndarray]]] = {
    "dot": ("iii", "i", _dot),
    "dot_pairs": ("iii", "i", _dot_pairs),
    "multiply_add": ("iww", "i", lambda acc, a, w: (acc.astype(np.int64) + a.astype(np.int64) * w).astype(np.int32)),
    "fma_code": ("fff", "f", _fma_code),
    "bound": ("fff", "f", lambda x, lo, hi: np.where(x < lo, lo, np.where(x > hi, hi, x))),
    "clamp": ("fff", "f", _clamp),
    "round": ("f", "i", lambda x: np.rint(x).astype(np.int32)),
    "to_float": ("i", "f", lambda x: x.astype(np.float32)),
}


def _pack_codes(steps: np.ndarray, zero_point: int, low: int, high: int) -> np.ndarray:
    words = np.clip(np.clip(steps, -32768, 32767) + zero_point, -32768, 32767)
    codes = np.empty(steps.shape, np.uint8)
    codes[:, list(QUAD_ORDER)] = np.clip(np.clip(words, 0, 255), low, high)
    return codes


def _pack_four(steps: np.ndarray, zero_point: int, low: int) -> np.ndarray:
    words = np.clip(np.clip(steps, -32768, 32767) + zero_point, -32768, 32767)
    codes = np.empty(steps.shape, np.uint8)
    codes[:, list(FOUR_ORDER)] = np.clip(words, low, 255)
    return codes


def _in_order(packed: np.ndarray) -> np.ndarray:
    return packed[:, list(FOUR_ORDER)]


def _pairs_of(rows: np.ndarray) -> np.ndarray:
    pairs = rows.transpose(0, 2, 1)[:, list(FOUR_ORDER)].astype(np.uint16)
    return np.ascontiguousarray(pairs).view(np.int32)[..., 0]


def _saturate(steps: np.ndarray, signed: bool) -> np.ndarray:
    return _pack_codes(steps, 128 if signed else 0, 0, 255)


def _interleave(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.transpose(0, 2, 1)[:, list(QUAD_ORDER)]).view(np.int32)[..., 0]


# The methods on four vectors at a time, on many blocks of them: int32 [blocks, 64] and what else they take → uint8 [blocks, 64], and
# uint8 [blocks, 4, 64] → int32 [blocks, 64].
QUAD_TWINS: dict[str, Callable[..., np.ndarray]] = {"pack_codes": _pack_codes, "saturate": _saturate, "interleave": _interleave}

# The same of 256 bits: int32 [blocks, 32] and two numbers → uint8 [blocks, 32], those → uint8, uint8 [blocks, 2, 32] → int32 [blocks, 32].
FOUR_TWINS: dict[str, Callable[..., np.ndarray]] = {"pack_four": _pack_four, "in_order": _in_order, "pairs_of": _pairs_of}
