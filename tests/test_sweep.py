"""The example of a sweep runs: training, measuring, choosing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = Path(__file__).resolve().parent.parent / "examples" / "sweep.py"


@pytest.mark.slow
def test_a_trial(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    small = ["--data", "rendered:80", "--measure", "rendered:2", "--epochs", "1"]
    command = [sys.executable, SWEEP, *small, "--trials", "1", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Best: {tmp_path / '0'}" in done.stdout
    assert (tmp_path / "0" / "result.json").is_file()
