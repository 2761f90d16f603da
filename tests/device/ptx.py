"""PTX, read: what numba-cuda made of a device kernel, and what NVIDIA's linker is given. `machine.py` executes it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

# Kinds of registers, and of what instructions compute with. Kinds of bits ("b32") are taken as unsigned.
KINDS: dict[str, np.dtype] = {
    "pred": np.dtype(bool),
    **{f"{letter}{bits}": np.dtype(f"u{bits // 8}") for letter in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (32, 64)},
}


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Special:
    """What a thread knows of itself: "%tid.x"."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A parameter, a variable or a label."""

    name: str


@dataclass(frozen=True)
class Number:
    """A literal: of integers the value, of floats their bits and how many they are."""

    value: int
    float_bits: int = 0


@dataclass(frozen=True)
class Address:
    """In brackets: a register or a symbol, bytes after it, and for tensor maps the place of a box."""

    base: Register | Symbol
    offset: int = 0
    place: tuple[Operand, ...] = ()


Operand = Register | Special | Address | Symbol | Number | tuple["Operand", ...]


@dataclass(frozen=True)
class Instruction:
    """`name` in parts ("ld", "global", "f32"). Done by threads for which the register `guard` is (not, if `negated`) true."""

    name: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: str = ""
    negated: bool = False


@dataclass
class Code:
    """An entry point. `parameters`: kinds by name, in order; `registers`: kinds by name; `labels`: indices of instructions."""

    target: str
    parameters: dict[str, np.dtype]
    threads: int
    registers: dict[str, np.dtype] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


class PtxError(Exception):
    """What this reader does not know."""


def parse(text: str) -> Code:
    """The one entry point of a module, whose only variable is the block's dynamic shared memory."""
    text = re.sub(r"//[^\n]*", "", text)
    head, entry, rest = re.split(r"\.visible\s+\.entry\s+(\w+)", text, maxsplit=1)
    for line in re.findall(r"^\s*(\..+;)\s*$", head, re.M):
        # The first is Numba's own, which no kernel of ours reads.
        if not re.match(r"\.common \.global .* _ZN08NumbaEnv|\.extern \.shared \.align 1024 \.b8 qrt_shared\[\];", line.strip()):
            raise PtxError(f"{entry}: a variable: {line}")
    declared, _, rest = rest.partition(")")
    parameters = {name: KINDS[kind] for kind, name in re.findall(r"\.param\s+\.(\w+)\s+(\w+)", declared)}
    threads = re.search(r"\.maxntid\s+(\d+),", rest)
    target = re.search(r"\.target\s+(\w+)", head)
    if threads is None or target is None:
        raise PtxError(f"{entry}: no .maxntid or no .target")
    code = Code(target[1], parameters, int(threads[1]))
    start = rest.index("{")
    _read(code, rest[start + 1 : _closing(rest, start)])
    for instruction in code.instructions:
        if instruction.name[0] == "bra" and _symbol(instruction.operands[0]) not in code.labels:
            raise PtxError(f"{entry}: no label {instruction.operands[0]}")
    return code


def _symbol(operand: Operand) -> str:
    return operand.name if isinstance(operand, Symbol) else ""


def _closing(text: str, start: int) -> int:
    """Where the brace at `start` is closed."""
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return match.start()
    raise PtxError("a brace is not closed")


def _read(code: Code, text: str) -> None:
    """The statements of a block, after those that were read before."""
    position = 0
    while match := re.compile(r"\s*(?:(?P<open>\{)|(?P<label>[$\w]+):|(?P<statement>[^;{}]*(?:\{[^}]*\}[^;{}]*)*);)").match(text, position):
        position = match.end()
        if match["open"]:
            end = _closing(text, position - 1)
            _read(code, _own_names(text[position:end], len(code.instructions)))
            position = end + 1
        elif match["label"]:
            code.labels[match["label"]] = len(code.instructions)
        elif match["statement"].startswith(".reg"):
            _declare(code, match["statement"])
        elif not match["statement"].startswith(".pragma"):
            code.instructions.append(_instruction(match["statement"].strip()))
    if text[position:].strip():
        raise PtxError(f"not understood: {text[position : position + 80]!r}")


def _own_names(text: str, number: int) -> str:
    """An inner block with its registers and labels renamed, so that no other block has them."""
    for name in [*re.findall(r"\.reg\s+\.\w+\s+(\w+)\s*;", text), *re.findall(r"(?:^|[;{])\s*(\w+):", text)]:
        text = re.sub(rf"(?<![\w%.$]){name}\b", f"$own{number}_{name}" if f"{name}:" in text else f"%own{number}_{name}", text)
    return text


def _declare(code: Code, statement: str) -> None:
    match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(%\w+)(?:<(\d+)>)?", statement.strip())
    if match is None:
        raise PtxError(f"not understood: {statement}")
    kind, name, count = match.groups()
    code.registers |= {f"{name}{i}": KINDS[kind] for i in range(int(count))} if count else {name: KINDS[kind]}


def _instruction(statement: str) -> Instruction:
    match = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", statement, re.S)
    if match is None:
        raise PtxError(f"not understood: {statement}")
    negated, guard, name, operands = match.groups()
    return Instruction(tuple(name.split(".")), tuple(_operand(text) for text in _parts(operands)), guard or "", bool(negated))


def _parts(text: str) -> list[str]:
    """What stands between commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter in ",|" and not depth:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return tuple(_operand(part) for part in _parts(text[1:-1]))
    if text.startswith("["):
        first, *place = _parts(text[1:-1])
        base, _, offset = first.partition("+")
        found = _operand(base.strip())
        if not isinstance(found, Register | Symbol):
            raise PtxError(f"not an address: {text}")
        boxes = _operand(place[0]) if place else ()
        return Address(found, int(offset or 0), boxes if isinstance(boxes, tuple) else ())
    if re.fullmatch(r"%\w+\.[xyz]", text):
        return Special(text)
    if text.startswith("%"):
        return Register(text)
    if match := re.fullmatch(r"0([fd])([0-9A-Fa-f]+)", text):
        return Number(int(match[2], 16), 32 if match[1] == "f" else 64)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return Number(int(text.rstrip("U"), 0))
    return Symbol(text)
