"""`--quiet`, and output without colours where it is asked for or goes to no terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from lipdet.app.pictures import samples
from lipdet.cli import main

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize(
    "words",
    [
        ["data", "render", "--count", "2", "--out", "rendered"],
        ["train", "--data", "rendered:8", "--epochs", "1", "--batch_size", "4", "--out", "run"],
        ["detect", "naive", "number.png", "--out", "found"],
        ["attack", "naive", "number.png", "--epsilon", "0.1", "--steps", "2", "--out", "attacked"],
    ],
    ids=lambda words: words[0],
)
def test_verbs_in_a_pipe(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Plain lines: no colours, no bars, nothing that moves a cursor; and none with --quiet."""
    for name, option in (("loud", []), ("quiet", ["--quiet"])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        samples(74)[2].save("number.png")
        main([*words, *option])
        shown = "".join(capsys.readouterr())
        assert not [sign for sign in shown if ord(sign) < 32 and sign != "\n"]
        assert bool(shown) == (not option)


def test_a_pipe_in_ascii_shows_the_result() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lipdet", *EVAL, "--epsilon", "0.1", "--attack", "pgd", "--steps=1"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"naive" in done.stdout
    assert b"?" in done.stdout  # ε has no place in ASCII


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
