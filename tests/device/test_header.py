"""What is asked of NVIDIA's driver against its own header, cuda.h, which comes with the extra `cuda`: names with their versions, the
kinds and widths of arguments, the layout of a structure."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device.test_driver import OURS, Pretended, record_of

from benchmarks import gpu
from qrt.jit import cuda, driver
from qrt.ops.gemm.device import PAD_ROWS, PRODUCTS

WIDTHS = {
    "int": 4,
    "unsigned int": 4,
    "cuuint32_t": 4,
    "CUdevice": 4,
    "size_t": 8,
    "unsigned long long": 8,
    "cuuint64_t": 8,
    "CUdeviceptr": 8,
}
FLOATING = {"float"}
CALL = re.compile(r"\bcu[A-Z]\w+")


@functools.cache
def header() -> str:
    """cuda.h without its comments, and without what it declares for programs of older versions."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    found = [path for folder in folders for path in Path(folder).glob("*/include/cuda.h")]
    if not found:
        pytest.skip("needs cuda.h: pip install 'qrt[cuda]'")
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", found[0].read_text(encoding="utf-8"), flags=re.S)
    return text[: text.index("#if defined(__CUDA_API_VERSION_INTERNAL)", text.index("CUresult CUDAAPI cuInit("))]


@functools.cache
def prototypes() -> dict[str, list[str]]:
    """The types of each function's arguments, by the name that the library has it under."""
    text = header()
    # A program that names a function gets its latest version; that with a default stream for each thread is another.
    versions = dict(re.findall(r"#define (cu[A-Z]\w+)\s+(?:__CUDA_API_PT[DS][SZ]\()?(cu\w+)", text))
    found = {}
    for name, args in re.findall(r"CUresult CUDAAPI (cu\w+)\(([^)]*)\);", text):
        kinds = [re.sub(r"\s*\b\w+$", "", one.strip()).replace("const ", "") for one in args.split(",")]
        found[versions.get(name, name)] = [] if args.strip() in ("void", "") else kinds
    return found


def is_enum(kind: str) -> bool:
    return re.search(rf"typedef enum \w+ \{{[^}}]*\}} {kind};", header()) is not None


def is_handle(kind: str) -> bool:
    return re.search(rf"typedef struct \w+ \*{kind};", header()) is not None


def width(kind: str) -> int:
    """Bytes of a C type."""
    if kind.endswith("*") or is_handle(kind):
        return 8
    return 4 if kind in FLOATING or is_enum(kind) else WIDTHS[kind]


def check_argument(kind: str, given: Any) -> None:
    """What ctypes makes of `given` is a C argument of this type: a bare int, of more than 31 bits as well, would go as an int."""
    pointee = kind.removesuffix("*").strip()
    if not kind.endswith("*"):
        if isinstance(given, int):
            assert width(kind) == 4, kind
            assert not is_handle(kind)
            assert 0 <= given < 1 << 31
        else:
            assert isinstance(given, ctypes._SimpleCData), kind
            assert ctypes.sizeof(given) == width(kind), kind
            assert is_handle(kind) == isinstance(given, ctypes.c_void_p), kind
            assert not isinstance(given, ctypes.c_float | ctypes.c_double)
    elif hasattr(given, "_obj"):  # by reference: as wide as what it is written to
        if pointee not in ("void", "CUDA_KERNEL_NODE_PARAMS", "CUtensorMap"):
            assert ctypes.sizeof(given._obj) == width(pointee), kind
            assert isinstance(given._obj, ctypes.c_float) == (pointee in FLOATING)
    elif isinstance(given, ctypes.Array):
        assert ctypes.sizeof(given._type_) == (1 if pointee == "char" else width(pointee)), kind
    else:
        assert given is None or isinstance(given, bytes | ctypes.c_void_p | ctypes.c_char_p), kind


class Strict(Pretended):
    """Takes nothing that the header does not."""

    def __getattr__(self, name: str) -> Any:
        call, kinds = super().__getattr__(name), prototypes()[name]

        def checked(*args: Any) -> int:
            assert len(args) == len(kinds), name
            for kind, given in zip(kinds, args, strict=True):
                check_argument(kind, given)
            return int(call(*args))

        return checked


def test_calls_are_those_of_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are made anywhere."""
    library, kernel = Strict(), PRODUCTS[0]
    monkeypatch.setattr(cuda, "_version", lambda name: "13.0")
    monkeypatch.setattr(driver, "cubin", lambda kernel, cc: b"\x7fELF")
    monkeypatch.setattr(driver, "_functions", {})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    device = gpu.Gpu()
    address, array = device.allocate(64), np.arange(16, dtype=np.float32)
    device.upload(address, array)
    device.download(array, address)
    assert device.holds(address, 64)
    made = device.record([(PAD_ROWS, (3, 1), record_of(PAD_ROWS)), (kernel, (1, 1), record_of(kernel))])
    device.replay(made)
    device.destroy(made)
    device.unpin(device.pin(16).ctypes.data)
    device.tensor_map(0x700000000, 70, 200, 208, 64)
    device.wait()
    device.order(1, 2)
    device.mark(None)
    device.follow(3)
    assert device.name
    assert device.time(lambda: device.copy(address, address, 4)) == 2.5
    device.free(address)
    library.failing = "cuMemAlloc_v2"
    with pytest.raises(driver.DeviceError):
        device.allocate(1 << 40)
    sources = "".join(Path(module.__file__ or "").read_text(encoding="utf-8") for module in (cuda, driver, gpu))
    driver._give_back(library, device._context, [("cuStreamDestroy_v2", ctypes.c_void_p(device.stream))])  # as when it is dropped
    driver._give_back(library, device._context, [("cuEventDestroy_v2", device._mark)])
    assert set(library.calls) == set(CALL.findall(re.sub(r'"""(.*?)"""', "", sources, flags=re.S)))
    assert library.contexts == [library.contexts[0]] != [OURS]


def test_a_nodes_parameters_are_laid_out_as_in_the_header() -> None:
    body = re.search(r"typedef struct CUDA_KERNEL_NODE_PARAMS_v2_st \{(.*?)\}", header(), re.S)
    assert body is not None
    fields = [tuple(field.replace("*", "* ").rsplit(maxsplit=1)) for field in body[1].replace(" *", "*").split(";") if field.strip()]
    ours = {"function": "func", "params": "kernelParams", "kernel": "kern", "context": "ctx", "shared": "sharedMemBytes"}
    assert [name for _, name in fields] == [
        ours.get(name, re.sub(r"_([xyz])$", lambda axis: f"Dim{axis[1].upper()}", name)) for name, *_ in driver._Node._fields_
    ]
    assert [width(kind.strip()) for kind, _ in fields] == [ctypes.sizeof(kind) for _, kind, *_ in driver._Node._fields_]


def test_a_tensor_map_lies_where_it_may() -> None:
    found = re.search(r"typedef struct CUtensorMap_st \{.*?_Alignas\((\d+)\).*?opaque\[CU_TENSOR_MAP_NUM_QWORDS\]", header(), re.S)
    words = re.search(r"#define CU_TENSOR_MAP_NUM_QWORDS (\d+)", header())
    assert found is not None
    assert words is not None
    assert (int(found[1]), 8 * int(words[1])) == (driver._MAP_ALIGN, driver._MAP_BYTES)


def test_streams_that_have_numbers() -> None:
    """`qrt.binding.stream_handle` and DLPack's streams count on them."""
    assert dict(re.findall(r"#define (CU_STREAM_LEGACY|CU_STREAM_PER_THREAD)\s+\(\(CUstream\)0x(\d)\)", header())) == {
        "CU_STREAM_LEGACY": "1",
        "CU_STREAM_PER_THREAD": "2",
    }
