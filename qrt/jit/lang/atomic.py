"""Atomics, the spin hint, the clock and calls through addresses: what the executor and the thread team are written in."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = [
    "atomic_add",
    "atomic_exchange",
    "atomic_load",
    "atomic_store",
    "call",
    "cycles",
    "pause",
    "sched_yield",
    "semaphore_post",
    "semaphore_wait",
    "usleep",
]

_I64 = ir.IntType(64)


def _at(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def atomic_add(typing_context, address, value):  # type: ignore[no-untyped-def]
    """Adds `value` to the int64 at `address`; gives what was there before."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.atomic_rmw("add", _at(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_exchange(typing_context, address, value):  # type: ignore[no-untyped-def]
    """Stores `value` in the int64 at `address`; gives what was there before."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.atomic_rmw("xchg", _at(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typing_context, address):  # type: ignore[no-untyped-def]
    """The int64 at `address`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load_atomic(_at(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typing_context, address, value):  # type: ignore[no-untyped-def]
    """Stores `value` in the int64 at `address`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.store_atomic(args[1], _at(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def call(typing_context, function, record, tid, nthreads):  # type: ignore[no-untyped-def]
    """Calls the kernel at address `function`."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typing_context):  # type: ignore[no-untyped-def]
    """Tells the core that it spins (x86 `pause`, ARM `yield`)."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        void = ir.FunctionType(ir.VoidType(), [])
        triple = builder.module.triple or ""
        text = "yield" if triple.startswith(("aarch64", "arm")) else "pause"
        builder.asm(void, text, "~{memory}", (), side_effect=True)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def sched_yield(typing_context):  # type: ignore[no-untyped-def]
    """Gives the core to another thread that wants it."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def usleep(typing_context, microseconds):  # type: ignore[no-untyped-def]
    """Leaves the core to itself for so long, and what the system lets pass beside."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        word = ir.IntType(32)
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(word, [word]), "usleep")
        builder.call(function, [builder.trunc(args[0], word)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _semaphore(name: str) -> Any:
    """The C library's function `name`, of one semaphore."""

    @intrinsic
    def operation(typing_context, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            pointer = ir.IntType(8).as_pointer()
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), [pointer]), name)
            builder.call(function, [builder.inttoptr(args[0], pointer)])
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return operation


# On the C library's semaphore at an address. A wait may also end because a signal came: look again at what was waited for.
semaphore_post = _semaphore("sem_post")
semaphore_wait = _semaphore("sem_wait")


@intrinsic
def cycles(typing_context):  # type: ignore[no-untyped-def]
    """The core's cycle counter."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I64, []), "llvm.readcyclecounter")
        return builder.call(function, [])

    return types.int64(), codegen
