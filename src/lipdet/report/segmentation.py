"""The page about segmenters: the results of `lipdet eval`, with pictures.

What is certified of rare classes comes first: their IoU, and what of them can be missed. Beside it
stands one answer for all pixels, which every certificate keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from PIL import Image

from lipdet.reading.marks import COLOURS
from lipdet.reading.pixels import (
    COLOUR_MAP,
    FLIPPED,
    RADII,
    TICKS,
    draw_classes,
    enlarged,
)
from lipdet.report import sections
from lipdet.report.inspection import SegmenterInspection
from lipdet.report.lipschitz import (
    plot_profiles,
    segmenter_sentence,
)
from lipdet.report.markup import Cell, Drawings, Section, figures, number, paragraph, table, tile
from lipdet.report.page import write_html
from lipdet.report.scenes import pixel_tiles
from lipdet.report.style import Drawing, new_figure, styled
from lipdet.report.table import percent
from lipdet.results import SegmentationResult
from lipdet.types import IGNORED, Canvas


def write_segmentation_page(
    path: Path,
    results: Sequence[SegmentationResult],
    inspections: Sequence[SegmenterInspection],
    title: str,
) -> None:
    """Write the page about segmenters, in the form of those about detectors.

    Args:
        path: the html file.
        results: json objects of `lipdet eval`, one per segmenter, on the same data.
        inspections: of the same segmenters, in the same order.
        title: heading of the page.

    Raises:
        InputError: the place cannot be written.
    """
    document = {"results": list(results), "detectors": [one.as_dict() for one in inspections]}
    profiles = plot_profiles({one.loaded.name: one.layers for one in inspections})
    drawings = {"radii": _colour_bar(), **({"lipschitz": profiles} if profiles else {})}
    constants = sections.lipschitz(document, drawings)
    told = "".join(
        paragraph(f"{one.loaded.name}. {segmenter_sentence(one.lipschitz)}")
        for one in inspections
        if not isinstance(one.lipschitz, str)
    )
    parts = [
        _headline(document, results),
        _promises(document, results),
        _gallery(results, inspections, drawings),
        constants._replace(body=told + constants.body),
        sections.provenance(document),
    ]
    write_html(path, title, _answer(results), parts, document)


def _answer(results: Sequence[SegmentationResult]) -> str:
    """Say first what a reader wants to know: one sentence for each radius, the largest first."""
    lines = [
        _finding(results, at)
        for at in reversed(range(max(len(one["attacked"]) for one in results)))
    ]
    if not lines:
        clean = (f"{one['weights']} {percent(_iou(one, one['clean']))}" for one in results)
        lines = [f"No perturbation was looked at. {_measure(results[0])}: {'; '.join(clean)}."]
    described = {
        f"{one['data']['images']:,} pictures of {one['data']['name']}, "
        f"{Canvas(*one['data']['canvas'])} pixels": None
        for one in results
    }
    unit = "Shares in percent, over the labelled pixels of all pictures together."
    attacks = [(", ".join(one["objectives"]), one) for of in results for one in of["attacked"]]
    return sections.answered(lines, f"{'; '.join(described)}.", unit, attacks)


def _finding(results: Sequence[SegmentationResult], at: int) -> str:
    """Say what an attack of one size leaves of each segmenter, and what is proven."""
    clauses = []
    for result in results:
        clean, attack = (_iou(result, one) for one in (result["clean"], result["attacked"][at]))
        proven = "nothing"
        if result["certified"]:
            proven = percent(_iou(result, result["certified"][at]))
        clauses.append(
            f"{result['weights']} keeps {percent(attack)} of {percent(clean)}, of which {proven} "
            "is proven"
        )
    first = results[0]
    answer = percent(_iou(first, first["constant"]))
    return (
        f"{_measure(first)} under attack of ε = {first['attacked'][at]['epsilon']:g}: "
        f"{'; '.join(clauses)}. One answer for all pixels, {_constant(first)}, has {answer}."
    )


def _headline(document: Any, results: Sequence[SegmentationResult]) -> Section:
    """Return for each segmenter what is certified, attacked, clean, and what one answer has."""
    body = ""
    for i, result in enumerate(results):
        columns = [
            (f"{kind}, ε\u00a0{entry['epsilon']:g}", f"results/{i}/{kind}/{at}")
            for kind in ("certified", "attacked")
            for at, entry in enumerate(result[kind])
        ]
        columns.append(("clean", f"results/{i}/clean"))
        columns.append((f"{_constant(result)} everywhere", f"results/{i}/constant"))
        rows: list[list[Cell | str]] = []
        for name in _rare_first(result):
            places = [(f"{path}/per_class/{sections.key(name)}") for _, path in columns]
            rows.append([f"IoU of {name}", *(number(document, f"{one}/iou") for one in places)])
            rows.append([f"{name} missed", *(_missed(document, one) for one in places)])
        for key, words in (("miou", "mean IoU"), ("accuracy", "accuracy")):
            rows.append([words, *(number(document, f"{path}/{key}") for _, path in columns)])
        caption = (
            f"{result['weights']}, percent of pixels. Certified: at least; of what is missed, at "
            "most"
        )
        body += table(caption, ["", *(words for words, _ in columns)], rows)
    note = (
        "A certificate is cheap where most pixels are of one class: that class everywhere is "
        "certified at every ε. So rare classes come first, and the last column is what a "
        "certificate is worth something beyond."
    )
    heading = "Certified, attacked, clean"
    return Section("figures", heading, paragraph(note) + body)


def _missed(document: Any, path: str) -> Cell:
    """Return the share of a class that is not found as it, which only certificates state as such.

    Elsewhere it is what the recall lacks to 1.
    """
    if "/certified/" in path:
        return number(document, f"{path}/false_negatives")
    return number(document, f"{path}/recall", lambda one: percent(None if one is None else 1 - one))


def _promises(document: Any, results: Sequence[SegmentationResult]) -> Section:
    """Return what each of the two promises alone certifies, and how many pixels flip."""
    rows: list[list[Cell | str]] = []
    for i, result in enumerate(results):
        for at, entry in enumerate(result["attacked"]):
            proof, attack = (f"results/{i}/{kind}/{at}" for kind in ("certified", "attacked"))
            rows.append(
                [
                    f"{result['weights']}, ε\u00a0{entry['epsilon']:g}",
                    *(number(document, f"{proof}/{key}") for key in ("single", "joint")),
                    *(
                        number(document, f"{path}/flipped", "{:,.1f}".format)
                        for path in (proof, attack)
                    ),
                    number(document, f"{attack}/grey_levels", "{:.2g}".format),
                ]
            )
    heading = "How many pixels can flip"
    if not rows:
        return Section("flips", heading, paragraph("Nothing was attacked; give --epsilon."))
    head = [
        "",
        "accuracy by radii alone",
        "accuracy by the budget alone",
        "flipped at most",
        "flipped by the attack",
        "grey levels",
    ]
    caption = "Certified accuracy in percent by one promise; flipped: mean pixels of a picture"
    return Section("flips", heading, table(caption, head, rows))


def _gallery(
    results: Sequence[SegmentationResult],
    inspections: Sequence[SegmenterInspection],
    drawings: Drawings,
) -> Section:
    """Return the same pictures, their masks, and what each segmenter sees, clean and attacked."""
    if not any(one.scenes for one in inspections):
        return sections.same_pictures("", [])
    _, *names = results[0]["clean"]["per_class"]
    keys = [(name, COLOURS[at % len(COLOURS)]) for at, name in enumerate(names)]
    keys.append(("flipped by the attack", FLIPPED))
    text = (
        f"Attacked at ε = {inspections[0].scenes[0].epsilon:g}, each segmenter with its own "
        "gradients. The radius of a pixel is how large a change must be before that pixel can get "
        "another class."
    )
    spans = (f'<span style="--key:{colour}">{escape(name)}</span>' for name, colour in keys)
    intro = paragraph(text) + f'<p class="keys">{"".join(spans)}</p>'
    if any(scene.radius is not None for one in inspections for scene in one.scenes):
        intro += figures(drawings, "radii")
    rows = []
    for same_picture in zip(*(one.scenes for one in inspections), strict=True):
        first = same_picture[0]
        which = f"Picture {first.picture + 1}"
        known = np.where(first.mask == IGNORED, 0, first.mask).astype(np.int64)
        original = Image.fromarray(first.clean)
        tiles = [
            tile(enlarged(original), f"{which} as it is.", "", "the picture"),
            tile(enlarged(draw_classes(original, known)), f"{which}: its mask.", "", "the mask"),
        ]
        for inspection, scene in zip(inspections, same_picture, strict=True):
            tiles += pixel_tiles(inspection.loaded.name, which, scene)
        rows.append((which, tiles))
    return sections.same_pictures(intro, rows)


@styled
def _colour_bar() -> Drawing:
    """Draw which colour is which radius."""
    figure, axes = new_figure(height=0.55)
    scale = ScalarMappable(LogNorm(*RADII), COLOUR_MAP)
    figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=TICKS)
    low, *inner, high = (f"{tick:g}" for tick in TICKS)
    axes.set_xticks(TICKS, [f"≤ {low}", *inner, f"≥ {high}"])
    axes.minorticks_off()
    return Drawing(
        "radii",
        figure,
        "The radius of a pixel, an L2 length.",
        f"From dark, {low} and less, to light, {high} and more, on a logarithmic scale.",
    )


def _rare_first(result: SegmentationResult) -> list[str]:
    entries = result["clean"]["per_class"]
    return sorted(entries, key=lambda name: entries[name]["pixels"])


def _constant(result: SegmentationResult) -> str:
    """Return the class that is the one answer for all pixels."""
    return _rare_first(result)[-1]


def _measure(result: SegmentationResult) -> str:
    """Return of what the first sentences speak: of the rarer of two classes, or of all."""
    names = _rare_first(result)
    return f"IoU of {names[0]}" if len(names) == 2 else "Mean IoU"


def _iou(result: SegmentationResult, entry: Any) -> float | None:
    """Return that of an entry of a result; None where there is none."""
    names = _rare_first(result)
    found = entry["per_class"][names[0]]["iou"] if len(names) == 2 else entry["miou"]
    return None if found is None else float(found)
