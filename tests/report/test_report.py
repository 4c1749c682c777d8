"""Overlays and tables show what the results say, and what is certified."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from rich.console import Console

from lipdet.reading import Detection
from lipdet.reading.marks import (
    CERTIFICATE_SIDE,
    CERTIFIED,
    COLOURS,
    SMALLEST_SIDE,
    UNCERTIFIED,
    draw_certificates,
    draw_classes,
    text_font,
)
from lipdet.report.certificate import certified_classes_table
from lipdet.report.table import classes_table, comparison_table, percent, results_table
from tests.report import made_up

SCALE = CERTIFICATE_SIDE // 74


def detections(*boxes: tuple[float, float, float, float]) -> list[Detection]:
    return [Detection("0", 0.5, box) for box in boxes]


def text_of(table: object) -> str:
    console = Console(width=200, record=True, file=io.StringIO(), markup=False)
    console.print(table)
    return console.export_text()


def test_overlay_enlarges_small_pictures_and_draws_the_box_where_it_is() -> None:
    image = Image.new("RGB", (74, 74), "black")
    drawn = draw_classes(image, detections((20, 30, 40, 60)), ("0",))
    assert min(drawn.size) >= SMALLEST_SIDE
    scale = drawn.width // 74
    pixels = np.asarray(drawn)
    colour = np.array([int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])
    on_box = (pixels == colour).all(axis=2)
    # The right and lower border carry no text.
    assert on_box[35 * scale : 55 * scale, 40 * scale - 1].all()
    assert on_box[60 * scale - 1, 22 * scale : 38 * scale].all()
    assert not on_box[:, : 20 * scale].any()


def test_tables_show_percent() -> None:
    made = made_up.result("naive <1>", 0.78125, full=False)
    shown = text_of(results_table([made]))
    # 0.78125 is 78.1 percent.
    assert "78.1" in shown
    assert "337,968" in shown
    by_class = text_of(classes_table(made))
    assert "78.1" in by_class
    assert percent(None) == "–"
    assert "–" in by_class


def _where(drawn: Image.Image, colour: str) -> NDArray[np.bool_]:
    of_colour: NDArray[np.bool_] = (np.asarray(drawn) == ImageColor.getrgb(colour)).all(axis=2)
    return of_colour[:CERTIFICATE_SIDE]


def test_certified_is_blue_with_its_region_and_uncertified_dashed() -> None:
    found = [
        Detection("6", 0.9, (10.0, 20, 25, 50), 0.3, (5.0, 15, 30, 55)),
        Detection("7", 0.5, (45.0, 20, 60, 50), 0.0),
    ]
    drawn = draw_certificates(Image.new("RGB", (74, 74)), found)
    blue, orange = _where(drawn, CERTIFIED), _where(drawn, UNCERTIFIED)
    row = slice(30 * SCALE, 40 * SCALE)  # Beside it stands no text.
    assert blue[row, 10 * SCALE].all()
    assert blue[row, 25 * SCALE].all()
    assert blue[row, 5 * SCALE].all()
    assert blue[row, 30 * SCALE].all()
    # Dashes: some of the border, not all of it; and nothing is promised there.
    assert 0.3 < orange[row, 45 * SCALE].mean() < 0.8
    assert not blue[:, 40 * SCALE :].any()
    shaded = np.asarray(drawn)[35 * SCALE, 15 * SCALE]
    # By hand: a fifth of the colour on black.
    assert np.abs(shaded - 0.2 * np.array(ImageColor.getrgb(CERTIFIED))).max() <= 1
    assert drawn.height > CERTIFICATE_SIDE  # The legend.


def test_the_font_has_the_signs_that_pictures_need() -> None:
    # Oracle: a code point that no font has is drawn as the box of missing characters.
    font = text_font(16)
    missing = bytes(font.getmask("\U0010ffff"))
    for sign in "ε≤×":
        assert bytes(font.getmask(sign)) != missing


def test_certified_table_of_classes_has_a_row_each() -> None:
    made = made_up.result("made-up", 0.5, full=True)
    for entry in made["certified"]:
        for one in entry["per_class"].values():
            one |= {"ap50": 0.25, "ap": 0.125, "recall": 0.5, "precision": None}
    text = text_of(certified_classes_table(made))
    assert "ε = 0.1" in text
    assert text.count("25.0 / 12.5 / 50.0 / – / 75.0") == 2 * len(made["clean"]["per_class"])


def test_names_in_brackets_are_no_markup() -> None:
    made = made_up.result("[b]mine[/]", 0.5, full=True)
    made["clean"]["per_class"] = {"[/]": made["clean"]["per_class"]["6"]}
    for table in (results_table([made]), comparison_table([made]), classes_table(made)):
        assert "[b]mine[/]" in text_of(table)
    assert "[/] " in text_of(classes_table(made)).partition("percent")[2]
