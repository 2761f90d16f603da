"""Words for devices of compute capability 9.0 alone ("sm_90a"): the copy engine, barriers in shared memory that count its bytes, and
products by four warps together ("warpgroup") straight from shared memory. Imported only to compile, as `cuda.py`.

After NVIDIA's "Parallel Thread Execution ISA": mbarrier, cp.async.bulk.tensor, wgmma. What they do stands in `tests/device/hopper.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic
from numba.types import int32, int64

I32, I64 = ir.IntType(32), ir.IntType(64)


def _call(builder: Any, result: ir.Type, args: Any, text: str, constraints: str) -> Any:
    """PTX that touches memory, and that threads of a warp execute together: it must stay where it is."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(ir.InlineAsm(kind, text, f"{constraints},~{{memory}}".lstrip(","), True), args, attrs=("convergent",))


def _act(text: str, constraints: str = "", *kinds: Any) -> Any:
    """The intrinsic of PTX that gives nothing."""

    def typed(typing_context: Any, *args: Any) -> tuple[Any, Callable[..., Any]]:
        def codegen(context, builder, sig, values):  # type: ignore[no-untyped-def]
            _call(builder, ir.VoidType(), values, text, constraints)
            return context.get_dummy_value()

        return types.void(*kinds), codegen

    # numba reads the number of arguments off the function.
    by_arity: dict[int, Callable[..., Any]] = {
        0: lambda context: typed(context),
        1: lambda context, a: typed(context, a),
        2: lambda context, a, b: typed(context, a, b),
        5: lambda context, a, b, c, d, e: typed(context, a, b, c, d, e),
    }
    return intrinsic(by_arity[len(kinds)])


# -- barriers in shared memory: 8 bytes each ----------------------------------------------------------------------------------------
# (at, arrivals): a phase ends once so many threads have arrived, and all bytes expected in it.
barrier_init = _act("mbarrier.init.shared::cta.b64 [$0], $1;", "r,r", int32, int32)
# (): what was initialised may be used, after a barrier of the block, by its threads and by the copy engine.
barriers_ready = _act("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;")
# (at)
barrier_arrive = _act("mbarrier.arrive.shared::cta.b64 _, [$0];", "r", int32)
# (at, nbytes): arrives, and lets the phase wait for so many bytes more.
barrier_expect = _act("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", "r,r", int32, int32)
# (at, parity): waits for the end of the phase of this parity; the first phase has parity 0, and one before it has ended.
barrier_wait = _act(
    "{ .reg .pred done; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1; @!done bra AGAIN; }", "r,r", int32, int32
)
# (number, threads): a barrier of so many threads of the block, whole warps, which all name the same number (1 … 15).
meet = _act("barrier.cta.sync.aligned $0, $1;", "r,r", int32, int32)

# -- the copy engine ------------------------------------------------------------------------------------------------------------------
# (tensor_map): needed once in each block before a map is used that the host has written to global memory.
tensor_map_ready = _act("fence.proxy.tensormap::generic.acquire.sys [$0], 128;", "l", int64)
# (to, tensor_map, column, row, barrier): copies a box, of which column and row are the first; its bytes are counted at the barrier.
copy_box = _act(
    "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [$0], [$1, {$2, $3}], [$4];",
    "r,l,r,r,r",
    int32,
    int64,
    int32,
    int32,
    int32,
)

# -- products of a warpgroup, which go on while it computes --------------------------------------------------------------------------
# (): orders what threads did to their accumulators before what products will do to them.
products_fence = _act("wgmma.fence.sync.aligned;")
# (): closes the group of products since the last call.
products_commit = _act("wgmma.commit_group.sync.aligned;")


def _accumulators(context: Any, builder: Any, kind: Any, value: Any, count: int) -> list[Any]:
    """Pointers to the numbers of a local array."""
    data = context.make_array(kind)(context, builder, value=value).data
    return [builder.gep(data, [ir.Constant(I64, i)]) for i in range(count)]


def _tied(builder: Any, pointers: list[Any], extra: Any, text: str, constraints: str) -> None:
    """PTX that changes accumulators: registers $0 …, then what `constraints` says of `extra`."""
    count = len(pointers)
    ties = ["=r"] * count + ([constraints] if constraints else []) + [str(i) for i in range(count)]
    values = [*extra, *(builder.load(pointer) for pointer in pointers)]
    struct = _call(builder, ir.LiteralStructType([I32] * count), values, text, ",".join(ties))
    for i, pointer in enumerate(pointers):
        builder.store(builder.extract_value(struct, i), pointer)


def multiply_add(n: int) -> Any:
    """The intrinsic acc + a · b: uint8 [64, 32] times int8 [32, n] in int32, exact; both are described as wgmma wants it. `acc` is an
    array of n / 2 numbers: thread t of the warpgroup has rows 16 (t / 32) + t % 32 / 4 + {0, 8} and columns 8 j + 2 (t % 4) + {0, 1}."""
    count = n // 2

    @intrinsic
    def products(typing_context, acc, a, b):  # type: ignore[no-untyped-def]
        def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
            registers = ", ".join(f"${i}" for i in range(count))
            text = (
                f"{{ .reg .pred add; setp.ne.b32 add, ${count + 2}, 0; "
                f"wgmma.mma_async.sync.aligned.m64n{n}k32.s32.u8.s8 {{{registers}}}, ${count}, ${count + 1}, add; }}"
            )
            pointers = _accumulators(context, builder, sig.args[0], args[0], count)
            _tied(builder, pointers, [args[1], args[2], ir.Constant(I32, 1)], text, "l,l,r")
            return context.get_dummy_value()

        return types.void(acc, int64, int64), codegen

    return products


def products_wait(n: int, groups: int) -> Any:
    """The intrinsic that waits until at most `groups` of this thread's groups are under way; `acc` may be read after 0."""

    @intrinsic
    def wait(typing_context, acc):  # type: ignore[no-untyped-def]
        def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
            pointers = _accumulators(context, builder, sig.args[0], args[0], n // 2)
            _tied(builder, pointers, [], f"wgmma.wait_group.sync.aligned {groups};", "")
            return context.get_dummy_value()

        return types.void(acc), codegen

    return wait
