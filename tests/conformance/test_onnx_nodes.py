"""ONNX's own backend tests, for every operator that has a kernel here: the outputs that the standard gives.

What a node test asks for that has no kernel (a dtype, a mode) runs through onnx.reference, so it passes too; what neither can run must
raise an UnsupportedOp.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import node_cases

from qrt.core.errors import UnsupportedOp
from qrt.graph.passes import prepare
from qrt.graph.rules import fuse
from qrt.jit import host_target
from qrt.loaders import load
from qrt.lower import Executable


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in node_cases()])
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
