"""Bad feeds and arguments: each gets its typed error before any native code runs, and nothing of the caller's is written or read past."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from data import ASSETS, digits
from graphs import make
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

import qrt

DIGITS = ASSETS / "digits.onnx"

# Two inputs that share a symbolic dimension, a fixed one, and one of every kind of dtype.
TWO = (
    "(float[N,3] x, int64[N] i, bool b, float[M,3] y) => (float[N,3] s, int64[N] j, bool c, float[M,3] z)"
    "{ s = Neg(x) j = Abs(i) c = Not(b) z = Relu(y) }"
)


@pytest.fixture(scope="module")
def session() -> qrt.InferenceSession:
    return qrt.InferenceSession(make(TWO), num_threads=1)


def good() -> dict[str, Any]:
    return {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "i": np.array([-1, 2]),
        "b": np.array(True),
        "y": np.ones((4, 3), np.float32),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "nothing is fed to 'x'"),
        ({"w": np.zeros(3, np.float32)}, "no input is called 'w'"),
        ({"x": None, "X": np.zeros((2, 3), np.float32)}, "no input is called 'X' and nothing is fed to 'x'"),
        ({1: np.zeros(3, np.float32)}, "no input is called 1"),
        ({"x": np.zeros((2, 3))}, "'x' has dtype float64: the model takes float32"),
        ({"x": np.zeros((2, 3), np.float16)}, "has dtype float16"),
        ({"x": np.zeros((2, 3), np.int32)}, "has dtype int32"),
        ({"x": np.zeros((2, 3), np.complex64)}, "has dtype complex64"),
        ({"x": np.full((2, 3), None)}, "has dtype object"),
        ({"x": np.array([["a"] * 3] * 2)}, "has dtype <U1"),
        ({"x": np.zeros(2, [("re", "f4"), ("im", "f4")])}, "has dtype"),
        ({"i": np.array([1.0, 2.0])}, "'i' has dtype float64"),
        ({"i": np.array([1, 2], np.uint64)}, "has dtype uint64"),
        ({"b": np.array(1, np.uint8)}, "'b' has dtype uint8"),
        ({"x": np.zeros(3, np.float32)}, "'x' has rank 1"),
        ({"x": np.zeros((1, 2, 3), np.float32)}, "'x' has rank 3"),
        ({"b": np.array([True])}, "'b' has rank 1"),
        ({"x": np.zeros((2, 4), np.float32)}, "axis 1 must be 3, not 4"),
        ({"x": np.zeros((2, 0), np.float32)}, "axis 1 must be 3, not 0"),
        ({"i": np.array([1, 2, 3])}, "'N', 3 here and 2 in 'x'"),
        ({"x": 1.0}, "'x' is a float"),
        ({"x": "abc"}, "'x' is a str"),
        ({"x": memoryview(bytes(24))}, "'x' is a memoryview"),
        ({"x": {"a": 1}}, "'x' is a dict"),
        ({"x": [[1.0, 2.0, 3.0], [4.0]]}, "cannot become an array"),
        ({"x": [["a", "b", "c"]] * 2}, "dtype <U1"),
        ({"x": [[None, 1.0, 2.0]] * 2}, "dtype object"),
        ({"i": [1.5, 2.0]}, "dtype float64"),
        ({"i": [2**63, 0]}, "'i'"),
        ({"i": [2**80, 0]}, "'i'"),
        ({"b": 1}, "'b' is a int"),
    ],
)
def test_bad_feeds(session: qrt.InferenceSession, change: dict[Any, Any], message: str) -> None:
    feeds = {name: array for name, array in (good() | change).items() if array is not None}
    with pytest.raises(qrt.InvalidInput, match=message.replace("(", r"\(")):
        session.run(None, feeds)
    assert session.run(["j"], good())[0].tolist() == [1, 2]  # the session is none the worse


@pytest.mark.parametrize("feeds", [None, [], np.zeros(3), "x", 5])
def test_feeds_that_are_no_dict(session: qrt.InferenceSession, feeds: Any) -> None:
    with pytest.raises(qrt.InvalidInput, match="give a dict"):
        session.run(None, feeds)


def test_what_can_be_taken_is_taken(session: qrt.InferenceSession) -> None:
    """Lists, other byte orders, strides of any kind, subclasses, read-only and unaligned arrays: all give the same result."""
    x = good()["x"]
    wide = np.zeros((4, 6), np.float32)
    wide[::2, ::2] = x
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.float32, offset=1).reshape(2, 3)
    frozen = x.copy()
    frozen.flags.writeable = False
    masked = np.ma.masked_array(x)
    backwards = x[::-1, ::-1].copy()[::-1, ::-1]
    forms = [
        x.tolist(),
        tuple(map(tuple, x.astype(int).tolist())),
        x.astype(">f4"),
        x.T.copy().T,
        wide[::2, ::2],
        unaligned,
        frozen,
        masked,
        backwards,
    ]
    for form in forms:
        before = np.array(form)
        np.testing.assert_array_equal(session.run(["s"], good() | {"x": form})[0], -x)
        np.testing.assert_array_equal(np.array(form), before)
    np.testing.assert_array_equal(session.run(["j"], good() | {"i": [True, -7]})[0], [1, 7])
    assert session.run(["c"], good() | {"b": np.bool_(False)})[0].tolist() is True
    broadcast = np.broadcast_to(np.float32(3), (2, 3))
    np.testing.assert_array_equal(session.run(["s"], good() | {"x": broadcast})[0], np.full((2, 3), -3))


def test_a_feed_that_memory_cannot_hold_a_copy_of() -> None:
    session = qrt.InferenceSession(make("(float[N,M] x) => (float[N,M] y) { y = Neg(x) }"))
    with pytest.raises(qrt.InvalidInput, match="no memory for a copy"):
        session.run(None, {"x": np.broadcast_to(np.float32(3), (2**21, 2**21))})


@pytest.mark.parametrize("quantized", [False, True])
def test_callers_arrays_are_only_read(quantized: bool) -> None:
    images = digits()["test"][0][:3].copy()
    model = qrt.load(DIGITS)
    if quantized:
        model = qrt.quantize(model, [digits()["calibration"][0]], progress=False)
    session = qrt.InferenceSession(model)
    images.flags.writeable = False
    before = images.tobytes()
    first = session.run(None, {"image": images})[0]
    kept = first.copy()
    session.run(None, {"image": images[::-1]})
    assert images.tobytes() == before
    np.testing.assert_array_equal(first, kept)  # nor is an earlier result


@pytest.mark.parametrize("text", [
    "(float[N,3] x) => (float[N,3] y) { y = Relu(x) }",
    "(float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }",
    "(float[N,3] x) => (float[N,6] y) { y = Concat<axis=1>(x, x) }",
    "(float[N,3] x) => (float[3,N] y) { y = Transpose<perm=[1,0]>(x) }",
    "(float[N,3] x) => (float[N] y) { y = ReduceSum<keepdims=0>(x, one) }",
    "(float[N,3] x) => (float[N,3] y) { y = Softmax(x) }",
])  # fmt: skip
def test_a_batch_of_nothing(text: str) -> None:
    """Nothing in, nothing out; in the right shape."""
    model = make(text, w=np.ones((3, 4), np.float32), one=np.array([1]))
    x = np.zeros((0, 3), np.float32)
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    (found,) = qrt.InferenceSession(model).run(None, {"x": x})
    assert (found.shape, found.dtype) == (np.asarray(wanted).shape, np.asarray(wanted).dtype)


def test_a_batch_of_nothing_through_a_network() -> None:
    """And the session goes on."""
    session = qrt.InferenceSession(DIGITS)
    assert session.run(None, {"image": np.zeros((0, 1, 8, 8), np.float32)})[0].shape == (0, 10)
    assert session.run(None, {"image": np.zeros((1, 1, 8, 8), np.float32)})[0].shape == (1, 10)


def at_the_edge(array: np.ndarray, end: bool) -> tuple[np.ndarray, mmap.mmap]:
    """A copy that touches the end (or the start) of its pages; the pages around them may not be touched."""
    page = mmap.PAGESIZE
    inner = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (start, start + page + inner):
        assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0, ctypes.get_errno()
    offset = page + (inner - array.nbytes if end else 0)
    copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy, memory


@pytest.mark.parametrize("end", [True, False], ids=["end", "start"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
def test_kernels_read_no_byte_outside_a_feed(quantized: bool, n: int, end: bool) -> None:
    model = qrt.load(DIGITS)
    if quantized:
        model = qrt.quantize(model, [digits()["calibration"][0]], progress=False)
    session = qrt.InferenceSession(model, num_threads=1)
    images = digits()["test"][0][:n]
    wanted = session.run(None, {"image": images})[0]
    fenced, memory = at_the_edge(images, end)
    np.testing.assert_array_equal(session.run(None, {"image": fenced})[0], wanted)
    del fenced, memory


def test_shapes_that_change_from_thread_to_thread() -> None:
    """More shapes than plans are kept, from several threads, while plans come and go."""
    session = qrt.InferenceSession(make("(float[N,M] x) => (float[N,M] y) { y = Neg(x) }"), num_threads=1)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            x = rng.standard_normal(rng.integers(0, 12, 2)).astype(np.float32)
            try:
                np.testing.assert_array_equal(session.run(None, {"x": x})[0], -x)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(
    dtype=st.sampled_from(["?", "b", "B", "h", "i", "q", "Q", "e", "f", "d", ">f4", "F", "O", "U3", "M8[s]"]),
    shape=st.lists(st.integers(0, 4), max_size=4),
)
def test_whatever_array_comes(dtype: str, shape: list[int]) -> None:
    """A result or a typed error; never another one."""
    array = np.zeros(shape, dtype)
    fits = array.dtype in (np.dtype("<f4"), np.dtype(">f4")) and array.ndim == 2 and array.shape[1] == 3
    try:
        (found,) = NEG.run(None, {"x": array})
    except qrt.InvalidInput:
        assert not fits
    else:
        assert fits
        assert found.shape == array.shape


NEG = qrt.InferenceSession(make("(float[N,3] x) => (float[N,3] y) { y = Neg(x) }"), num_threads=1)


@pytest.mark.parametrize(
    ("make_session", "message"),
    [
        (lambda: qrt.InferenceSession(DIGITS, num_threads=0), "num_threads is 0"),
        (lambda: qrt.InferenceSession(DIGITS, num_threads=-1), "num_threads is -1"),
        (lambda: qrt.InferenceSession(DIGITS, num_threads=1.5), "num_threads is 1.5"),  # type: ignore[arg-type]
        (lambda: qrt.InferenceSession(DIGITS, num_threads=True), "num_threads is True"),
        (lambda: qrt.InferenceSession(DIGITS, target="avx1024"), "unknown target 'avx1024'"),
        (lambda: qrt.InferenceSession(DIGITS, {"intra_op_num_threads": 1}), "sess_options is a dict"),  # type: ignore[arg-type]
        (lambda: qrt.InferenceSession(DIGITS, providers=[1]), "unknown provider 1"),  # type: ignore[list-item]
        (lambda: qrt.InferenceSession(DIGITS, providers=[()]), "unknown provider"),  # type: ignore[list-item]
    ],
)
def test_bad_arguments(make_session: Callable[[], object], message: str) -> None:
    with pytest.raises(qrt.InvalidInput, match=message):
        make_session()


@pytest.mark.parametrize("source", [None, 5, ["a"], object()])
def test_what_is_no_model(source: Any) -> None:
    for build in (qrt.load, qrt.InferenceSession):
        with pytest.raises(qrt.InvalidInput, match="a model is given as a path"):
            build(source)


def test_an_input_that_is_no_tensor() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, ["N"])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [])
    graph = helper.make_graph([helper.make_node("SequenceLength", ["s"], ["y"])], "g", [sequence], [output])
    with pytest.raises(qrt.UnsupportedOp, match="'s'"):
        qrt.InferenceSession(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
