"""Shows progress and tables in a terminal, and the same without colours or bars where output goes elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PIPE_WIDTH = 120
"""Characters of a table's line where output is no terminal, which has no width of its own."""


def table_console(width: int = PIPE_WIDTH) -> Console:
    """A console for tables on standard output: as wide as the terminal, else `width` characters."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


@contextmanager
def shown_progress(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Counts on standard error where that is a terminal; yields what is called with how many more are done.

    Without a total a spinner and the time stand beside the count, no bar.
    """
    console = Console(file=sys.stderr)
    shown = (SpinnerColumn(), TimeElapsedColumn()) if total is None else (BarColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), shown[0], MofNCompleteColumn(), shown[1])
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)
