"""Shows progress and tables in a terminal, and the same without colours or bars where output goes elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console


def table_console(width: int = 120) -> Console:
    """A console for standard output: as wide as the terminal, else as COLUMNS says, else `width` characters."""
    columns = os.environ.get("COLUMNS", "")
    given = int(columns) if columns.isdecimal() and int(columns) else width
    return Console(width=None if sys.stdout.isatty() else given, highlight=False)


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
