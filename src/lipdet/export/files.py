"""Files that appear under their name only when complete."""

from __future__ import annotations

from pathlib import Path


def write_complete(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)
