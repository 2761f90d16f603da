"""ONNX's own backend tests of single operators."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

from qrt.graph.passes.spell_out import SPELLED
from qrt.lower.handlers import HANDLERS

# What the loader takes.
OLDEST_OPSET = 7


@cache
def node_cases() -> tuple[Any, ...]:
    """The node tests (onnx.backend.test's TestCase) of every operator that has a kernel here, or is spelled with others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases' own NumPy code overflows and divides by zero on purpose
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind="node")
    native = {op_type for domain, op_type in (*HANDLERS, *SPELLED) if domain == ""} | {"NonMaxSuppression"}
    native -= {"CastLike"}  # of which most cases are of odd types
    single = [case for case in cases if len(case.model.graph.node) == 1 and case.model.graph.node[0].op_type in native]
    return tuple(case for case in single if min(opset.version for opset in case.model.opset_import) >= OLDEST_OPSET)
