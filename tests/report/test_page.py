"""The page says what the json says, escapes what it shows, and needs nothing but itself."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lipdet.report.architecture import draw_presets
from lipdet.report.page import write_figures, write_page
from tests.report.made_up import EVIL, EVIL_CLASS, inspections, results

pytestmark = pytest.mark.slow


class Page(html.parser.HTMLParser):
    """What the tests look at: cells with their paths, figures with their titles, addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.cells: list[tuple[str, str]] = []
        self.titles: list[str] = []
        self.figures = 0
        self.addresses: list[str] = []
        self.identities: list[str] = []
        self.document = ""
        self.words = ""
        self.sentences = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.open.append(tag)
        self.tags.append(tag)
        self.addresses += [
            value for name, value in values.items() if name in ("href", "xlink:href", "src")
        ]
        self.identities += [values["id"]] if "id" in values else []
        assert not [name for name in values if name.startswith("on")]
        if tag == "td":
            self.cells.append(("", values.get("data-path", "")))
        if tag == "svg":
            self.figures += values.get("role") == "img"
        if tag == "title":
            self.titles.append("")

    def handle_data(self, data: str) -> None:
        if not {"svg", "table", "pre", "script", "style", "title"} & set(self.open):
            self.sentences += f"{data} "
        last = self.open[-1] if self.open else ""
        if last == "td":
            self.cells[-1] = (self.cells[-1][0] + data, self.cells[-1][1])
        elif last == "title":
            self.titles[-1] += data
        elif last == "script":
            self.document += data
        else:
            self.words += data

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page(file, results(), inspections(), EVIL)
    return Page(file.read_text(encoding="utf-8"))


def value_at(document: Any, path: str) -> Any:
    """JSON Pointer, RFC 6901, without its leading slash."""
    for key in path.split("/"):
        key = key.replace("~1", "/").replace("~0", "~")
        document = document[int(key) if isinstance(document, list) else key]
    return document


def expected_text(path: str, value: Any) -> str:
    """How docs/report.md says that numbers are shown: shares in percent, counts, constants."""
    if value is None:
        return "–"
    last = path.split("/")[-1]
    shares = "ap50", "ap", "recall", "precision", "vanish_recall"
    if last in (*shares, "right", "certified", "steady", "exact"):
        return f"{100 * value:.1f}"
    if last == "canvas":
        return "x".join(map(str, value))
    if last == "grey_levels":
        return f"{value:.2g}"
    if last == "images_per_second":
        return f"{round(value)}" if value < 1000 else f"{round(value):,}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def test_every_number_is_that_of_the_json(page: Page) -> None:
    made = {"results": results(), "detectors": [one.as_dict() for one in inspections()]}
    # What json cannot tell apart (tuples and lists) is made equal first.
    made = json.loads(json.dumps(made))
    assert json.loads(page.document) == made
    numbered = [(text, path) for text, path in page.cells if path]
    for text, path in numbered:
        assert text == expected_text(path, value_at(made, path)), path
    # And no number stands in a cell without a path.
    assert not [text for text, path in page.cells if not path and re.match(r"[-+.\d]", text)]
    shown = {path for _, path in numbered}
    for path in (
        "results/0/clean/ap50", "results/0/clean/ap", "results/1/clean/ap50",
        "results/0/attacked/0/ap50", "results/0/attacked/1/ap50", "results/0/attacked/1/ap",
        "results/0/certified/0/ap50", "results/0/certified/1/ap50", "results/0/certified/1/ap",
        "results/0/attacked/1/grey_levels", "results/1/data/canvas",
        "results/0/parameters", "results/1/parameters", "detectors/0/speed/images_per_second",
        "detectors/0/lipschitz/largest_logit", "results/0/attacked/1/consistency/vanished",
        "results/0/certified/0/failed/score", "detectors/0/lipschitz/layers/2/observed",
        "results/0/clean/per_class/<u>7~18<~1u>~0/ap50",
        "results/0/certified/1/reading/certified",
        "results/0/certified/0/counts/<u>7~18<~1u>~0/exact",
    ):  # fmt: skip
        assert path in shown


def numbers_in(value: Any) -> set[str]:
    """The numbers of a json value in every form in which sentences show them."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        levels = {f"{value['grey_levels']:.2g}"} if "grey_levels" in value else set()
        return levels.union(*map(numbers_in, inner))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return set()
    return {f"{value:,}", f"{value:g}", f"{100 * value:.1f}"}


def test_every_number_in_a_sentence_is_that_of_the_json(page: Page) -> None:
    text = page.sentences.replace(EVIL, "").replace(EVIL_CLASS, "")
    # The presets are no part of the results.
    for drawing in draw_presets({one.loaded.detector.config for one in inspections()}):
        assert drawing.caption in text
        text = text.replace(drawing.caption, "")
    # By hand: pixel values lie in [0, 1], white is 255; picture 1; 1 of 2 certified; class 6.
    known = numbers_in(json.loads(page.document)) | {"0", "1", "2", "6", "255"}
    shown = re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?", text)
    assert {"86.4", "69.2", "34.6", "12", "20", "0.25"} <= set(shown)
    assert set(shown) <= known


def test_what_was_not_measured_is_said_so(page: Page) -> None:
    # The second detector has neither attacks nor certificates nor bounds.
    texts = [text for text, path in page.cells if not path]
    assert texts.count("not measured") == 8 + 2 + 2
    assert "was not attacked" in page.words
    assert "clean, nothing proven)" in page.words
    assert "no bound. layer <x> has no rule" in page.words


def test_the_answer_comes_first(page: Page) -> None:
    # 0.86449 is 86.4, times 0.8 at the first radius is 69.2, half of it 34.6.
    expected = "naive keeps 69.2 of 86.4, of which 34.6 is proven"
    assert expected in page.words
    # An attacked figure is worth what the attack is.
    assert "worst on several objectives (steps: 50, starts: 1)" in page.words
    assert page.words.index(expected) < page.words.index("Detectors side by side")


def test_markup_in_names_stays_text(page: Page) -> None:
    assert not {"img", "u", "i"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert EVIL in page.words
    assert any(EVIL_CLASS in title for title in page.titles)


def test_page_holds_all_it_needs(page: Page) -> None:
    assert {"link"} & set(page.tags)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    inner = [address[1:] for address in page.addresses if address.startswith("#")]
    assert set(inner) <= set(page.identities)
    assert len(set(page.identities)) == len(page.identities)


def test_page_without_any_radius(tmp_path: Path) -> None:
    plain = [one.__class__(**{**one.__dict__, "scenes": ()}) for one in inspections()[1:]]
    write_page(tmp_path / "plain.html", results()[1:], plain, "plain")
    words = Page((tmp_path / "plain.html").read_text(encoding="utf-8")).words
    assert "No perturbation was looked at" in words
    assert "Nothing was measured at any radius" in words
    assert "Nothing was certified" in words


def test_figures_are_files(tmp_path: Path) -> None:
    files = write_figures(tmp_path / "figures", results(), inspections())
    names = {file.name for file in files}
    for stem in ("curves", "frontier", "consistency", "lipschitz", "architecture-2", "pictures-1"):
        assert {f"{stem}.svg", f"{stem}.png"} <= names
    assert all(file.stat().st_size > 1000 for file in files)
