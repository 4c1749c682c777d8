"""Which visitor's attack has to stop: at a button, at a new attack, or when the visitor leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):  # noqa: N818 - it is a visitor's wish, not an error
    """An attack was interrupted."""


class Stops:
    """One signal for each visitor whose attack is running; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, threading.Event] = {}

    @contextmanager
    def running(self, visitor: str) -> Iterator[threading.Event]:
        """A signal that is set when the attack has to stop; a visitor's earlier attack stops."""
        signal = threading.Event()
        with self._lock:
            earlier = self._running.get(visitor)
            self._running[visitor] = signal
        if earlier:
            earlier.set()
        try:
            yield signal
        finally:
            with self._lock:
                if self._running.get(visitor) is signal:
                    del self._running[visitor]

    def stop(self, visitor: str) -> bool:
        """Set the signal of a visitor; whether an attack was running."""
        with self._lock:
            signal = self._running.get(visitor)
        if signal:
            signal.set()
        return signal is not None
