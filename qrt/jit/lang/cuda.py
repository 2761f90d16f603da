"""The words device kernels are written in. Imported only to compile; needs numba-cuda, and no GPU.

Addresses in global memory are int64, in shared memory int32; nothing is checked. Numba widens int32 arithmetic: wrap it in int32(). What
an instruction computes stands in `cuda_twins.py`, as a NumPy function of the same name; `tests/device` runs the kernels' source on those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import cuda, types
from numba.core import cgutils
from numba.cuda.extending import intrinsic
from numba.types import float32, float64, int32, int64

__all__ = ["cuda", "device", "float32", "int32", "int64"]

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FOUR, TWO = types.UniTuple(int32, 4), types.UniTuple(int32, 2)
# Code that PTX touches memory with must stay where it is.
_MEMORY = ",~{memory}"


def device(function: Callable[..., Any]) -> Any:
    """A function that kernels call; it is inlined into them before loops are unrolled."""
    return cuda.jit(device=True, inline="always")(function)


def _asm(
    builder: Any, result: ir.Type, args: Sequence[Any], text: str, constraints: str, effects: bool, attributes: tuple[str, ...] = ()
) -> Any:
    """`attributes`: "convergent" for what the threads of a warp do together, which must not be moved to where only some of them are."""
    inline = ir.InlineAsm(ir.FunctionType(result, [a.type for a in args]), text, constraints, effects)
    return builder.call(inline, args, attrs=attributes)


def _pure(text: str, constraints: str, signature: Any) -> Any:
    """The intrinsic of one PTX instruction on scalars."""
    arity = len(signature.args)

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return _asm(builder, context.get_value_type(sig.return_type), args, text, constraints, False)

    # numba reads the number of arguments off the function.
    if arity == 1:
        return intrinsic(lambda typing_context, a: (signature, codegen))
    if arity == 2:
        return intrinsic(lambda typing_context, a, b: (signature, codegen))
    return intrinsic(lambda typing_context, a, b, c: (signature, codegen))


# -- arithmetic: each rounds once, and none is fused with another -----------------------------------------------------------
dp4a = _pure("dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", int32(int32, int32, int32))
permute = _pure("prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", int32(int32, int32, int32))
# Of what is not negative. Numba's own widen to int64, which a device divides by calling a function.
quotient = _pure("div.u32 $0, $1, $2;", "=r,r,r", int32(int32, int32))
remainder = _pure("rem.u32 $0, $1, $2;", "=r,r,r", int32(int32, int32))
to_float = _pure("cvt.rn.f32.s32 $0, $1;", "=f,r", float32(int32))
nearest = _pure("cvt.rni.s32.f32 $0, $1;", "=r,f", int32(float32))
multiply = _pure("mul.rn.f32 $0, $1, $2;", "=f,f,f", float32(float32, float32))
divide = _pure("div.rn.f32 $0, $1, $2;", "=f,f,f", float32(float32, float32))
add = _pure("add.rn.f32 $0, $1, $2;", "=f,f,f", float32(float32, float32))
fma = _pure("fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", float32(float32, float32, float32))
square_root = _pure("sqrt.rn.f32 $0, $1;", "=f,f", float32(float32))
round_down = _pure("cvt.rmi.f32.f32 $0, $1;", "=f,f", float32(float32))
round_up = _pure("cvt.rpi.f32.f32 $0, $1;", "=f,f", float32(float32))
round_even = _pure("cvt.rni.f32.f32 $0, $1;", "=f,f", float32(float32))
clamp = _pure("{ .reg .f32 t; max.f32 t, $1, $2; min.f32 $0, t, $3; }", "=f,f,f,f", float32(float32, float32, float32))

as_float = _pure("mov.b32 $0, $1;", "=f,r", float32(int32))
as_bits = _pure("mov.b32 $0, $1;", "=r,f", int32(float32))
as_float64 = _pure("mov.b64 $0, $1;", "=d,l", float64(int64))
as_bits64 = _pure("mov.b64 $0, $1;", "=l,d", int64(float64))


# -- memory -----------------------------------------------------------------------------------------------------------------
def _load(element: Any, kind: ir.Type) -> Any:
    """The intrinsic that reads a number at a global address; bytes and halves are widened to int32."""
    result = float32 if kind is F32 else int64 if kind is I64 else int32

    @intrinsic
    def load(typing_context, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
            value = builder.load(builder.inttoptr(args[0], ir.PointerType(kind, 1)))
            if kind in (I8, I16):
                value = builder.sext(value, I32) if element is types.int8 else builder.zext(value, I32)
            return value

        return result(int64), codegen

    return load


def _store(kind: ir.Type) -> Any:
    """The intrinsic that writes a number at a global address; of int32, its low bits for bytes and halves."""
    given = float32 if kind is F32 else int64 if kind is I64 else int32

    @intrinsic
    def store(typing_context, address, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
            value = builder.trunc(args[1], kind) if kind in (I8, I16) else args[1]
            builder.store(value, builder.inttoptr(args[0], ir.PointerType(kind, 1)))
            return context.get_dummy_value()

        return types.void(int64, given), codegen

    return store


load_u8, load_i8, load_u16 = _load(types.uint8, I8), _load(types.int8, I8), _load(types.uint16, I16)
load_i32, load_i64, load_f32 = _load(int32, I32), _load(int64, I64), _load(float32, F32)
store_u8, store_u16, store_i32, store_i64, store_f32 = _store(I8), _store(I16), _store(I32), _store(I64), _store(F32)


def _load4(space: str, address: Any, constraint: str) -> Any:
    @intrinsic
    def load(typing_context, a):  # type: ignore[no-untyped-def]
        def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
            text = f"ld.{space}.v4.u32 {{$0,$1,$2,$3}}, [$4];"
            return _words(context, builder, sig, args, text, f"=r,=r,=r,=r,{constraint}{_MEMORY}")

        return FOUR(address), codegen

    return load


def _words(context: Any, builder: Any, sig: Any, args: Sequence[Any], text: str, constraints: str, attributes: tuple[str, ...] = ()) -> Any:
    """A PTX instruction that gives four registers."""
    struct = _asm(builder, ir.LiteralStructType([I32] * 4), args, text, constraints, True, attributes)
    return context.make_tuple(builder, sig.return_type, [builder.extract_value(struct, i) for i in range(4)])


@intrinsic
def load_shared_f32(typing_context, address):  # type: ignore[no-untyped-def]
    """A float of shared memory."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return _asm(builder, F32, args, "ld.shared.f32 $0, [$1];", "=f,r" + _MEMORY, True)

    return float32(int32), codegen


@intrinsic
def store_shared_i32(typing_context, address, value):  # type: ignore[no-untyped-def]
    """A word into shared memory."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _asm(builder, ir.VoidType(), args, "st.shared.u32 [$0], $1;", "r,r" + _MEMORY, True)
        return context.get_dummy_value()

    return types.void(int32, int32), codegen


@intrinsic
def store_shared_f32(typing_context, address, value):  # type: ignore[no-untyped-def]
    """A float into shared memory."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _asm(builder, ir.VoidType(), args, "st.shared.f32 [$0], $1;", "r,f" + _MEMORY, True)
        return context.get_dummy_value()

    return types.void(int32, float32), codegen


load4, load4_shared = _load4("global", int64, "l"), _load4("shared", int32, "r")


@intrinsic
def store4(typing_context, address, words):  # type: ignore[no-untyped-def]
    """Four words at a global address that is a multiple of 16."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        words = [builder.extract_value(args[1], i) for i in range(4)]
        _asm(builder, ir.VoidType(), [args[0], *words], "st.global.v4.u32 [$0], {$1,$2,$3,$4};", "l,r,r,r,r" + _MEMORY, True)
        return context.get_dummy_value()

    return types.void(int64, FOUR), codegen


@intrinsic
def store2(typing_context, address, first, second):  # type: ignore[no-untyped-def]
    """Two words at a global address that is a multiple of 8."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _asm(builder, ir.VoidType(), args, "st.global.v2.u32 [$0], {$1,$2};", "l,r,r" + _MEMORY, True)
        return context.get_dummy_value()

    return types.void(int64, int32, int32), codegen


@intrinsic
def shared_base(typing_context):  # type: ignore[no-untyped-def]
    """Where the block's dynamic shared memory starts: a multiple of 1024."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        name, kind = "qrt_shared", ir.ArrayType(I8, 0)
        memory = builder.module.globals.get(name) or cgutils.add_global_variable(builder.module, kind, name, 3)
        memory.linkage, memory.align = "external", 1024
        return builder.ptrtoint(memory, I32)

    return int32(), codegen


@intrinsic
def load_shared_u8(typing_context, address):  # type: ignore[no-untyped-def]
    """A byte of shared memory, as int32."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return _asm(builder, I32, args, "ld.shared.u8 $0, [$1];", "=r,r" + _MEMORY, True)

    return int32(int32), codegen


@intrinsic
def store_shared_u16(typing_context, address, value):  # type: ignore[no-untyped-def]
    """The low 16 bits of `value` in shared memory."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        value = builder.trunc(args[1], I16)
        _asm(builder, ir.VoidType(), [args[0], value], "st.shared.u16 [$0], $1;", "r,h" + _MEMORY, True)
        return context.get_dummy_value()

    return types.void(int32, int32), codegen


# -- copies to shared memory that go on while the block computes ----------------------------------------------------------------
@intrinsic
def copy_async(typing_context, to, address, count):  # type: ignore[no-untyped-def]
    """16 bytes to shared memory: the first `count` (0 … 16) from `address`, then zeros. Both places are multiples of 16."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _asm(builder, ir.VoidType(), args, "cp.async.cg.shared.global [$0], [$1], 16, $2;", "r,l,r" + _MEMORY, True)
        return context.get_dummy_value()

    return types.void(int32, int64, int32), codegen


@intrinsic
def copies_commit(typing_context):  # type: ignore[no-untyped-def]
    """Closes the group of this thread's copies since the last call."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        _asm(builder, ir.VoidType(), [], "cp.async.commit_group;", _MEMORY[1:], True)
        return context.get_dummy_value()

    return types.void(), codegen


def copies_wait(groups: int) -> Any:
    """The intrinsic that waits until at most `groups` of this thread's groups are under way."""

    @intrinsic
    def wait(typing_context):  # type: ignore[no-untyped-def]
        def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
            _asm(builder, ir.VoidType(), [], f"cp.async.wait_group {groups};", _MEMORY[1:], True)
            return context.get_dummy_value()

        return types.void(), codegen

    return wait


# -- what the 32 threads of a warp do together ----------------------------------------------------------------------------------
@intrinsic
def load_matrix(typing_context, address):  # type: ignore[no-untyped-def]
    """Four matrices of 8 rows of 16 bytes from shared memory, of which each thread names one row and gets a word of each."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0,$1,$2,$3}, [$4];"
        return _words(context, builder, sig, args, text, "=r,=r,=r,=r,r" + _MEMORY, ("convergent",))

    return FOUR(int32), codegen


@device
def shuffle_xor(value, distance):  # type: ignore[no-untyped-def]
    """The `value` of the thread whose number in the warp differs from this one's in the bits of `distance`."""
    return cuda.shfl_xor_sync(-1, value, distance)


@intrinsic
def mma(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """c + a · b on the tensor cores: uint8 [16, 32] times int8 [32, 8], in int32, exact."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        words = [builder.extract_value(part, i) for part, n in zip(args, (4, 2, 4), strict=True) for i in range(n)]
        text = "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
        return _words(context, builder, sig, words, text, "=r,=r,=r,=r,r,r,r,r,r,r,0,1,2,3", ("convergent",))

    return FOUR(FOUR, TWO, FOUR), codegen
