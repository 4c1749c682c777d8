"""`--quiet`, and output without colours where it goes to no terminal."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from lipdet.app.session import samples
from lipdet.cli import main
from lipdet.config import DIGIT_CROP
from lipdet.progress import console_on, show
from lipdet.types import Framing

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("proven_once")]

EVAL = ["eval", "naive", "--data", "rendered:2"]


def test_quiet_keeps_json_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    main([*EVAL, "--quiet", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["weights"] == "naive"
    with pytest.raises(SystemExit):
        main(["eval", "naive", "--data", "nothing:here", "--quiet"])
    assert "nothing:here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        EVAL,
        ["data", "info", "rendered:2"],
        ["data", "render", "--count", "2", "--out", "rendered"],
        ["train", "--data", "rendered:4", "--epochs", "1", "--batch_size", "4", "--out", "run"],
        ["detect", "naive", "number.png", "--out", "found"],
        ["attack", "naive", "number.png", "--epsilon", "0.1", "--steps", "1", "--out", "attacked"],
    ],
    ids=lambda words: " ".join(words[:2]),
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
        samples(Framing(DIGIT_CROP))[2].save("number.png")
        main([*words, *option])
        shown = "".join(capsys.readouterr())
        assert not [sign for sign in shown if ord(sign) < 32 and sign != "\n"]
        assert bool(shown) == (not option)


@pytest.mark.parametrize("columns", [None, "80"])
def test_what_goes_to_a_pipe_is_as_wide_as_it_is(
    columns: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    words = " ".join(["word"] * 30)
    show(words)
    [first, *rest] = capsys.readouterr().out.splitlines()
    assert (first == words) == (columns is None) == (not rest)


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console_on(stderr=True).log("no [/red] [bold]objects")
    assert "no [/red] [bold]objects" in capsys.readouterr().err


def test_a_pipe_in_ascii_shows_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    main([*EVAL, "--epsilon", "0.1", "--attack", "pgd", "--steps=1"])
    sys.stdout.flush()
    assert b"naive" in written.getvalue()
    assert b"?" in written.getvalue()  # ε has no place in ASCII
