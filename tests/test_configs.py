"""Every configuration in the repository is understood, and says how it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipdet.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_first_line_is_the_command(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    command = path.read_text().splitlines()[0]
    assert command.startswith(f"# lipdet train --config {name} --out runs/")
    words = command.replace(name, str(path)).split()[2:]
    assert build_parser().parse_args(words).train.preset
