"""An audit of a Lipschitz bound as a sentence, a table, json, and a part of the page."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from rich.table import Table
from torch import nn

from lipdet.attack.foreign import ForeignDetector
from lipdet.certificate.constants.outputs import propagate_detector
from lipdet.detector import SSD
from lipdet.errors import UnknownLipschitz
from lipdet.lipschitz.audit import Audit, Finding, audit
from lipdet.lipschitz.propagation import propagate
from lipdet.lipschitz.torchvision_heads import PixelsToHeads, is_torchvision
from lipdet.report.markup import Cell, Document, Section, number, paragraph, table
from lipdet.report.table import constant, new_table
from lipdet.types import Canvas
from lipdet.versions import versions

COLUMNS = ("layer", "kind", "what enlarges the bound", "factor", "instead")
NO_BOUND = "no bound"


def audit_module(module: nn.Module, canvas: Canvas) -> Audit:
    """Audit a module for RGB pictures of one size, from the pixels.

    Of torchvision's detectors up to the maps of the heads; of a module with an attribute `network`,
    that part.

    Raises:
        UnknownLipschitz: it cannot be seen as a graph.
        InputError: it does not accept this size.
    """
    shape = (3, *canvas)
    if isinstance(module, SSD):
        return audit(propagate_detector(module, shape, past_obstacles=True))
    if is_torchvision(module):
        module = PixelsToHeads(module, shape)
    elif isinstance(network := getattr(module, "network", None), nn.Module):
        module = network
    return audit(propagate(module, shape, past_obstacles=True))


def audit_foreign(detector: ForeignDetector) -> Audit | str:
    """Audit a detector that lipdet did not build, or say in a sentence why it cannot be done.

    It must be known which part of it maps pixels to raw output.
    """
    module = detector.module
    if not is_torchvision(module) and not isinstance(getattr(module, "network", None), nn.Module):
        return (
            f"{detector.name} has no attribute `network`, the part from pixels to raw output, "
            "and so was not audited."
        )
    try:
        return audit_module(module, detector.framing.canvas)
    except UnknownLipschitz as error:
        return str(error)


def audit_sentence(name: str, found: Audit) -> str:
    """Return what the audit found, in one sentence."""
    factors = [one for one in found.findings if one.factor is not None]
    missing = len(found.findings) - len(factors)
    if found.bound is None:
        return (
            f"{name} has no Lipschitz bound and so no certificates: {missing} of its operations "
            "have none. The factors are those of the rest of its worst path."
        )
    if not factors:
        return f"{name}: bound {found.bound:.4g}, which no layer enlarges."
    return (
        f"{name}: bound {found.bound:.4g}, the product of the factors below and "
        f"{found.shrinking:.4g} of layers that shrink."
    )


def audit_table(found: Audit) -> Table:
    """Return the findings for the terminal; operations without a bound are grouped by reason."""
    title = "What makes the Lipschitz bound large, from the image in [0, 1], L2"
    result = new_table(title, COLUMNS, set(COLUMNS) - {"factor"})
    for one in grouped(found.findings):
        factor = NO_BOUND if one.factor is None else constant(one.factor)
        result.add_row(one.name, one.kind, one.cause, factor, one.instead)
    return result


def audit_json(name: str, canvas: Canvas, found: Audit) -> dict[str, Any]:
    """Return what `lipdet lipschitz --audit --json` writes; docs/json.md describes it."""
    return {
        "module": name,
        "input_shape": [3, *canvas],
        "bound": found.bound,
        "shrinking": found.shrinking,
        "findings": [asdict(one) for one in found.findings],
        "versions": versions(),
    }


def audit_section(document: Document, audit: Audit | str) -> Section:
    """Return the findings on a page, whose json has them under `audit`."""
    heading = "What makes the Lipschitz bound large"
    if isinstance(audit, str):
        return Section("audit", heading, paragraph(audit))
    rows: list[list[Cell | str]] = []
    for one in grouped(audit.findings):
        cell: Cell | str = NO_BOUND
        if one.factor is not None:
            path = f"audit/findings/{audit.findings.index(one)}/factor"
            cell = number(document, path, constant)
        rows.append([one.name or one.kind, one.kind, one.cause, cell, one.instead])
    text = paragraph(audit_sentence(document["audit"]["module"], audit))
    return Section("audit", heading, text + table("By falling factor", COLUMNS, rows))


def grouped(findings: tuple[Finding, ...]) -> list[Finding]:
    """Return the findings, with those that lack a bound for the same reason as one."""
    result: dict[object, list[Finding]] = {}
    for place, one in enumerate(findings):
        key = (one.kind, one.cause) if one.factor is None else place
        result.setdefault(key, []).append(one)
    return [
        first if not others else replace(first, name=f"{first.name} and {len(others)} more")
        for first, *others in result.values()
    ]
