"""Nodes of every operator that is spelled out, with inputs and attributes of any kind: they run, or a typed error says why not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import defs, helper, numpy_helper

from qrt.core.errors import QrtError
from qrt.graph.passes import prepare
from qrt.graph.passes.spell_out import SPELLED
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower import Executable

# What attributes of the operators are called.
NUMBERS = (
    "num_heads",
    "unidirectional",
    "transA",
    "transB",
    "transBatchA",
    "K",
    "N",
    "bits",
    "block_size",
    "axis",
    "interleaved",
    "is_causal",
)
NUMBERS += ("rotary_embedding_dim", "q_num_heads", "kv_num_heads", "channels_last", "do_rotary")
DTYPES = ("float32", "float32", "float32", "int32", "int64", "uint8", "int8", "bool", "float16")
EXTENTS = st.sampled_from([0, 1, 2, 3, 4, 6, 8, 16])


@st.composite
def nodes(draw: st.DrawFn, domain: str, op_type: str) -> tuple[object, dict[str, np.ndarray]]:
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    count = draw(st.integers(1, 9))
    names, feeds, held = [], {}, []
    for k in range(count):
        if draw(st.integers(0, 4)) == 0 and k:
            names.append("")
            continue
        shape, dtype = draw(st.lists(EXTENTS, max_size=5)), draw(st.sampled_from(DTYPES))
        names.append(f"i{k}")
        feeds[names[-1]] = np.asarray(rng.normal(size=shape) * 3).astype(dtype)
        if draw(st.booleans()):
            held.append(names[-1])
    attributes: dict[str, object] = {
        name: draw(st.integers(-1, 8)) for name in draw(st.lists(st.sampled_from(NUMBERS), unique=True, max_size=5))
    }
    if domain == "":
        attributes = {name: value for name, value in attributes.items() if name in defs.get_schema(op_type, 23, "").attributes}
    if op_type == "Einsum":
        attributes = {
            "equation": draw(st.sampled_from(["ij,jk->ik", "...a,ab", "ij->", "i,j,k", "ij,jk->il", "a...,b...->ab...", ",->", "ii"]))
        }
    node = helper.make_node(
        op_type, names, ["y", *[f"y{k}" for k in range(draw(st.integers(0, 3)))]], name="node", domain=domain, **attributes
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items() if n not in held],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(feeds[name], name) for name in held],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10), {n: a for n, a in feeds.items() if n not in held}


@pytest.mark.parametrize(("domain", "op_type"), sorted(SPELLED))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_node_runs_or_is_refused(domain: str, op_type: str, data: st.DataObject) -> None:
    model, feeds = data.draw(nodes(domain, op_type))
    try:
        prepared = prepare(load(model))
        found = Executable(prepared, host_target(), 1).run({value.name: feeds[value.name] for value in prepared.inputs})
    except QrtError:
        return
    assert [type(y) for y in found] == [np.ndarray for _ in model.graph.output]
