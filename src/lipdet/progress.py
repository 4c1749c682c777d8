"""Progress bars with rate and remaining time, on stderr; silent where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
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

console = Console(stderr=True)


class RateColumn(ProgressColumn):
    """Completed items per second."""

    def render(self, task: Task) -> Text:
        """The rate of one task, blank until it is known."""
        return Text(f"{task.speed:.0f}/s" if task.speed else "", style="progress.data.speed")


def progress_bar() -> Progress:
    """A bar that shows count, rate, elapsed and remaining time; use it as a context manager."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Yield the items under a progress bar that disappears when done."""
    with progress_bar() as bar:
        yield from bar.track(items, description=description)
