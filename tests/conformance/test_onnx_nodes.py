"""ONNX's own backend tests, for every operator that has a kernel here: the outputs that the standard gives.

What a node test asks for that has no kernel (a dtype, a mode) runs through onnx.reference, so it passes too; what neither can run must
raise an UnsupportedOp.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from qrt.core.errors import UnsupportedOp
from qrt.graph.passes import prepare
from qrt.graph.rules import fuse
from qrt.jit import host_target
from qrt.loaders import load
from qrt.lower import Executable
from qrt.lower.handlers import HANDLERS

# What the loader takes.
OLDEST_OPSET = 7


def _cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases' own NumPy code overflows and divides by zero on purpose
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind="node")
    native = {op_type for domain, op_type in HANDLERS if domain == ""}
    single = [case for case in cases if len(case.model.graph.node) == 1 and case.model.graph.node[0].op_type in native]
    return [case for case in single if min(opset.version for opset in case.model.opset_import) >= OLDEST_OPSET]


CASES = _cases()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_node(case: Any) -> None:
    for inputs, outputs in case.data_sets:
        if not all(isinstance(array, np.ndarray | np.generic) for array in (*inputs, *outputs)):
            pytest.skip("the case's data are not arrays")
        feeds = {i.name: np.ascontiguousarray(x).reshape(np.shape(x)) for i, x in zip(case.model.graph.input, inputs, strict=False)}
        try:
            model = prepare(load(case.model))
            fuse(model)
            found = Executable(model, host_target(), 1).run({i.name: feeds[i.name] for i in model.inputs})
        except UnsupportedOp as reason:
            pytest.skip(f"not supported: {reason}")
        for ours, wanted in zip(found, outputs, strict=True):
            wanted = np.asarray(wanted)
            assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)
            if wanted.dtype.kind == "f":
                np.testing.assert_allclose(ours, wanted, rtol=case.rtol, atol=max(case.atol, 1e-5))
            else:
                assert np.array_equal(ours, wanted)
