"""The page about segmenters says what its json says, what is certified and rare first."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipdet.cli import main
from lipdet.reading.pixels import FLIPPED, draw_flips
from tests.report.made_up import segmentation_page, segmenters
from tests.report.test_page import Page, value_at

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_pages")]

PERCENT = ("iou", "miou", "accuracy", "single", "joint", "false_negatives")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, small_pages: None) -> Page:
    file = segmentation_page(tmp_path_factory.mktemp("page"))
    return Page(file.read_text(encoding="utf-8"))


def expected_text(path: str, value: float | None) -> str:
    """How docs/report.md says that numbers are shown."""
    last = path.split("/")[-1]
    if value is None:
        return "–"
    if last == "recall":  # what is missed
        return f"{100 * (1 - value):.1f}"
    if last in PERCENT:
        return f"{100 * value:.1f}"
    if last == "flipped":
        return f"{value:,.1f}"
    return f"{value:.2g}" if last == "grey_levels" else f"{value:.4g}"


def test_every_number_is_that_of_the_json(page: Page) -> None:
    document = json.loads(page.document)
    numbered = [(text, path) for text, path in page.cells if path]
    for text, path in numbered:
        assert text == expected_text(path, value_at(document, path)), path
    assert not [text for text, path in page.cells if not path and re.match(r"[-+.\d]", text)]
    shown = {path for _, path in numbered}
    for path in (
        "results/0/certified/1/per_class/ink/false_negatives", "results/0/constant/accuracy",
        "results/1/attacked/1/per_class/background/recall", "results/0/certified/0/flipped",
        "results/0/attacked/0/grey_levels", "detectors/1/lipschitz/layers/2/observed",
    ):  # fmt: skip
        assert path in shown


def test_what_is_certified_and_rare_comes_first(page: Page) -> None:
    first = [path for _, path in page.cells if path][:2]
    certified = "results/0/certified"
    assert first == [f"{certified}/{at}/per_class/ink/iou" for at in range(2)]
    result = json.loads(page.document)["results"][0]
    clean, attacked, proven = (
        f"{100 * entry['per_class']['ink']['iou']:.1f}"
        for entry in (result["clean"], result["attacked"][1], result["certified"][1])
    )
    assert f"keeps {attacked} of {clean}, of which {proven} is proven" in page.words
    assert "One answer for all pixels, background, has 0.0" in page.words
    # The ordinary one: its certified columns are missing, and its tile of radii.
    assert "of which nothing is proven" in page.words
    assert page.words.count("radii: at most") == 2


def test_pictures_say_how_many_pixels_flip(page: Page) -> None:
    certified, plain = json.loads(page.document)["detectors"]
    for scene in certified["pictures"]:
        assert scene["flipped"] <= scene["flipped_at_most"] <= scene["pixels"] == 32 * 32
        assert f"{scene['flipped']:,} pixels flipped" in page.words
    assert plain["pictures"][0]["flipped_at_most"] is None
    assert "BatchNorm2d, which has no bound" in page.words
    assert "u" not in page.tags


def test_flipped_pixels_have_a_colour_of_their_own() -> None:
    flipped = np.zeros((2, 3), bool)
    flipped[1, 2] = True
    drawn = draw_flips(Image.new("RGB", (3, 2)), flipped)
    assert drawn.getpixel((2, 1)) == tuple(bytes.fromhex(FLIPPED[1:]))
    assert drawn.getpixel((0, 0)) == (0, 0, 0)


def test_a_page_without_any_radius(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = segmenters(Path())[1]
    main(["report", plain, "--data", "rendered-ink:2", "--out", "page.html", "--quiet"])
    words = Page(Path("page.html").read_text(encoding="utf-8")).words
    assert "No perturbation was looked at. IoU of ink: " in words
    assert "Nothing was attacked" in words
    assert "No picture was attacked" in words


@pytest.mark.parametrize("more", [["naive"], ["--device", "cpu"]])
def test_what_a_page_of_segmenters_is_not_for(
    tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", "rendered-ink:2", "--out", str(tmp_path / "page.html")]
    with pytest.raises(SystemExit):
        main(["report", segmenters(tmp_path)[0], *more, *words])
    assert "segmenters have a page of their own" in capsys.readouterr().err
