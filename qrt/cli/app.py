"""The command line as a whole: its commands, and how a failure ends."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import qrt
from qrt.cli.bench import bench
from qrt.cli.compare import compare
from qrt.cli.compile import compile_
from qrt.cli.demo import demo
from qrt.cli.inspect import inspect
from qrt.cli.quantize import quantize
from qrt.cli.run import run as run_model
from qrt.cli.tune import tune
from qrt.core.errors import QrtError

__all__ = ["app", "run"]

app = typer.Typer(
    name="qrt",
    help="Quantized inference for ONNX models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "quantize": quantize,
    "compile": compile_,
    "run": run_model,
    "bench": bench,
    "inspect": inspect,
    "compare": compare,
    "tune": tune,
    "demo": demo,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"qrt {qrt.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Quantized inference for ONNX models."""
    context.obj["debug"] = debug


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; gives its exit status: 0, 1 for a failure, 2 for a command line that makes no sense, 130 for Ctrl-C.

    A failure is one line on standard error. No arguments at all ask for help.
    """
    state = {"debug": False}
    warnings.showwarning = lambda message, *where, **more: _complain(f"warning: {message}")
    try:
        status = int(app(list(arguments) or ["--help"], standalone_mode=False, obj=state) or 0)
        sys.stdout.flush()
        return status
    except (KeyboardInterrupt, typer.Abort):
        _complain("stopped")
        return 130
    except BrokenPipeError:  # whoever read the output has left
        _drop_output()
        return 1
    except Exception as error:
        if state["debug"]:
            raise
        if isinstance(error, QrtError):
            _complain(f"error: {error}")
            return 1
        if isinstance(error, _USAGE_ERROR):
            _complain(f"error: {error.format_message().rstrip('.')} (see qrt {_command(arguments)}--help)")
            return 2
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # files of our own say so themselves
            _drop_output()
            _complain(f"error: cannot write the output: {error.strerror}; free some space, or send it elsewhere")
            return 1
        _complain(f"error: {type(error).__name__}: {error}; this is a bug: `qrt --debug {_command(arguments)}...` shows where")
        return 1


# What a wrong command line raises: click's ClickException, which newer versions of typer hold inside.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]


def _command(arguments: Sequence[str]) -> str:
    named = [word for word in arguments if word in _COMMANDS][:1]
    return f"{named[0]} " if named else ""


def _drop_output() -> None:
    """What is still in standard output's buffer must not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str) -> None:
    print("qrt:", " ".join(text.split()), file=sys.stderr)
