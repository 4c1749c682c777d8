"""The example of a sweep runs: training, measuring, choosing.

Its calls of the command line are made here, where torch is imported already: that takes seconds.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lipdet.cli import main

SWEEP = Path(__file__).resolve().parent.parent / "examples" / "sweep.py"


@pytest.mark.slow
def test_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")

    def run(command: list[str]) -> subprocess.CompletedProcess[Any]:
        assert command[:3] == [sys.executable, "-m", "lipdet"]
        main(command[3:])
        return subprocess.CompletedProcess(command, 0)

    small = ["--data", "rendered:68", "--measure", "rendered:1", "--epochs", "1"]
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", [str(SWEEP), *small, "--trials", "1", "--out", str(tmp_path)])
    runpy.run_path(str(SWEEP), run_name="__main__")
    assert f"Best: {tmp_path / '0'}" in capsys.readouterr().out
    assert (tmp_path / "0" / "result.json").is_file()
