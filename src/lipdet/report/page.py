"""Self-contained pages about detectors; they open from disk and need no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lipdet.attack.foreign import ForeignDetector
from lipdet.files import write_complete
from lipdet.report import sections
from lipdet.report.architecture import draw_architecture, draw_presets
from lipdet.report.audit import audit_foreign, audit_json, audit_section
from lipdet.report.figures import plot_consistency, plot_curves, plot_frontier, plot_reasons
from lipdet.report.inspection import Inspection
from lipdet.report.lipschitz import plot_profiles
from lipdet.report.markup import Document, Section, paragraph
from lipdet.report.scenes import Scene, plot_scenes
from lipdet.report.style import Drawing, save_drawing
from lipdet.results import EvaluationResult

NOT_CERTIFIED = (
    "Nothing is certified here. A certificate follows scores and boxes through box decoding and "
    "NMS, and for that it has to know how both are done; it knows lipdet's own detectors only. "
    "What an attack leaves is an upper bound of what is left in the worst case."
)
STYLE = Path(__file__).with_name("page.css")


def draw_all(
    results: Sequence[EvaluationResult], inspections: Sequence[Inspection]
) -> dict[str, Drawing]:
    """Return all figures by name, without those for which nothing was measured."""
    drawn = [
        plot_curves(results),
        plot_frontier(results),
        plot_consistency(results),
        *(_numbered(plot_reasons(result), place) for place, result in enumerate(results, 1)),
        plot_profiles({one.loaded.name: one.layers for one in inspections}),
        *(
            draw_architecture(one.loaded.name, one.architecture, place)
            for place, one in enumerate(inspections, 1)
        ),
        *draw_presets({one.loaded.detector.config for one in inspections}),
    ]
    return {drawing.name: drawing for drawing in drawn if drawing}


def write_page(
    path: Path,
    results: Sequence[EvaluationResult],
    inspections: Sequence[Inspection],
    title: str,
    note: str = "",
) -> None:
    """Write the page.

    Args:
        path: the html file.
        results: json objects of `lipdet eval`, one per detector, on the same data.
        inspections: of the same detectors, in the same order.
        title: heading of the page.
        note: a paragraph below what was found.

    Raises:
        InputError: the place cannot be written.
    """
    document: Document = {
        "results": list(results),
        "detectors": [one.as_dict() for one in inspections],
    }
    drawings = draw_all(results, inspections)
    parts = [
        sections.headline(document),
        sections.curves(drawings),
        sections.gallery(document, [one.scenes for one in inspections]),
        sections.consistency(document, drawings),
        sections.failures(document, drawings),
        sections.readings(document),
        sections.lipschitz(document, drawings),
        sections.architectures(drawings),
        sections.classes(document),
        sections.provenance(document),
    ]
    answer = sections.answer(document) + (paragraph(note) if note else "")
    write_html(path, title, answer, parts, document)


def write_module_page(
    path: Path, detector: ForeignDetector, result: EvaluationResult, scenes: Sequence[Scene]
) -> None:
    """Write the page about a detector that lipdet did not build: clean, attacked, its audit.

    Args:
        path: the html file.
        detector: it is audited here.
        result: json object of `lipdet eval`.
        scenes: of the first pictures; none where no radius was given.

    Raises:
        InputError: the place cannot be written.
    """
    name, canvas, found = detector.name, detector.framing.canvas, audit_foreign(detector)
    facts = {"weights": name, "speed": None, "file": None}
    document: Document = {
        "results": [result],
        "detectors": [{**facts, "pictures": [one.as_dict() for one in scenes]}],
        "audit": found if isinstance(found, str) else audit_json(name, canvas, found),
    }
    drawn = (plot_curves([result]), plot_consistency([result]))
    drawings = {drawing.name: drawing for drawing in drawn if drawing}
    parts = [
        sections.headline(document),
        sections.curves(drawings),
        sections.gallery(document, [scenes]),
        sections.consistency(document, drawings),
        Section("certificates", "Certificates", paragraph(NOT_CERTIFIED)),
        audit_section(document, found),
        sections.classes(document),
        sections.provenance(document),
    ]
    title = f"{name} on {result['data']['name']}"
    write_html(path, title, sections.answer(document), parts, document)


def write_figures(
    folder: Path, results: Sequence[EvaluationResult], inspections: Sequence[Inspection]
) -> list[Path]:
    """Write all figures as SVG and PNG into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = list(draw_all(results, inspections).values())
    drawings += [
        plot_scenes(one.scenes, f"pictures-{index + 1}")
        for index, one in enumerate(inspections)
        if one.scenes
    ]
    return [file for drawing in drawings for file in save_drawing(drawing, folder)]


def _numbered(drawing: Drawing | None, place: int) -> Drawing | None:
    return drawing and drawing._replace(name=f"{drawing.name}-{place}")


def write_html(
    path: Path, title: str, answer: str, parts: Sequence[Section], document: Any
) -> None:
    """Write the html of a page with its json.

    Raises:
        InputError: the place cannot be written.
    """
    links = "".join(f'<a href="#{part.name}">{escape(part.heading)}</a>' for part in parts)
    body = "".join(
        f'<section id="{part.name}"><h2>{escape(part.heading)}</h2>{part.body}</section>'
        for part in parts
    )
    # Inside a script nothing is markup but its end.
    data = json.dumps(document).replace("<", "\\u003c")
    style = STYLE.read_text(encoding="utf-8")
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body><main>'
        f"<h1>{escape(title)}</h1>{answer}<nav>{links}</nav>{body}</main>"
        f'<script type="application/json" id="data">{data}</script></body></html>\n'
    )
    write_complete(path, text)
