"""Indices that only a run knows, out of range: the run ends in InvalidInput where ONNX Runtime's does, and no other run is touched."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from data import ort_session
from graphs import make

import qrt
from qrt.artifact import CompiledModel
from qrt.lower import Executable
from qrt.ops.program import interpret

X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
# Nodes that make y from x (3, 4, 5), indices i and updates u; the shape of the indices, that of u, and what the indices must be.
NODES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], str]] = {
    "Gather": ("Gather<axis=1>(x, i)", (2, 3), (1,), "-4 … 3"),
    "GatherND": ("GatherND(x, i)", (6, 2), (1,), r"tuples within \(-3 … 2, -4 … 3\)"),
    "GatherND by batch": ("GatherND<batch_dims=1>(x, i)", (3, 2), (1,), r"tuples within \(-4 … 3, -5 … 4\)"),
    "GatherElements": ("GatherElements<axis=2>(x, i)", (3, 4, 2), (1,), "-5 … 4"),
    "ScatterND": ("ScatterND(x, i, u)", (3, 1), (3, 4, 5), "-3 … 2"),
    "ScatterElements": ("ScatterElements<axis=1>(x, i, u)", (3, 2, 5), (3, 2, 5), "-4 … 3"),
}
# What is out of range of every axis above.
BEYOND = (5, -6, 2**31 - 1, -(2**31))
CASES = [
    (name, dtype, wrong)
    for name in NODES
    for dtype in (np.int64, np.int32)
    if dtype is np.int64 or "ND" not in name  # ONNX has tuples of int64 alone
    for wrong in (*BEYOND, *((2**63 - 1, -(2**63)) if dtype is np.int64 else ()))
]


def model_of(name: str, dtype: type) -> onnx.ModelProto:
    node, indices, updates, _ = NODES[name]
    shape, more = (",".join(map(str, dims)) for dims in (indices, updates))
    return make(f"(float[3,4,5] x, {np.dtype(dtype).name}[{shape}] i, float[{more}] u) => (float y, float v) {{ y = {node} v = Neg(u) }}")


def feeds_of(name: str, dtype: type, wrong: int | None = None, place: int = -1) -> dict[str, np.ndarray]:
    """Feeds with indices in range, but for the one at `place`, if `wrong` is given."""
    _, indices, updates, _ = NODES[name]
    index = np.random.default_rng(0).integers(-3, 3, indices).astype(dtype)
    if name.startswith("Scatter"):  # the order of updates of one element is not ONNX's to say
        index = np.broadcast_to(np.arange(indices[1] if len(indices) == 3 else 3, dtype=dtype).reshape((-1, 1)), indices).copy()
    if wrong is not None:
        index.flat[place] = wrong
    return {"x": X, "i": index, "u": np.random.default_rng(1).standard_normal(updates).astype(np.float32)}


@pytest.fixture(scope="module")
def sessions() -> dict[tuple[str, type], qrt.InferenceSession]:
    return {}


@pytest.mark.parametrize(("name", "dtype", "wrong"), CASES)
def test_a_run_with_an_index_out_of_range_ends(
    name: str, dtype: type, wrong: int, sessions: dict[tuple[str, type], qrt.InferenceSession]
) -> None:
    model = model_of(name, dtype)
    session = sessions.setdefault((name, dtype), qrt.InferenceSession(model, num_threads=2))
    peer = ort_session(model.SerializeToString())
    good = feeds_of(name, dtype)
    for place in (0, -1):
        bad = feeds_of(name, dtype, wrong, place)
        with pytest.raises(Exception, match=r"(?i)indic|index"):
            peer.run(None, bad)
        with pytest.raises(qrt.InvalidInput, match=rf"^node '.*': indices 'i' must be .*{NODES[name][3]}\)?; one is {wrong}$"):
            session.run(None, bad)
        for got, wanted in zip(session.run(None, good), peer.run(None, good), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", NODES)
def test_the_interpreter_says_what_kernels_say(name: str) -> None:
    session = qrt.InferenceSession(model_of(name, np.int64), num_threads=1)
    good, bad = feeds_of(name, np.int64), feeds_of(name, np.int64, 5)
    executable = session._executable
    assert isinstance(executable, Executable)
    ((_, program),) = executable.plans(good)
    with pytest.raises(qrt.InvalidInput) as by_kernels:
        session.run(None, bad)
    arrays = [[feeds[value.name or ""] for value in executable._stages[0].inputs] for feeds in (good, bad)]
    for got, wanted in zip(interpret(program, arrays[0]), session.run(None, good), strict=True):
        np.testing.assert_array_equal(got, wanted)
    with pytest.raises(qrt.InvalidInput) as by_numpy:
        interpret(program, arrays[1])
    assert str(by_numpy.value) == str(by_kernels.value)


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_of_runs_on_many_threads_only_the_bad_one_fails(name: str, num_threads: int) -> None:
    session = qrt.InferenceSession(model_of(name, np.int64), num_threads=num_threads)
    good, bad = feeds_of(name, np.int64), [feeds_of(name, np.int64, wrong) for wrong in (5, -6, 1 << 40)]
    wanted = session.run(None, good)
    wrongs: list[str] = []

    def work(worker: int) -> None:
        for turn in range(60):
            if (turn + worker) % 3 == 0:
                which = (turn // 3 + worker) % 3
                try:
                    session.run(None, bad[which])
                    wrongs.append(f"bad feeds {which} ran")
                except qrt.InvalidInput as error:
                    if not str(error).endswith(f"one is {(5, -6, 1 << 40)[which]}"):
                        wrongs.append(str(error))
                continue
            try:
                if any((got != y).any() for got, y in zip(session.run(None, good), wanted, strict=True)):
                    wrongs.append("a good run gave a wrong answer")
            except qrt.InvalidInput as error:
                wrongs.append(f"a good run failed: {error}")

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrongs == []


@pytest.mark.parametrize("name", NODES)
def test_a_compiled_model_refuses_them_too(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.qrt"
    model = model_of(name, np.int64)
    qrt.compile(qrt.load(model), path, num_threads=2)
    session, plain = qrt.InferenceSession(path), qrt.InferenceSession(model, num_threads=2)
    assert isinstance(session._executable, CompiledModel)
    good, bad = feeds_of(name, np.int64), feeds_of(name, np.int64, -6)
    errors = []
    for either in (session, plain):
        with pytest.raises(qrt.InvalidInput) as found:
            either.run(None, bad)
        errors.append(str(found.value))
    assert errors[0] == errors[1]
    for got, wanted in zip(session.run(None, good), plain.run(None, good), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_each_of_two_nodes_is_named() -> None:
    model = make(
        "(float[8] x, int64[2] i, int64[2] j) => (float y, float z) { [first] y = Gather(x, i) [second] z = GatherElements(y, j) }"
    )
    session = qrt.InferenceSession(model, num_threads=1)
    x = np.arange(8, dtype=np.float32)
    cases = [
        ([0, 8], [0, 1], "node 'first': indices 'i'"),
        ([0, 7], [2, 0], "node 'second': indices 'j'"),
        ([9, 0], [0, 2], "node 'first'"),
    ]
    for i, j, message in cases:
        with pytest.raises(qrt.InvalidInput, match=message):
            session.run(None, {"x": x, "i": np.array(i), "j": np.array(j)})
    y, z = session.run(None, {"x": x, "i": np.array([5, -1]), "j": np.array([1, 0])})
    assert y.tolist() == [5, 7]
    assert z.tolist() == [7, 5]


def test_indices_that_the_model_computes() -> None:
    model = make("(float[6] x, int64[2] i) => (float y) { j = Mul(i, two) y = Gather(x, j) }", two=np.array(2))
    session = qrt.InferenceSession(model, num_threads=1)
    with pytest.raises(qrt.InvalidInput, match="indices 'j' must be within -6 … 5; one is 6"):
        session.run(None, {"x": np.zeros(6, np.float32), "i": np.array([3, 0])})


def test_indices_of_an_input_that_decides_a_shape_as_well() -> None:
    """They are known to the plan, and the caller's fault all the same."""
    model = make("(float[6] x, int64[2] i) => (float[A,B] y, float[C] z) { y = ConstantOfShape(i) z = Gather(x, i) }")
    session = qrt.InferenceSession(model, num_threads=1)
    x = np.arange(6, dtype=np.float32)
    for _ in range(2):
        with pytest.raises(qrt.InvalidInput, match=r"\(Gather\): indices 'i' must be within -6 … 5; one is 7"):
            session.run(None, {"x": x, "i": np.array([2, 7])})
        assert session.run(["z"], {"x": x, "i": np.array([2, 5])})[0].tolist() == [2, 5]


def test_codes_are_looked_up_as_carefully() -> None:
    model = make(
        "(int64[2] i) => (float[2,4] y) { d = DequantizeLinear(w, s, z) y = Gather(d, i) }",
        w=np.arange(12, dtype=np.int8).reshape(3, 4),
        s=0.5,
        z=np.int8(0),
    )
    session = qrt.InferenceSession(model, num_threads=1)
    with pytest.raises(qrt.InvalidInput, match="must be within -3 … 2; one is 3"):
        session.run(None, {"i": np.array([0, 3])})
    np.testing.assert_array_equal(session.run(None, {"i": np.array([2, 0])})[0], np.arange(12).reshape(3, 4)[[2, 0]] / 2)


@pytest.mark.parametrize("wrong", BEYOND)
@pytest.mark.parametrize("reduction", ["add", "max"])
def test_a_node_that_runs_in_python_refuses_them_too(wrong: int, reduction: str) -> None:
    model = make(
        f'(float[3] x, int64[2] i, float[2] u) => (float[3] y) {{ y = ScatterElements<axis=0, reduction="{reduction}">(x, i, u) }}',
        opset=18,
    )
    session = qrt.InferenceSession(model, num_threads=1)
    feeds = {"x": np.zeros(3, np.float32), "i": np.array([0, wrong]), "u": np.ones(2, np.float32)}
    with pytest.raises(qrt.QrtError, match="ScatterElements"):
        session.run(None, feeds)
    assert session.run(None, feeds | {"i": np.array([0, 2])})[0].tolist() == [1, 0, 1]
