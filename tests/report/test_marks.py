"""What is drawn on a picture says what is certified."""

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
    UNCERTIFIED,
    draw_certificates,
    text_font,
)
from lipdet.report.certificate import certified_classes_table
from tests.report.made_up import result

SCALE = CERTIFICATE_SIDE // 74


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
    made = result("made-up", 0.5, full=True)
    for entry in made["certified"]:
        for one in entry["per_class"].values():
            one |= {"ap50": 0.25, "ap": 0.125, "recall": 0.5, "precision": None}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(certified_classes_table(made))
    text = console.export_text()
    assert "ε = 0.1" in text
    assert text.count("25.0 / 12.5 / 50.0 / –") == 2 * len(made["clean"]["per_class"])
