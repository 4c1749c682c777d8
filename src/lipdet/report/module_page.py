"""The page about a detector that lipdet did not build: clean, attacked, and its audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipdet.errors import InputError
from lipdet.lipschitz.audit import Audit
from lipdet.report import detector_sections, sections
from lipdet.report.audit import audit_section
from lipdet.report.consistency import plot_consistency
from lipdet.report.curves import plot_curves
from lipdet.report.markup import Document, Section, paragraph
from lipdet.report.page import page_text
from lipdet.report.scenes import Scene
from lipdet.results import EvaluationResult

NOT_CERTIFIED = (
    "Nothing is certified here. A certificate follows scores and boxes through box decoding and "
    "NMS, and for that it has to know how both are done; it knows lipdet's own detectors only. "
    "What an attack leaves is an upper bound of what is left in the worst case."
)


def write_module_page(
    path: Path,
    result: EvaluationResult,
    scenes: Sequence[Scene],
    audit: tuple[Audit, dict[str, Any]] | str,
) -> None:
    """Write the page.

    Args:
        path: the html file.
        result: in the form of `lipdet eval`.
        scenes: of the first pictures; none where no radius was given.
        audit: of the network with its json, or a sentence that says why there is none.

    Raises:
        InputError: the place cannot be written.
    """
    name = result["weights"]
    facts = {"weights": name, "speed": None, "file": None}
    found = audit if isinstance(audit, str) else audit[0]
    document: Document = {
        "results": [result],
        "detectors": [{**facts, "pictures": [one.as_dict() for one in scenes]}],
        "audit": audit if isinstance(audit, str) else audit[1],
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
    text = page_text(title, sections.answer(document), parts, json.dumps(document))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}).") from None
