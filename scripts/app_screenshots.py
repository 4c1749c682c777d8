"""A screenshot of the web app for the documentation, by the system's Chromium.

    python scripts/app_screenshots.py docs

Writes app-attack.png (1280 pixels wide: a rendered house number, attacked). Needs the extra `app`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from playwright.sync_api import Browser
from screenshots import PATIENCE, chromium, save

from lipdet.app.exhibits import load_exhibits
from lipdet.app.server import serving


def main() -> None:
    """Serve the page and look at it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--detectors", nargs="+", default=["naive", "certified"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    exhibits = load_exhibits(options.detectors)
    with serving(exhibits, "127.0.0.1", 0) as address, chromium() as browser:
        shoot(browser, address, len(exhibits), options.out)


def shoot(browser: Browser, address: str, detectors: int, out: Path) -> None:
    """Take the screenshot."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.locator("#message").get_by_text("sample-1.png").wait_for()
    page.locator("#samples button img").nth(2).click()
    page.locator("#message").get_by_text("sample-3.png").wait_for()
    page.click("#attack")
    page.locator("#result img").nth(3 * detectors - 1).wait_for()
    save(page, out / "app-attack.png", full_page=True)


if __name__ == "__main__":
    main()
