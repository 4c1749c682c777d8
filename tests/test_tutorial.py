"""Every tutorial's own text, followed to the letter at a small size from an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
# Sizes in the text and in the test: the words and files stay, the minutes go.
SMALLER = {
    "your-own-data.md": {
        'draw("signs/train", 1500': 'draw("signs/train", 80',
        'draw("signs/test", 200': 'draw("signs/test", 6',
        "--epochs 8": "--epochs 1",
    }
}


def follow(page: str, folder: Path) -> None:
    """Save the page's scripts under the names in their first lines, and run its commands."""
    text = (ROOT / "docs" / page).read_text()
    for old, new in SMALLER[page].items():
        assert old in text, f"{page} no longer says {old!r}"
        text = text.replace(old, new)
    for script in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        name = re.match(r"# ([\w.-]+):", script)
        assert name, f"{page}: a script does not begin with its name"
        (folder / name[1]).write_text(script)
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    here = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", commands], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_tutorial_is_followed() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    [tutorials] = [
        group["Tutorials"]
        for group in yaml.load(site, yaml.BaseLoader)["nav"]
        if "Tutorials" in group
    ]
    assert {page for entry in tutorials for page in entry.values()} == set(SMALLER)


def test_your_own_data(tmp_path: Path) -> None:
    follow("your-own-data.md", tmp_path)
    result = json.loads((tmp_path / "signs.json").read_text())
    assert list(result["clean"]["per_class"]) == ["stop", "warning", "parking"]
    assert result["data"]["images"] == 6
    assert [row["epsilon"] for row in result["certified"]] == [0.1, 0.25, 0.5]
    assert (tmp_path / "found" / "1-1.png").exists()
    assert (tmp_path / "found" / "2.png").exists()
