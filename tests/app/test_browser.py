"""The app in a real browser: upload, slider, attack, download, and everything that goes wrong."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from torch import Tensor

from lipdet.app.exhibits import Attacked, Exhibit, load_exhibits
from lipdet.app.server import serving
from lipdet.app.session import samples
from lipdet.attack import AttackSettings
from lipdet.config import DIGIT_CROP
from lipdet.types import Framing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# The server is gradio's and runs in threads of this process; what it deprecates is not ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

UPLOADS = 8
PATIENCE = 180_000  # milliseconds; for machines that are busy


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests, in a folder that tests of other processes do not write to."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        with serving(load_exhibits(["naive", "certified-small"]), "127.0.0.1", 0) as url:
            assert list(folder.glob("lipdet-app-*"))
            yield url
        assert not list(folder.glob("lipdet-app-*"))


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A visitor who sees the first sample."""
    visitor = visit(browser, address)
    yield visitor
    visitor.context.close()


def visit(browser: Browser, address: str) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 1400}).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    wait_for(page, "sample-1.png: naive reads")
    return page


def wait_for(page: Page, words: str) -> None:
    page.locator("#message").get_by_text(words).wait_for()


def upload(page: Page, file: Path) -> None:
    page.locator("#picture input[type=file]").set_input_files(file)


def alternatives(page: Page) -> list[str]:
    return [str(one.get_attribute("alt")) for one in page.locator("#result img").all()]


def set_slider(page: Page, name: str, value: str) -> None:
    page.locator(f"#{name} input[type=number]").fill(value)
    page.keyboard.press("Tab")


def only_naive(page: Page) -> None:
    page.get_by_label("certified-small").uncheck()
    page.locator("#result section").nth(1).wait_for(state="detached")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    samples(Framing(DIGIT_CROP))[2].save(file)
    return file


def test_nothing_leaves_the_page_and_everything_is_named(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda one: errors.append(one.text) if one.type == "error" else None)
    page.goto(address)
    wait_for(page, "sample-1.png: naive reads")
    assert {url for url in requests if not url.startswith((address, "data:", "blob:"))} == set()
    assert errors == []
    assert page.get_by_label("Capture from camera").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert len(alternatives(page)) == 2
    assert all(alternatives(page))
    context.close()


def test_upload_slider_attack_download(page: Page, photo: Path, tmp_path: Path) -> None:
    upload(page, photo)
    wait_for(page, "photo.png: naive reads")
    set_slider(page, "epsilon", "0.3")
    page.locator("#result img[alt*='at ε = 0.3']").first.wait_for()
    set_slider(page, "steps", "3")
    page.click("#attack")
    page.locator("#result img").nth(5).wait_for()
    wait_for(page, "attacked")
    for index, kind in enumerate(["clean", "attacked, ε = 0.3", "perturbation"] * 2):
        assert kind in alternatives(page)[index]
    files = {}
    for name in ("lipdet.png", "lipdet.json"):
        with page.expect_download() as download:
            page.get_by_text(f"Download {name}").click()
        files[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[name])
    with Image.open(files["lipdet.png"]) as picture:
        picture.load()
    result = json.loads(files["lipdet.json"].read_text())
    assert (result["picture"], result["epsilon"]) == ("photo.png", 0.3)
    for entry in result["detectors"]:
        assert entry["attacked"]["steps"] == 3
        assert entry["attacked"]["distance"]["l2"] <= 0.3
        # What is written is what is shown; of each place the caption names the best.
        shown = next(one for one in alternatives(page) if one.startswith(f"{entry['weights']}, cl"))
        caption, told = shown.split("clean: ")[1].split(". ", maxsplit=1)
        best = max(entry["clean"], key=lambda row: row["score"])
        assert {best["label"]} <= set(caption.split()) <= {row["label"] for row in entry["clean"]}
        assert f" of {len(entry['clean'])} certified" in told


def test_what_cannot_be_used_is_refused_in_a_sentence(page: Page, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    upload(page, text)
    wait_for(page, "text.png: cannot be read as a picture")
    assert page.locator("#result img").count() == 0
    # It lives on.
    page.locator("#samples button img").nth(1).click()
    wait_for(page, "sample-2.png: naive reads")


def test_uploads_in_a_row(page: Page, tmp_path: Path) -> None:
    only_naive(page)
    pictures = samples(Framing(DIGIT_CROP))
    for index in range(UPLOADS):
        if index:
            page.get_by_label("Remove Image").click()
            page.locator("#picture input[type=file]").wait_for(state="attached")
        file = tmp_path / f"upload-{index}.png"
        pictures[index % len(pictures)].save(file)
        upload(page, file)
        wait_for(page, f"upload-{index}.png: naive reads")
    assert len(alternatives(page)) == 1


class Endless:
    """An attack that goes on until it is told to stop."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.ended = threading.Event()

    def __call__(
        self,
        exhibit: Exhibit,
        image: Tensor,
        settings: tuple[AttackSettings, ...],
        on_progress: Callable[[int, int], None],
    ) -> Attacked:
        self.started.set()
        try:
            while True:
                threading.Event().wait(0.02)
                on_progress(1, 100)
        finally:
            self.ended.set()


@pytest.fixture
def endless(address: str, monkeypatch: pytest.MonkeyPatch) -> Endless:
    attack = Endless()
    monkeypatch.setattr("lipdet.app.page.attack", attack)
    return attack


def test_stopped_attack_computes_no_more(page: Page, endless: Endless) -> None:
    page.click("#attack")
    assert endless.started.wait(PATIENCE / 1000)
    page.click("#stop")
    wait_for(page, "Stopped; what was finished is shown.")
    assert endless.ended.is_set()
    # The visitor can go on.
    page.locator("#samples button img").nth(2).click()
    wait_for(page, "sample-3.png: naive reads")


def test_attack_of_a_visitor_who_leaves_ends(
    browser: Browser, address: str, endless: Endless
) -> None:
    visitor = visit(browser, address)
    visitor.click("#attack")
    assert endless.started.wait(PATIENCE / 1000)
    visitor.context.close()
    assert endless.ended.wait(PATIENCE / 1000)
