"""The page about a detector that lipdet did not build: clean, attacked, and its audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipdet.attack.torchvision_models import ForeignDetector
from lipdet.report import detector_sections, sections
from lipdet.report.audit import audit_foreign, audit_json, audit_section
from lipdet.report.consistency import plot_consistency
from lipdet.report.curves import plot_curves
from lipdet.report.markup import Document, Section, paragraph
from lipdet.report.page import save_page
from lipdet.report.scenes import Scene
from lipdet.results import EvaluationResult

NOT_CERTIFIED = (
    "Nothing is certified here. A certificate follows scores and boxes through box decoding and "
    "NMS, and for that it has to know how both are done; it knows lipdet's own detectors only. "
    "What an attack leaves is an upper bound of what is left in the worst case."
)


def write_module_page(
    path: Path, detector: ForeignDetector, result: EvaluationResult, scenes: Sequence[Scene]
) -> None:
    """Write the page.

    Args:
        path: the html file.
        detector: it is audited here.
        result: json object of `lipdet eval`.
        scenes: of the first pictures; none where no radius was given.

    Raises:
        InputError: the place cannot be written.
    """
    name, size, found = detector.name, detector.image_size, audit_foreign(detector)
    facts = {"weights": name, "speed": None, "file": None}
    document: Document = {
        "results": [result],
        "detectors": [{**facts, "pictures": [one.as_dict() for one in scenes]}],
        "audit": found if isinstance(found, str) else audit_json(name, size, found),
    }
    drawn = (plot_curves([result]), plot_consistency([result]))
    drawings = {drawing.name: drawing for drawing in drawn if drawing}
    parts = [
        sections.headline(document, drawings),
        sections.curves(document, drawings),
        sections.gallery(document, [scenes]),
        sections.consistency(document, drawings),
        Section("certificates", "Certificates", paragraph(NOT_CERTIFIED)),
        audit_section(document, found),
        sections.classes(document, drawings),
        detector_sections.provenance(document, drawings),
    ]
    title = f"{name} on {result['data']['name']}"
    save_page(path, title, sections.answer(document), parts, document)
