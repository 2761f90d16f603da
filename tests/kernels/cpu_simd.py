"""Kernel sources for test_simd.py: one method of Simd applied to whole arrays. Imported only to compile."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qrt.jit.lanes import LANES
from qrt.jit.lang import fields
from qrt.jit.lang.simd import F32, I8, I32, Simd


def _on_vectors(isa, body):  # type: ignore[no-untyped-def]
    """The intrinsic (addresses a, b, c, y and a lane count) → nothing that `body(Simd, those)` builds."""

    @intrinsic
    def built(typing_context, a, b, c, y, count):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            body(Simd(isa, builder), *args)
            return context.get_dummy_value()

        return types.void(a, b, c, y, count), codegen

    return built


def method(isa, name, operands, result):  # type: ignore[no-untyped-def]
    """y = Simd.name(a, b, c), vector by vector."""

    def body(s: Simd, a: Any, b: Any, c: Any, y: Any, count: Any) -> None:
        kinds = [s.f32 if kind == "f" else s.i32 for kind in operands]
        s.store(y, getattr(s, name)(*(s.load(address, kind) for address, kind in zip((a, b, c), kinds, strict=False))))

    apply = _on_vectors(isa, body)
    width = 4 * LANES[isa]

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        for at in range(0, 4 * r.n, width):
            apply(r.a + at, r.b + at, r.c + at, r.y + at, r.n)

    return kernel


def codes(isa):  # type: ignore[no-untyped-def]
    """y = narrow_u8(widen_u8(a)), for the first n lanes; y's other lanes keep what they hold."""

    def body(s: Simd, a: Any, b: Any, c: Any, y: Any, count: Any) -> None:
        mask = s.mask(count)
        wide = s.widen_u8(s.load_masked(a, ir.VectorType(I8, s.lanes), mask))
        s.store_masked(b, wide, mask)
        s.store_masked(y, s.narrow_u8(wide), mask)

    return _once(_on_vectors(isa, body))


def masked_float(isa):  # type: ignore[no-untyped-def]
    """b = all lanes of the masked load of the first n floats of a; y = the float at c in the first n lanes."""

    def body(s: Simd, a: Any, b: Any, c: Any, y: Any, count: Any) -> None:
        mask = s.mask(count)
        s.store(b, s.load_masked(a, s.f32, mask))
        s.store_masked(y, s.splat(s.load(c, F32)), mask)

    return _once(_on_vectors(isa, body))


def foreign():  # type: ignore[no-untyped-def]
    """A kernel that calls a function of no library: it must be refused."""

    @intrinsic
    def stranger(typing_context):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            builder.call(ir.Function(builder.module, ir.FunctionType(I32, []), "stranger"), [])
            return context.get_dummy_value()

        return types.void(), codegen

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        stranger()

    return kernel


def pack_codes(isa):  # type: ignore[no-untyped-def]
    """y = Simd.pack_codes(a, the three int32 at b), block by block of 64."""

    def body(s: Simd, a: Any, b: Any, c: Any, y: Any, count: Any) -> None:
        steps = [s.load(s.at(a, 64 * v), s.i32) for v in range(4)]
        s.store(y, s.pack_codes(steps, *(s.load(s.at(b, 4 * n), I32) for n in range(3))))

    return _in_blocks(_on_vectors(isa, body), 256, 64)


def saturate(isa, signed):  # type: ignore[no-untyped-def]
    """y = Simd.saturate(a, signed), block by block of 64."""

    def body(s: Simd, a: Any, b: Any, c: Any, y: Any, count: Any) -> None:
        s.store(y, s.saturate([s.load(s.at(a, 64 * v), s.i32) for v in range(4)], signed))

    return _in_blocks(_on_vectors(isa, body), 256, 64)


def interleave(isa):  # type: ignore[no-untyped-def]
    """y = Simd.interleave(a), block by block of four rows of 64."""

    def body(s: Simd, a: Any, b: Any, c: Any, y: Any, count: Any) -> None:
        rows = [s.load(s.at(a, 64 * row), ir.VectorType(I8, 64)) for row in range(4)]
        for v, vector in enumerate(s.interleave(rows)):
            s.store(s.at(y, 64 * v), vector)

    return _in_blocks(_on_vectors(isa, body), 256, 256)


def pack_four(isa):  # type: ignore[no-untyped-def]
    """y = Simd.pack_four(a, the two int32 at b), block by block of 32."""

    def body(s: Simd, a: Any, b: Any, c: Any, y: Any, count: Any) -> None:
        steps = [s.load(s.at(a, 32 * v), s.i32) for v in range(4)]
        s.store(y, s.pack_four(steps, *(s.load(s.at(b, 4 * n), I32) for n in range(2))))

    return _in_blocks(_on_vectors(isa, body), 128, 32)


def in_order(isa):  # type: ignore[no-untyped-def]
    """y = Simd.in_order(a), block by block of 32."""

    def body(s: Simd, a: Any, b: Any, c: Any, y: Any, count: Any) -> None:
        s.store(y, s.in_order(s.load(a, ir.VectorType(I8, 32))))

    return _in_blocks(_on_vectors(isa, body), 32, 32)


def pairs_of(isa):  # type: ignore[no-untyped-def]
    """y = Simd.pairs_of(a), block by block of two rows of 32."""

    def body(s: Simd, a: Any, b: Any, c: Any, y: Any, count: Any) -> None:
        rows = [s.load(s.at(a, 32 * row), ir.VectorType(I8, 32)) for row in range(2)]
        for v, vector in enumerate(s.pairs_of(*rows)):
            s.store(s.at(y, 32 * v), vector)

    return _in_blocks(_on_vectors(isa, body), 64, 128)


def _once(apply):  # type: ignore[no-untyped-def]
    """The kernel that applies an intrinsic to `n` lanes."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        apply(r.a, r.b, r.c, r.y, r.n)

    return kernel


def _in_blocks(apply, a_bytes, y_bytes):  # type: ignore[no-untyped-def]
    """The kernel that applies an intrinsic to `n` blocks."""

    def kernel(record, tid, nthreads):  # type: ignore[no-untyped-def]
        r = fields(record)
        for block in range(r.n):
            apply(r.a + a_bytes * block, r.b, r.c, r.y + y_bytes * block, r.n)

    return kernel
