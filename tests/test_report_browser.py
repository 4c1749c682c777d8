"""The page in a browser: nothing fails, nothing leaves it, nothing sticks out, all is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lipdet.report.page import write_page
from tests.report.made_up import EVIL, inspections, results

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LARGEST_PAGE = 10 * 2**20
PHONE, DESKTOP = 390, 1280


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page(file, results(), inspections(), EVIL)
    assert file.stat().st_size < LARGEST_PAGE
    return file


@pytest.mark.parametrize(("width", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_page_in_chromium(browser: Browser, page_file: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page.set_default_timeout(120_000)  # milliseconds; for machines that are busy
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    # What is folded must not stick out either.
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # The browser's own computation of names; a figure without one is called "".
    figures = page.get_by_role("img").all()
    assert len(figures) == page.locator("svg").count() > 0
    named = page.evaluate(
        "[...document.querySelectorAll('svg')].map(one => one.querySelector('title').textContent)"
    )
    assert all(named)
    # Light is dark on light, dark is light on dark: the computed colour of text against 50 % grey.
    brightness = page.evaluate(
        "parseInt(getComputedStyle(document.body).color.match(/\\d+/)[0]) > 127"
    )
    assert brightness == (scheme == "dark")
    page.close()
