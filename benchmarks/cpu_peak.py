"""Loops that multiply and add in registers alone: what they reach is the most that any kernel could."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lang import fields
from qrt.jit.lang.simd import I8, I64, Simd
from qrt.ops.gemm.cpu_amx import tiles_begin, tiles_end

_VOID = ir.VoidType()
_REGISTER = {"neon_dot": "w"}  # the constraint that names a vector register; "x" on x86


def _fresh(s: Simd, x: Any) -> Any:
    """x, of which the optimiser knows nothing any more: no product of it can be moved out of the loop."""
    kind = ir.FunctionType(x.type, [x.type])
    return s.b.call(ir.InlineAsm(kind, "", f"={_REGISTER.get(s.isa, 'x')},0", side_effect=True), [x])


def _dot(s: Simd, acc: Any, a: Any, w: Any) -> Any:
    if s.isa != "avx2":
        return s.dot(acc, a, w)
    # The two multiplies and additions; micro-kernels widen codes beforehand.
    for operand in (a, _fresh(s, a)):
        acc = s.dot_pairs(acc, operand, w)
    return acc


def vectors(isa, kind, count):  # type: ignore[no-untyped-def]
    """`n` rounds of `count` dot products (kind "dot") or fused multiply-adds ("fma"), each on an accumulator of its own.

    x: two operands, then what the accumulators start from, 64 bytes apart; y: 1024 bytes a thread, for their sum.
    """

    @intrinsic
    def loop(typing_context, n, x, y):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            n, x, y = args
            s, b = Simd(isa, builder), builder
            vector = s.i32 if kind == "dot" else s.f32
            first, w, *starts = (s.load(s.at(x, 64 * j), vector) for j in range(count + 2))
            entry, body, done = b.block, b.append_basic_block("body"), b.append_basic_block("done")
            b.branch(body)
            b.position_at_end(body)
            i, operand, phis = b.phi(I64), b.phi(vector), [b.phi(vector) for _ in range(count)]
            a, sums = operand, []
            for phi in phis:
                a = _fresh(s, a)
                sums.append(_dot(s, phi, a, w) if kind == "dot" else s.fma(phi, a, w))
            i_next = b.add(i, I64(1))
            for phi, start, after in zip((i, operand, *phis), (I64(0), first, *starts), (i_next, a, *sums), strict=True):
                phi.add_incoming(start, entry)
                phi.add_incoming(after, body)
            b.cbranch(b.icmp_signed("<", i_next, n), body, done)
            b.position_at_end(done)
            total = sums[0]
            for value in sums[1:]:
                total = b.add(total, value) if kind == "dot" else b.fadd(total, value)
            s.store(y, total)
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 3), codegen

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        loop(r.n, r.x, r.y + 1024 * tid)

    return kernel


@intrinsic
def _tile_loop(typing_context, n, x, y):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        n, x, y = args
        s, b = Simd("avx512vnni", builder), builder

        def pointer(address: Any) -> Any:
            return b.inttoptr(address, I8.as_pointer())

        for tile in range(4):
            s.call("llvm.x86.tilezero", _VOID, I8(tile))
        for tile in range(4, 8):
            s.call("llvm.x86.tileloadd64", _VOID, I8(tile), pointer(x), I64(0))
        entry, body, done = b.block, b.append_basic_block("body"), b.append_basic_block("done")
        b.branch(body)
        b.position_at_end(body)
        i = b.phi(I64)
        for tile in range(4):
            s.call("llvm.x86.tdpbusd", _VOID, I8(tile), I8(4 + tile // 2), I8(6 + tile % 2))
        i_next = b.add(i, I64(1))
        i.add_incoming(I64(0), entry)
        i.add_incoming(i_next, body)
        b.cbranch(b.icmp_signed("<", i_next, n), body, done)
        b.position_at_end(done)
        for tile in range(4):
            s.call("llvm.x86.tilestored64", _VOID, I8(tile), pointer(y), I64(64))
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 3), codegen


def tiles():  # type: ignore[no-untyped-def]
    """`n` rounds of four tile products, each 16 × 16 × 64, on four accumulators. x: 64 bytes, y: 1024 bytes a thread."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        tiles_begin(16, 16)
        _tile_loop(r.n, r.x, r.y + 1024 * tid)
        tiles_end()

    return kernel
