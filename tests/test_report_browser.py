"""The page in a browser: nothing fails, nothing leaves it, nothing sticks out, all can be read.

Three pages: one with names that would break a careless page, the one of a packaged detector on
rendered pictures, as `make demo` builds it, only smaller, and one about segmenters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lipdet.cli import main
from lipdet.report.page import write_page
from tests.report.made_up import EVIL, inspections, results, segmentation_page
from tests.report.test_page import Page as Parsed
from tests.report.test_page import expected_text, value_at

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LARGEST_PAGE = 10 * 2**20
PHONE, DESKTOP = 390, 1280
PAPER = 690  # A4 less its margins, at 96 pixels per inch
PACKAGED = ("certified-small",)

# The lowest contrast of any text with the ground behind it (WCAG 2.2), and that text. Texts on
# pictures have an outline of their own.
LOWEST_CONTRAST = """() => {
  const light = channels => channels.slice(0, 3).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const numbers = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const ground = one => {
    for (; one; one = one.parentElement) {
      const colour = numbers(getComputedStyle(one).backgroundColor);
      if (colour.length === 3) return colour;
    }
    return [255, 255, 255];
  };
  let lowest = [Infinity, ''];
  const texts = 'main, main :not(.tile *, title, defs *)';
  for (const one of document.querySelectorAll(texts)) {
    const text = [...one.childNodes].filter(node => node.nodeType === 3)
      .map(node => node.data.trim()).join('');
    if (!text) continue;
    const style = getComputedStyle(one);
    const colour = numbers(one.ownerSVGElement ? style.fill : style.color);
    const [a, b] = [light(colour), light(ground(one))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, text];
  }
  return lowest;
}"""


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page(file, results(), inspections(), EVIL)
    return file


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, proven_once: None, small_pages: None
) -> Path:
    """Folder with `report.html` and what `lipdet eval` wrote about the detector."""
    folder = tmp_path_factory.mktemp("measured")
    data = ["--data", "rendered:2", "--quiet"]
    attack = ["--epsilon", "0.02", "0.1", "--attack", "pgd", "--steps", "1"]
    files = [str(folder / f"{name}.json") for name in PACKAGED]
    for name, file in zip(PACKAGED, files, strict=True):
        main(["eval", name, *data, *attack, "--certify", "--json", file])
    report = ["report", *PACKAGED, *data, *attack, "--pictures", "1", "--results", *files]
    main([*report, "--out", str(folder / "report.html")])
    return folder


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory, small_pages: None) -> Path:
    return segmentation_page(tmp_path_factory.mktemp("segmented"))


@pytest.fixture(scope="module", params=["made_up", "measured", "segmented"])
def page_file(request: pytest.FixtureRequest) -> Path:
    file: Path = request.getfixturevalue(request.param)
    file = file / "report.html" if file.is_dir() else file
    assert file.stat().st_size < LARGEST_PAGE
    return file


def test_every_number_is_the_one_that_eval_wrote(measured: Path) -> None:
    page = Parsed((measured / "report.html").read_text(encoding="utf-8"))
    written = [json.loads((measured / f"{name}.json").read_text()) for name in PACKAGED]
    assert json.loads(page.document)["results"] == written
    shown = {path: text for text, path in page.cells if path.startswith("results/")}
    for path, text in shown.items():
        assert text == expected_text(path, value_at({"results": written}, path)), path
    # Clean, attacked and certified at both radii: AP50 and AP.
    assert sum(path.endswith(("/ap50", "/ap")) for path in shown) >= 2 * 5
    # And in words: the first radius.
    for one in written:
        clean, attacked, certified = (
            f"{100 * entry['ap50']:.1f}"
            for entry in (one["clean"], one["attacked"][0], one["certified"][0])
        )
        proven = certified if one["certified"][0]["ap50"] else "nothing"
        sentence = f"{one['weights']} keeps {attacked} of {clean}, of which {proven} is proven"
        assert sentence in page.words


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
    check_ink(page, dark=scheme == "dark")
    page.close()


def test_page_on_paper(browser: Browser, page_file: Path) -> None:
    page = browser.new_page(viewport={"width": PAPER, "height": 900}, color_scheme="dark")
    page.set_default_timeout(120_000)
    page.goto(page_file.as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    # Dark ink, even where the screen is dark; no links; nothing is cut off or stays folded.
    check_ink(page, dark=False)
    assert not page.locator("nav").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == PAPER
    folded = page.locator("details table, details svg, details pre").all()
    assert folded
    for one in folded:
        box = one.bounding_box()
        assert box
        assert box["height"] > 0
    page.close()


def check_ink(page: Page, dark: bool) -> None:
    """Text can be read: light on dark where it is dark, with the contrast of normal text."""
    brightness = page.evaluate(
        "parseInt(getComputedStyle(document.body).color.match(/\\d+/)[0]) > 127"
    )
    assert brightness == dark
    contrast, text = page.evaluate(LOWEST_CONTRAST)
    assert contrast >= 4.5, text
