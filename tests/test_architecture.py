"""The floors of docs/architecture.md, held by reading every import with `ast`: arrows run down only, and each door has one keeper."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from data import REPOSITORY

# room → the other rooms it may import. `face` is what lies in no room, qrt/report/ and qrt/cli/: it may import all below.
FLOORS: dict[str, set[str]] = {
    "core": set(),
    "jit": {"core"},
    "ops": {"jit", "core"},
    "graph": {"core"},
    "observers": {"jit", "core"},
    "runtime": {"ops", "jit", "core"},
    "loaders": {"graph", "core"},
    "lower": {"graph", "runtime", "ops", "core"},
    "quantization": {"lower", "loaders", "runtime", "graph", "observers", "ops", "jit", "core"},
    "face": {"quantization", "lower", "loaders", "runtime", "observers", "graph", "ops", "jit", "core"},
}

# package → where it may be imported at all, as globs of paths.
DOORS: dict[str, tuple[str, ...]] = {
    "numba": ("qrt/jit/**", "ops/**/cpu*.py", "qrt/observers/**/cpu*.py", "qrt/runtime/cpu*.py"),
    "llvmlite": ("qrt/jit/**", "ops/**/cpu*.py", "qrt/observers/**/cpu*.py", "qrt/runtime/cpu*.py"),
    "onnx_ir": ("qrt/graph/**",),
    "onnx": ("qrt/graph/**", "loaders/**", "qrt/lower/**", "qrt/quantization/**", "qrt/cli/**", "qrt/api.py"),
}

# numba-cuda is numba.cuda; NVIDIA's own packages are `cuda` and `numba_cuda`.
DOORS |= dict.fromkeys(("cuda", "numba_cuda"), ("qrt/jit/**",))

# Where numba may be imported as a module loads: the files that are themselves imported only to compile.
KERNEL_SOURCES = ("qrt/jit/lang/**", "qrt/jit/lang*.py", "qrt/jit/compile.py", "**/cpu*.py")

ROUNDING = (
    "qrt/core/numerics.py",  # the one definition
    "qrt/jit/lang/**",  # the NumPy twins of SIMD instructions: what an instruction does
    "ops/elementwise/unary.py",  # ONNX's Round, an operator on floats
)
ROUNDERS = {"rint", "round", "round_", "around", "fix"}

PRINTERS = ("qrt/cli/**",)


def matches(path: str, globs: tuple[str, ...]) -> bool:
    """Whether `path` fits one of `globs`, in which ** stands for any folders, or none."""
    return any(_fits(PurePosixPath(path).parts, PurePosixPath(pattern).parts) for pattern in globs)


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return True
        return _fits(parts, pattern[1:]) or _fits(parts[1:], pattern)
    return PurePosixPath(parts[0]).match(pattern[0]) and _fits(parts[1:], pattern[1:])


def module_name(path: str) -> str:
    """The import name of a file: ops/ and loaders/ are qrt.ops and qrt.loaders."""
    parts = list(PurePosixPath(path).with_suffix("").parts)
    if parts[0] != "qrt":
        parts.insert(0, "qrt")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The room of a module of qrt: its second name, if that is a room, else the face."""
    name = (module + ".").split(".")[1]
    return name if name in FLOORS else "face"


def imported(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that the file imports, wherever it stands; of `from qrt import core`, qrt.core."""
    package = module_name(path).split(".")
    if not path.endswith("/__init__.py"):
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"


def at_module_level(tree: ast.Module) -> ast.Module:
    """The statements that run as the module loads: no function bodies, nothing under TYPE_CHECKING."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                return node.orelse
            return self.generic_visit(node)

    stripped = Strip().visit(ast.parse(ast.unparse(tree)))
    assert isinstance(stripped, ast.Module)
    return stripped


def import_violations(path: str, tree: ast.Module) -> Iterator[str]:
    here = room(module_name(path))
    for line, name in imported(path, tree):
        top = name.split(".")[0]
        if top in ("ops", "loaders"):
            yield f"{path}:{line} imports {top}: write qrt.{top}, a bare one is a second copy"
        elif top == "qrt":
            there = room(name)
            if there != here and there not in FLOORS[here]:
                yield f"{path}:{line} imports {name}: {here} may import {', '.join(sorted(FLOORS[here])) or 'nothing'}, not {there}"
        elif top in DOORS and not matches(path, DOORS[top]):
            yield f"{path}:{line} imports {top}, which belongs to {', '.join(DOORS[top])}"
    if not matches(path, KERNEL_SOURCES) and any(name.split(".")[0] == "numba" for _, name in imported(path, at_module_level(tree))):
        yield f"{path} imports numba as it loads: import it in the function that compiles"


def rounds(path: str, node: ast.Attribute | ast.Name) -> bool:
    """Whether this is a rounding function of NumPy, or, outside of kernels (theirs is an instruction), the method of an array."""
    if isinstance(node, ast.Name):
        return node.id == "rint"
    if isinstance(node.value, ast.Name) and node.value.id in ("np", "numpy"):
        return node.attr in ROUNDERS
    return node.attr == "round" and not matches(path, KERNEL_SOURCES)


def call_violations(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        if rounds(path, node) and not matches(path, ROUNDING):
            yield f"{path}:{node.lineno} rounds: call qrt.core.numerics, where rounding is defined"
        if isinstance(node, ast.Name) and node.id == "print" and not matches(path, PRINTERS):
            yield f"{path}:{node.lineno} prints: only {', '.join(PRINTERS)} does; raise, warn or return"


def violations(path: str, source: str) -> list[str]:
    tree = ast.parse(source)
    return [*import_violations(path, tree), *call_violations(path, tree)]


def source_files() -> list[Path]:
    return sorted(path for folder in ("qrt", "ops", "loaders") for path in (REPOSITORY / folder).rglob("*.py"))


def test_the_tree_keeps_to_the_floors() -> None:
    files = source_files()
    assert len(files) > 10
    found = [line for path in files for line in violations(path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_floors_have_no_cycle() -> None:
    """Every room can be taken down once all that it imports are: the table itself runs down only."""
    left = dict(FLOORS)
    while left:
        lowest = [name for name, below in left.items() if not below & left.keys()]
        assert lowest, f"a cycle among {sorted(left)}"
        for name in lowest:
            del left[name]


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("qrt/core/a.py", "import qrt.graph", "core may import nothing"),
        ("qrt/core/a.py", "from qrt import graph", "not graph"),
        ("qrt/core/a.py", "from ..jit import kernel", "not jit"),
        ("ops/gemm/a.py", "from ...graph import Model", "not graph"),
        ("ops/__init__.py", "def f():\n    from qrt.runtime.plan import Plan", "not runtime"),
        ("loaders/a.py", "import qrt", "not face"),
        ("qrt/runtime/a.py", "import ops.gemm", "second copy"),
        ("qrt/lower/a.py", "from loaders import onnx", "second copy"),
        ("qrt/lower/a.py", "import onnx_ir as ir", "belongs to"),
        ("ops/gemm/pack.py", "def f():\n    import numba", "belongs to"),
        ("qrt/runtime/a.py", "from llvmlite import binding", "belongs to"),
        ("ops/a.py", "import onnx.reference", "belongs to"),
        ("qrt/jit/cache.py", "try:\n    from numba import njit\nexcept ImportError:\n    pass", "as it loads"),
        ("qrt/graph/a.py", "np.rint(x)", "rounds"),
        ("qrt/graph/a.py", "x.round()", "rounds"),
        ("ops/a.py", "from numpy import rint\nrint(x)", "rounds"),
        ("ops/gemm/cpu.py", "np.round(x)", "rounds"),
        ("loaders/a.py", "print(1)", "prints"),
        ("ops/gemm/cuda.py", "def f():\n    from numba import cuda", "belongs to"),
        ("qrt/runtime/a.py", "def f():\n    from cuda.bindings import nvjitlink", "belongs to"),
        ("qrt/jit/cuda.py", "from numba import cuda", "as it loads"),
    ],
)
def test_what_is_forbidden_is_found(path: str, source: str, complaint: str) -> None:
    found = violations(path, source)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("qrt/core/a.py", "from . import errors\nfrom qrt.core.errors import QrtError\nimport numpy"),
        ("ops/gemm/cpu_vnni.py", "import numba\nfrom qrt.jit.lang import f32\nfrom ..op import Op"),
        ("qrt/jit/cache.py", "import llvmlite\ndef f():\n    import numba"),
        ("qrt/jit/load.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numba"),
        ("qrt/graph/passes/a.py", "import onnx_ir as ir\nimport onnx"),
        ("qrt/cli/a.py", "import qrt\nfrom qrt import api\nprint(1)"),
        ("qrt/core/numerics.py", "np.rint(x)"),
        ("ops/gemm/cpu.py", "simd.round(x)"),
        ("qrt/jit/lang/cuda.py", "from numba import cuda"),
        ("qrt/jit/cuda.py", "def f():\n    from cuda.bindings import nvjitlink"),
    ],
)
def test_what_is_allowed_is_not(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_every_package_is_installed() -> None:
    """A folder that pyproject.toml does not list is missing from the wheel."""
    with open(REPOSITORY / "pyproject.toml", "rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    folders = {path.relative_to(REPOSITORY).parent for path in source_files()}
    there = {module_name(f"{folder.as_posix()}/__init__.py") for folder in folders}
    assert listed == there, f"add to packages: {sorted(there - listed)}; remove: {sorted(listed - there)}"
    assert all((REPOSITORY / folder / "__init__.py").exists() for folder in folders), "a folder with modules has no __init__.py"


HEAVY = ("cuda", "numba", "llvmlite", "onnx", "onnx_ir", "safetensors", "rich", "typer")


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("qrt", HEAVY),
        ("qrt.quantization", HEAVY),
        # What runs a plan whose kernels are on disk; of llvmlite, its version is part of their names.
        ("qrt.core, qrt.jit, qrt.ops, qrt.runtime, qrt.observers", (*(set(HEAVY) - {"llvmlite"}), "llvmlite.binding")),
        # What reads and plans a model. SymPy takes more of a first start than all the rest (qrt/graph/_import.py).
        ("qrt.api", ("cuda", "numba", "llvmlite.binding", "onnx.reference", "safetensors", "sympy", "rich", "typer")),
    ],
)
def test_what_an_import_does_not_bring(modules: str, unwanted: tuple[str, ...]) -> None:
    program = f"import sys, {modules}; print(*sorted(set({unwanted!r}) & set(sys.modules)))"
    # Isolated (-I): without the repository's root, where ./qrt would hide the installed copy.
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
