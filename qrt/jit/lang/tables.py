"""Tables of 256 bytes, looked up a vector at a time: by byte permutes where there are some, else by byte shuffles."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["load_permuted", "look_up", "look_up_some", "permuted"]

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(I8, 64)
_SHUFFLE = {64: "llvm.x86.avx512.pshuf.b.512", 32: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.ssse3.pshuf.b.128"}


def look_up(width: int, together: int = 1) -> Any:
    """The intrinsic (table, x, y, rows, x_row, y_row, vectors): y[i] = table[x[i]] in rows that lie `x_row` and `y_row` bytes apart; of
    each, `vectors` vectors of `width` bytes, one after the other. Of narrow rows, so many are looked up `together`, which fill a vector;
    `rows` counts such groups.

    A shuffle looks up 16 entries, by the low four bits, and gives 0 where the index is negative. Of each half of the table, shuffle k
    takes the index less 16 k and holds entries 16 k … xor those 16 places before, so that the xor of all shuffles leaves one entry.
    """
    vector, sixteen, piece = ir.VectorType(I8, width), ir.VectorType(I8, 16), width // together

    def places(count: int, first: int = 0) -> ir.Constant:
        return ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))

    def call(builder: Any, name: str, *args: Any) -> Any:
        kind = ir.FunctionType(vector, [a.type for a in args])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    def parts(builder: Any, table: Any) -> list[Any]:
        lanes = ir.Constant(ir.VectorType(I32, width), [j % 16 for j in range(width)])
        entries = []
        for k in range(16):
            entry = builder.load(builder.bitcast(builder.gep(table, [I64(16 * k)]), sixteen.as_pointer()))
            entry.align = 1
            entries.append(builder.shuffle_vector(entry, entry, lanes))
        return [entry if k % 8 == 0 else builder.xor(entry, entries[k - 1]) for k, entry in enumerate(entries)]

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        table, x, y, rows, x_row, y_row, vectors = args
        tables = parts(builder, table)
        step = ir.Constant(vector, [16] * width)
        with cgutils.for_range(builder, rows) as row, cgutils.for_range(builder, vectors) as column:
            at = builder.mul(column.index, I64(width))
            first = builder.mul(row.index, I64(together))
            numbers = [builder.add(first, I64(k)) for k in range(together)]
            sources, targets = ([builder.add(at, builder.mul(number, stride)) for number in numbers] for stride in (x_row, y_row))
            loaded = []
            for source in sources:
                loaded.append(builder.load(builder.bitcast(builder.gep(x, [source]), ir.VectorType(I8, piece).as_pointer())))
                loaded[-1].align = 1
            while len(loaded) > 1:
                wide = places(2 * loaded[0].type.count)
                loaded = [builder.shuffle_vector(a, b, wide) for a, b in zip(loaded[::2], loaded[1::2], strict=True)]
            index, result = loaded[0], None
            for start, half in ((0, index), (8, builder.xor(index, ir.Constant(vector, [128] * width)))):
                for k in range(start, start + 8):
                    found = call(builder, _SHUFFLE[width], tables[k], half)
                    result = found if result is None else builder.xor(result, found)
                    half = call(builder, f"llvm.ssub.sat.v{width}i8", half, step)
            for k, target in enumerate(targets):
                part = builder.shuffle_vector(result, result, places(piece, k * piece))
                builder.store(part, builder.bitcast(builder.gep(y, [target]), part.type.as_pointer())).align = 1
        return context.get_dummy_value()

    @intrinsic
    def look_up_vectors(typing_context, table, x, y, rows, x_row, y_row, vectors):  # type: ignore[no-untyped-def]
        byte = types.CPointer(types.uint8)
        return types.void(byte, byte, byte, *(types.int64,) * 4), codegen

    return look_up_vectors


def load_permuted(builder: Any, address: Any) -> list[Any]:
    """The table at an int64 address, as `permuted` takes it."""
    parts = []
    for k in range(4):
        part = builder.load(builder.inttoptr(builder.add(address, I64(64 * k)), _BYTES.as_pointer()))
        part.align = 1
        parts.append(part)
    return parts


def permuted(builder: Any, parts: list[Any], codes: Any) -> Any:
    """The table's entries for 64 codes, by permutes of AVX512-VBMI that look up 128 entries, by seven bits."""

    def half(low: Any, high: Any) -> Any:
        kind = ir.FunctionType(_BYTES, [_BYTES] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.qi.512"), [low, codes, high])

    lower, upper = half(*parts[:2]), half(*parts[2:])
    return builder.select(builder.icmp_signed("<", codes, ir.Constant(_BYTES, None)), upper, lower)


@intrinsic
def look_up_some(typing_context, table, x, y, count):  # type: ignore[no-untyped-def]
    """y[i] = table[x[i]] for the first `count` (0 … 64) bytes; no others are touched. For targets with AVX512-VBMI."""
    bits = ir.VectorType(ir.IntType(1), 64)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        def call(name: str, result: ir.Type, *operands: Any) -> Any:
            kind = ir.FunctionType(result, [a.type for a in operands])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)

        table, x, y, count = args
        parts = load_permuted(builder, builder.ptrtoint(table, I64))
        whole = builder.icmp_signed(">=", count, I64(64))
        some = builder.sub(builder.shl(I64(1), count), I64(1))
        mask = builder.bitcast(builder.select(whole, I64(-1), some), bits)
        at = [builder.bitcast(pointer, _BYTES.as_pointer()) for pointer in (x, y)]
        codes = call("llvm.masked.load.v64i8.p0", _BYTES, at[0], mask, ir.Constant(_BYTES, None))
        call("llvm.masked.store.v64i8.p0", ir.VoidType(), permuted(builder, parts, codes), at[1], mask)
        return context.get_dummy_value()

    byte = types.CPointer(types.uint8)
    return types.void(byte, byte, byte, types.int64), codegen
