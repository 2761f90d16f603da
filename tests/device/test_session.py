"""Sessions on a GPU, emulated: whole models, runs on the CPU between graphs, and what they share."""

from __future__ import annotations

import gc
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from data import ASSETS, digits
from device.sessions import Emulation
from graphs import make

import qrt
from qrt.api import compile_model, fuse_model
from qrt.core.errors import DeviceError
from qrt.graph import Model
from qrt.ops.op import Op
from qrt.ops.reduction import CumSum
from qrt.runtime import segments

# Of the calls, only the sums have no kernel: a and c go to the CPU, b and d come back, and a is still there for the last.
MIXED = """(float[N, 5] x) => (float[N, 5] y, float[N, 5] b, float[N, 5] a) {
    a = Neg(x) b = CumSum(a, axis) c = Abs(b) d = CumSum(c, axis) y = Add(d, a) }"""


@pytest.fixture(scope="module")
def int8() -> Model:
    return qrt.quantize(qrt.load(ASSETS / "digits.onnx"), [{"image": image[None]} for image in digits()["calibration"][0][:20]])


@pytest.fixture
def mixed(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> qrt.InferenceSession:
    monkeypatch.setattr(CumSum, "emit_device", Op.emit_device)
    return qrt.InferenceSession(make(MIXED, axis=np.int64(1)), target="cuda", num_threads=1)


def wanted(x: np.ndarray) -> list[np.ndarray]:
    a = -x
    b = np.cumsum(a, 1, dtype=np.float32)
    return [np.cumsum(np.abs(b), 1, dtype=np.float32) + a, b, a]


def check(session: qrt.InferenceSession, rows: int, seed: int = 0) -> None:
    x = np.random.default_rng(seed).integers(-50, 50, (rows, 5)).astype(np.float32)  # whose sums are exact
    for found, expected in zip(session.run(None, {"x": x}), wanted(x), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_network_gives_the_same_bits(int8: Model, emulation: Emulation) -> None:
    images = digits()["test"][0]
    session = qrt.InferenceSession(int8, providers=["CUDAExecutionProvider"], num_threads=1)
    assert session.get_providers() == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    on_cpu = qrt.InferenceSession(int8, num_threads=1)
    sent = []
    for count in (1, 2):  # two shapes, two plans
        np.testing.assert_array_equal(session.run(None, {"image": images[:count]})[0], on_cpu.run(None, {"image": images[:count]})[0])
        sent.append([word[1] for word in emulation.device.noted if word[0] in ("upload", "send")])
        emulation.device.noted.clear()
    products = [name for name in emulation.device.launched if name.startswith("gemm_u8s8")]
    assert len(products) >= 2 * 5
    assert max(sent[0]) > 1 << 16  # the weights
    assert max(sent[1]) < 1 << 12  # which are there: only tables of offsets and the image
    session.close()
    gc.collect()
    assert not emulation.device.sizes
    assert not emulation.device.graphs


def test_only_what_crosses_is_copied(mixed: qrt.InferenceSession, emulation: Emulation) -> None:
    check(mixed, 3)
    device = emulation.device
    for rows in (3, 2, 3):  # the second is a new plan in the same arena
        device.noted.clear()
        check(mixed, rows, seed=rows)
        n = 4 * 5 * rows
        copies = [word for word in device.noted if word[0] in ("upload", "download", "send", "fetch", "replay")]
        up, down, graph = ("send", n), ("fetch", n), ("replay", None)
        # x; a, b; c, d; y, as b and a are there already
        assert copies == [up, graph, down, up, graph, down, up, graph, down]
    assert [memory.nbytes for memory in device.pinned.values()] == [6 * 64, 6 * 64]  # x, a, b, c, d, y of each plan


def test_results_are_the_callers(mixed: qrt.InferenceSession) -> None:
    """Also those that the CPU read on their way, in memory that the next run uses again."""
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    first = mixed.run(None, {"x": x})
    mixed.run(None, {"x": 3 * x + 1})
    for found, expected in zip(first, wanted(x), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_crosses_where_no_memory_is_locked(mixed: qrt.InferenceSession, emulation: Emulation) -> None:
    emulation.device.lockable = 0
    for rows in (3, 3, 1):
        check(mixed, rows, seed=rows)
    assert not {word[0] for word in emulation.device.noted} & {"send", "fetch"}


def test_tables_of_shapes_go_with_their_plans(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and on the device: a server that meets ever new image sizes keeps only those of the last ones."""
    monkeypatch.setattr("qrt.lower.executable.MAX_PLANS", 2)
    attributes = "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
    text = f"(float[1,4,H,W] x) => (float[1,4,A,B] y) {{ a = Conv {attributes} (x, w) y = Atan (a) }}"
    w = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    session = qrt.InferenceSession(make(text, w=w), target="cuda", num_threads=1)
    on_cpu, kept, held = qrt.InferenceSession(make(text, w=w), target="generic", num_threads=1), [], []
    for width in (5, 6, 7, 8, 9, 10, 5, 6):
        x = np.random.default_rng(width).standard_normal((1, 4, 3, width)).astype(np.float32)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], on_cpu.run(None, {"x": x})[0], rtol=1e-4, atol=1e-5)
        gc.collect()
        kept.append(session._executable.packs.nbytes)  # type: ignore[union-attr]
        held.append(sum(emulation.device.sizes.values()))
    for sizes in (kept, held):
        assert sizes[-1] < 1.3 * sizes[1]


def test_the_arena_grows(mixed: qrt.InferenceSession, emulation: Emulation) -> None:
    """A larger plan moves it, so that the graphs of the smaller one are recorded again."""
    check(mixed, 1)
    for rows in (40, 1, 40):
        check(mixed, rows)


def test_memory_that_is_not_there(mixed: qrt.InferenceSession, emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that does not fit leaves the session as it was."""
    check(mixed, 1)
    with monkeypatch.context() as patch:
        allocate = emulation.device.allocate

        def full(nbytes: int) -> int:
            if nbytes > 1000:
                raise DeviceError("NVIDIA's driver refuses cuMemAlloc_v2: out of memory (CUresult 2)")
            return allocate(nbytes)

        patch.setattr(emulation.device, "allocate", full)
        with pytest.raises(qrt.DeviceError, match="out of memory"):
            check(mixed, 100)
        check(mixed, 1)
    check(mixed, 100)


def test_a_kernel_that_fails_leaves_the_session_as_it_was(
    mixed: qrt.InferenceSession,
    emulation: Emulation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(mixed, 2)
    with monkeypatch.context() as patch:

        def fail(graph: int, stream: int | None = None) -> None:
            raise DeviceError("NVIDIA's driver refuses cuGraphLaunch: unspecified launch failure (CUresult 719)")

        patch.setattr(emulation.device, "replay", fail)
        with pytest.raises(qrt.DeviceError, match="launch failure"):
            check(mixed, 2)
    check(mixed, 2)


def check_from_threads(session: qrt.InferenceSession) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(4):
                check(session, 1 + seed % 3, seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_four_threads_at_once(mixed: qrt.InferenceSession) -> None:
    check_from_threads(mixed)


@pytest.mark.gpu
def test_on_a_device(gpu: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on the CPU between graphs, shapes that come and go, threads."""
    monkeypatch.setattr(CumSum, "emit_device", Op.emit_device)
    monkeypatch.setattr(segments, "LEAST_MACS", 0)
    with qrt.InferenceSession(make(MIXED, axis=np.int64(1)), target="cuda", num_threads=1) as session:
        for rows in (3, 2, 40_000, 3, 0):
            check(session, rows, rows)
        check_from_threads(session)


def test_a_closed_session(mixed: qrt.InferenceSession, emulation: Emulation) -> None:
    check(mixed, 2)
    binding = mixed.bind()
    binding.bind_input("x", np.zeros((2, 5), np.float32))
    plan = mixed._executable.wholes[((2, 5),)].plan  # type: ignore[union-attr]  # as another thread may still hold it
    mixed.close()
    mixed.close()
    for run in (lambda: check(mixed, 2), binding.run, lambda: plan.run([np.zeros((2, 5), np.float32)])):
        with pytest.raises(qrt.InvalidInput, match="the session is closed"):
            run()


def test_a_session_that_is_dropped_gives_its_memory_back(mixed: qrt.InferenceSession, emulation: Emulation) -> None:
    session = qrt.InferenceSession(make("(float[N] x) => (float[N] y) { y = Neg(x) }"), target="cuda")
    session.run(None, {"x": np.ones(3, np.float32)})
    device = emulation.device
    assert device.sizes
    del session
    gc.collect()
    assert not device.sizes
    assert not device.graphs


def test_a_small_run_beside_the_cpu_stays_there(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LEAST_MACS", 1)
    monkeypatch.setattr(CumSum, "emit_device", Op.emit_device)
    check(qrt.InferenceSession(make(MIXED, axis=np.int64(1)), target="cuda"), 2)
    assert not emulation.device.launched
    assert not [word for word in emulation.device.noted if word[0] in ("upload", "download", "send", "fetch")]
    alone = qrt.InferenceSession(make("(float[N] x) => (float[N] y) { y = Neg(x) }"), target="cuda")  # nothing else runs on the CPU
    alone.run(None, {"x": np.ones(3, np.float32)})
    assert emulation.device.launched


def test_nodes_in_python_and_views_between(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages around a node of onnx.reference; views of what crosses; an output that the CPU makes and one that is an input."""
    monkeypatch.setattr(CumSum, "emit_device", Op.emit_device)
    text = """(float[2, 6] x) => (float[3, 4] y, float[12] s, float[2, 6] x2) {
        a = Neg(x) r = Reshape(a, shape) b = CumSum(r, axis) c = Reshape(b, flat) s = Abs(c)
        p = Det(square) t = Mul(s, p) u = Reshape(t, shape) y = CumSum(u, axis) x2 = Identity(x) }"""
    constants = {"shape": np.int64([3, 4]), "flat": np.int64([12]), "axis": np.int64(0), "square": np.float32([[2, 0], [0, 1]])}
    session = qrt.InferenceSession(make(text, **constants), target="cuda")  # type: ignore[arg-type]
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    y, s, x2 = session.run(None, {"x": x})
    b = np.cumsum(-x.reshape(3, 4), 0)
    np.testing.assert_array_equal(s, np.abs(b.reshape(12)))
    np.testing.assert_array_equal(y, np.cumsum(2 * s.reshape(3, 4), 0))
    np.testing.assert_array_equal(x2, x)
    assert x2 is not x


def test_an_index_that_the_cpu_refuses(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrt.ops.movement.gather import Gather

    monkeypatch.setattr(Gather, "emit_device", Op.emit_device)
    session = qrt.InferenceSession(
        make("(float[4] x, int64[2] i) => (float[2] y) { a = Neg(x) b = Gather(a, i) y = Neg(b) }"), target="cuda"
    )
    x = np.arange(4, dtype=np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(session.run(None, {"x": x, "i": np.int64([3, 0])})[0], [3, 0])
        with pytest.raises(qrt.InvalidInput, match="one is 9"):
            session.run(None, {"x": x, "i": np.int64([1, 9])})


def test_empty_arrays(mixed: qrt.InferenceSession) -> None:
    check(mixed, 0)


def test_a_profile_shows_graphs_and_runs(emulation: Emulation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(CumSum, "emit_device", Op.emit_device)
    options = qrt.SessionOptions(enable_profiling=True, profile_file_prefix=str(tmp_path / "p"))
    with qrt.InferenceSession(make(MIXED, axis=np.int64(1)), options, target="cuda") as session:
        check(session, 2)
        events = json.loads(Path(session.end_profiling()).read_text())["traceEvents"]
    assert [event["args"]["kernel"].split(":")[0] for event in events] == ["cuda", "cpu", "cuda", "cpu", "cuda"]


def test_compiled_and_kept_models_are_for_the_cpu(emulation: Emulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of plans gives its model to a session on the GPU; no plan of that is kept."""
    path = tmp_path / "m.qrt"
    monkeypatch.setenv("QRT_CACHE_DIR", str(tmp_path / "cache"))
    qrt.compile(make("(float[3] x) => (float[3] y) { y = Neg(x) }"), path)
    (tmp_path / "m.onnx").write_bytes(make("(float[3] x) => (float[3] y) { y = Neg(x) }").SerializeToString())
    for file in (path, tmp_path / "m.onnx"):
        session = qrt.InferenceSession(file, target="cuda")
        np.testing.assert_array_equal(session.run(None, {"x": np.float32([1, 2, 3])})[0], np.float32([-1, -2, -3]))
        assert emulation.device.launched
    assert not (tmp_path / "cache" / "plans").exists()


def test_taps_are_the_cpus(emulation: Emulation) -> None:
    fused, _ = fuse_model(qrt.load(make("(float[3] x) => (float[3] y) { y = Neg(x) }")))
    with pytest.raises(qrt.InvalidInput, match="tapped on the CPU only"):
        compile_model(fused, target="cuda", taps=["y"])
