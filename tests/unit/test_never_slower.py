"""Never slower: which layers stay float, by a clock that says what each test wants; and that the real clock tells of every node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import pytest
from data import ASSETS, digits
from graphs import images, make

from qrt.core.errors import CalibrationError, InvalidInput, QrtWarning, QuantizationError
from qrt.graph import Model
from qrt.loaders import load
from qrt.lower import Executable
from qrt.quantization import QConfig, QConfigMapping, default_dynamic_quant_observer, per_channel_weight_observer, quantize
from qrt.quantization.never_slower import NeverSlower, Times, _form, step_times, time_layers
from qrt.session import InferenceSession

PAD = "pads: ints = [1,1,1,1]"
NAMES = ("a", "b", "c", "d")


def _chain(names: Sequence[str] = NAMES) -> onnx.ModelProto:
    """Four convolutions with Relu between."""
    a, b, c, d = (f"Conv<{PAD}>" for _ in names)
    text = f"p = {a}(x, w) q = Relu(p) r = {b}(q, w) s = Relu(r) t = {c}(s, w) u = Relu(t) y = {d}(u, w)"
    model = make(f"(float[N,8,8,8] x) => (float[N,8,8,8] y) {{ {text} }}", w=images(8, 8, 3, 3))
    for name, node in zip(names, (n for n in model.graph.node if n.op_type == "Conv"), strict=True):
        node.name = name
    return model


X = images(2, 8, 8, 8, seed=1)
# Microseconds of a node: of its operator and name, where the layers of these names are int8.
Costs = Callable[[str, str, frozenset[str]], float]


class FakeClock:
    """Stands for `step_times`: every node takes what `costs` says. `forms`: the int8 layers of each form that was timed."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.forms: list[str] = []
        self.calls = 0

    def __call__(self, executables: Sequence[Executable], feeds: Mapping[str, np.ndarray]) -> list[Times]:
        self.calls += 1
        return [self._times(executable) for executable in executables]

    def _times(self, executable: Executable) -> Times:
        nodes = [(node.op_type, node.name or "") for node in executable.model.graph]
        int8 = frozenset(name for op, name in nodes if op.startswith(("QConv", "QMatMul")))
        self.forms.append("".join(sorted(int8)))
        return Times({name: self.costs(op, name, int8) for op, name in nodes})


Use = Callable[[Costs], FakeClock]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Use:
    def use(costs: Costs) -> FakeClock:
        fake = FakeClock(costs)
        monkeypatch.setattr("qrt.quantization.never_slower.step_times", fake)
        return fake

    return use


def _costs(int8: Mapping[str, float], q: float = 0.1, real: float = 2.0) -> Costs:
    """Products take `real` in float, and 1 in int8 or what `int8` says; what quantizes or dequantizes takes `q`, anything else 0.3."""

    def costs(op: str, name: str, _: frozenset[str]) -> float:
        if op in ("QuantizeLinear", "DequantizeLinear"):
            return q
        if op.startswith("Q"):
            return int8.get(name, 1.0)
        return real if "Conv" in op else 0.3

    return costs


def _left(found: NeverSlower) -> list[str]:
    return [layer.name for layer in found.left_float]


def _int8(model: Model) -> set[str]:
    """The convolutions that read what was quantized."""
    nodes = [(node.name or "", node.inputs[0]) for node in model.graph if node.op_type == "Conv"]
    makers = {name: value.producer() for name, value in nodes if value is not None}
    return {name for name, maker in makers.items() if maker is not None and maker.op_type == "DequantizeLinear"}


# -- which layers -----------------------------------------------------------------------------------------------------------
def test_nothing_is_slower(clock: Use) -> None:
    fake = clock(_costs({}))
    found = time_layers(load(_chain()), X)
    assert [(layer.name, layer.kept) for layer in found.layers] == [(name, "int8") for name in NAMES]
    assert (found.exclude, found.all_float, fake.calls) == ([], False, 1)
    assert (found.float_us, found.int8_us) == (8.0, pytest.approx(4.1))  # four products and one QuantizeLinear


def test_a_slow_layer_stays_float(clock: Use) -> None:
    """It and nothing else; with the times that spoke against it."""
    clock(_costs({"b": 9.0}))
    found = time_layers(load(_chain()), X)
    assert _left(found) == found.exclude == ["b"]
    assert (found.left_float[0].float_us, found.left_float[0].int8_us) == (2.0, 9.0)
    assert {layer.name: layer.op_type for layer in found.layers} == {"a": "QConvFloat", "b": "QConv", "c": "QConv", "d": "QConvFloat"}
    assert found.int8_us == pytest.approx(3 * 1 + 2 + 2 * 0.1 + 0.3)  # QuantizeLinear before a and c; and the Relu behind a, in float again
    assert not found.all_float
    assert _int8(quantize(load(_chain()), [X, X], never_slower=True)) == {"a", "c", "d"}
    assert _int8(quantize(load(_chain()), [X, X])) == set(NAMES)


def test_conversions_count(clock: Use) -> None:
    """The first layer is slower only for what quantizes its input, the last one of a part for what dequantizes its output."""
    clock(_costs({}, q=1.5))
    found = time_layers(load(_chain()), X)
    assert (found.layers[0].int8_us, found.layers[1].int8_us) == (2.5, 1.0)
    transposed = make(
        "(float[N,8,8,8] x) => (float[N,8,10,10] y) { p = Conv(x, w) q = ConvTranspose(p, w) y = Neg(q) }", w=images(8, 8, 3, 3)
    )
    clock(_costs({}, q=0.1))
    found = time_layers(load(transposed), X)
    assert [layer.int8_us for layer in found.layers] == pytest.approx([1.1, 1 + 0.1 + 0.3])  # and the Neg, which both forms have
    assert [layer.float_us for layer in found.layers] == [2.0, 2.3]


def test_margin(clock: Use) -> None:
    """5 % are no reason, nor is less: the clock is not that good."""
    clock(_costs({"b": 2.09}, real=2.0))
    assert _left(time_layers(load(_chain()), X)) == []


def test_gain(clock: Use) -> None:
    """What a layer loses has to be more than 1 % of the whole."""
    for loss, left in ((1.0, []), (2.0, ["b"])):
        plain = _costs({"b": 2.0 + loss})
        fake = clock(lambda op, name, int8, plain=plain: (100.0 if int8 else 200.0) if name == "d" else plain(op, name, int8))
        assert _left(time_layers(load(_chain()), X)) == left
        assert (fake.calls == 1) == (not left)


def test_what_leaving_a_layer_float_costs(clock: Use) -> None:
    """A layer that loses 1 µs stays int8 where its being float would cost more."""
    fake = clock(_costs({"b": 3.0}, q=0.9))
    found = time_layers(load(_chain()), X)
    assert (_left(found), found.int8_us) == ([], pytest.approx(6.9))
    assert fake.forms == ["", "abcd", "", "abcd", "acd"]


def test_the_worse_half(clock: Use) -> None:
    """b and d are slow, and without both the model would not gain: then only b, which loses more, is left float."""
    costs = _costs({"b": 12.0, "d": 2.5})
    fake = clock(lambda op, name, int8: 50.0 if int8 == {"a", "c"} and name == "a" else costs(op, name, int8))
    assert _left(time_layers(load(_chain()), X)) == ["b"]
    assert fake.forms[2:] == ["", "abcd", "ac", "", "abcd", "acd", "", "acd", "ac"]  # in turns: float, the best so far, what is tried


def test_one_leads_to_the_next(clock: Use) -> None:
    """Once b is float, a is slow, for its codes become floats."""
    costs = _costs({"b": 9.0})
    clock(lambda op, name, int8: 3.0 if op == "QConvFloat" and name == "a" else costs(op, name, int8))
    found = time_layers(load(_chain()), X)
    assert _left(found) == ["a", "b"]
    assert found.int8_us == pytest.approx(2 * 2 + 2 + 0.1)


def test_rounds_are_bounded(clock: Use) -> None:
    """A clock that always finds the model faster and something slower in it ends the search all the same."""
    faster = iter(range(1000, 0, -1))
    fake = clock(lambda op, name, int8: 900.0 + next(faster) if op.startswith("Q") else 1.0)
    names = [f"n{k}" for k in range(4)]
    time_layers(load(_chain(names)), X)
    assert fake.calls <= 10


# -- when all is float ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "costs",
    [
        _costs(dict.fromkeys(NAMES, 9.0)),  # each layer is slower
        # No layer is, but the whole.
        lambda op, name, int8: 99.0 if op == "QuantizeLinear" and "a" not in int8 else 9.0 if int8 and name == "a" else 2.0,
    ],
)
def test_all_float(clock: Use, costs: Costs) -> None:
    clock(costs)
    found = time_layers(load(_chain()), X)
    assert found.all_float
    assert _left(found) == list(NAMES)
    assert found.int8_us == found.float_us
    model = load(_chain())
    with pytest.warns(QrtWarning, match="stays float: on this machine, int8 makes nothing of it faster"):
        same = quantize(model, [X], never_slower=True)
    assert same is not model
    assert not any("Quantize" in node.op_type for node in same.graph)
    np.testing.assert_array_equal(InferenceSession(same).run(None, {"x": X})[0], InferenceSession(model).run(None, {"x": X})[0])


def test_the_verdict_is_measured_twice(clock: Use) -> None:
    """A machine that was busy while int8 ran for the first time: that alone does not make a model float."""
    plain, seen = _costs({}), []

    def costs(op: str, name: str, int8: frozenset[str]) -> float:
        if op != "Neg" or not int8:
            return plain(op, name, int8)
        seen.append(name)
        return 99.0 if len(seen) == 1 else 0.3

    fake = clock(costs)
    model = make(f"(float[N,8,8,8] x) => (float[N,8,8,8] y) {{ p = Neg(x) y = Conv<{PAD}>(p, w) }}", w=images(8, 8, 3, 3))
    found = time_layers(load(model), X)
    assert not found.all_float
    assert (found.float_us, found.int8_us) == pytest.approx((2.3, 1.4))
    assert fake.calls == len(seen) == 2


def test_dynamic_layers_count_as_a_whole(clock: Use) -> None:
    mapping = QConfigMapping().set_global(QConfig(default_dynamic_quant_observer, per_channel_weight_observer))
    clock(lambda op, name, int8: 1.0)
    assert time_layers(load(_chain()), X, mapping).all_float  # its conversions come on top
    clock(lambda op, name, int8: 1.0 if int8 else 9.0)
    found = time_layers(load(_chain()), X, mapping)
    assert (found.layers, found.exclude, found.all_float) == ([], [], False)


# -- names, data, errors ----------------------------------------------------------------------------------------------------
def test_names_like_globs(clock: Use) -> None:
    """What a name would match as a glob is not meant."""
    clock(_costs({"n[1]": 9.0}))
    model = load(_chain(["n1", "n[1]", "n*", "n?"]))
    found = time_layers(model, X)
    assert _left(found) == ["n[1]"]
    assert _int8(quantize(model, [X], exclude=found.exclude)) == {"n1", "n*", "n?"}


def test_excluded_layers_are_none(clock: Use) -> None:
    clock(_costs({"b": 9.0, "d": 9.0}))
    found = time_layers(load(_chain()), X, exclude=["b"])
    assert [layer.name for layer in found.layers] == ["a", "c", "d"]
    assert _left(found) == ["d"]
    assert _int8(quantize(load(_chain()), [X], exclude=["b"], never_slower=True)) == {"a", "c"}


def test_data_is_read_once(clock: Use) -> None:
    clock(_costs({"b": 9.0}))
    parts = [X, 2 * X, 3 * X]
    read: list[int] = []

    def stream() -> Iterator[np.ndarray]:
        for index, part in enumerate(parts):
            read.append(index)
            yield part

    mine = quantize(load(_chain()), stream(), never_slower=True)
    assert read == [0, 1, 2]
    assert mine.to_proto() == quantize(load(_chain()), parts, exclude=["b"]).to_proto()


def test_errors(clock: Use) -> None:
    clock(_costs({}))
    model = load(_chain())
    with pytest.raises(CalibrationError, match="no calibration data"):
        quantize(model, [], never_slower=True)
    with pytest.raises(CalibrationError, match="the batch to time"):
        quantize(model, [X[:, :7]], never_slower=True)
    with pytest.raises(QuantizationError, match=r"no node of .* is called 'z'"):
        time_layers(model, X, exclude=["z"])
    with pytest.raises(InvalidInput, match="exclude"):
        quantize(model, [X], exclude="a", never_slower=True)
    with pytest.raises(QuantizationError, match="nothing to quantize"):
        time_layers(load(make("(float[N] x) => (float[N] y) { y = Neg(x) }")), X[0, 0, 0])


# -- the real clock ---------------------------------------------------------------------------------------------------------
def test_step_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node that does something has a time; the sum is that of a run, which the whole run's time bounds."""
    monkeypatch.setattr("qrt.quantization.never_slower._SECONDS", 0.0)
    image = digits()["test"][0][:1]
    model = load(ASSETS / "digits.onnx")
    real, int8 = _form(model), _form(quantize(model, [image]))
    times = step_times([real.executable, int8.executable], {"image": image})
    for form, time in zip((real, int8), times, strict=True):
        idle = {node.name for node in form.executable.model.graph if node.op_type == "Flatten"}
        assert set(time.nodes) == {node.name for node in form.executable.model.graph} - idle
        assert all(spent >= 0 for spent in time.nodes.values())
        assert 0 < time.total < 1e6
        assert set(form.owners.values()) <= set(form.owners)


@pytest.mark.filterwarnings("ignore:.*stays float:qrt.QrtWarning")  # which a busy machine may find
def test_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine finds, the model that comes of it is right."""
    monkeypatch.setattr("qrt.quantization.never_slower._SECONDS", 0.0)
    pictures, labels = digits()["calibration"]
    model = load(ASSETS / "digits.onnx")
    int8 = quantize(model, pictures[:20, None], exclude=["conv_3"], never_slower=True)
    logits = InferenceSession(int8).run(None, {"image": pictures})[0]
    assert np.mean(logits.argmax(1) == labels) > 0.98
