"""Whole models through the lowering: stages, shapes that depend on data, bodies, constants, taps, plans and their cache."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import onnx
import pytest
from data import ort_session
from onnx import TensorProto, helper, numpy_helper, parser

from qrt.core.errors import UnsupportedOp
from qrt.graph.passes import prepare
from qrt.jit.host import host_target
from qrt.loaders import load
from qrt.lower import executable as module
from qrt.lower.executable import Executable

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def parsed(text: str, opset: int = 21) -> onnx.ModelProto:
    """The model of a graph in ONNX's textual syntax."""
    return parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> {text}')


def ready(proto: onnx.ModelProto, threads: int = 2, taps: tuple[str, ...] = ()) -> Executable:
    return Executable(prepare(load(proto)), host_target(), threads, taps)


def check(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], executable: Executable | None = None) -> Executable:
    """Our outputs are ONNX Runtime's."""
    executable = executable or ready(proto)
    found = executable.run(feeds)
    for got, wanted in zip(found, ort_session(proto.SerializeToString()).run(None, feeds), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    return executable


# -- shapes that depend on data -------------------------------------------------------------------------------------------
DATA_DEPENDENT = """
g (float[n] x) => (float[m] y) {
    doubled = Add (x, x)
    flags = Relu (doubled)
    where = NonZero (flags)
    axes = Constant <value = int64[1] {0}> ()
    index = Squeeze (where, axes)
    picked = Gather (doubled, index)
    y = Mul (picked, picked)
}
"""


def test_a_shape_that_depends_on_data_is_a_python_step_between_native_stages() -> None:
    proto = parsed(DATA_DEPENDENT)
    executable = ready(proto)
    for _ in range(3):
        check(proto, {"x": real(20)}, executable)
    check(proto, {"x": -np.abs(real(20))}, executable)  # nothing is picked
    assert list(executable.why.values()) == ["no kernel for this operator"]
    kinds = [type(stage).__name__ for stage in executable._stages]
    assert kinds == ["_Native", "PythonStep", "_Native"]


def test_a_fed_shape_decides_the_plan() -> None:
    proto = parsed("g (float[a, b] x, int64[2] shape) => (float[p, q] y) { z = Relu (x) w = Reshape (z, shape) y = Add (w, w) }")
    executable = ready(proto)
    x = real(4, 6)
    for shape in ([6, 4], [3, 8], [6, 4], [2, -1]):  # the same inputs' shapes, other contents
        check(proto, {"x": x, "shape": np.array(shape, np.int64)}, executable)
    assert not executable.why
    (stage,) = executable._stages
    assert isinstance(stage, module._Native)
    assert {v.name for v in stage.by_value} == {"shape"}
    assert len(stage.plans) == 3


def test_shapes_are_computed_while_lowering() -> None:
    text = """
    g (float[n, c, h, w] x) => (float[n, f] y) {
        shape = Shape (x)
        zero = Constant <value = int64[1] {0}> ()
        one = Constant <value = int64[1] {1}> ()
        n = Slice (shape, zero, one)
        minus = Constant <value = int64[1] {-1}> ()
        target = Concat <axis = 0> (n, minus)
        y = Reshape (x, target)
    }
    """
    proto = parsed(text)
    executable = ready(proto)
    for shape in ((2, 3, 4, 5), (1, 3, 2, 2), (3, 1, 1, 1)):
        check(proto, {"x": real(*shape)}, executable)
    assert not executable.why


def test_large_inputs_do_not_decide_shapes() -> None:
    # 80 repeats are data and no shape: the node that needs their contents runs in Python.
    n = module.MAX_SHAPE_ELEMENTS + 16
    proto = parsed(f"g (float[1, {n}] x, int64[{n}] at) => (float[a, b] y) {{ z = Relu (x) y = OneHot <axis = 0> (at, depth, values) }}")
    proto.graph.initializer.extend([numpy_helper.from_array(np.array(5), "depth"), numpy_helper.from_array(np.float32([0, 1]), "values")])
    check(proto, {"x": real(1, n), "at": RNG.integers(0, 5, n)})


# -- bodies ---------------------------------------------------------------------------------------------------------------
IF = """
g (bool flag, float[n] x) => (float[m] y) {
    z = Add (x, x)
    y0 = If (flag) <
        then_branch = t () => (float[n] a) { a = Mul (z, x) },
        else_branch = e () => (float[n] b) { b = Neg (z) }
    >
    y = Add (y0, z)
}
"""
LOOP = """
g (int64 trips, float[n] x) => (float[n] y, float[k, n] all) {
    start = Add (x, x)
    keep = Constant <value = bool {1}> ()
    last, all = Loop (trips, keep, start) <
        body = b (int64 i, bool c, float[n] state) => (bool c2, float[n] next, float[n] seen) {
            c2 = Identity (c)
            next = Add (state, x)
            seen = Mul (next, next)
        }
    >
    y = Add (last, x)
}
"""
SCAN = """
g (float[n] first, float[k, n] xs) => (float[n] last, float[k, n] sums) {
    zero = Sub (first, first)
    last, sums = Scan <num_scan_inputs = 1, body = b (float[n] state, float[n] x) => (float[n] next, float[n] out) {
        next = Add (state, x)
        out = Identity (next)
    }> (zero, xs)
}
"""


@pytest.mark.parametrize("flag", [True, False])
def test_if(flag: bool) -> None:
    check(parsed(IF), {"flag": np.asarray(flag), "x": real(5)})


@pytest.mark.parametrize("trips", [1, 4])
def test_loop(trips: int) -> None:
    check(parsed(LOOP), {"trips": np.asarray(trips, np.int64), "x": real(5)})


def test_a_loop_without_a_turn() -> None:
    feeds = {"trips": np.asarray(0, np.int64), "x": real(5)}
    check(parsed(LOOP), feeds)
    silent = LOOP.replace("=> (float[n] y, float[k, n] all)", "=> (float[n] y)").replace("last, all = Loop", "last = Loop")
    check(parsed(silent.replace(", float[n] seen)", ")").replace("seen = Mul (next, next)", "")), feeds)


def test_scan() -> None:
    check(parsed(SCAN), {"first": real(5), "xs": real(7, 5)})


# -- outputs and inputs of every kind -------------------------------------------------------------------------------------
def test_outputs_that_are_inputs_constants_and_the_same_value_twice() -> None:
    text = """
    g (float[n] x, float[n] unused) => (float[n] same, float[3] known, float[n] a, float[n] b, float[n] viewed)
    <float[3] weight = {1.0, 2.0, 3.0}> {
        same = Identity (x)
        known = Add (weight, weight)
        a = Relu (x)
        b = Identity (a)
        minus = Constant <value = int64[1] {-1}> ()
        viewed = Reshape (a, minus)
    }
    """
    proto = parsed(text)
    executable = ready(proto)
    feeds = {"x": real(6), "unused": real(6)}
    check(proto, feeds, executable)
    found = executable.run(feeds)
    for i, one in enumerate(found):  # each is the caller's own
        one += 1
        for other in [*found[:i], *found[i + 1 :], *feeds.values()]:
            assert not np.shares_memory(one, other)
    check(proto, feeds, executable)


def test_a_model_of_no_nodes() -> None:
    proto = parsed("g (float[n] x) => (float[n] x) { }")
    x = real(4)
    (found,) = ready(proto).run({"x": x})
    np.testing.assert_array_equal(found, x)
    assert not np.shares_memory(found, x)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1)])
def test_empty_inputs(shape: tuple[int, int]) -> None:
    proto = parsed("g (float[n, c] x) => (float[n, c] y) { a = Relu (x) y = Add (a, x) }")
    check(proto, {"x": real(*shape)})


def test_read_only_inputs_are_fine_and_left_alone() -> None:
    proto = parsed("g (float[n] x) => (float[n] y) { a = Add (x, x) y = Relu (a) }")
    x = real(1000)
    x.setflags(write=False)
    check(proto, {"x": x})


# -- old spellings --------------------------------------------------------------------------------------------------------
def test_opset_7() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Clip", ["n"], ["c"], min=0.0, max=6.0),  # bounds as attributes, until opset 11
        helper.make_node("Upsample", ["c"], ["u"], scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"),
        helper.make_node("Slice", ["u"], ["l"], axes=[2, 3], starts=[1, 1], ends=[7, 7]),
        helper.make_node("Pad", ["l"], ["p"], pads=[0, 0, 1, 0, 0, 0, 0, 1], value=2.0),
        helper.make_node("ReduceSum", ["p"], ["r"], axes=[1], keepdims=1),
        helper.make_node("Squeeze", ["r"], ["q"], axes=[1]),
        helper.make_node("Softmax", ["q"], ["y"], axis=1),  # flattens to a matrix, until opset 13
    ]
    weights = {"w": real(4, 3, 3, 3), "s": real(4), "b": real(4), "m": real(4), "v": np.abs(real(4)) + 1}
    graph = helper.make_graph(
        nodes,
        "old",
        # Before IR version 4 initializers were inputs too.
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 5, 5]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in weights.items()),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7, 7])],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3)
    executable = check(proto, {"x": real(1, 3, 5, 5)})
    assert not executable.why


# -- Python steps ---------------------------------------------------------------------------------------------------------
def test_a_python_step_that_fails_names_its_node() -> None:
    proto = parsed("g (float[n, m] x) => (float y) { [inverse] y = Det (x) }")
    with pytest.raises(UnsupportedOp, match="'inverse' \\(Det\\)"):
        ready(proto).run({"x": real(3, 4)})


def test_an_operator_that_nobody_knows_is_refused() -> None:
    proto = parsed("g (float[n] x) => (float[n] y) { y = Relu (x) }")
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "com.nobody", "Mystery"
    proto.opset_import.append(helper.make_opsetid("com.nobody", 1))
    with pytest.raises(UnsupportedOp, match="Mystery"):
        ready(proto)


# -- taps and the clock ---------------------------------------------------------------------------------------------------
TAPPED = """
g (float[2, 3, 8, 8] x) => (float[2, 4, 4, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = Relu (a)
    t = Transpose <perm = [0, 2, 3, 1]> (b)
    d = Det (square)
    c = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)
    y = Add (c, d)
}
"""


def tapped() -> onnx.ModelProto:
    proto = parsed(TAPPED.replace("g (float[2, 3, 8, 8] x)", "g (float[2, 3, 8, 8] x, float[3, 3] square)"))
    proto.graph.initializer.append(numpy_helper.from_array(real(4, 3, 3, 3), "w"))
    proto.graph.output.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, [2, 8, 8, 4]))
    return proto


def test_taps_see_logical_values_of_native_and_python_nodes() -> None:
    proto = tapped()
    names = ("x", "a", "b", "d", "c", "y", "t")
    executable = ready(proto, taps=names)
    feeds = {"x": real(2, 3, 8, 8), "square": real(3, 3)}
    seen: dict[str, np.ndarray] = {}
    found = executable.run(feeds, lambda name, array: seen.setdefault(name, array.copy()) is None)
    everything = onnx.ModelProto()
    everything.CopyFrom(proto)
    del everything.graph.output[:]
    everything.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names if n != "x")
    wanted = dict(zip([n for n in names if n != "x"], onnx.reference.ReferenceEvaluator(everything).run(None, feeds), strict=True))
    assert set(seen) == set(names)
    np.testing.assert_array_equal(seen["x"], feeds["x"])
    for name, array in wanted.items():
        assert seen[name].shape == np.shape(array)
        np.testing.assert_allclose(seen[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    for got, again in zip(found, executable.run(feeds), strict=True):
        np.testing.assert_array_equal(got, again)


def test_the_clock_covers_every_stage() -> None:
    executable = ready(tapped())
    ticks: list[tuple[list[str], list[str], np.ndarray]] = []
    feeds = {"x": real(2, 3, 8, 8), "square": real(3, 3)}
    executable.run(feeds, clock=lambda names, kernels, clock: ticks.append((names, kernels, clock)))
    assert any(kernels == ["python"] for _, kernels, _ in ticks)
    for names, kernels, clock in ticks:
        assert len(names) == len(kernels) == len(clock) - 1
        assert (np.diff(clock) >= 0).all()


# -- plans ----------------------------------------------------------------------------------------------------------------
SMALL = "g (float[n, m] x) => (float[m, n] y) { a = Relu (x) y = Transpose <perm = [1, 0]> (a) }"


def test_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PLANS", 4)
    proto = parsed(SMALL)
    executable = ready(proto, 1)
    for n in [*range(1, 9), 1, 8]:
        x = real(n, 3)
        np.testing.assert_array_equal(executable.run({"x": x})[0], np.maximum(x, 0).T)
    (stage,) = executable._stages
    assert isinstance(stage, module._Native)
    assert len(stage.plans) == 4


def test_the_memory_of_plans_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SLAB_BYTES", 200_000)
    executable = ready(
        parsed("g (float[n, m] x) => (float[m, m] y) { a = Relu (x) t = Transpose <perm = [1, 0]> (a) y = MatMul (t, a) }"), 1
    )
    (stage,) = executable._stages
    assert isinstance(stage, module._Native)
    counts = []
    for n in (10, 20, 30, 300, 301, 302, 2000, 10):
        x = real(n, 100)
        np.testing.assert_allclose(executable.run({"x": x})[0], np.maximum(x, 0).T @ np.maximum(x, 0), rtol=1e-3, atol=1e-3)
        slabs = [plan.arena_nbytes for plan, _, _ in stage.plans.values()]
        assert sum(slabs) <= 200_000 or len(slabs) == 1  # one that is larger runs all the same
        counts.append(len(slabs))
    assert max(counts) > 2


def test_constants_are_packed_once_for_all_shapes() -> None:
    proto = parsed("g (float[n, 8] x) => (float[n, 3] y) { y = MatMul (x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(w := real(8, 3), "w"))
    executable = ready(proto, 1)
    sizes = []
    for n in (20, 21, 22):
        x = real(n, 8)
        np.testing.assert_allclose(executable.run({"x": x})[0], x @ w, rtol=1e-5, atol=1e-6)
        sizes.append(executable.packs.nbytes)
    assert sizes[0] == sizes[1] == sizes[2]


def test_threads_that_plan_and_run_at_once() -> None:
    proto = parsed(DATA_DEPENDENT)
    executable = ready(proto)
    errors: list[Any] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(25):
                x = rng.normal(size=int(rng.integers(1, 30))).astype(np.float32)
                doubled = x + x
                np.testing.assert_array_equal(executable.run({"x": x})[0], doubled[doubled > 0] ** 2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)


def test_threads_do_not_change_the_bytes() -> None:
    proto = tapped()
    feeds = {"x": real(2, 3, 8, 8), "square": real(3, 3)}
    runs = [ready(proto, threads).run(feeds) for threads in (1, 2, 3)]
    for outputs in zip(*runs, strict=True):
        assert len({o.tobytes() for o in outputs}) == 1


def test_two_names_of_one_value_are_laid_out_each_for_itself() -> None:
    proto = parsed("""g (float[n, 3, 9, 7] x) => (float[n, 7, a, b] y, float[n, 3, c, d] z) {
        y = Conv (x, w)
        t = Transpose <perm = [0, 1, 3, 2]> (x)
        z = MaxPool <kernel_shape = [2, 2]> (t)
    }""")
    proto.graph.initializer.append(numpy_helper.from_array(real(7, 3, 2, 2), "w"))
    check(proto, {"x": real(1, 3, 9, 7)})


def test_why_a_node_runs_in_python_is_told() -> None:
    # Known only when shapes and dtypes are: the stage is cut again around the node, whose neighbours stay native.
    proto = parsed("g (double[n, 4] x) => (double[n, 3] y) { a = MatMul (x, w) y = Neg (a) }")
    proto.graph.node[0].name = "product"
    proto.graph.initializer.append(numpy_helper.from_array(w := RNG.normal(size=(4, 3)), "w"))
    executable = ready(proto)
    assert not executable.why
    x = RNG.normal(size=(5, 4))
    np.testing.assert_allclose(executable.run({"x": x})[0], -(x @ w))
    assert executable.why["product"] == "operands of float64"


def test_operators_bring_their_own_families_and_few_others() -> None:
    program = (
        "import sys; from qrt.lower.handlers import HANDLERS; HANDLERS[('', 'Conv')]; "
        "loaded = [n for n in ('convolution', 'reduction', 'resize') if 'qrt.lower.handlers.' + n in sys.modules]; "
        "print(*loaded, ('', 'Nothing') in HANDLERS, ('', 'LSTM') in HANDLERS, "
        "len(HANDLERS) == len(list(HANDLERS)) == len({*HANDLERS}) > 100)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["convolution", "False", "True", "True"]
