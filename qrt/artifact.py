"""A compiled model in a file: the ONNX model, and plans of it for one target, number of threads and set of shapes (docs/artifact.md).

Plans are code, so whose they are is for the caller to know, before they are used: see qrt/seal.py and qrt/kept.py.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from qrt.core.dtypes import dtype_of, is_number
from qrt.core.errors import InvalidInput, OutputError, UnsupportedOp
from qrt.core.files import check_writable, write_whole
from qrt.core.sections import Packed, Sections, check, damaged, pack
from qrt.core.target import Target
from qrt.feeds import Contract, Declared, Shapes
from qrt.interface import Interface, ModelMetadata, NodeArg, declared
from qrt.jit import host_target, tuned, wants_cuda
from qrt.ops.op import Array, Spec
from qrt.runtime.plan import Plan
from qrt.runtime.stored import Writer, read_plan, read_runtime, read_specs, write_specs
from qrt.runtime.team import available_cpus
from qrt.runtime.whole import Whole
from qrt.seal import require_key, seal

if TYPE_CHECKING:
    from qrt.graph import Model
    from qrt.lower import Executable
    from qrt.runtime.whole import ClockFunction

__all__ = ["SUFFIX", "CompiledModel", "fits", "is_compiled", "pack_plans", "plan_all", "planned_shapes", "read_compiled", "save"]

SUFFIX = ".qrt"
MAX_PLANS = 64


def is_compiled(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether `source` is the path of a compiled model, by its suffix."""
    return isinstance(source, str | os.PathLike) and os.fsdecode(source).endswith(SUFFIX)


# -- writing --------------------------------------------------------------------------------------------------------------
def save(
    model: Model, path: Path, shapes: Sequence[Mapping[str, Sequence[int]]], num_threads: int | None = None, target: str | None = None
) -> None:
    """Writes `model` to `path`, compiled; see `qrt.compile`."""
    check_writable(path)
    if wants_cuda(target):
        raise InvalidInput("a compiled model holds plans for a CPU: leave out the target 'cuda', and ask a session for it")
    threads = available_cpus() if num_threads is None else num_threads
    feeds = declared(model)
    sets = [_shapes(feeds, given) for given in shapes or [{}]]
    if len(set(sets)) != len(sets) or len(sets) > MAX_PLANS:
        raise InvalidInput(f"{len(sets)} sets of shapes are given: give {MAX_PLANS} at most, each one once")
    try:
        onnx = model.to_proto().SerializeToString()
    except ValueError as error:
        raise OutputError(f"cannot write {path}: {model.name} passes 2 GiB, where a protobuf message ends; save it as ONNX") from error
    require_key()  # rather now than after the work
    packed = _compiled(onnx, sets, threads, host_target(target))
    write_whole(path, lambda part: packed.write(part, seal))


def _shapes(feeds: Sequence[Declared], given: Mapping[str, Sequence[int]]) -> Shapes:
    """A shape for each input: the given one, or the model's own where it is fixed. Raises InvalidInput."""
    unknown = [name for name in given if name not in {value.name for value in feeds}]
    if unknown:
        raise InvalidInput(f"shapes: no input is called {unknown[0]!r}; there are {', '.join(repr(value.name) for value in feeds)}")
    shapes = []
    for value in feeds:
        shape = given.get(value.name, value.shape)
        if shape is None or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
            text = "of unknown rank" if shape is None else f"({', '.join('?' if n is None else str(n) for n in shape)})"
            raise InvalidInput(f"input {value.name!r} is {text}: say for which shape to compile, as {value.name}=1,3,224,224")
        shapes.append(tuple(n for n in shape if isinstance(n, int)))
    Contract(feeds).check_shapes(shapes)
    return tuple(shapes)


def _compiled(onnx: bytes, sets: Sequence[Shapes], threads: int, target: Target) -> Packed:
    """The file of the model in `onnx`. The same arguments give the same bytes, in any process."""
    from qrt.api import open_model

    interface, executable = open_model(onnx, num_threads=threads, target=target.isa)
    return pack_plans(onnx, interface, plan_all(interface, executable, sets), threads, target)


def plan_all(interface: Interface, executable: Executable, sets: Sequence[Shapes]) -> dict[Shapes, Whole]:
    """Plans for inputs of these shapes. Raises UnsupportedOp where a plan is not all of the model, and what planning does."""
    wholes = {}
    for shapes in sets:
        # Zeros that take no memory: only their shape matters.
        like = {v.name: np.broadcast_to(np.zeros((), v.dtype), s) for v, s in zip(interface.feeds, shapes, strict=True)}
        wholes[shapes] = executable.whole(like)
    return wholes


def pack_plans(onnx: bytes | None, interface: Interface, wholes: Mapping[Shapes, Whole], threads: int, target: Target) -> Packed:
    """The file of a model, the ONNX one in `onnx` (None: it lies elsewhere), and of plans that are all of it, by the shapes of its inputs.

    Raises UnsupportedOp for inputs of a dtype that NumPy does not have.
    """
    for value in interface.feeds:
        if not is_number(value.dtype):
            raise UnsupportedOp(f"input {value.name!r} has dtype {value.dtype}: such a model cannot be compiled to a file")
    plans = {shapes: whole.plan for shapes, whole in wholes.items() if isinstance(whole.plan, Plan)}
    if len(plans) != len(wholes):
        raise UnsupportedOp("plans for a GPU cannot be kept in files")
    writer = Writer(target)
    content: dict[str, Any] = {
        "target": [target.arch, target.isa],
        "threads": threads,
        "tuned": tuned.state(target),
        "interface": _write_interface(interface),
        "runtime": writer.runtime(),
        "model": None if onnx is None else writer.section(onnx),
        "plans": [],
    }
    for shapes, whole in wholes.items():
        feeds = write_specs([Spec(shape, value.dtype) for value, shape in zip(interface.feeds, shapes, strict=True)])
        reads = [interface.feeds[index].name for index in whole.inputs]
        content["plans"].append({"feeds": feeds, "reads": reads, "gives": whole.outputs, **writer.plan(plans[shapes])})
    return pack(content, writer.sections)


def _write_interface(interface: Interface) -> dict[str, Any]:
    return {
        "feeds": [[value.name, value.dtype.name, value.shape] for value in interface.feeds],
        "inputs": [[arg.name, arg.shape, arg.type] for arg in interface.inputs],
        "outputs": [[arg.name, arg.shape, arg.type] for arg in interface.outputs],
        "metadata": asdict(interface.metadata),
    }


# -- reading --------------------------------------------------------------------------------------------------------------
def fits(file: Sections, threads: int, target: Target) -> bool:
    """Whether the file's plans are for so many threads and this target, as `qrt tune` left it. Raises ModelError."""
    with damaged(file.where):
        planned = [*file.content["target"], file.content["tuned"], file.content["threads"]]
    return planned == [target.arch, target.isa, tuned.state(target), threads]


def planned_shapes(file: Sections, interface: Interface) -> list[Shapes]:
    """The shapes of inputs that the file has plans for. Raises ModelError, or InvalidInput for shapes that such a model does not take."""
    contract = Contract(interface.feeds)
    with damaged(file.where):
        check(len(file.content["plans"]) <= MAX_PLANS, "it has too many plans")
        sets = [tuple(spec.shape for spec in read_specs(plan["feeds"])) for plan in file.content["plans"]]
        check(all(len(shapes) == len(interface.feeds) for shapes in sets), "a plan is for other inputs")
        for shapes in sets:
            contract.check_shapes(shapes)
        return sets


def read_compiled(file: Sections, target: Target) -> tuple[Interface, dict[Shapes, Whole]]:
    """What a file says, checked. Its code is loaded: the file has to be trusted like code. Raises ModelError, or KernelError."""
    with damaged(file.where):
        read_runtime(file.content["runtime"], file)
        interface = _read_interface(file.content["interface"])
        contract = Contract(interface.feeds)
        plans: dict[Shapes, Whole] = {}
        for data in file.content["plans"]:
            specs = read_specs(data["feeds"])
            check([spec.dtype for spec in specs] == [value.dtype for value in interface.feeds], "a plan is for other inputs")
            contract.check_shapes([spec.shape for spec in specs])
            positions = {value.name: index for index, value in enumerate(interface.feeds)}
            reads = [positions[name] for name in data["reads"]]
            plan = read_plan(data, file, [specs[index] for index in reads], target)
            gives = [index for index in data["gives"] if type(index) is int and 0 <= index < len(plan.outputs)]
            check(len(gives) == len(data["gives"]) == len(interface.outputs), "a plan is for other outputs")
            plans[tuple(spec.shape for spec in specs)] = Whole(plan, reads, gives)
    return interface, plans


def _read_interface(data: dict[str, Any]) -> Interface:
    feeds = [
        Declared(_text(name), dtype_of(_text(dtype)), None if shape is None else tuple(_dims(shape)))
        for name, dtype, shape in data["feeds"]
    ]
    check(len({value.name for value in feeds}) == len(feeds) and all(is_number(v.dtype) for v in feeds), "its inputs are none")
    inputs, outputs = ([NodeArg(_text(name), _dims(shape), _text(kind)) for name, shape, kind in data[k]] for k in ("inputs", "outputs"))
    metadata = dict(data["metadata"])
    version, custom = metadata.pop("version"), metadata.pop("custom_metadata_map")
    check(type(version) is int, "its version is no number")
    texts = {_text(key): _text(value) for key, value in custom.items()}
    about = ModelMetadata(version=version, custom_metadata_map=texts, **{key: _text(value) for key, value in metadata.items()})
    return Interface(feeds, inputs, outputs, about)


def _text(value: Any) -> str:
    check(isinstance(value, str), "a name is no text")
    return str(value)


def _dims(shape: Any) -> list[int | str | None]:
    check(isinstance(shape, list) and all(n is None or type(n) in (int, str) for n in shape), "a shape is none")
    return list(shape)


class CompiledModel:
    """Plans from a file: `wholes`, by the shapes they are for. `run` is for other shapes, with what `model` gives; it may be called from
    many threads."""

    def __init__(self, wholes: dict[Shapes, Whole], model: Callable[[], Executable]) -> None:
        self.wholes = wholes
        self._make = model
        self._executable: Executable | None = None
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Array], *, clock: ClockFunction | None = None) -> list[Array]:
        """The model's outputs, in order, for `feeds`: C-contiguous arrays by the names of the inputs, of their dtypes."""
        with self._lock:
            if self._executable is None:
                self._executable = self._make()
                # From here on all plans stand in one place, where a session finds them.
                self._executable.wholes.update(self.wholes)
                self.wholes = self._executable.wholes
        return self._executable.run(feeds, clock=clock)

    def whole(self, feeds: Mapping[str, Array]) -> Whole:
        """Raises UnsupportedOp: plans are only found here, not made."""
        raise UnsupportedOp("a compiled model has no plan for these shapes")

    def close(self) -> None:
        """Nothing: its memory is the CPU's."""
