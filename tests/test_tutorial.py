"""The tutorial's own text, followed to the letter at a small size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

TUTORIAL = Path(__file__).resolve().parent.parent / "docs" / "your-own-data.md"
# Sizes in the text and in the test: the words and files stay, the minutes go.
SMALLER = {'"shapes/train", 1500': '"shapes/train", 80', '"shapes/test", 200': '"shapes/test", 6'}
FEWER = {"--epochs 12": "--epochs 1"}


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    assert found
    return found


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"the tutorial no longer says {old!r}"
        text = text.replace(old, new)
    return text


def test_following_the_tutorial_works(tmp_path: Path) -> None:
    script, commands = blocks("python")[0], "\n".join(blocks("sh"))
    (tmp_path / "shapes.py").write_text(replaced(script, SMALLER))
    here = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", replaced(commands, FEWER)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "shapes.json").read_text())
    assert list(result["clean"]["per_class"]) == ["circle", "square"]
    assert result["data"]["images"] == 6
    assert (tmp_path / "found" / "1.png").exists()
