"""The documentation site builds without a warning; what is cited exists, and cases have tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import is_typeddict

import pytest

from lipdet import results

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "tests", "docs", "scripts", "benchmarks", "examples", "configs")
WRITTEN = [
    *ROOT.glob("*.md"),
    *(ROOT / name for name in ("Makefile", "pyproject.toml", "mkdocs.yml")),
    *(
        file
        for folder in FOLDERS
        for ending in ("py", "md", "yaml", "sh")
        for file in (ROOT / folder).rglob(f"*.{ending}")
    ),
]


def cited(pattern: str) -> set[tuple[str, str]]:
    """Every match of a pattern's group, with the file that has it."""
    return {
        (match, str(file.relative_to(ROOT)))
        for file in WRITTEN
        for match in re.findall(pattern, file.read_text())
    }


def test_every_cited_section_of_the_theory_exists() -> None:
    headings = (ROOT / "docs" / "theory.md").read_text()
    sections = set(re.findall(r"^#+ ([0-9]+(?:\.[0-9]+)?)\.? ", headings, re.MULTILINE))
    found = cited(r"theory(?:\.md)?`? §([0-9]+(?:\.[0-9]+)?)")
    assert len(found) > 30
    assert {one for one in found if one[0] not in sections} == set()


def test_every_cited_path_exists() -> None:
    found = cited(rf"\b((?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:py|md|png|sh))\b")
    assert len(found) > 30
    assert {one for one in found if not (ROOT / one[0]).exists()} == set()


def test_every_link_and_figure_of_a_page_exists() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        assert [one for one in targets if not (page.parent / one).exists()] == [], page.name


def test_every_key_of_a_result_is_explained_and_no_other() -> None:
    page = (ROOT / "docs" / "json.md").read_text()
    explained = {}
    # Each type has a heading, and a table with its keys in the first column.
    for heading, text in re.findall(r"^### `(\w+)`\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL):
        first_column = " ".join(re.findall(r"^\|([^|]+)", text, re.MULTILINE))
        explained[heading] = set(re.findall(r"`(\w+)`", first_column))
    types = {name: one for name, one in vars(results).items() if is_typeddict(one)}
    assert explained == {name: set(one.__annotations__) for name, one in types.items()}


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lipdet reproduce" in (tmp_path / "command-line.html").read_text()
    assert "BCOPConv2d" in (tmp_path / "api.html").read_text()
    # Every page of docs/ can be reached, and nothing is fetched from another host.
    index = (tmp_path / "index.html").read_text()
    pages = [page.stem for page in (ROOT / "docs").glob("*.md")]
    assert [page for page in pages if f'href="{page}.html"' not in index] == []
    for page in tmp_path.glob("*.html"):
        assert 'src="http' not in page.read_text(), page.name
        assert "fonts.googleapis.com" not in page.read_text(), page.name
