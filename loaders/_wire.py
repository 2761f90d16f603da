"""The bytes of a ModelProto without those of its big weights, which then need not be copied: parsing a message copies all of it.

Reads as much of protobuf's encoding as that takes (protobuf.dev, "Encoding"): tags, lengths and what to skip. Whatever looks odd is left
to protobuf, which says what is wrong with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

__all__ = ["without_weights"]

# Fields of the messages (onnx.proto).
_GRAPH = 7  # of ModelProto
_INITIALIZER = 5  # of GraphProto
_RAW_DATA = 9  # of TensorProto
# What a tensor may hold besides: dims, data_type, name, doc_string, metadata_props. Others say that its data lies elsewhere.
_PLAIN = frozenset({1, 2, 8, 12, 16})
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Smaller data is not worth the cut.
_LEAST = 8192

_Field = tuple[int, int, int, int, int]


class _Odd(Exception):
    """A message that is damaged, or says the same thing twice."""


def without_weights(data: bytes) -> tuple[bytes, dict[int, memoryview]]:
    """`data` with the raw data of the top graph's big initializers cut out, and that data where it lies, by the initializer's position.

    What is left is a message of the same model. `data` itself and nothing, where nothing can be cut.
    """
    if len(data) < _LEAST or sys.byteorder != "little":
        return data, {}
    try:
        graphs = [field for field in _fields(data, 0, len(data)) if field[0] == _GRAPH]
        if len(graphs) != 1 or graphs[0][1] != _BYTES:
            return data, {}
        _, _, tag, start, end = graphs[0]
        pieces, held = _cut(memoryview(data), start, end)
    except (_Odd, IndexError):
        return data, {}
    if not held:
        return data, {}
    head = _key(_GRAPH) + _length(sum(map(len, pieces)))
    return b"".join([data[:tag], head, *pieces, data[end:]]), held


def _cut(data: memoryview, start: int, end: int) -> tuple[list[bytes | memoryview], dict[int, memoryview]]:
    """The graph message at `start`, in pieces without the big initializers' data, and that data."""
    pieces: list[bytes | memoryview] = []
    held: dict[int, memoryview] = {}
    done, position = start, -1
    for number, kind, tag, first, last in _fields(data, start, end):
        if number != _INITIALIZER or kind != _BYTES:
            continue
        position += 1
        raw = _raw_data(data, first, last) if last - first > _LEAST else None
        if raw is None:
            continue
        _, _, raw_tag, raw_first, raw_last = raw
        held[position] = data[raw_first:raw_last]
        rest = [data[first:raw_tag], data[raw_last:last]]
        pieces += [data[done:tag], _key(_INITIALIZER) + _length(sum(map(len, rest))), *rest]
        done = last
    return [*pieces, data[done:end]], held


def _raw_data(data: memoryview, start: int, end: int) -> _Field | None:
    """The field of a tensor's raw data, if it has one, and all of its data is there."""
    fields = list(_fields(data, start, end))
    raw = [field for field in fields if field[0] == _RAW_DATA and field[1] == _BYTES]
    if len(raw) != 1 or raw[0][4] - raw[0][3] <= _LEAST or not all(field is raw[0] or field[0] in _PLAIN for field in fields):
        return None
    return raw[0]


def _fields(data: bytes | memoryview, at: int, end: int) -> Iterator[_Field]:
    """Number, wire type, where the tag starts, where the value starts and ends, of each field of the message that ends at `end`."""
    while at < end:
        tag = at
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif kind == _VARINT:
            start = at
            _, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            start, at = at, at + (4 if kind == _FIXED32 else 8)
        else:  # groups, which onnx.proto has none of
            raise _Odd
        if at > end or key < 8:
            raise _Odd
        yield key >> 3, kind, tag, start, at


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = data[at]
    if value < 128:
        return value, at + 1
    value &= 127
    for shift in range(7, 70, 7):
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
    raise _Odd


def _key(number: int) -> bytes:
    return bytes([number << 3 | _BYTES])


def _length(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
