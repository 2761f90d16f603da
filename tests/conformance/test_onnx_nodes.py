"""ONNX's own backend tests, for every operator that has a kernel here: the outputs that the standard gives.

What a node test asks for that has no kernel (a dtype, a mode) runs through onnx.reference, so it passes too; what neither can run must
raise an UnsupportedOp. Some of the tests are made anew of float16.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
import pytest
from cases import node_cases
from halves import halved
from onnx import helper
from onnx.reference import ReferenceEvaluator

import qrt
from qrt.core.dtypes import is_float
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
            if is_float(wanted.dtype):
                # The standard's sums of bfloat16 are rounded on their way; ours at their end.
                rtol = case.rtol if wanted.dtype.itemsize > 2 or wanted.dtype.kind == "f" else 2**-6
                np.testing.assert_allclose(ours.astype(np.float64), wanted.astype(np.float64), rtol=rtol, atol=max(case.atol, 1e-5))
            else:
                assert np.array_equal(ours, wanted)


def _of_floats(every: int) -> list[Any]:
    """Of the tests on arrays, float32 among them, one in `every`, if its operator takes float16."""
    arrays = [(case, [array for data in case.data_sets[0] for array in data]) for case in node_cases()]
    plain = [case for case, given in arrays if {type(a) for a in given} == {np.ndarray} and any(a.dtype == np.float32 for a in given)]
    found = []
    for case in plain[::every]:
        with contextlib.suppress(onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
            onnx.checker.check_model(halved(case.model), full_check=True)
            found.append(case)
    return found


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in _of_floats(10)])
def test_node_of_float16(case: Any) -> None:
    model = halved(case.model)
    dtypes = {i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
    feeds = {i.name: array.astype(dtypes[i.name]) for i, array in zip(model.graph.input, case.data_sets[0][0], strict=False)}
    session = qrt.InferenceSession(model, num_threads=1)
    found = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    with np.errstate(all="ignore"):
        expected = [np.asarray(array) for array in ReferenceEvaluator(model).run(None, feeds)]
    for ours, wanted, said in zip(found, expected, model.graph.output, strict=True):
        # Not the reference's dtype: it gives float32 where a grid of float16 is asked for.
        assert (ours.shape, ours.dtype) == (wanted.shape, helper.tensor_dtype_to_np_dtype(said.type.tensor_type.elem_type))
        np.testing.assert_allclose(ours.astype(np.float64), wanted.astype(np.float64), rtol=1e-2, atol=1e-2)
