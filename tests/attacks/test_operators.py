"""Operators with attributes, shapes and indices that no exporter writes: a typed error, or ONNX Runtime's answer. Kernels check nothing."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from cases import node_cases
from data import ort_session
from graphs import images, make, reference
from onnx import helper, numpy_helper

import qrt


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


KERNEL = {"w": ones(2, 2, 3, 3)}
CODES = np.zeros((1, 2, 4, 5), np.int8)
HUGE = 2**63 - 1
KINDS = {"float32": "float", "int64": "int64", "bool": "bool"}
# Nodes that make y from an image x of shape (1, 2, 4, 5), their constants, and a part of the error.
HOSTILE: dict[str, tuple[str, dict[str, Any], str]] = {
    "negative strides": ("Conv<strides=[-1,1]>(x, w)", KERNEL, "strides"),
    "dilations of 0": ("Conv<dilations=[0,0]>(x, w)", KERNEL, "dilations"),
    "no groups": ("Conv<group=0>(x, w)", KERNEL, "0 groups"),
    "negative groups": ("Conv<group=-1>(x, w)", KERNEL, "-1 groups"),
    "groups": ("Conv<group=3>(x, w)", {"w": ones(3, 1, 3, 3)}, "does not fit 3 depthwise"),
    "channels": ("Conv(x, w)", {"w": ones(2, 5, 3, 3)}, "does not fit weights"),
    "rank of a kernel": ("Conv(x, w)", {"w": ones(2, 2, 3)}, "spatial dimensions"),
    "another kernel": ("Conv<kernel_shape=[5,5]>(x, w)", KERNEL, "do not fit its kernel_shape"),
    "large kernel": ("Conv(x, w)", {"w": ones(2, 2, 9, 9)}, "does not fit an image"),
    "no filters": ("Conv(x, w)", {"w": ones(0, 2, 3, 3)}, "do not fit one another"),
    "bias": ("Conv(x, w, b)", KERNEL | {"b": ones(5)}, "bias of 5 values for 2 channels"),
    "huge pads": (f"Conv<pads=[{HUGE},0,{HUGE},0]>(x, w)", KERNEL, "memory"),
    "pads without a name": ('Conv<auto_pad="SAME">(x, w)', KERNEL, "no padding is called 'SAME'"),
    "huge output padding": ("ConvTranspose<output_padding=[1099511627776,0]>(x, w)", KERNEL, "memory"),
    "output padding": ("ConvTranspose<output_padding=[1]>(x, w)", KERNEL, "output_padding"),
    "pads past the image": ("ConvTranspose<pads=[50,50,50,50]>(x, w)", KERNEL, "does not fit an image"),
    "huge window": ("MaxPool<kernel_shape=[4611686018427387904,2]>(x)", {}, "does not fit an image"),
    "window of nothing": ("MaxPool<kernel_shape=[0,1]>(x)", {}, "kernel_shape"),
    "resize to nothing": ("Resize(x, , , s)", {"s": ints(1, 2, 0, 4)}, "cannot be resized"),
    "negative scale": ("Resize(x, , s)", {"s": np.float32([1, 1, -2, 2])}, "cannot be resized"),
    "scale of NaN": ("Resize(x, , s)", {"s": np.float32([1, 1, np.nan, 2])}, "NaN"),
    "infinite scale": ("Resize(x, , s)", {"s": np.float32([1, 1, np.inf, 2])}, "infinity"),
    "blocks of channels": ("DepthToSpace<blocksize=2>(x)", {}, "not made of blocks"),
    "blocks of pixels": ("SpaceToDepth<blocksize=3>(x)", {}, "not made of blocks"),
    "scale of a norm": ("InstanceNormalization(x, s, s)", {"s": ones(3)}, "do not fit 2 channels"),
    "groups of a norm": ("GroupNormalization<num_groups=0>(x, s, s)", {"s": ones(2)}, "0 groups"),
    "axis of a norm": ("LayerNormalization<axis=7>(x, s)", {"s": ones(4)}, "no axis 7"),
    "axis of a sum": ("CumSum(x, s)", {"s": np.array(4)}, "no axis 4"),
    "joined shapes": ("Concat<axis=0>(x, w)", KERNEL, "cannot be joined"),
    "axes twice": ("Transpose<perm=[0,0,1,2]>(x)", {}, "repeated"),
    "axes missing": ("Transpose<perm=[0,1]>(x)", {}, "does not permute"),
    "index": ("Gather<axis=1>(x, i)", {"i": ints(2)}, "must be"),
    "negative index": ("Gather<axis=1>(x, i)", {"i": np.array(-(2**63))}, "must be"),
    "tuple of indices": ("GatherND(x, i)", {"i": ints(9, 9).reshape(1, 2)}, "must be"),
    "negative batch": ("GatherND<batch_dims=-1>(x, i)", {"i": ints(0, 0).reshape(1, 2)}, "do not fit one another"),
    "indices of elements": ("GatherElements<axis=1>(x, i)", {"i": np.full((1, 1, 1, 1), 5)}, "must be"),
    "scattered": ("ScatterND(x, i, u)", {"i": ints(5).reshape(1, 1), "u": ones(1, 2, 4, 5)}, "must be"),
    "updates": ("ScatterND(x, i, u)", {"i": ints(0).reshape(1, 1), "u": ones(1, 2, 4, 9)}, "updates of"),
    "reshape": ("Reshape(x, s)", {"s": ints(7, 7, 1, 1)}, "cannot be given the shape"),
    "overflowing reshape": ("Reshape(x, s)", {"s": ints(2**62, 4, 1, 1)}, "overflow"),
    "huge expansion": ("Expand(x, s)", {"s": ints(2**40, 2, 4, 5)}, "elements"),
    "expansion": ("Expand(x, s)", {"s": ints(1, 3, 4, 5)}, "cannot be expanded"),
    "huge tiles": ("Tile(x, s)", {"s": ints(2**31, 2**31, 2**31, 2**31)}, "memory"),
    "huge padding": ("Pad(x, s)", {"s": ints(0, 0, 0, 2**62, 0, 0, 0, 0)}, "memory"),
    "reflection": ('Pad<mode="reflect">(x, s)', {"s": ints(0, 0, 9, 9, 0, 0, 9, 9)}, "cannot be padded"),
    "step of 0": ("Slice(x, s, e, a, t)", {"s": ints(0), "e": ints(1), "a": ints(3), "t": ints(0)}, "do not fit one another"),
    "squeezed": ("Squeeze(x, s)", {"s": ints(1)}, "are not all 1"),
    "no bound": ("Clip(x, s)", {"s": ones(0)}, "out of bounds"),
    "scales of channels": ("DequantizeLinear(c, s, z)", {"c": CODES, "s": ones(3), "z": np.zeros(3, np.int8)}, "3 scales"),
    "zero points": ("DequantizeLinear(c, s, z)", {"c": CODES, "s": ones(2), "z": np.zeros(1, np.int8)}, "do not fit one another"),
    "matrix": ("MatMul(x, w)", {"w": ones(4, 4)}, "do not fit a matrix"),
    "broadcast": ("Add(x, w)", {"w": ones(3, 4, 5)}, "do not broadcast"),
    "condition": ("Where(m, x, w)", {"m": np.ones((3, 1, 1), bool), "w": ones(1)}, "do not broadcast"),
    "mode of a Gelu": ('Gelu<approximate="best">(x)', {}, "Gelu"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_node_that_no_exporter_writes(case: str) -> None:
    text, constants, message = HOSTILE[case]
    model = make(f"(float[N,C,H,W] x) => (float[a,b,c,d] y) {{ y = {text} }}", **constants)
    with pytest.raises(qrt.QrtError, match=message):
        qrt.InferenceSession(model, num_threads=1).run(None, {"x": np.arange(40, dtype=np.float32).reshape(1, 2, 4, 5)})


@pytest.mark.parametrize(
    ("text", "constants", "message"),
    [
        ("Gemm<transB=1>(a, b, c)", {"b": ones(1, 6), "c": ones(1, 4)}, "does not fit a product"),
        ("Gemm(a, b)", {"b": ones(5, 6)}, "ill-typed"),
        ("GRU<hidden_size=2>(s, w, r)", {"w": ones(1, 15, 6), "r": ones(1, 15, 5)}, "do not fit an input"),
        ('RNN<direction="backward">(s, w, r)', {"w": ones(1, 5, 6), "r": ones(1, 5, 5)}, "no direction"),
        ("LSTM(s, w, r)", {"w": ones(1, 20, 9), "r": ones(1, 20, 5)}, "do not fit an input"),
        ("LSTM(s, w, r, b)", {"w": ones(1, 20, 6), "r": ones(1, 20, 5), "b": ones(1, 20)}, "a bias of shape"),
        ("LSTM(s, w, r, , , h)", {"w": ones(1, 20, 6), "r": ones(1, 20, 5), "h": ones(1, 9, 5)}, "first states"),
    ],
)
def test_products_and_recurrences_that_do_not_fit(text: str, constants: dict[str, Any], message: str) -> None:
    result = "float[M,L]" if text.startswith("Gemm") else "float[T,D,B,H]"
    constants = constants | {"front": ints(0)}
    model = make(f"(float[N,6] a) => ({result} y) {{ s = Unsqueeze(a, front) y = {text} }}", **constants)
    with pytest.raises(qrt.ModelError, match=message):
        qrt.InferenceSession(model, num_threads=1).run(None, {"a": ones(3, 6)})


_CODES = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
_ENDS = "g = QuantizeLinear(c, s, z) y = DequantizeLinear(g, s, z)"
_DYNAMIC = "q, a, p = DynamicQuantizeLinear(x)"
BYTES = {"w": np.ones((2, 2, 1, 1), np.int8), "v": ones(2), "o": np.zeros(2, np.int8), "b": np.ones(2, np.int32)}
# Constants that rules and passes compute with before any handler sees them: nodes from x (1, 2, 4, 5) to y, constants, what is said.
UNSEEN: dict[str, tuple[str, dict[str, Any], str]] = {
    **{
        f"{count} scales of a bias": (
            f"{_CODES} e = DequantizeLinear<axis=0>(w, v, o) f = DequantizeLinear<axis=0>(b, u, i) c = Conv(d, e, f) {_ENDS}",
            BYTES | {"u": ones(count), "i": np.zeros(count, np.int32)},
            f"{count} scales along axis 0 do not fit",
        )
        for count in (0, 3)
    },
    "scales of a number": (
        f"{_CODES} e = DequantizeLinear(w, v, o) t = Transpose(e) c = Add(d, t) {_ENDS}",
        BYTES | {"w": np.int8(1)},
        "no axis 1",
    ),
    "zero points of columns": (
        f"{_DYNAMIC} m = MatMulInteger(q, w, p, i) h = Cast<to=1>(m) j = Mul(a, u) y = Mul(h, j)",
        {"w": np.ones((5, 4), np.uint8), "i": np.ones(3, np.uint8), "u": ones(4)},
        "could not be broadcast",
    ),
    "zero points of filters": (
        f"{_DYNAMIC} m = ConvInteger(q, w, p, i) h = Cast<to=1>(m) j = Mul(a, u) y = Mul(h, j)",
        {"w": np.ones((4, 2, 1, 1), np.uint8), "i": np.ones(3, np.uint8), "u": ones(4, 1, 1)},
        "3 values for 4 channels",
    ),
    "no scale of codes": (
        "q = QuantizeLinear(x, s, z) g = QLinearConv(q, u, i, w, v, o, s, z, b) y = DequantizeLinear(g, s, z)",
        BYTES | {"u": ones(0), "i": np.zeros(0, np.uint8)},
        "QLinearConv",
    ),
    "a bias before a norm": (
        "c = Conv(x, w, b) y = BatchNormalization(c, v, v, v, v)",
        {"w": ones(2, 2, 1, 1), "v": ones(2), "b": ones(3)},
        "bias of 3 values for 2 channels",
    ),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_constants_that_do_not_fit_what_a_rule_looks_for(case: str) -> None:
    text, constants, message = UNSEEN[case]
    model = make(f"(float[1,2,4,5] x) => (float y) {{ {text} }}", **{"s": 0.1, "z": np.uint8(3)} | constants)
    with pytest.raises(qrt.QrtError, match=message):
        qrt.InferenceSession(model, num_threads=1).run(None, {"x": images(1, 2, 4, 5)})


def test_zero_points_of_too_many_columns() -> None:
    model = make(
        "(uint8[N,3] a) => (int32[N,M] y) { y = MatMulInteger(a, b, p, q) }",
        b=np.ones((3, 2), np.uint8),
        p=np.uint8(1),
        q=np.ones(3, np.uint8),
    )
    with pytest.raises(qrt.ModelError, match="3 values for 2 channels"):
        qrt.InferenceSession(model, num_threads=1).run(None, {"a": np.ones((4, 3), np.uint8)})


# -- mutants ----------------------------------------------------------------------------------------------------------------
# Operators whose results may differ for a reason, from ONNX Runtime's.
MAY_DIFFER = {
    "BatchNormalization": "training",
    "Dropout": "chance",
    "DynamicQuantizeLinear": "infinities have no range",
    "MeanVarianceNormalization": "0 / 0 where it adds no epsilon",
    "Resize": "align_corners rounds in another order",
    "Squeeze": "no axes are all axes",
}
NUMBERS = (-(2**63), -(2**31), -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 100, 2**31, 2**40, 2**63 - 1)
DTYPES = (np.int8, np.uint8, np.int32, np.int64, np.float32, np.float64, np.bool_)
WORDS = (b"SAME_UPPER", b"VALID", b"reflect", b"linear", b"align_corners", b"CRD", b"reverse", b"bidirectional", b"tanh", b"bogus", b"")
MUTANTS = 12
# The tests that are fed nothing but numbers.
PLAIN = [
    case for case in node_cases() if all(isinstance(array, np.ndarray) and not array.dtype.hasobject for array in case.data_sets[0][0])
]


def _mutated(random: Random, array: np.ndarray) -> np.ndarray:
    """The array with another extent, rank, content or dtype."""
    kind = random.randrange(4)
    if kind == 0 and array.ndim and array.size:
        axis = random.randrange(array.ndim)
        n = random.choice([0, 1, 2, array.shape[axis] + 1, 2 * array.shape[axis]])
        return array.take(np.arange(n) % array.shape[axis], axis)
    if kind == 1:
        return np.expand_dims(array, random.randrange(array.ndim + 1))
    if kind == 2 and array.size and array.dtype.kind in "iu":
        array, bounds = array.copy(), np.iinfo(array.dtype)
        array.reshape(-1)[random.randrange(array.size)] = min(max(random.choice(NUMBERS), bounds.min), bounds.max)
        return array
    with np.errstate(invalid="ignore"):
        return array.astype(random.choice(DTYPES)) if kind == 3 and array.dtype.kind in "iufb" else array


def _mutate_attribute(random: Random, node: onnx.NodeProto) -> None:
    for attribute in random.sample(list(node.attribute), min(1, len(node.attribute))):
        if attribute.type == onnx.AttributeProto.INT:
            attribute.i = random.choice(NUMBERS)
        elif attribute.type == onnx.AttributeProto.INTS:
            values = [*attribute.ints, random.choice(NUMBERS)]
            if len(values) > 1:
                values[random.randrange(len(values))] = values.pop()
            attribute.ClearField("ints")
            attribute.ints.extend(values)
        elif attribute.type == onnx.AttributeProto.STRING:
            attribute.s = random.choice(WORDS)


def mutant(op_type: str, seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A test of ONNX's own for the operator, changed in one to three places, some of its inputs made constants."""
    random = Random(f"{op_type} {seed}")
    case = random.choice([c for c in PLAIN if c.model.graph.node[0].op_type == op_type])
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = min(model.ir_version, 10)
    for opset in model.opset_import:
        opset.version = min(opset.version, 23)  # what ONNX Runtime has
    graph = model.graph
    arrays = {value.name: np.asarray(array) for value, array in zip(graph.input, case.data_sets[0][0], strict=True)}
    for _ in range(random.randint(1, 3)):
        if arrays and random.random() < 0.6:
            name = random.choice(list(arrays))
            arrays[name] = _mutated(random, arrays[name])
        else:
            _mutate_attribute(random, graph.node[0])
    names = list(arrays)
    constants = {name for name in names[1:] if random.random() < 0.6}
    graph.ClearField("input")
    for name in names:
        array = arrays[name]
        if name in constants:
            graph.initializer.append(numpy_helper.from_array(array, name))
            continue
        dims = array.shape if random.random() < 0.5 else [None] * array.ndim
        graph.input.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims))
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    return model, {name: arrays[name] for name in names if name not in constants}


OPERATORS = sorted({case.model.graph.node[0].op_type for case in PLAIN})


@pytest.mark.parametrize("op_type", OPERATORS)
def test_mutants(op_type: str) -> None:
    """Never a crash: an error of ours, or what ONNX Runtime answers where it does and a kernel of ours ran."""
    for seed in range(MUTANTS):
        model, feeds = mutant(op_type, seed)
        try:
            with qrt.InferenceSession(model, num_threads=1) as session:
                found = session.run(None, feeds)
                python = bool(session._executable and session._executable.why)
        except qrt.QrtError:
            continue
        if python or op_type in MAY_DIFFER:
            continue
        try:
            wanted = ort_session(model.SerializeToString()).run(None, feeds)
        except Exception:  # it refuses what is not quite valid
            continue
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), (op_type, seed)
            if theirs.dtype.kind == "f":
                np.testing.assert_allclose(ours, theirs, 1e-3, 1e-5, err_msg=f"{op_type} {seed}")
            else:
                assert np.array_equal(ours, theirs), (op_type, seed)


DEEP = np.random.default_rng(0).standard_normal((2, 3) * 4).astype(np.float32)
# Nodes beyond what kernels reach: shapes and dtypes of their inputs come with them.
FAR: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "tuples of five": ("GatherND(x, i)", {"x": DEEP, "i": ints(1, 2, 0, -1, 1).reshape(1, 5)}),
    "scattered tuples of five": ("ScatterND(x, i, u)", {"x": DEEP, "i": ints(1, 2, 0, -1, 1).reshape(1, 5), "u": DEEP[:1, 0, 0, 0, 0]}),
    "elements along one of eight axes": ("GatherElements<axis=7>(x, i)", {"x": DEEP, "i": np.ones((*DEEP.shape[:-1], 2), np.int64)}),
    "a broadcast of eight strides": ("Add(x, w)", {"x": DEEP, "w": DEEP[:, :1, :, :1, :, :1, :, :1]}),
    "a choice along eight strides": ("Where(c, x, x)", {"x": DEEP, "c": DEEP[:1, :, :1, :, :1, :, :1] > 0}),
    "a product over nothing": ("MatMul(x, w)", {"x": ones(3, 0), "w": ones(0, 4)}),
    "batches that interleave": ("MatMul(x, w)", {"x": images(2, 3, 1, 4, 5), "w": images(1, 3, 2, 5, 4)}),
}


@pytest.mark.parametrize("case", FAR)
def test_what_no_kernel_reaches_runs_in_python(case: str) -> None:
    text, feeds = FAR[case]
    feeds = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    inputs = ", ".join(f"{KINDS[a.dtype.name]}[{','.join(map(str, a.shape))}] {name}" for name, a in feeds.items())
    model = make(f"({inputs}) => (float y) {{ y = {text} }}")
    session = qrt.InferenceSession(model, num_threads=1)
    for _ in range(2):
        for got, wanted in zip(session.run(None, feeds), ort_session(model.SerializeToString()).run(None, feeds), strict=True):
            assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


# Nodes on codes that become one of the fused form, which has no kernel for them: from x, and from what is fed beside it, to y.
FAR_CODES: dict[str, tuple[str, tuple[int, ...], dict[str, np.ndarray]]] = {
    "scales that are fed": ("Resize(r, , s)", (1, 2, 4, 5), {"s": np.float32([1, 1, 2, 2])}),
    "linear, scales that are fed": ('Resize<mode="linear">(r, , s)', (1, 2, 4, 5), {"s": np.float32([1, 1, 2, 2])}),
    "a pool over four axes": ("AveragePool<kernel_shape=[2,1,2,1]>(r)", (1, 2, 3, 4, 3, 2), {}),
    "a pool over all of four axes": ("GlobalAveragePool(r)", (1, 2, 3, 4, 3, 2), {}),
    "a sum of eight strides": ("Add(r, w)", (2, 3) * 4, {}),
    "a product of eight strides": ("Mul(w, r)", (2, 3) * 4, {}),
}


@pytest.mark.parametrize("case", FAR_CODES)
def test_what_no_kernel_of_codes_reaches_runs_all_the_same(case: str) -> None:
    node, shape, fed = FAR_CODES[case]
    inputs = "".join(f", float[{array.size}] {name}" for name, array in fed.items())
    extents = ",".join(map(str, shape))
    constants = {"a": 0.02, "b": 0.03, "p": np.uint8(100), "v": DEEP[:1, :, :1, :, :1, :, :1], "c": 0.02}
    text = f"q = QuantizeLinear(x, a, p) r = DequantizeLinear(q, a, p) t = {node} u = Relu(t)"
    text += " z = QuantizeLinear(u, b, p) y = DequantizeLinear(z, b, p)"
    if "w" in node:
        text = f"i = QuantizeLinear(v, c, p) w = DequantizeLinear(i, c, p) {text}"
    model = make(f"(float[{extents}] x{inputs}) => (float y) {{ {text} }}", **constants)
    feeds = {"x": images(*shape), **fed}
    session = qrt.InferenceSession(model, num_threads=1)
    wanted = reference(model, **feeds)[0]
    for _ in range(2):
        (found,) = session.run(None, feeds)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(found, wanted, atol=0.031)
        assert (np.abs(found - wanted) > 1e-6).mean() < 0.02
