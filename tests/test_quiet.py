"""`--quiet`, and output without colours where it is asked for or goes to no terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from lipdet.cli import main

EVAL = ["eval", "naive", "--data", "rendered:2"]


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "info", "rendered:2", "--quiet"])
    assert capsys.readouterr() == ("", "")
    # Without it, it prints.
    main(["data", "info", "rendered:2"])
    assert capsys.readouterr().out != ""


def test_quiet_keeps_json_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    main([*EVAL, "--quiet", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["weights"] == "naive"
    with pytest.raises(SystemExit):
        main(["eval", "naive", "--data", "nothing:here", "--quiet"])
    assert "nothing:here" in capsys.readouterr().err


def test_no_escape_sequences_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    main(EVAL)
    out, err = capsys.readouterr()
    assert "naive" in out
    assert "\x1b" not in out + err


def test_no_colour_on_a_terminal() -> None:
    """On a pseudo-terminal, colours come unless NO_COLOR is set (no-color.org)."""
    code = "from rich.console import Console; Console().print('[red]word[/]')"
    shown = {}
    for setting in ({}, {"NO_COLOR": "1"}):
        outer, inner = pty.openpty()
        plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        subprocess.run(
            [sys.executable, "-c", code],
            stdout=inner,
            env={**plain, "TERM": "xterm-256color", **setting},
            check=True,
        )
        os.close(inner)
        shown[bool(setting)] = os.read(outer, 1000).decode()
        os.close(outer)
    assert "\x1b[31m" in shown[False]
    assert "\x1b[31m" not in shown[True]
