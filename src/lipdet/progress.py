"""What people read: tables on stdout; on stderr a log, and progress bars where it is a terminal.

Colours follow `NO_COLOR` and the terminal, as everywhere in rich.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")

# Columns of what is no terminal, and so no narrower than a table is.
FILE_COLUMNS = 200


def console_on(*, stderr: bool) -> Console:
    """Return a console; a file or pipe gets FILE_COLUMNS, unless COLUMNS says otherwise."""
    # Names and paths may have brackets, which are no markup.
    made = Console(stderr=stderr, log_path=False, markup=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = FILE_COLUMNS
    return made


# Without the places in the source, which say nothing to whoever reads a log.
console = console_on(stderr=True)


def show(*parts: RenderableType) -> None:
    """Print tables and sentences on stdout."""
    out = console_on(stderr=False)
    for part in parts:
        out.print(part)


class RateColumn(ProgressColumn):
    """Completed items per second."""

    def render(self, task: Task) -> Text:
        """Return the rate of one task, blank until it is known."""
        return Text(f"{task.speed:.0f}/s" if task.speed else "", style="progress.data.speed")


def progress_bar(*columns: ProgressColumn) -> Progress:
    """Make a bar with remaining time, to be used as a context manager.

    Its other columns are those given, or count, rate and elapsed time.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *(columns or (MofNCompleteColumn(), RateColumn(), TimeElapsedColumn())),
        TimeRemainingColumn(),
        console=console,
        disable=console.quiet or not console.is_terminal,
    )


@contextmanager
def quietly(*, keep_output: bool) -> Iterator[None]:
    """Show no progress meanwhile, and print nothing on stdout unless `keep_output`."""
    console.quiet = True
    try:
        with nullcontext() if keep_output else redirect_stdout(io.StringIO()):
            yield
    finally:
        console.quiet = False


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items under a progress bar that disappears when done.

    Args:
        items: what is gone through.
        description: what is done with it.
        total: how many there are, where `items` does not know.
    """
    with progress_bar() as bar:
        yield from bar.track(items, total, description=description)
