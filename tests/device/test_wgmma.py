"""Hopper's matrix product, by its source in the emulator: the reference bit for bit in any order of warps, copies and products."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device.emulated import EmulatedDevice
from device.emulator import SCHEDULES, Schedule
from device.needs import needs_cuda
from device.test_compile import SHARED, compiled, fits, instructions
from device.test_gemm import case
from kernels.check import program_of

from qrt.jit.cuda import DeviceKernel
from qrt.ops.gemm import Dense
from qrt.ops.gemm import device as products
from qrt.ops.gemm.device import EPILOGUES, HOPPER_TILES, HopperTile, hopper_kernel
from qrt.ops.op import Array
from qrt.runtime.device import DevicePlan
from qrt.runtime.emission import Packs

SMALL = HopperTile(64, 32, 128, 2)
ONE_BLOCK, TWO_BLOCKS = 1, 2


def run(op: Dense, feeds: list[Array], tile: HopperTile, schedule: Schedule, blocks: int, mutation: tuple[str, str] | None = None) -> Array:
    """The product by the source of its kernel, on a device of so many multiprocessors."""
    program, _ = program_of(op, feeds)
    gpu = EmulatedDevice(schedule, mutation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "choose_hopper_tile", lambda m, n: tile)
        patch.setattr(products, "MULTIPROCESSORS", blocks)
        patch.setattr(products, "FEW_ROWS", 0)
        found = DevicePlan(program, gpu, Packs()).run(feeds)[0]
    assert gpu.launched[-1] == products.hopper_kernel(tile, op.epilogue.name).name
    return found


def check(op: Dense, feeds: list[Array], tile: HopperTile, schedule: Schedule, blocks: int) -> None:
    np.testing.assert_array_equal(run(op, feeds, tile, schedule, blocks), op.reference(feeds)[0], str(schedule))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.order}-{s.copies}")
def test_in_any_order(schedule: Schedule) -> None:
    """Two warpgroups, three tiles a block, the last step of k and the last rows and columns short."""
    check(*case("u8", 140, 272, 70), HopperTile(128, 32, 128, 2), schedule, TWO_BLOCKS)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(("m", "k", "n"), [(64, 128, 32), (1, 5, 3), (65, 130, 48), (33, 400, 35)])
def test_every_epilogue(epilogue: str, m: int, k: int, n: int) -> None:
    check(*case(epilogue, m, k, n), SMALL, Schedule("random", "lazy", m), ONE_BLOCK)


@pytest.mark.parametrize("tile", HOPPER_TILES, ids=lambda t: f"{t.m}x{t.n}")
def test_every_tile(tile: HopperTile) -> None:
    check(*case("s32", 140, 150 + 128 * tile.stages, tile.n - 5), tile, Schedule("greedy", "lazy"), ONE_BLOCK)


def test_asymmetric_weights_are_taps() -> None:
    check(*case("u8", 40, 200, 20, asymmetric=True), SMALL, Schedule("random", "eager"), ONE_BLOCK)


@pytest.mark.parametrize("tile", HOPPER_TILES, ids=lambda t: f"{t.m}x{t.n}")
@pytest.mark.parametrize(("epilogue", "m", "k", "n"), [("u8add", 70, 300, 60), ("s32", 70, 64, 33)])
def test_on_a_device(device: Any, tile: HopperTile, epilogue: str, m: int, k: int, n: int) -> None:
    if device.cc != products.HOPPER:
        pytest.skip(f"needs a device of compute capability 9.0, not {device.cc}")
    op, feeds = case(epilogue, m, k, n, asymmetric=epilogue == "s32")
    program, _ = program_of(op, feeds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "choose_hopper_tile", lambda m, n: tile)
        plan = DevicePlan(program, device, Packs())
    np.testing.assert_array_equal(plan.run(feeds)[0], op.reference(feeds)[0])
    plan.close()


@pytest.mark.gpu
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(("m", "k", "n"), [(2048, 1040, 4096), (1999, 4100, 2001), (70000, 64, 64), (70000, 256, 64), (20001, 100, 129)])
def test_large_products(gpu: Any, epilogue: str, m: int, k: int, n: int) -> None:
    """As programs get them: many tiles for each block, on all multiprocessors."""
    op, feeds = case(epilogue, m, k, n)
    program, _ = program_of(op, feeds)
    plan = DevicePlan(program, gpu, Packs())
    np.testing.assert_array_equal(plan.run(feeds)[0], op.reference(feeds)[0])
    plan.close()


def test_many_blocks_of_rows() -> None:
    """More than are made one after the other, in a last band of fewer."""
    check(*case("s32", 64 * 10, 16, 40), SMALL, Schedule("forward", "lazy"), TWO_BLOCKS)


FULL, EMPTY = "barrier_wait(int32(full + int32(8) * buffer), parity)", "barrier_wait(int32(empty + int32(8) * buffer), parity)"
MEET, LEFT = (
    "meet(int32(group + int32(1)), int32(128))\n",
    "meet(int32(group + int32(1)), int32(128))  # the codes of the tile before have left",
)
GIVE_BACK = "barrier_arrive(int32(empty + int32(8) * before))\n"
TURN = "buffer, parity = int32(0), int32(parity ^ int32(1))\n"

PLANTED = {
    "does not wait for a full buffer": (FULL, "pass"),
    "does not wait for an empty buffer": (EMPTY, "pass"),
    "copies in a phase too late": ("buffer, parity = int32(0), int32(1)\n", "buffer, parity = int32(0), int32(0)\n"),
    "reads in a phase too late": ("before, parity = int32(0), int32(0), int32(0)", "before, parity = int32(0), int32(0), int32(1)"),
    "the producer's phase does not change": (f"{TURN}            number", "buffer = int32(0)\n            number"),
    "the consumers' phase does not change": (f"{TURN}                wait", "buffer = int32(0)\n                wait"),
    "gives back the buffer that is read": (
        f"{GIVE_BACK}                    before",
        f"{GIVE_BACK.replace('before', 'buffer')}                    before",
    ),
    "does not give back the last buffer": (f"{GIVE_BACK}\n", "pass\n"),
    "waits for too few products": ("products_wait(bn, 1)", "products_wait(bn, 2)"),
    "does not wait for the last products": ("                wait_for_all(acc)\n", ""),
    "accumulators are not fenced": ("                    products_fence()\n", ""),
    "products are not committed": ("                    products_commit()\n", ""),
    "barriers are not made ready": ("            barriers_ready()\n", ""),
    "barriers are not waited for": ("        cuda.syncthreads()\n", ""),
    "tensor map is not made ready": ("        tensor_map_ready(b_map)\n", ""),
    "too few bytes are expected": ("barrier_expect(there, int32(stage))", "barrier_expect(there, int32(a_bytes))"),
    "too few arrivals": ("int32(4 * groups))", "int32(1))"),
    "another swizzle": ("int64(1 << 62)", "int64(2 << 62)"),
    "no swizzle": (" | int64(1 << 62)", ""),
    "another stride": ("int64(1024 // 16 << 32)", "int64(512 // 16 << 32)"),
    "an address in bytes": (" >> int32(4)) | int64(1 << 16)", ") | int64(1 << 16)"),
    "an offset of its base": ("| int64(1 << 62)", "| int64(1 << 62) | int64(1 << 49)"),
    "16 bytes of k further": ("multiply(acc, a + int64(2), b + int64(2))", "multiply(acc, a + int64(1), b + int64(1))"),
    "rows of another warpgroup": ("int32(at + group * int32(64 * bk))", "int32(at + group * int32(32 * bk))"),
    "column and row are swapped": ("b_map, b_column, int32(block_n * int32(bn))", "b_map, int32(block_n * int32(bn)), b_column"),
    "the same step of B again": ("b_column = int32(b_column + int32(bk))", "pass"),
    "codes overwrite those of the tile before": (LEFT, "pass"),
    "codes leave before they are there": (MEET, "pass\n"),
    "warpgroups' codes meet at one barrier": (MEET, "meet(int32(1), int32(128))\n"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    """What the checks above are worth: each of these must fail in one order at least."""
    # For the way out, few steps: no warp waits for another one in them. Rows of whole chunks: no other kernel is launched.
    op, feeds = case("u8", 140, 112, 40) if "codes" in bug else case("s32", 140, 528, 20)
    tile = HopperTile(128, 64 if "codes" in bug else 32, 128, 2)
    wanted = op.reference(feeds)[0]
    for schedule in reversed(SCHEDULES):
        try:
            if not np.array_equal(run(op, feeds, tile, schedule, ONE_BLOCK, PLANTED[bug]), wanted):
                return
        except (IndexError, RuntimeError):  # what the emulator refuses, or threads that wait for ever
            return
    pytest.fail("no schedule finds it")


@needs_cuda
@pytest.mark.filterwarnings("ignore")  # numba-cuda's own
@pytest.mark.parametrize(
    "kernel",
    [hopper_kernel(HOPPER_TILES[0], "u8add"), hopper_kernel(HOPPER_TILES[0], "s32"), *(hopper_kernel(t, "u8") for t in HOPPER_TILES[1:])],
    ids=lambda k: k.name,
)
def test_products_stay_in_registers(kernel: DeviceKernel, tmp_path: Path) -> None:
    _, usage = compiled(kernel)
    assert (usage.stack, usage.spills, usage.losses) == (0, 0, ())
    assert fits(usage, kernel)
    assert kernel.shared <= SHARED
    found = Counter(name.partition(".")[0] for name in instructions(kernel, tmp_path))
    # The loop over k may be unrolled. Its products go on together: there is one fence before each four of them.
    steps, odd = divmod(found["IGMMA"], 4)
    assert steps
    assert not odd
    assert found["UTMALDG"] == 2 * steps
    assert found["UTMACCTL"] == 2
    arrivals = [name for name in instructions(kernel, tmp_path) if name.startswith("WARPGROUP.ARRIVE")]
    assert len(arrivals) == steps


@pytest.mark.parametrize(
    ("m", "n", "tile"),
    [
        (4096, 4096, HOPPER_TILES[0]),
        (2048, 2048, HOPPER_TILES[1]),
        (64 * 56 * 56, 64, HOPPER_TILES[2]),
        (64 * 56 * 56, 65, HOPPER_TILES[1]),
        (1, 1000, None),
        (256, 1024, None),
    ],
)
def test_which_tile(m: int, n: int, tile: HopperTile | None) -> None:
    assert products.choose_hopper_tile(m, n) == tile


@pytest.mark.parametrize(("m", "n", "index"), [(200704, 64, 2), (50176, 128, 1), (50176, 129, 0), (256, 256, -1)])
def test_which_tile_of_the_others(m: int, n: int, index: int) -> None:
    assert products.choose_tile(m, n) == products.TILES[index]


def test_only_capability_9_0_takes_them() -> None:
    op, feeds = case("s32", 16, 16, 16)
    program, _ = program_of(op, feeds)
    gpu = EmulatedDevice()
    gpu.cc = (8, 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "choose_hopper_tile", lambda m, n: SMALL)
        DevicePlan(program, gpu, Packs()).run(feeds)
    assert gpu.launched == [products.kernel_for(products.choose_tile(16, 16), "direct", "s32").name]
