"""InferenceSession, beside ONNX Runtime's class of that name."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from data import ASSETS, digits
from graphs import make
from onnx import TensorProto, helper

import qrt
from qrt.jit.cuda import available

DIGITS = ASSETS / "digits.onnx"


@pytest.fixture(scope="module")
def session() -> qrt.InferenceSession:
    return qrt.InferenceSession(DIGITS, num_threads=2)


@pytest.fixture(scope="module")
def peer() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(DIGITS, providers=["CPUExecutionProvider"])


def images(n: int) -> np.ndarray:
    return digits()["test"][0][:n]


@pytest.mark.parametrize("ort", [onnxruntime, qrt], ids=lambda module: module.__name__)
def test_a_client_written_for_onnx_runtime(ort: ModuleType) -> None:
    """Line by line what programs do with ONNX Runtime; the same lines work on qrt."""
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(DIGITS), options, ["CPUExecutionProvider"])
    assert "CPUExecutionProvider" in session.get_providers()
    assert "CPUExecutionProvider" in ort.get_available_providers()
    given, result = session.get_inputs()[0], session.get_outputs()[0]
    assert (given.name, given.shape, given.type) == ("image", ["N", 1, 8, 8], "tensor(float)")
    assert (result.name, result.shape, result.type) == ("logits", ["N", 10], "tensor(float)")
    assert session.get_modelmeta().producer_name == "train_digits"
    assert session.get_modelmeta().graph_name == "digits"
    assert session.get_session_options().intra_op_num_threads == 1
    (logits,) = session.run([result.name], {given.name: images(600)}, ort.RunOptions())
    assert np.mean(logits.argmax(1) == digits()["test"][1][:600]) > 0.98
    with pytest.raises(Exception, match=r"(?i)image"):
        session.run(None, {given.name: images(1)[0]})


@pytest.mark.parametrize("form", ["path", "string", "bytes", "Model", "ModelProto"])
def test_every_form_of_a_model(form: str, peer: onnxruntime.InferenceSession) -> None:
    source = {
        "path": DIGITS,
        "string": str(DIGITS),
        "bytes": DIGITS.read_bytes(),
        "Model": qrt.load(DIGITS),
        "ModelProto": onnx.load(DIGITS),
    }[form]
    with qrt.InferenceSession(source) as session:
        found = session.run(None, {"image": images(3)})
    np.testing.assert_allclose(found[0], peer.run(None, {"image": images(3)})[0], rtol=1e-4, atol=1e-4)


def test_a_session_leaves_its_model_alone() -> None:
    model = qrt.load(DIGITS)
    before = model.to_proto().SerializeToString()
    qrt.InferenceSession(model).run(None, {"image": images(1)})
    assert model.to_proto().SerializeToString() == before


@pytest.mark.parametrize("n", [7, 2, 64, 1])
def test_any_batch_size(session: qrt.InferenceSession, peer: onnxruntime.InferenceSession, n: int) -> None:
    found = session.run(None, {"image": images(n)})
    np.testing.assert_allclose(found[0], peer.run(None, {"image": images(n)})[0], rtol=1e-4, atol=1e-4)


def test_outputs_by_name() -> None:
    session = qrt.InferenceSession(make("(float[N,2] x) => (float[N,2] a, float[N,2] b) { a = Neg(x) b = Abs(x) }"))
    x = np.array([[1.0, -2.0]], np.float32)
    for names, wanted in [
        (None, [-x, abs(x)]),
        ([], [-x, abs(x)]),
        (["b"], [abs(x)]),
        (["b", "a", "b"], [abs(x), -x, abs(x)]),
        (("a",), [-x]),
    ]:
        found = session.run(names, {"x": x})
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(qrt.InvalidInput, match="no output is called 'c': there are 'a', 'b'"):
        session.run(["c"], {"x": x})
    with pytest.raises(qrt.InvalidInput, match="give a list"):
        session.run("a", {"x": x})


def test_outputs_belong_to_the_caller() -> None:
    """Even where an output is an input, or a constant: writing to it changes nothing else."""
    text = "(float[2] x) => (float[2] y, float[2] z, float[2] n) { y = Identity(x) z = Identity(c) n = Neg(x) }"
    session = qrt.InferenceSession(make(text, c=np.array([5.0, 6.0], np.float32)))
    x = np.array([1.0, 2.0], np.float32)
    for array in session.run(None, {"x": x}):
        array[...] = 99
    np.testing.assert_array_equal(x, [1, 2])
    for found, wanted in zip(session.run(None, {"x": x}), ([1, 2], [5, 6], [-1, -2]), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_many_threads_at_once(session: qrt.InferenceSession) -> None:
    """Each thread, with shapes of its own, gets the bytes that it gets alone."""
    wanted = {n: session.run(None, {"image": images(n)})[0].tobytes() for n in range(1, 5)}
    wrong: list[int] = []

    def work(n: int) -> None:
        x = images(n)
        for _ in range(50):
            if session.run(None, {"image": x})[0].tobytes() != wanted[n]:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3, 4, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_numbers_of_threads_give_the_same_bytes() -> None:
    x = {"image": images(5)}
    options = qrt.SessionOptions()
    options.intra_op_num_threads = 2
    found = {
        session.run(None, x)[0].tobytes()
        for session in (qrt.InferenceSession(DIGITS, num_threads=1), qrt.InferenceSession(DIGITS, options), qrt.InferenceSession(DIGITS))
    }
    assert len(found) == 1


def test_a_lower_target() -> None:
    found = [qrt.InferenceSession(DIGITS, num_threads=1, target=target).run(None, {"image": images(2)})[0] for target in (None, "generic")]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


def test_the_target_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRT_TARGET", "no-such-machine")
    with pytest.raises(qrt.InvalidInput, match="no-such-machine"):
        qrt.InferenceSession(DIGITS)


def test_close() -> None:
    session = qrt.InferenceSession(DIGITS)
    session.close()
    session.close()
    assert session.get_inputs()[0].name == "image"
    with pytest.raises(qrt.InvalidInput, match="closed"):
        session.run(None, {"image": images(1)})


def test_profile(tmp_path: Path) -> None:
    options = qrt.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "trace")
    session = qrt.InferenceSession(DIGITS, options, num_threads=1)
    session.run(None, {"image": images(1)})
    session.run(None, {"image": images(600)})
    path = Path(session.end_profiling())
    assert path.parent == tmp_path
    assert session.end_profiling() == ""
    events = json.loads(path.read_text())["traceEvents"]
    assert {"conv_0", "gemm_21"} <= {event["name"] for event in events}
    assert all(event["ph"] == "X" and event["dur"] >= 0 and event["args"]["kernel"] for event in events)
    times = [event["ts"] for event in events]
    assert times == sorted(times)
    # 600 images take longer than one: durations are times, not counts.
    half = len(events) // 2
    one, many = (sum(event["dur"] for event in part) for part in (events[:half], events[half:]))
    assert 5 * one < many < 1e7
    session.run(None, {"image": images(1)})  # and it still runs
    assert list(tmp_path.iterdir()) == [path]


def test_a_profile_is_written_on_close(tmp_path: Path) -> None:
    options = qrt.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "trace")
    with qrt.InferenceSession(DIGITS, options) as session:
        session.run(None, {"image": images(1)})
    assert len(list(tmp_path.glob("trace_*.json"))) == 1


def test_a_profile_that_cannot_be_written(tmp_path: Path) -> None:
    options = qrt.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "no" / "trace")
    session = qrt.InferenceSession(DIGITS, options)
    session.run(None, {"image": images(1)})
    with pytest.raises(qrt.OutputError, match="cannot write"):
        session.end_profiling()


def test_types_and_shapes_as_onnx_runtime_writes_them() -> None:
    nodes = [helper.make_node("Identity", [f"i{k}"], [f"o{k}"]) for k in range(5)]
    given = [
        ("i0", TensorProto.INT64, ["batch", None]),
        ("i1", TensorProto.BOOL, []),
        ("i2", TensorProto.DOUBLE, [3]),
        ("i3", TensorProto.UINT8, ["a", "b"]),
        ("i4", TensorProto.FLOAT16, [1]),
    ]
    inputs = [helper.make_tensor_value_info(*info) for info in given]
    outputs = [helper.make_tensor_value_info(name.replace("i", "o"), dtype, shape) for name, dtype, shape in given]
    proto = helper.make_model(helper.make_graph(nodes, "types", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ours = qrt.InferenceSession(proto)
    theirs = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for mine, other in ((ours.get_inputs(), theirs.get_inputs()), (ours.get_outputs(), theirs.get_outputs())):
        assert [(arg.name, arg.shape, arg.type) for arg in mine] == [(arg.name, arg.shape, arg.type) for arg in other]


def test_enums_have_onnx_runtimes_values() -> None:
    for name in ("GraphOptimizationLevel", "ExecutionMode"):
        ours, theirs = getattr(qrt, name), getattr(onnxruntime, name)
        assert {key: int(value) for key, value in ours.__members__.items()} == {
            key: int(value) for key, value in theirs.__members__.items()
        }


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(AttributeError):
        qrt.SessionOptions().optimized_model_filepath = "x"  # type: ignore[attr-defined]
    with pytest.raises(qrt.InvalidInput, match="'b'"):
        qrt.SessionOptions().get_session_config_entry("b")


def test_providers() -> None:
    for providers in (["CPUExecutionProvider"], [("CPUExecutionProvider", {})], ["CPUExecutionProvider", "CUDAExecutionProvider"], []):
        assert qrt.InferenceSession(DIGITS, providers=providers).get_providers() == ["CPUExecutionProvider"]
    with pytest.warns(qrt.QrtWarning, match="DmlExecutionProvider is not available"):
        qrt.InferenceSession(DIGITS, providers=["DmlExecutionProvider"])
    with pytest.raises(qrt.InvalidInput, match="unknown provider 'FastProvider'"):
        qrt.InferenceSession(DIGITS, providers=["FastProvider"])
    with pytest.raises(qrt.InvalidInput, match="give a list"):
        qrt.InferenceSession(DIGITS, providers="CPUExecutionProvider")
    with pytest.raises(qrt.InvalidInput, match="device_id is 1: qrt uses the first GPU"):
        qrt.InferenceSession(DIGITS, providers=[("CUDAExecutionProvider", {"device_id": 1})])
    if not available():  # then the CPU stands in, silently, where it is named too
        session = qrt.InferenceSession(DIGITS, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
        assert session.get_providers() == ["CPUExecutionProvider"]


def test_inputs_and_outputs_keep_the_models_order_and_the_callers_names() -> None:
    """The nodes take and make them in another order, and one input is not read."""
    nodes = "{ r = Neg(b) q = Sub(b, a) p = Add(r, a) }"
    proto = make(f"(float[N] a, float[3] unused, float[N] b) => (float[N] p, float[N] q, float[N] r) {nodes}")
    session = qrt.InferenceSession(proto, num_threads=1)
    for n in (4, 7, 4):  # planned, planned, found
        a, b = np.arange(n, dtype=np.float32), np.full(n, 10, np.float32)
        for feeds in ({"a": a, "unused": a[:3], "b": b}, {"b": b, "a": a, "unused": a[:3]}):
            for found, wanted in zip(session.run(None, feeds), (a - b, b - a, -b), strict=True):
                np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(session.run(["r", "p"], feeds)[1], a - b)
    with pytest.raises(qrt.InvalidInput, match="unused"):
        session.run(None, {"a": a, "unused": a[:2], "b": b})
    with pytest.raises(qrt.InvalidInput, match="axis 0 is 'N'"):
        session.run(None, {"a": a, "unused": a[:3], "b": b[1:]})


def test_feeds_of_every_memory_layout() -> None:
    """Strided, read-only, unaligned and byte-swapped arrays, a subclass and lists: what is found by its shape is still checked."""
    session = qrt.InferenceSession(make("(float[2, 3] x) => (float[2, 3] y) { y = Neg(x) }"), num_threads=1)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    locked, shifted = x.copy(), np.zeros(25, np.uint8)[1:].view(np.float32).reshape(2, 3)
    locked.flags.writeable = False
    shifted[...] = x
    for given in (x, np.asfortranarray(x), x[::-1], locked, shifted, x.astype(">f4"), x.view(np.matrix), x.tolist()):
        np.testing.assert_array_equal(session.run(None, {"x": given})[0], -np.asarray(given))
    for given in (x.astype(np.float64), x.astype(np.int32), x.T, "x", None):
        with pytest.raises(qrt.InvalidInput):
            session.run(None, {"x": given})
