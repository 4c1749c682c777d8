"""The log of a training: one json object per line, and TensorBoard events if asked for."""

from __future__ import annotations

import importlib.util
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from lipdet.errors import InputError
from lipdet.files import write_complete

LOG = "log.jsonl"


class TrainLog:
    """Appends to `log.jsonl` of a run folder.

    Args:
        run: the run folder.
        step: entries after this step belong to work that was lost; they are dropped.
        tensorboard: also write events into the folder.
    """

    def __init__(self, run: Path, step: int, tensorboard: bool) -> None:
        self._events = _event_writer(run) if tensorboard else None
        path = run / LOG
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) <= step]
        write_complete(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, **values: Any) -> None:
        """Add one entry."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._events:
            for name, value in values.items():
                if isinstance(value, float | int):
                    self._events.add_scalar(name, value, step)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._events:
            self._events.close()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")  # a line cut off by the end of the process


def check_tensorboard() -> None:
    """Raise an InputError where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard is not installed; leave it off, or, in the clone of lipdet: "
            "pip install -e '.[tensorboard]'."
        )


def _event_writer(run: Path) -> Any:
    # Imported where it is asked for: it is an extra, and slow to load.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run)


class Stopwatch:
    """Seconds spent in each named part of a loop since the last reset."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside towards `name`."""
        started = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - started

    def take(self) -> tuple[float, dict[str, float]]:
        """Return the seconds since the last call and the share of each part in them; start anew."""
        now = time.perf_counter()
        total = now - self._since
        shares = {name: round(seconds / total, 4) for name, seconds in self._seconds.items()}
        self._seconds.clear()
        self._since = now
        return total, shares
