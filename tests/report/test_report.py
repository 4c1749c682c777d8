"""Overlays and tables show what the results say."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from lipdet.reading import Detection
from lipdet.reading.marks import COLOURS, SMALLEST_SIDE, draw_classes
from lipdet.report.table import classes_table, percent, results_table


def detections(*boxes: tuple[float, float, float, float]) -> list[Detection]:
    return [Detection("0", 0.5, box) for box in boxes]


def result(ap50: float = 0.78125) -> dict[str, Any]:
    return {
        "weights": "naive <1>",
        "parameters": 337968,
        "data": {"name": "rendered", "hash": "x", "images": 1234, "objects": 5678, "skipped": 0},
        "clean": {
            "ap50": ap50,
            "ap": 0.25,
            "per_class": {"7": {"ap50": 1.0, "ap": 0.5}, "8": {"ap50": None, "ap": None}},
        },
    }


def text_of(table: object) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
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
    shown = text_of(results_table([result()]))
    # 0.78125 is 78.1 percent.
    assert "78.1" in shown
    assert "1,234" in shown
    by_class = text_of(classes_table(result()))
    assert "100.0" in by_class
    assert percent(None) == "–"
    assert "–" in by_class
