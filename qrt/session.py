"""InferenceSession: a model ready to run, with the methods of ONNX Runtime's class of that name."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qrt.artifact import is_compiled
from qrt.core.errors import InvalidInput, UnsupportedOp
from qrt.core.garbage import uncollected
from qrt.feeds import Contract, Shapes
from qrt.interface import ModelMetadata, NodeArg
from qrt.kept import Kept, kept_for, open_compiled
from qrt.ops.op import Array
from qrt.options import RunOptions, SessionOptions, target_of
from qrt.profile import Profile
from qrt.runtime.whole import ClockFunction, Whole

if TYPE_CHECKING:
    from qrt.api import Source
    from qrt.binding import Binding
    from qrt.runtime.device import DevicePlan

__all__ = ["InferenceSession", "ModelMetadata", "NodeArg"]


class _Runnable(Protocol):
    wholes: dict[Shapes, Whole]

    def whole(self, feeds: Mapping[str, Array]) -> Whole: ...

    def run(self, feeds: Mapping[str, Array], *, clock: ClockFunction | None = None) -> list[Array]: ...

    def close(self) -> None: ...


class InferenceSession:
    """A model ready to run. One session may be used from many threads at once."""

    def __init__(
        self,
        path_or_bytes: Source,
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, dict[str, object]]] | None = None,
        provider_options: Sequence[Mapping[str, object]] | None = None,
        *,
        num_threads: int | None = None,
        target: str | None = None,
    ) -> None:
        """Makes `path_or_bytes` (a file, its bytes, or a Model, which stays as it is) ready to run. A file that ends in .qrt is what
        `qrt.compile` wrote.

        `num_threads`: threads a run may use, before `sess_options.intra_op_num_threads`; by default one per processor of this process,
        or as many as a compiled model was planned for.
        `target`: "cuda", or the instruction set, for instance "avx2"; by default QRT_TARGET or the best this machine has.
        `providers`: CUDAExecutionProvider before CPUExecutionProvider, or alone, asks for a GPU as well; `provider_options` has no effect.
        Raises ModelError, UnsupportedOp, InvalidInput, or DeviceError where a GPU is asked for and cannot be used.
        """
        if sess_options is not None and not isinstance(sess_options, SessionOptions):
            raise InvalidInput(f"sess_options is a {type(sess_options).__name__}: give a qrt.SessionOptions")
        self._options = sess_options if sess_options is not None else SessionOptions()
        if providers is not None:
            target = target or target_of(providers)
        threads = num_threads if num_threads is not None else self._options.intra_op_num_threads or None
        self._executable: _Runnable | None
        self._kept: Kept | None
        if is_compiled(path_or_bytes):
            self._interface, self._executable = open_compiled(path_or_bytes, threads, target)
            self._kept = None
        else:
            self._kept = kept_for(path_or_bytes, threads, target)
            if self._kept is not None and (kept := self._kept.open()) is not None:
                self._interface, self._executable = kept
            else:
                with uncollected():
                    from qrt.api import open_model  # here, because it brings onnx, which planned models do without

                    self._interface, executable = open_model(path_or_bytes, num_threads=threads, target=target)
                self._executable = executable
                if not executable.model.in_one_file:
                    self._kept = None  # a change of the other files would pass unnoticed
        self._memory = getattr(self._executable, "memory", None)
        self._split: set[Shapes] = set()  # those for which one plan on the GPU is not all of the model
        self._contract = Contract(self._interface.feeds)
        self._positions = {arg.name: index for index, arg in enumerate(self._interface.outputs)}
        self._profile = Profile() if self._options.enable_profiling else None

    # -- running ------------------------------------------------------------------------------------------------------------
    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: RunOptions | None = None) -> list[Array]:
        """The outputs called `output_names` (None: all, in the model's order), as new arrays.

        `input_feed`: each input's name to an array of its dtype and shape, which is only read. A symbolic dimension may have any size;
        one that is new costs planning. Native code runs without the GIL. Raises InvalidInput for feeds or names that do not fit.
        """
        executable = self._executable
        if executable is None:
            raise InvalidInput("the session is closed; make a new one")
        if output_names:
            chosen = self._chosen(output_names)
        arrays, shapes = self._contract.arrays(input_feed)
        whole = executable.wholes.get(shapes)
        clock = self._profile.record if self._profile is not None else None
        if whole is not None:  # and so shapes that were checked before
            results = whole.run(arrays, clock)
        else:
            self._contract.check_shapes(shapes)
            results = executable.run(dict(zip(self._contract.names, arrays, strict=True)), clock=clock)
            self._keep(shapes, executable.wholes.get(shapes))
        return [results[index] for index in chosen] if output_names else results

    def bind(self, stream: object = None) -> Binding:
        """A Binding of this session's inputs and outputs, for runs that read and write arrays where they are (docs/cuda.md).

        `stream`: the CUDA stream that runs go to, an int or an object with __cuda_stream__; by default one of the session's own.
        Raises InvalidInput for a stream that is none, or for the CPU.
        """
        from qrt.binding import Binding  # here: most sessions are never bound

        names = self._contract.names
        return Binding(
            self._contract,
            list(self._positions),
            self._memory,
            stream,
            lambda arrays: self.run(None, dict(zip(names, arrays, strict=True))),
            self._find,
        )

    def io_binding(self) -> Binding:
        """`bind()`, by ONNX Runtime's name."""
        return self.bind()

    def run_with_iobinding(self, iobinding: Binding, run_options: RunOptions | None = None) -> None:
        """`iobinding.run()`, in ONNX Runtime's words."""
        iobinding.run()

    def _find(self, shapes: Shapes) -> tuple[DevicePlan, list[int], list[int]] | None:
        """The plan on the GPU that is all of the model for inputs of these shapes, if there is one, and its inputs and outputs there."""
        from qrt.runtime.device import DevicePlan

        executable = self._executable
        if executable is None:
            raise InvalidInput("the session is closed; make a new one")
        if shapes in self._split:
            return None
        found = executable.wholes.get(shapes)
        if found is None:
            # Zeros that take no memory: only their shape matters.
            like = {v.name: np.broadcast_to(np.zeros((), v.dtype), s) for v, s in zip(self._interface.feeds, shapes, strict=True)}
            with contextlib.suppress(UnsupportedOp):
                found = executable.whole(like)
        if found is None or not isinstance(found.plan, DevicePlan) or len(set(found.outputs)) != len(found.outputs):
            self._split.add(shapes)
            return None
        return found.plan, found.inputs, found.outputs

    def _keep(self, shapes: Shapes, whole: Whole | None) -> None:
        """Keeps the first plan that this session makes, for the next one on the same file."""
        kept = self._kept
        if kept is not None and whole is not None:
            self._kept = None
            kept.keep(self._interface, shapes, whole)

    def _chosen(self, output_names: Sequence[str]) -> list[int]:
        if isinstance(output_names, str):
            raise InvalidInput(f"output_names is the string {output_names!r}: give a list of names, or None for all")
        unknown = [name for name in output_names if name not in self._positions]
        if unknown:
            raise InvalidInput(f"no output is called {', '.join(map(repr, unknown))}: there are {', '.join(map(repr, self._positions))}")
        return [self._positions[name] for name in output_names]

    def close(self) -> None:
        """Lets go of the model's memory, and writes the profile if one is still open. Closing twice does nothing."""
        if self._profile is not None:
            self.end_profiling()
        executable, self._executable = self._executable, None
        if executable is not None:
            executable.close()

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def end_profiling(self) -> str:
        """Writes what was profiled (`SessionOptions.enable_profiling`) and stops. Gives the path of the Chrome trace, "" if there is none.

        It lies at `profile_file_prefix` with the time and ".json" appended. Raises OutputError.
        """
        profile, self._profile = self._profile, None
        if profile is None:
            return ""
        path = Path(f"{self._options.profile_file_prefix}_{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}_{id(self):x}.json")
        profile.write(path)
        return str(path)

    # -- what it is ---------------------------------------------------------------------------------------------------------
    def get_inputs(self) -> list[NodeArg]:
        """What a run must be fed, in order."""
        return list(self._interface.inputs)

    def get_outputs(self) -> list[NodeArg]:
        """What a run gives, in order."""
        return list(self._interface.outputs)

    def get_overridable_initializers(self) -> list[NodeArg]:
        """None: initializers are constants here."""
        return []

    def get_modelmeta(self) -> ModelMetadata:
        """What the model file says about itself."""
        return self._interface.metadata

    def get_session_options(self) -> SessionOptions:
        """The options this session was made with."""
        return self._options

    def get_providers(self) -> list[str]:
        """What runs the model, what is asked first in front."""
        return [*(["CUDAExecutionProvider"] if self._memory is not None else []), "CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """The options of each provider: none."""
        return {name: {} for name in self.get_providers()}

    def set_providers(
        self, providers: Sequence[str | tuple[str, dict[str, object]]], provider_options: Sequence[Mapping[str, object]] | None = None
    ) -> None:
        """Checks the names; a session stays where it was made."""
        target_of(providers)
