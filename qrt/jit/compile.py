"""Kernel → relocatable object code. The only module that runs numba's compiler.

Numba's front end gives LLVM IR that is not yet optimised; the optimiser then runs here, for the Target's instruction set
and not the host's, so that an object is the same whichever machine of that rung made it.
"""

from __future__ import annotations

import importlib
import re
import threading
from types import ModuleType

import llvmlite.binding as llvm
import numba
from numba.core import config, types
from numba.core.ccallback import CFunc

from qrt.core.errors import KernelError
from qrt.core.forks import in_child
from qrt.core.target import Target
from qrt.jit.kernel import Kernel
from qrt.jit.lang.exact_fma import with_exact_fma

__all__ = ["assembly", "object_code"]

# A vector that is kept on the stack, on x86-64; and how many of them are worth the register that an aligned stack takes: products have 4
# at most, outside their inner loops, convolutions by depth 15 and more.
_SPILLED = re.compile(r"%[yz]mm\d+, -?\d*\(%r[sb]p")
FEW = 12

# What object code may leave to the loader: the C library. Anything else (Python's or numba's runtime) means that the
# kernel can raise or allocate, and it must do neither.
_LIBC = ("memcpy", "memset", "memmove", "sched_yield", "sem_post", "sem_wait", "usleep", "fmod", "fmodf")
_LIBM = (
    "acos acosh asin asinh atan atanh ceil cos cosh erf exp expm1 floor fma log log10 log1p log2 nearbyint pow rint round roundeven "
    "sin sinh tan tanh trunc"
)
ALLOWED_SYMBOLS = frozenset(_LIBC) | {name + suffix for name in _LIBM.split() for suffix in ("", "f")}

_OPTIONS = {"nopython": True, "error_model": "numpy", "boundscheck": False}
_LOCK = threading.Lock()


def _forget() -> None:
    """The thread that holds the lock may be one of the parent's."""
    global _LOCK
    _LOCK = threading.Lock()


in_child(_forget)


def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()  # for inline assembly (pause)


class _FrontEnd(CFunc):  # type: ignore[misc]
    """numba's compiler of C functions, stopped before it makes machine code: that would be for this machine, which may lack
    the instructions that the kernel asks for."""

    def compile(self) -> None:
        compiled = self._compile_uncached()
        self._library, self._wrapper_name = compiled.library, compiled.fndesc.llvm_cfunc_wrapper_name
        for library in dict.fromkeys(self._library._linking_libraries):
            self._library._final_module.link_in(library._get_module_for_linking(), preserve=True)


def _front_end(kernel: Kernel) -> tuple[str, str]:
    """The kernel's unoptimised LLVM IR and the name of its C entry point."""
    module_name, _, function_name = kernel.source.partition(":")
    module: ModuleType = importlib.import_module(module_name)
    function = getattr(module, function_name)(*kernel.params)
    signature = types.void(types.CPointer(numba.from_dtype(kernel.record)), types.int64, types.int64)
    saved = config.OPT
    config.OPT = config._OptLevel(0)
    try:
        front = _FrontEnd(function, numba.core.sigutils.normalize_signature(signature), {}, _OPTIONS)
        front.compile()
    except Exception as error:  # numba raises many kinds; all mean that it cannot compile this
        raise KernelError(f"kernel {kernel.name} ({kernel.source}) does not compile: {error}") from error
    finally:
        config.OPT = saved
    return front.inspect_llvm(), front.native_name


def _optimised(kernel: Kernel, target: Target) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
    _initialize()  # before numba compiles what the kernel calls, which may pause
    with _LOCK:
        text, entry = _front_end(kernel)
    triple = llvm.get_process_triple() if target.arch in llvm.get_process_triple() else f"{target.arch}-unknown-linux-gnu"
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="small"
    )
    module = llvm.parse_assembly(with_exact_fma(text.replace(entry, symbol(kernel)), target))
    module.triple = triple
    module.data_layout = str(machine.target_data)
    # Nothing but the kernel is seen from outside; numba's names count what this process compiled before, so they go too.
    for index, value in enumerate([*module.functions, *module.global_variables]):
        if not value.is_declaration and value.name != symbol(kernel):
            value.linkage, value.name = "private", f"local_{index}"
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = True
    tuning.slp_vectorization = True
    tuning.loop_unrolling = True
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    module.verify()
    # Of a clone: to emit a module is to change it.
    if target.arch == "x86_64" and len(_SPILLED.findall(machine.emit_assembly(module.clone()))) > FEW:
        module = llvm.parse_assembly(_aligned(str(module)))
    return module, machine


def _aligned(module: str) -> str:
    """The module with functions whose stack starts at a cache line. Vectors that do not fit the registers would else lie across two lines,
    as the caller's stack happens to be, and take twice the time."""
    return re.sub(r"^(define [^\n]*?)((?: #\d+)? \{)$", r"\1 alignstack(64)\2", module, flags=re.MULTILINE)


def symbol(kernel: Kernel) -> str:
    """The kernel's name in its object code."""
    return f"qrt_{kernel.name}"


def object_code(kernel: Kernel, target: Target) -> bytes:
    """The kernel compiled for `target`: a relocatable object that needs the C library alone.

    Raises KernelError if it does not compile, or could raise or allocate.
    """
    module, machine = _optimised(kernel, target)
    foreign = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")} - ALLOWED_SYMBOLS
    if foreign:
        raise KernelError(f"kernel {kernel.name} needs {sorted(foreign)}: a kernel may neither raise nor allocate")
    code: bytes = machine.emit_object(module)
    return code


def assembly(kernel: Kernel, target: Target) -> str:
    """The kernel's assembly for `target`, which need not be able to run here."""
    module, machine = _optimised(kernel, target)
    text: str = machine.emit_assembly(module)
    return text
