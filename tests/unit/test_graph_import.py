"""onnx and onnx_ir are imported without what a start does not need, and nobody who needs it can tell."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(program: str) -> list[str]:
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_arithmetic_with_symbols_brings_sympy() -> None:
    assert run(
        "import sys; from qrt.graph import ir; print('sympy' in sys.modules); d = ir.SymbolicDim('n') * 2; "
        "print(d.evaluate({'n': 4}), type(sys.modules['sympy']).__name__, sys.modules['onnx_ir._symbolic_shapes'].__spec__ is not None)"
    ) == ["False", "8", "module", "True"]


@pytest.mark.parametrize("first", ["import sympy", "import qrt.graph", "import onnx_ir", "from sympy import Symbol"])
def test_importing_sympy_brings_the_one_module(first: str) -> None:
    program = (
        f"{first}; import sys, qrt.graph, sympy, sympy.core; print(sympy is sys.modules['sympy'], sympy.__spec__.name, "
        "isinstance(sympy.Symbol('n') + 1, sympy.core.Expr), qrt.graph.ir.SymbolicDim(sympy.Symbol('n') + 1).evaluate({'n': 1}))"
    )
    assert run(program) == ["True", "sympy", "True", "2"]


def test_whoever_imports_sympy_meanwhile_has_all_of_it() -> None:
    """Another thread may come while onnx_ir is being imported: it holds a stand-in, which does what the module does."""
    program = (
        "import sys; from qrt.graph import _import; stand_in = _import._StandIn('sympy'); sys.modules['sympy'] = stand_in; import sympy; "
        "print(sympy is stand_in, sympy.Integer(2) + 3, sys.modules['sympy'] is stand_in); import sympy.abc; print(sympy.abc.x)"
    )
    assert run(program) == ["True", "5", "False", "x"]


def test_what_onnx_brings_is_there_for_who_asks() -> None:
    """Modules that stand-ins took the place of: as attributes of their packages, and when they are imported."""
    later = ["importlib.metadata", "onnx.printer", "google.protobuf.json_format", "google.protobuf.text_format"]
    assert run(
        f"import sys, qrt.graph, onnx; print(*[name in sys.modules for name in {later}]); m = onnx.parser.parse_model("
        "'<ir_version: 8, opset_import: [\"\" : 17]> g (float[1] x) => (float[1] y) { y = Relu (x) }'); "
        "print('Relu' in onnx.printer.to_text(m), onnx.load_from_string(onnx.serialization.registry.get('json').serialize_proto(m), "
        "'json') == m, onnx.load_from_string(onnx.serialization.registry.get('textproto').serialize_proto(m), 'textproto') == m); "
        "onnx.utils.Extractor; onnx.compose.merge_models; print(onnx.version_converter.convert_version(m, 21).opset_import[0].version)"
    ) == ["False"] * 4 + ["True"] * 3 + ["21"]


def test_the_version_of_onnx_is_what_importlib_says() -> None:
    program = "{}; import onnx, importlib.metadata; print(onnx.__version__ == importlib.metadata.version('onnx'), type(importlib.metadata))"
    for first in ("import qrt.graph", "import importlib.metadata, qrt.graph", "import onnx, qrt.graph"):
        assert run(program.format(first))[0] == "True"
    assert run("import qrt.graph; from importlib import metadata; print(metadata.__spec__.name)") == ["importlib.metadata"]


def test_modules_of_the_standard_library_come_when_they_are_used() -> None:
    names = ["calendar", "concurrent.futures", "shutil", "tempfile", "uuid"]
    here = "{*sys.modules} & set(" + repr(names) + ")"
    # Where something is installed that Python imports as it starts (a .pth file), it may bring some of them.
    assert run(f"import sys; before = {here}; import qrt.graph; print(*{here} - before)") == []
    used = "calendar.timegm, concurrent.futures.ThreadPoolExecutor, shutil.rmtree, tempfile.mkdtemp, uuid.uuid4"
    assert run(f"import qrt.graph; import {', '.join(names)}; print(*[thing.__name__ for thing in ({used})])")[0] == "timegm"
    assert run("import qrt.graph, concurrent; print(concurrent.futures.Future.__name__)") == ["Future"]
    assert run("from qrt.graph import ir; print(ir.external_data.shutil.rmtree is __import__('shutil').rmtree)") == ["True"]
