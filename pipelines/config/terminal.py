"""Shows progress and tables in a terminal, and the same without colours or bars where output goes elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import progress as bars
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

LEAST_ROOM = 20


def table_console(width: int = 120) -> Console:
    """A console for standard output: as wide as the terminal, else as COLUMNS says, else `width` characters."""
    columns = os.environ.get("COLUMNS", "")
    given = int(columns) if columns.isdecimal() and int(columns) else width
    return Console(width=None if sys.stdout.isatty() else given, highlight=False)


class Verbatim(str):
    """A text that is printed as it stands, however long: an address or a command, to be copied."""

    __slots__ = ()


def print_lines(lines: Sequence[tuple[str, str]], *, title: str = "", console: Console | None = None) -> None:
    """Prints (what, how much) pairs to standard output, two columns without lines.

    Text is wrapped between words only, and a `Verbatim` not at all: a path that is cut in two cannot be pasted.
    """
    console = console or table_console(110)
    indent = 2 + max((cell_len(name) for name, _ in lines), default=0)
    if title:
        console.print(Text(title, style="bold"))
    for name, value in lines:
        room = max(LEAST_ROOM, console.width - indent)
        for number, line in enumerate([value] if isinstance(value, Verbatim) else _wrapped(value, room)):
            heading = Text(set_cell_size("" if number else name, indent), style="dim")
            console.print((heading + Text(line)) if line else heading, soft_wrap=True)


def _wrapped(text: str, room: int) -> list[str]:
    """A text in lines of at most `room` cells, words that are longer whole."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and cell_len(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@contextmanager
def shown_progress(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Counts on standard error where that is a terminal; yields what is called with how many more are done.

    Without a total a spinner and the time stand beside the count, no bar.
    """
    console = Console(file=sys.stderr)
    bar = bars.SpinnerColumn() if total is None else bars.BarColumn()
    time = bars.TimeElapsedColumn() if total is None else bars.TimeRemainingColumn()
    columns = (bars.TextColumn("{task.description}"), bar, bars.MofNCompleteColumn(), time)
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)
