"""Every tutorial's and how-to's own text, followed to the letter at a small size from nothing.

Of a page, `python` blocks are saved under the names in their first lines and `sh` blocks are run.
What needs a network, an account or hours stands in `py` and `bash` blocks, and the page says why;
of those, the commands of lipdet are parsed.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lipdet.cli import build_parser, main
from lipdet.commands import export

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("proven_once", "small_pages")]

ROOT = Path(__file__).resolve().parent.parent
# Sizes in the text and in the test: the words and files stay, the minutes go.
SMALLER = {
    "your-own-data.md": {
        'draw("cells/train", 1500': 'draw("cells/train", 70',
        'draw("cells/test", 200': 'draw("cells/test", 3',
        "--image_size 48x64": "--image_size 32x40",
        "--epochs 10": "--epochs 1",
    },
    "your-own-detector.md": {"rendered:8": "rendered:2", "--steps 5": "--steps 1"},
    "hub.md": {
        'pretrained("certified")': 'pretrained("certified-small")',
        "eval certified --data rendered:8": "eval certified-small --data rendered:2",
    },
    "report.md": {
        "report naive certified --data rendered:200 --epsilon 0.1 0.25": "report naive --data "
        "rendered:2 --epsilon 0.1 --attack pgd --steps 1 --pictures 1",
        "eval naive --data rendered:200 --epsilon 0.1 0.25": "eval naive --data rendered:2 "
        "--epsilon 0.1",
        "worst --json naive": "pgd --steps 1 --json naive",
    },
    "export.md": {"--int8 rendered:200": "--int8 rendered:100"},
    "app.md": {},
    "segmentation.md": {
        "rendered-ink:2400 --epochs 4": "rendered-ink:40 --epochs 1 --image_size 32",
        "rendered-ink:100 --epsilon 0.1 0.25 --certify --attack pgd --steps 20": "rendered-ink:4 "
        "--epsilon 0.25 --certify --attack pgd --steps 2",
    },
    "more-machines.md": {},
    "sweeps.md": {},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, whose scripts are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # Fewer pictures to compare exported files on.
    monkeypatch.setattr(export, "MOST_VERIFIED", 9)
    yield tmp_path
    for script in tmp_path.glob("*.py"):
        sys.modules.pop(script.stem, None)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def follow(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the page's scripts under the names in their first lines, and run its commands."""
    text = (ROOT / "docs" / page).read_text()
    for command in commands_of(blocks(text, "bash")):
        if words := re.search(r"\blipdet ([a-z].*)", command):
            # Numbers take the place of variables.
            build_parser().parse_args(shlex.split(re.sub(r"\$\w+", "1", words[1]), comments=True))
    for old, new in SMALLER[page].items():
        assert old in text, f"{page} no longer says {old!r}"
        text = text.replace(old, new)
    for script in blocks(text, "python"):
        name = re.match(r"# ([\w.-]+):", script)
        assert name, f"{page}: a script does not begin with its name"
        Path(name[1]).write_text(script)
    for command in commands_of(blocks(text, "sh")):
        run(command, monkeypatch)


def commands_of(blocks: list[str]) -> list[str]:
    """One command a line, as they are."""
    return "".join(blocks).replace("\\\n", " ").splitlines()


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell would, but here, where torch is imported already: that takes seconds."""
    program, *words = shlex.split(command, comments=True)
    if program == "python":
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(words[0], run_name="__main__")
    else:
        assert program == "lipdet", f"{command}: only lipdet and python are run"
        main(words)


def test_every_page_is_followed() -> None:
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    pages = [
        page
        for group in site["nav"]
        for entry in (*group.get("Tutorials", []), *group.get("How-tos", []))
        for page in entry.values()
    ]
    assert set(pages) == set(SMALLER)


@pytest.mark.parametrize("page", ["app.md", "more-machines.md", "sweeps.md"])
def test_commands_that_take_long_are_commands(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(page, monkeypatch)


def test_your_own_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow("your-own-data.md", monkeypatch)
    result = json.loads((folder / "cells.json").read_text())
    assert list(result["clean"]["per_class"]) == ["red", "white", "sickle"]
    assert result["data"]["images"] == 3
    assert [row["epsilon"] for row in result["certified"]] == [0.1, 0.25, 0.5]
    assert (folder / "found" / "0-1.png").exists()
    assert (folder / "found" / "2.png").exists()


def test_your_own_detector(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follow("your-own-detector.md", monkeypatch)
    found = json.loads((folder / "audit.json").read_text())
    # By hand: 3×3 windows at stride 2.
    pools = [one["factor"] for one in found["findings"] if one["kind"] == "MaxPool2d"]
    assert pools == [pytest.approx(2.0)]
    page = (folder / "onebox.html").read_text()
    for words in ("Nothing is certified here", "DisjointMaxPool2d", "0.5"):
        assert words in page
    assert json.loads((folder / "onebox.json").read_text())["attacked"][0]["epsilon"] == 0.25
    # Of the SSD: every layer before the heads has norm 1, by construction or by definition.
    printed = capsys.readouterr().out
    audited = printed[printed.index("own:own: bound") :]
    assert "heads.0" in audited
    assert "backbone" not in audited
    assert "own:own under every L2 perturbation" in audited
    assert (folder / "own.pt2").is_file()
    # What the page says of an unknown layer.
    text = (folder / "own.py").read_text()
    (folder / "own.py").write_text(text.replace("MaxMin())\n", "MaxMin(), nn.SELU())\n"))
    sys.modules.pop("own")
    with pytest.raises(SystemExit):
        main(["eval", "own:own", "--data", "rendered:1", "--certify", "--epsilon", "0.01"])
    sentence = capsys.readouterr().err.removeprefix("lipdet: ").strip()
    assert f"`{sentence}`" in (ROOT / "docs" / "your-own-detector.md").read_text()


def test_segmentation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow("segmentation.md", monkeypatch)
    result = json.loads((folder / "ink.json").read_text())
    assert list(result["clean"]["per_class"]) == ["background", "ink"]
    [certified], [attacked] = result["certified"], result["attacked"]
    assert certified["accuracy"] <= attacked["accuracy"]
    assert (folder / "found" / "door-radii.png").exists()
    assert (folder / "attacked" / "attack.json").exists()


def test_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follow("hub.md", monkeypatch)
    assert (folder / "found" / "photo.png").is_file()
    result = json.loads((folder / "result.json").read_text())
    ap50 = f"{100 * result['certified'][0]['ap50']:.1f}"
    assert f" {ap50} |" in (folder / "shared" / "README.md").read_text()


def test_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow("report.md", monkeypatch)
    measured = json.loads((folder / "naive.json").read_text())
    # The page and the command line measure the same.
    clean = json.dumps(measured["clean"])
    assert clean in (folder / "report.html").read_text()
    assert (folder / "curves.pdf").is_file()


def test_export(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    follow("export.md", monkeypatch)
    shown = json.loads((folder / "found" / "detections.json").read_text())
    assert shown["weights"] == "naive.onnx"
    assert (folder / "naive-int8.onnx").is_file()
