"""Device kernels as a device would get them: compiled and linked without one. Skipped where the extra `cuda` is not installed."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from device.cubin import described
from device.emulator import WORDS
from device.needs import needs_cuda

from qrt.core.errors import KernelError
from qrt.jit import cuda
from qrt.jit.cuda import DeviceKernel, Usage
from qrt.jit.lang.cuda_twins import TWINS, WARP_TWINS
from qrt.ops.conv import device as conv
from qrt.ops.elementwise import device as elementwise
from qrt.ops.gemm import device as gemm
from qrt.ops.gemm import device_batched, device_float
from qrt.ops.movement import device as movement
from qrt.ops.movement import device_index
from qrt.ops.normalization import device as normalization
from qrt.ops.pool import device as pool
from qrt.ops.quantization import device as quantization
from qrt.ops.quantization import device_dynamic
from qrt.ops.recurrent import device as recurrent
from qrt.ops.reduction import device as reduction
from qrt.ops.resize import device as resize

CC = (9, 0)
REGISTERS = 16384  # of each of the four parts of a multiprocessor, among which the warps of a block are dealt out
SHARED = 227 << 10  # bytes that one block may ask for


@functools.cache
def compiled(kernel: DeviceKernel) -> tuple[bytes, Usage]:
    """Each kernel that is compiled here has the parameters of its record, whose bytes a launch hands over, and takes blocks of its size."""
    code, usage = cuda.compile_cubin(kernel, CC)
    found, fields = described(code, cuda.symbol(kernel)), kernel.record.fields or {}
    places = [(fields[name][1], fields[name][0].itemsize) for name in kernel.record.names or ()]
    assert found.parameters == dict(enumerate(places))
    assert found.nbytes == kernel.parameters
    assert found.threads == (kernel.block, 1, 1)
    assert found.registers == usage.registers
    return code, usage


def fits(usage: Usage, kernel: DeviceKernel, blocks: int = 1) -> bool:
    """Whether so many blocks have enough registers on a multiprocessor: a warp gets them in pieces of 256, eight for each thread."""
    warps_a_part = -(-blocks * -(-kernel.block // 32) // 4)
    return warps_a_part * 32 * -(-usage.registers // 8) * 8 <= REGISTERS


def disassembler() -> str:
    """NVIDIA's nvdisasm, of its wheel or on the path."""
    spec = importlib.util.find_spec("nvidia")
    found = (
        [str(path) for folder in (spec.submodule_search_locations or ()) for path in Path(folder).glob("*/bin/nvdisasm")] if spec else []
    )
    path = found[0] if found else shutil.which("nvdisasm")
    if path is None:
        pytest.skip("needs nvdisasm: pip install nvidia-cuda-nvdisasm")
    return path


def instructions(kernel: DeviceKernel, folder: Path) -> list[str]:
    file = folder / "code.cubin"
    file.write_bytes(compiled(kernel)[0])
    text = subprocess.run([disassembler(), str(file)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", text)


@needs_cuda
@pytest.mark.filterwarnings("ignore")  # numba-cuda's own, of versions and of small grids
@pytest.mark.parametrize("kernel", [kernel for kernel in gemm.PRODUCTS if kernel.params[1] not in ("u8add", "u8t")], ids=lambda k: k.name)
def test_products_stay_in_registers(kernel: DeviceKernel, tmp_path: Path) -> None:
    _, usage = compiled(kernel)
    assert (usage.stack, usage.spills) == (0, 0)
    assert fits(usage, kernel)
    assert kernel.shared <= SHARED
    tile = next(tile for tile in gemm.TILES if kernel.params[2:] == (tile.m, tile.n, tile.k, tile.warps_m, tile.warps_n, tile.stages))
    found = instructions(kernel, tmp_path)
    assert found.count("IMMA.16832.U8.S8") == tile.products
    assert not [name for name in found if name.startswith(("STL", "LDL"))]
    assert any(name.startswith("LDGSTS") for name in found)
    assert any(name.startswith("LDSM") for name in found)


# Of the kernels of floats one of each kind: the others differ in what they do to a number.
FLOATS = [
    elementwise.UNARY["erf"],
    elementwise.UNARY["round_float16"],
    elementwise.UNARY["sin"],
    elementwise.BINARY["greater"],
    elementwise.BINARY["pow"],
    elementwise.CAST["float32", "int64"],
    elementwise.CAST["float16", "float32"],
    elementwise.CAST["float32", "bfloat16"],
    elementwise.INTEGERS["max", "int8"],
    reduction.COLUMNS["max"],
    reduction.ARG["max", False],
    reduction.CUMSUM["int64"],
    normalization.SOFTMAX_ROWS[False],
    normalization.SOFTMAX_COLUMNS[True],
    normalization.LAYER_NORM[True],
    normalization.IMAGE_NORM,
    *device_dynamic.KERNELS,
    device_index.KERNELS[0],
]
OTHER_PRODUCTS = [
    recurrent.CELLS["lstm"],
    recurrent.CELLS["gru_reset_after"],
    device_float.kernel_for((128, 128), True, True),
    device_float.kernel_for((64, 64), False, False),
    device_batched.KERNELS[0],
    gemm.kernel_for(gemm.TILES[2], "indirect", "u8t"),
    gemm.few_kernel(1, "u8"),
    gemm.few_kernel(8, "f32d"),
]


@needs_cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", [*FLOATS, *OTHER_PRODUCTS], ids=lambda k: k.name)
def test_kernels_of_floats_and_small_products_stay_in_registers(kernel: DeviceKernel) -> None:
    _, usage = compiled(kernel)
    assert (usage.stack, usage.spills) == (0, 0)
    assert fits(usage, kernel, 1 if kernel in OTHER_PRODUCTS else 2)
    assert kernel.shared <= 48 << 10


@needs_cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kernel", [elementwise.UNARY["hard_swish"], elementwise.UNARY["sin"], normalization.LAYER_NORM[True]], ids=lambda k: k.name
)
def test_products_and_sums_are_rounded_one_by_one(kernel: DeviceKernel) -> None:
    assert "fma.rn" not in cuda.ptx(kernel, CC)


@needs_cuda
@pytest.mark.filterwarnings("ignore")
def test_a_cubin_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRT_CACHE_DIR", str(tmp_path))
    code = cuda.cubin(gemm.PAD_ROWS, CC)
    assert code[:4] == b"\x7fELF"
    (file,) = (tmp_path / "kernels").iterdir()
    monkeypatch.setattr(cuda, "compile_cubin", lambda *_: pytest.fail("it was compiled again"))
    assert cuda.cubin(gemm.PAD_ROWS, CC) == code
    file.write_bytes(file.read_bytes()[:-1] + b"?")  # no longer what was written: compiled again
    monkeypatch.setattr(cuda, "compile_cubin", lambda *_: (code, Usage(0, 0, 0)))
    assert cuda.cubin(gemm.PAD_ROWS, CC) == code


@needs_cuda
@pytest.mark.filterwarnings("ignore")
def test_a_device_that_the_compilers_do_not_know() -> None:
    with pytest.raises(KernelError, match=r"kernel pad_rows_u8__cuda .* for CUDA"):
        cuda.compile_cubin(gemm.PAD_ROWS, (10, 1))


@needs_cuda
def test_numbas_own_cuda_is_not_what_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba.cuda

    monkeypatch.setattr(numba.cuda, "__file__", "numba/cuda/__init__.py")
    with pytest.raises(KernelError, match=r"does not compile for CUDA: .* not a folder of PYTHONPATH"):
        cuda.ptx(gemm.PAD_ROWS, CC)


OTHERS = (
    *(gemm.PAD_ROWS, *quantization.KERNELS, *pool.KERNELS, conv.ROWS),
    *(movement.STRIDED[1], movement.STRIDED[16], resize.NEAREST[16], *resize.LINEAR.values()),
    *(conv.DEPTHWISE[key] for key in (("u8t", 16), ("u8radd", 4), ("f32d", 4))),
    *(conv.GROUPED[epilogue] for epilogue in ("u8add", "s32")),
)


def test_the_twins_are_all_there_is() -> None:
    """Every word that a kernel may use stands in the emulator, and every computing one in the twins."""
    source = (Path(cuda.__file__).parent / "lang" / "cuda.py").read_text(encoding="utf-8")
    pure = set(re.findall(r"^(\w+) = _pure\(", source, re.M))
    assert pure == set(TWINS)
    defined = set(re.findall(r"^@intrinsic\ndef (\w+)", source, re.M))
    assert set(WARP_TWINS) <= defined <= set(WORDS)


@needs_cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kernel", "at_once"),
    [(conv.DEPTHWISE["u8", 16], 16), (conv.DEPTHWISE["u8", 4], 4), (conv.GROUPED["u8"], 4)],
    ids=["16", "4", "groups"],
)
def test_windows_take_four_products_at_a_time(kernel: DeviceKernel, at_once: int, tmp_path: Path) -> None:
    _, usage = compiled(kernel)
    assert (usage.stack, usage.spills) == (0, 0)
    found = instructions(kernel, tmp_path)
    products = [name for name in found if name.startswith("IDP.4A")]
    assert products
    assert len(products) % at_once == 0
    if kernel in conv.DEPTHWISE.values():  # words of channels are turned over to words of taps
        assert found.count("PRMT") >= 2 * at_once


@needs_cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", OTHERS, ids=lambda k: k.name)
def test_the_others_stay_in_registers(kernel: DeviceKernel) -> None:
    _, usage = compiled(kernel)
    assert (usage.stack, usage.spills) == (0, 0)
    assert fits(usage, kernel, 2)
