"""Screenshots of a report page for the documentation, by the system's Chromium.

    python scripts/screenshots.py report.html docs

Writes report.png (1280 pixels wide, light, the top of the page), report-pictures.png (the gallery)
and report-phone.png (390 pixels wide, dark).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

PATIENCE = 300_000  # milliseconds


def main() -> None:
    """Open the page at both widths."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    with chromium() as browser:
        shoot(browser, options.page, options.out)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, headless."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise SystemExit("chromium is not installed")
    with sync_playwright() as playwright:
        # A container's root cannot have Chromium's sandbox; the page is our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def save(shown: Page | Locator, file: Path, **options: bool) -> None:
    """Write a screenshot with 256 colours: a third of the size, and the same to the eye."""
    shown.screenshot(path=file, **options)
    with Image.open(file) as picture:
        few = picture.convert("RGB").quantize(256, kmeans=3)
    few.save(file, optimize=True)


def shoot(browser: Browser, file: Path, out: Path) -> None:
    """Take the screenshots of one page."""
    address = file.resolve().as_uri()
    wide = browser.new_page(viewport={"width": 1280, "height": 1500}, color_scheme="light")
    wide.set_default_timeout(PATIENCE)
    wide.goto(address)
    save(wide, out / "report.png")
    save(wide.locator("#pictures"), out / "report-pictures.png")
    narrow = browser.new_page(viewport={"width": 390, "height": 1500}, color_scheme="dark")
    narrow.set_default_timeout(PATIENCE)
    narrow.goto(address)
    save(narrow, out / "report-phone.png")


if __name__ == "__main__":
    main()
