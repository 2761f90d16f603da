"""Device kernels as a device would get them: compiled and linked without one. Skipped where the extra `cuda` is not installed."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qrt.jit import cuda
from qrt.jit.cuda import DeviceKernel, Usage
from qrt.ops.gemm import device as gemm
from qrt.ops.movement import device as movement
from qrt.ops.quantization import device as quantization

CC = (9, 0)
REGISTERS = 65536  # of a multiprocessor
SHARED = 227 << 10  # bytes that one block may ask for

needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="needs numba-cuda and nvJitLink: pip install 'qrt[cuda]'"
)


@functools.cache
def compiled(kernel: DeviceKernel) -> tuple[bytes, Usage]:
    return cuda.compile_cubin(kernel, CC)


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
@pytest.mark.parametrize("kernel", gemm.PRODUCTS, ids=lambda k: k.name)
def test_products_stay_in_registers(kernel: DeviceKernel, tmp_path: Path) -> None:
    _, usage = compiled(kernel)
    assert (usage.stack, usage.spills) == (0, 0)
    assert usage.registers * kernel.block <= REGISTERS
    assert kernel.shared <= SHARED
    tile = next(tile for tile in gemm.TILES if kernel == gemm.kernel_for(tile, str(kernel.params[0])))
    found = instructions(kernel, tmp_path)
    assert found.count("IMMA.16832.U8.S8") == tile.products
    assert not [name for name in found if name.startswith(("STL", "LDL"))]
    assert any(name.startswith("LDGSTS") for name in found)
    assert any(name.startswith("LDSM") for name in found)


@needs_cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", [gemm.PAD_ROWS, *quantization.KERNELS, *movement.KERNELS], ids=lambda k: k.name)
def test_the_others_stay_in_registers(kernel: DeviceKernel) -> None:
    _, usage = compiled(kernel)
    assert (usage.stack, usage.spills) == (0, 0)
    assert usage.registers * kernel.block <= REGISTERS // 2
