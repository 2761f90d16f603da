"""Kernel → address in this process. Imports numba only when a kernel has to be compiled, llvmlite only then or where `elf` cannot link."""

from __future__ import annotations

import threading

from qrt.core.errors import KernelError
from qrt.core.forks import in_child
from qrt.core.target import Target
from qrt.jit import cache, elf
from qrt.jit.kernel import Kernel

__all__ = ["address", "code_of", "provide"]


class _Linker:
    """A target's JIT engine: links objects into memory and keeps them for good."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine()
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)

    def link(self, code: bytes, symbol: str) -> int:
        import llvmlite.binding as llvm

        self.engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self.engine.finalize_object()
        return int(self.engine.get_function_address(symbol))


_lock = threading.RLock()
_engines: dict[Target, _Linker] = {}
_Known = tuple[str, tuple[object, ...], Target]
_addresses: dict[_Known, int] = {}
_provided: dict[_Known, bytes] = {}


def _forget() -> None:
    """The thread that holds the lock may be one of the parent's."""
    global _lock
    _lock = threading.RLock()


in_child(_forget)


def address(kernel: Kernel, target: Target) -> int:
    """The entry point of `kernel` compiled for `target`, loaded once per process.

    Raises KernelError if it cannot be compiled or loaded.
    """
    known = (kernel.name, kernel.params, target)
    found = _addresses.get(known)
    if found is not None:
        return found
    with _lock:
        if known not in _addresses:
            code = _provided.pop(known, None) or code_of(kernel, target)
            symbol = f"qrt_{kernel.name}"
            entry = elf.link(code, symbol)
            if entry is None:
                # Symbols are the same for every target, so each target has an engine of its own.
                if target not in _engines:
                    _engines[target] = _Linker()
                entry = _engines[target].link(code, symbol)
            if not entry:
                raise KernelError(f"kernel {kernel.name} has no entry point in its object code: clear {cache.cache_dir()}")
            _addresses[known] = entry
        return _addresses[known]


def code_of(kernel: Kernel, target: Target) -> bytes:
    """The object code of `kernel` for `target`, from the kernel cache or compiled. Raises KernelError if it does not compile."""
    return cache.fetch(kernel, target, lambda: _compile(kernel, target))


def provide(kernel: Kernel, target: Target, code: bytes) -> None:
    """Lets `address` take `code` for the object code of `kernel`. It will be run: it must come from where the user's own code does."""
    known = (kernel.name, kernel.params, target)
    if known not in _addresses:
        _provided[known] = code


def _compile(kernel: Kernel, target: Target) -> bytes:
    from qrt.jit.compile import object_code

    return object_code(kernel, target)
