"""The parts of a page about the detectors themselves, and how they were measured."""

from __future__ import annotations

import json
from html import escape

from lipdet.report.architecture import PREFIX
from lipdet.report.markup import (
    Cell,
    Document,
    Drawings,
    Section,
    constant,
    details,
    figure,
    figures,
    number,
    paragraph,
    table,
)


def lipschitz(document: Document, drawings: Drawings) -> Section:
    """Constants, layer by layer."""
    body = figures(drawings, "lipschitz")
    for i, detector in enumerate(document["detectors"]):
        if isinstance(detector["lipschitz"], str):
            body += paragraph(f"{detector['weights']}: no bound. {detector['lipschitz']}")
            continue
        rows: list[list[Cell | str]] = [
            [
                layer["name"],
                layer["kind"],
                *(
                    number(document, f"detectors/{i}/lipschitz/layers/{j}/{key}", _constant_or_dash)
                    for key in ("constant", "cumulative", "observed")
                ),
            ]
            for j, layer in enumerate(detector["lipschitz"]["layers"])
        ]
        head = ["layer", "kind", "bound alone", "bound so far", "observed ≥"]
        body += details(
            f"Layers of {detector['weights']}", table("From the image in [0, 1], L2", head, rows)
        )
    return Section("lipschitz", "Lipschitz constants, layer by layer", body)


def architectures(document: Document, drawings: Drawings) -> Section:
    """What the detectors are made of, and folded away, the presets that are not among them."""
    shown, presets = (
        "".join(
            f'<div class="wide">{figure(drawing)}</div>'
            for name, drawing in drawings.items()
            if name.startswith(prefix)
        )
        for prefix in ("architecture-", PREFIX)
    )
    body = shown + (presets and details("The other presets of lipdet", presets))
    return Section("architecture", "Architecture", body)


def provenance(document: Document, drawings: Drawings) -> Section:
    """Return all that is needed to repeat this."""
    body = ""
    for result, detector in zip(document["results"], document["detectors"], strict=True):
        speed = detector["speed"]
        facts = {
            "data": result["data"],
            "seed": result["seed"],
            "seconds": result.get("seconds"),
            "attacks": [
                {key: value for key, value in entry.items() if not isinstance(value, dict)}
                for entry in result["attacked"]
            ],
            "versions": result["versions"],
            "speed": speed,
            "file": detector["file"],
        }
        text = escape(json.dumps(facts, indent=1, ensure_ascii=False))
        body += details(f"{result['weights']}", f"<pre>{text}</pre>")
    note = paragraph(
        "Data with hash, seeds, settings of attacks, versions, and what each weights file says "
        "about its training. The json of this page is part of its source."
    )
    return Section("provenance", "How this was measured", note + body)


def _constant_or_dash(value: float | None) -> str:
    return "–" if value is None else constant(value)
