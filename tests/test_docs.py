"""The documentation site builds without a warning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
