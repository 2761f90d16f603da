"""Products of ONNX Runtime's own domain whose weights are codes, spelled with standard operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qrt.graph.passes._spelling import VENDOR_DOMAIN, Spell, Spelling, Unsaid

__all__ = ["CODE_SPELLINGS"]


def _integer_to_float(s: Spelling) -> None:
    """MatMulInteger, scaled: as dynamic quantizers write it, which the rules know."""
    product = s.op("MatMulInteger", s.needed(0), s.needed(1), s.given(4), s.given(5))
    scale = s.op("Mul", s.needed(2), s.needed(3))
    y = s.op("Mul", s.op("Cast", product, to=int(ir.DataType.FLOAT)), scale)
    s.results = [s.sum(y, s.given(6))]


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes along the last axis of bytes that hold them, lowest bits first."""
    stream = np.unpackbits(packed, axis=-1, bitorder="little")
    codes = stream[..., : stream.shape[-1] // bits * bits].reshape(*packed.shape[:-1], -1, bits)
    return codes.astype(np.int32) @ (np.int32(1) << np.arange(bits, dtype=np.int32))


def _matmul_bits(s: Spelling) -> None:
    """A product with weights of few bits, scaled in blocks along k: they are float32 from here on."""
    bits, block, k, n = (s.integer(name) for name in ("bits", "block_size", "K", "N"))
    if not 1 <= bits <= 8 or block < 1 or k < 1 or n < 1 or (block * bits) % 8:
        raise s.refuse(f"a weight of {k} × {n} codes of {bits} bits in blocks of {block}")
    if s.given(4) is not None:
        raise s.refuse("an order of its groups (g_idx)")
    blocks = -(-k // block)
    codes = _unpacked(s.held(1, "its weight").reshape(n, blocks, block * bits // 8), bits)
    scales = s.held(2, "its scales").reshape(n, blocks, 1)
    zero: np.ndarray = np.full((n, blocks, 1), 1 << (bits - 1), np.float32)
    if s.given(3) is not None:
        held = s.held(3, "its zero points")
        if held.dtype == np.uint8:
            held = _unpacked(held.reshape(n, -1), bits)[:, :blocks]
        zero = held.reshape(n, blocks, 1).astype(np.float32)
    weights = ((codes.astype(np.float32) - zero) * scales.astype(np.float32)).reshape(n, -1)[:, :k]
    held_weights = s.hold(np.ascontiguousarray(weights.T).astype(scales.dtype), f"{s.node.name}_weight")
    s.results = [s.sum(s.op("MatMul", s.needed(0), held_weights), s.given(5))]


def _channels_first(op_type: str, domain: str, *kept: str) -> Spell:
    """The operator between two Transposes, if it is one of images whose channels are last."""

    def spell(s: Spelling) -> None:
        x, last = s.needed(0), s.integer("channels_last")
        if not last and domain:
            raise Unsaid
        rank = s.rank(x)
        if last:
            x = s.op("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)])
        y = s.ops(op_type, [x, *s.node.inputs[1:]], 1, domain, **s.kept(*kept))[0]
        s.results = [s.op("Transpose", y, perm=[0, *range(2, rank), 1]) if last else y]

    return spell


CODE_SPELLINGS: dict[str, Spell] = {
    "MatMulIntegerToFloat": _integer_to_float,
    "MatMulNBits": _matmul_bits,
    "QLinearAveragePool": _channels_first(
        "QLinearAveragePool", VENDOR_DOMAIN, "auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"
    ),
    "QLinearConv": _channels_first("QLinearConv", "", "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"),
    "QLinearGlobalAveragePool": _channels_first("QLinearGlobalAveragePool", VENDOR_DOMAIN),
}
