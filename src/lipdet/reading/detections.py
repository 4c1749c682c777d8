"""One detection, in words and as plain values: the same wherever it is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipdet.boxes.select import best_rows
from lipdet.certificate.radius import Remaining
from lipdet.types import Canvas, Detections

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One detection.

    Attributes:
        label: class name.
        score: in [0, 1].
        box: x1, y1, x2, y2, in pixels of the picture, or of the network's input in a
            `View`.
        radius: the largest ε (L2, [0, 1] pixel units at the network's input) that it provably
            survives, 0 if nothing is proven; None where that was not asked for.
        reach: rectangle in which the box that remains then lies; None where nothing is proven.
    """

    label: str
    score: float
    box: Box
    radius: float | None = None
    reach: Box | None = None

    def __repr__(self) -> str:
        """Return all that is known, shortly: `Detection('3', score 0.981, box (12.1, ...))`."""
        parts = [repr(self.label), f"score {self.score:.3f}", f"box {_corners(self.box)}"]
        if self.radius is not None:
            parts.append(f"radius {radius_text(self.radius)}")
        if self.reach is not None:
            parts.append(f"reach {_corners(self.reach)}")
        return f"Detection({', '.join(parts)})"


def radius_text(radius: float) -> str:
    """Return a radius with three decimals, or four below 0.001, rounded down: it is a promise."""
    places = 3 if radius >= 1e-3 else 4
    return f"{math.floor(radius * 10**places) / 10**places:.{places}f}"


def _corners(box: Box) -> str:
    return f"({', '.join(f'{value:.1f}' for value in box)})"


def named(
    found: Detections, class_names: Sequence[str], remaining: Remaining | None = None
) -> tuple[Detection, ...]:
    """Return the detections of one image with their class names, and radii if there are any."""
    count = len(found["labels"])
    radii: list[Any] = [None] * count if remaining is None else remaining.radius.tolist()
    reaches = radii if remaining is None else remaining.region.tolist()
    columns = (found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist())
    return tuple(
        Detection(class_names[label], score, tuple(box), radius, tuple(reach) if radius else None)
        for label, score, box, radius, reach in zip(*columns, radii, reaches, strict=True)
    )


def left_to_right(found: Sequence[Detection]) -> list[Detection]:
    """Return detections in reading order."""
    return sorted(found, key=lambda one: one.box[0])


def read_out(found: Sequence[Detection]) -> str:
    """Return the class names, left to right, of each place only that of the best detection."""
    rows = best_rows(
        Detections(
            boxes=torch.tensor([one.box for one in found]).view(-1, 4),
            labels=torch.zeros(len(found), dtype=torch.int64),
            scores=torch.tensor([one.score for one in found], dtype=torch.float64),
        )
    )
    shown = left_to_right([found[row] for row in rows])
    return " ".join(one.label for one in shown) or "nothing"


def with_radius(one: Detection, canvas: Canvas) -> str:
    """Return the class name and the radius of a detection that has one."""
    assert one.radius is not None
    levels = canvas.grey_levels(one.radius)
    return f"{one.label} (ε {radius_text(one.radius)}, {levels:.2g} grey levels)"


def radii_explained(canvas: Canvas) -> str:
    """Return a legend for `with_radius`: the units of ε and grey levels."""
    return f"ε: L2 at {canvas} pixels; grey levels: its root mean square"


def count_certified(found: Sequence[Detection]) -> int:
    """Return how many detections have a place that they surely keep."""
    return sum(one.reach is not None for one in found)


def radii_told(found: Sequence[Detection]) -> str:
    """Return a sentence for each detection that is certified up to some ε, each after a space."""
    return "".join(
        f" {one.label}: certified up to ε = {radius_text(one.radius)}."
        for one in found
        if one.radius
    )


def as_rows(found: Sequence[Detection], **more: str) -> list[dict[str, Any]]:
    """Return box, label and score of each detection for json.

    Args:
        found: detections.
        more: attributes of `Detection` that are added, by the key under which.
    """
    keys = {"box": "box", "label": "label", "score": "score", **more}
    return [{key: getattr(one, name) for key, name in keys.items()} for one in found]


def distance(before: Tensor, after: Tensor) -> dict[str, float]:
    """Return the norms of the change of an image, for json."""
    change = (after - before).double()
    return {"l2": float(change.norm()), "linf": float(change.abs().max())}
