"""The example of a sweep runs, and goes on when called again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = Path(__file__).resolve().parent.parent / "examples" / "sweep.py"


def test_a_sweep_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    for trial in ("0", "1"):
        small = ["--data", "rendered:80", "--measure", "rendered:2", "--epochs", "1"]
        command = [sys.executable, SWEEP, *small, "--trials", "1", "--out", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"Best: {tmp_path}" in done.stdout
        assert (tmp_path / trial / "result.json").is_file()
