"""The machine that executes PTX: what NVIDIA's manual says of its instructions, and bugs that it must find in compiled kernels."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from device.compiled import CompiledDevice
from device.emulator import SCHEDULES, Memory, Schedule
from device.machine import Machine
from device.needs import needs_cuda
from device.ptx import PtxError, Register, Symbol, parse
from device.ptx_hopper import HOPPER
from device.ptx_words import WORDS
from device.test_gemm import SAME, case, windows
from kernels.check import program_of

from qrt.ops.gemm import device as products
from qrt.ops.gemm.device import HopperTile, Tile
from qrt.ops.op import Array, Op
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

INF, NAN = float("inf"), float("nan")
SHORT = Schedule("forward", "lazy")

# A kernel of 64 threads: thread i has word i of x in %r1 and %f1, its number in %r0, and the address of its word of y in %rd2.
HEAD = """
.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 1024 .b8 qrt_shared[];
.visible .entry try(
    .param .u64 try_param_0,
    .param .u64 try_param_1
)
.maxntid 64, 1, 1
{
    .reg .pred %p<4>;
    .reg .b16 %rs<4>;
    .reg .b32 %r<10>;
    .reg .f32 %f<10>;
    .reg .b64 %rd<10>;
    .reg .f64 %fd<4>;
    ld.param.u64 %rd1, [try_param_0];
    ld.param.u64 %rd2, [try_param_1];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd3, %r0, 4;
    add.s64 %rd1, %rd1, %rd3;
    add.s64 %rd2, %rd2, %rd3;
    ld.global.u32 %r1, [%rd1];
    mov.b32 %f1, %r1;
"""
WORD, FLOAT = "st.global.u32 [%rd2], %r2; ret; }", "st.global.f32 [%rd2], %f2; ret; }"


def run(body: str, x: Array, schedule: Schedule = SHORT, shared: int = 1024) -> Array:
    """uint32 [64]: what the threads store, each of a word of x, which is filled up with its last."""
    given = np.resize(np.pad(x.view(np.uint32), (0, 64 - x.size), "edge"), 64)
    memory, y = Memory(), np.zeros(64, np.uint32)
    record = struct.pack("<qq", memory.place(given), memory.place(y))
    Machine(parse(HEAD + body), (1, 1), shared, record, memory, schedule, WORDS | HOPPER).run()
    return y


def words(*numbers: int) -> Array:
    return np.array([number & 0xFFFFFFFF for number in numbers], np.uint32)


def floats(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


# body, x, y: after "Parallel Thread Execution ISA", chapter 9.7
OF_WORDS: list[tuple[str, Array, Array]] = [
    ("cvt.rni.s32.f32 %r2, %f1;", floats(2.5, 3.5, -0.5, 3e9, -INF, NAN), words(2, 4, 0, 2**31 - 1, -(2**31), 0)),
    ("cvt.rzi.s32.f32 %r2, %f1;", floats(-2.9, 2.9), words(-2, 2)),
    ("cvt.rzi.s64.f32 %rd4, %f1; shr.s64 %rd4, %rd4, 32; cvt.u32.u64 %r2, %rd4;", floats(-1.0, NAN, 1e30), words(-1, -(2**31), 2**31 - 1)),
    ("shl.b32 %r2, 3, %r1;", words(0, 31, 32, 40), words(3, 1 << 31, 0, 0)),
    ("shr.s32 %r2, -8, %r1;", words(1, 31, 32, 99), words(-4, -1, -1, -1)),
    ("shr.u32 %r2, -8, %r1;", words(1, 31, 32), words(0x7FFFFFFC, 1, 0)),
    ("div.s32 %r2, %r1, 2;", words(7, -7, -8), words(3, -3, -4)),
    ("rem.s32 %r2, %r1, 4;", words(7, -7, -8), words(3, -3, 0)),
    ("div.u32 %r2, %r1, 2;", words(-2), words(0x7FFFFFFF)),
    ("mul.lo.s32 %r2, %r1, %r1;", words(65537), words(131073)),
    ("mul.wide.s32 %rd4, %r1, -2; shr.u64 %rd4, %rd4, 32; cvt.u32.u64 %r2, %rd4;", words(3, -3), words(-1, 0)),
    ("mad.lo.s32 %r2, %r1, 272, -5;", words(3, -3), words(811, -821)),
    ("cvt.s32.s8 %r2, %r1;", words(0x17F, 0x180), words(127, -128)),
    ("cvt.u16.u32 %rs1, %r1; cvt.s32.s16 %r2, %rs1;", words(0x18000), words(-32768)),
    ("prmt.b32 %r2, %r1, 0x77665544, 0x0514;", words(0x33221100), words(0x00551144)),
    ("prmt.b32 %r2, %r1, 0, 0xBA98;", words(0x80FF7F00), words(0xFFFF0000)),
    ("bfi.b32 %r2, %r1, 0, 8, 4;", words(0xFF), words(0xF00)),
    ("bfi.b32 %r2, 0, %r1, 4, 8;", words(0xFFFF), words(0xF00F)),
    ("dp4a.u32.s32 %r2, %r1, 0x80FF7F01, 10;", words(0xFFFFFFFF), words(255 * (1 + 127 - 1 - 128) + 10)),
    ("setp.lt.s32 %p1, %r1, 0; selp.b32 %r2, 5, 6, %p1;", words(-1, 1), words(5, 6)),
    ("setp.lt.u32 %p1, %r1, 1; selp.b32 %r2, 5, 6, %p1;", words(-1, 0), words(6, 5)),
    ("setp.ne.f32 %p1, %f1, 0f00000000; selp.b32 %r2, 5, 6, %p1;", floats(1.0, -0.0, NAN), words(5, 6, 6)),
    ("setp.neu.f32 %p1, %f1, 0f00000000; selp.b32 %r2, 5, 6, %p1;", floats(1.0, -0.0, NAN), words(5, 6, 5)),
    ("setp.geu.f32 %p1, %f1, 0f40000000; selp.b32 %r2, 5, 6, %p1;", floats(1.0, 2.0, NAN), words(6, 5, 5)),
    ("mov.u32 %r2, 9; setp.eq.s32 %p1, %r1, 4; @!%p1 bra OVER; mov.u32 %r2, 8; OVER:", words(4, 5), words(8, 9)),
    ("shfl.sync.bfly.b32 %r2|%p2, %r0, 5, 31, -1;", words(0), words(*(i ^ 5 for i in range(64)))),
    ("ld.global.s8 %r2, [%rd1+1];", words(0x8100), words(-127)),
    ("ld.global.s8 %rs1, [%rd1]; cvt.s32.s16 %r2, %rs1;", words(0x81), words(-127)),
    ("ld.global.s32 %rd4, [%rd1]; shr.u64 %rd4, %rd4, 32; cvt.u32.u64 %r2, %rd4;", words(-5, 5), words(-1, 0)),
]
OF_FLOATS: list[tuple[str, Array, Array]] = [
    ("max.f32 %f2, %f1, 0f80000000;", floats(NAN, 0.0, -0.0, -1.0), floats(-0.0, 0.0, -0.0, -0.0)),
    ("min.f32 %f2, %f1, 0f80000000;", floats(NAN, 0.0, -0.0, 1.0), floats(-0.0, -0.0, -0.0, -0.0)),
    ("neg.f32 %f2, %f1;", floats(0.0, -1.0, INF), floats(-0.0, 1.0, -INF)),
    ("fma.rn.f32 %f2, %f1, %f1, 0fBF800000;", floats(1 + 2**-12), floats(2**-11 + 2**-24)),
    ("mul.rn.f32 %f3, %f1, %f1; add.rn.f32 %f2, %f3, 0fBF800000;", floats(1 + 2**-12), floats(2**-11)),
    ("cvt.rn.f32.s32 %f2, %r1;", words(16777217, 16777219, -5), floats(16777216, 16777220, -5)),
    ("rcp.rn.f32 %f2, %f1;", floats(3.0, -0.0), floats(1 / np.float32(3), -INF)),
    ("cvt.rmi.f32.f32 %f2, %f1;", floats(-1.5, 2.5), floats(-2.0, 2.0)),
    ("cvt.f64.f32 %fd1, %f1; add.rn.f64 %fd1, %fd1, 0d3FF0000000000000; cvt.rn.f32.f64 %f2, %fd1;", floats(2**-24), floats(1.0)),
    ("{ .reg .f32 t; max.f32 t, %f1, 0f00000000; min.f32 %f2, t, 0f3F800000; }", floats(-3, 0.5, 9), floats(0, 0.5, 1)),
]


@pytest.mark.parametrize(("body", "x", "y"), OF_WORDS, ids=lambda value: value.split(";")[0] if isinstance(value, str) else "")
def test_instructions_on_words(body: str, x: Array, y: Array) -> None:
    assert run(body + WORD, x)[: y.size].tolist() == y.tolist()


@pytest.mark.parametrize(("body", "x", "y"), OF_FLOATS, ids=lambda value: value.split(";")[0] if isinstance(value, str) else "")
def test_instructions_on_floats(body: str, x: Array, y: Array) -> None:
    assert run(body + FLOAT, x)[: y.size].tolist() == y.view(np.uint32).tolist()


# Each thread goes around as often as its word says, and meets the others at a barrier; then it reads what its neighbour wrote.
LOOP = """
    mov.u32 %r3, qrt_shared;
    mov.u32 %r2, 0;
AGAIN:
    setp.ge.s32 %p1, %r2, %r1;
    @%p1 bra DONE;
    add.s32 %r2, %r2, 1;
    bra.uni AGAIN;
DONE:
    shl.b32 %r4, %r0, 2;
    add.s32 %r4, %r4, %r3;
    st.shared.u32 [%r4], %r2;
    bar.sync 0;
    xor.b32 %r5, %r0, 63;
    shl.b32 %r5, %r5, 2;
    add.s32 %r5, %r5, %r3;
    ld.shared.u32 %r2, [%r5];
"""


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.order}-{s.copies}")
def test_threads_part_and_meet(schedule: Schedule) -> None:
    times = np.random.default_rng(0).integers(0, 9, 64).astype(np.uint32)
    np.testing.assert_array_equal(run(LOOP + WORD, times, schedule), times[::-1])
    # Without the barrier, in an order in which the first warp goes first, it reads what nobody has written yet.
    without = run(LOOP.replace("bar.sync 0;", "") + WORD, times, Schedule("greedy", "lazy"))
    assert without[:32].tolist() == [0xA5A5A5A5] * 32


COPY = """
    mov.u32 %r3, qrt_shared;
    shl.b32 %r4, %r0, 4;
    add.s32 %r4, %r4, %r3;
    ld.param.u64 %rd4, [try_param_0];
    cp.async.cg.shared.global [%r4], [%rd4], 16, 4;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.v4.u32 {%r2, %r5, %r6, %r7}, [%r4];
    or.b32 %r2, %r2, %r7;
"""


@pytest.mark.parametrize("copies", ["lazy", "eager"])
def test_copies_come_when_they_are_waited_for(copies: str) -> None:
    """Four bytes are copied, and twelve are zeros."""
    x = words(77)
    assert run(COPY + WORD, x, Schedule("forward", copies)).tolist() == [77] * 64
    early = run(COPY.replace("cp.async.wait_group 0;", "") + WORD, x, Schedule("forward", copies))
    assert early.tolist() == [77 if copies == "eager" else 0xA5A5A5A5] * 64


REFUSED = {
    "a sum that may be fused": ("add.f32 %f2, %f1, %f1;", PtxError),
    "an instruction that is not known": ("popc.b32 %r2, %r1;", KeyError),
    "a register of another size": ("add.s64 %rd4, %r1, 1;", PtxError),
    "a label that is nowhere": ("bra NOWHERE;", PtxError),
    "an address past the array": ("ld.global.u32 %r2, [%rd1+252];", IndexError),
    "a misaligned address": ("ld.global.u32 %r2, [%rd1+2];", IndexError),
    "shared memory that is not there": ("st.shared.u32 [1024000], %r1;", PtxError),
    "past shared memory": ("mov.u32 %r3, qrt_shared; ld.shared.u32 %r2, [%r3+1024];", IndexError),
    "half a block at a barrier": ("setp.lt.s32 %p1, %r0, 32; @%p1 bra OVER; bar.sync 0; OVER:", RuntimeError),
    "half a warp in a shuffle": (
        "setp.lt.s32 %p1, %r0, 16; @%p1 bra OVER; shfl.sync.bfly.b32 %r2|%p2, %r0, 5, 31, -1; OVER:",
        RuntimeError,
    ),
    "a barrier that nobody made": ("mov.u32 %r3, qrt_shared; mbarrier.arrive.shared::cta.b64 _, [%r3];", RuntimeError),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses(what: str) -> None:
    body, error = REFUSED[what]
    with pytest.raises(error):
        run(body + WORD, words(0))


def test_it_reads_operands() -> None:
    code = parse(HEAD + "@!%p1 bra OVER; cp.async.bulk.tensor.2d.x [%r1], [%rd1, {%r2, %r3}], [%r4+8]; OVER: ret; }")
    branch, box = code.instructions[-3:-1]
    assert (branch.guard, branch.negated, branch.operands) == ("%p1", True, (Symbol("OVER"),))
    to, source, barrier = box.operands
    assert source.place == (Register("%r2"), Register("%r3"))  # type: ignore[union-attr]
    assert (to.offset, barrier.offset, code.labels["OVER"]) == (0, 8, len(code.instructions) - 1)  # type: ignore[union-attr]


# -- bugs in what was compiled ---------------------------------------------------------------------------------------------------
SMALL, HOPPERS = Tile(32, 64, 64, 2, 2, 3), HopperTile(64, 32, 128, 2)


def found_in(op: Op, feeds: list[Array], hopper: bool, mutation: tuple[str, str]) -> bool:
    """Whether some order of threads shows that the product's PTX is not what it should be."""
    wanted = op.reference(feeds)[0]
    for schedule in SCHEDULES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "choose_tile", lambda m, n: SMALL)
            patch.setattr(products, "choose_hopper_tile", lambda m, n: HOPPERS if hopper else None)
            patch.setattr(products, "MULTIPROCESSORS", 1)
            patch.setattr(products, "FEW_ROWS", 0)
            gpu = CompiledDevice(schedule, mutation, "gemm")
            try:
                found: Any = DevicePlan(program_of(op, feeds)[0], gpu, Packs()).run(feeds)[0]
            except (IndexError, RuntimeError):  # an address outside of every array, or threads that wait for ever
                return True
        if not np.array_equal(found, wanted):
            return True
    return False


PLANTED = {
    "a barrier fewer": ("bar.sync \t0;", ""),
    "waits for one copy too few": ("cp.async.wait_group 1;", "cp.async.wait_group 2;"),
    "rounds to zero": ("cvt.rni.s32.f32", "cvt.rzi.s32.f32"),
    "bytes of the other sign": ("s32.u8.s8.s32", "s32.u8.u8.s32"),
    "adds a scale": ("mul.rn.f32", "add.rn.f32"),
}
PLANTED_HOPPER = {
    "does not wait for a box": ("@!done bra AGAIN;", ""),
    "does not wait for products": ("wgmma.wait_group.sync.aligned 0;", ""),
    "no fence before products": ("wgmma.fence.sync.aligned;", ""),
    "maps are not made ready": ("fence.proxy.tensormap::generic.acquire.sys", "//"),
    "barriers are not made ready": ("fence.mbarrier_init.release.cluster;", ""),
}


@needs_cuda
@pytest.mark.filterwarnings("ignore")  # numba-cuda's own
@pytest.mark.parametrize("bug", [*PLANTED, *PLANTED_HOPPER, "none", "none of Hopper's"])
def test_a_planted_bug_is_found(bug: str) -> None:
    hopper = bug in PLANTED_HOPPER or bug == "none of Hopper's"
    op, feeds = case("u8", 70, 272, 40) if hopper else windows(SAME, (5, 7), 1, 16, 40, "u8")
    mutation = (PLANTED | PLANTED_HOPPER).get(bug, ("ret;", "ret;"))
    if bug == "bytes of the other sign":
        with pytest.raises(PtxError):
            found_in(op, feeds, hopper, mutation)
    else:
        assert found_in(op, feeds, hopper, mutation) == (bug in PLANTED or bug in PLANTED_HOPPER)
