"""What every command prints with: tables and results on standard output, progress and complaints on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Json", "Target", "nbytes", "progress", "show_json", "show_table", "tell", "watched"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

Target = Annotated[
    str | None, typer.Option(help="cuda, or an instruction set, if not QRT_TARGET or this machine's best.", metavar="TARGET")
]

# A pipe has no width: what reads it wants whole lines.
_PIPE_WIDTH = 240

T = TypeVar("T")


def _stdout() -> Console:
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def tell(text: str) -> None:
    """One line on standard output."""
    _stdout().print(text)


def show_json(data: Mapping[str, Any]) -> None:
    """One JSON object on standard output; numbers that JSON lacks become null."""
    print(json.dumps(_plain(data), ensure_ascii=False))


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table on standard output. A column whose name starts with > is aligned to the right."""
    if title is not None:
        tell(title)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _stdout().print(table)


def progress() -> Progress:
    """A progress bar on standard error, where that is a terminal."""
    err = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def watched(items: Iterable[T], what: str) -> Iterator[T]:
    """`items`, with a progress bar while they are consumed."""
    with progress() as bar:
        yield from bar.track(items, total=len(items) if isinstance(items, Sized) else None, description=what)


def nbytes(n: int) -> str:
    """A size for people, in units of 1000 bytes."""
    size, units = float(n), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"
