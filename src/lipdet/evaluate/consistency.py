"""What becomes of each shown detection under attack: kept, vanished, of another class, or new.

AP compares with the annotation; this compares a detector with itself, as a user sees it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lipdet.boxes.coding import pairwise_iou
from lipdet.results import Consistency
from lipdet.types import Detections

SAME_PLACE_IOU = 0.5


def consistency(
    clean: Sequence[Detections], attacked: Sequence[Detections], score: float
) -> Consistency:
    """Count what becomes of the detections that are shown.

    A detection and one under attack are at the same place if their IoU is at least 0.5; each has
    at most one partner, of its own class if possible, and of those the one that overlaps most.

    Args:
        clean: detections on the clean pictures.
        attacked: those on the attacked pictures, in the same order.
        score: a detection is shown if its score exceeds this.

    Returns:
        `shown` (clean), of which `kept`, `changed` (class) and `vanished`; and `appeared`.
    """
    counts = Consistency(shown=0, kept=0, changed=0, vanished=0, appeared=0)
    for before, after in zip(clean, attacked, strict=True):
        first, second = (one["scores"] > score for one in (before, after))
        overlap = pairwise_iou(before["boxes"][first].float(), after["boxes"][second].float())
        same = before["labels"][first][:, None] == after["labels"][second]
        kept = _pairs(overlap, same)
        changed = _pairs(overlap, ~same)
        shown = len(overlap)
        counts["shown"] += shown
        counts["kept"] += kept
        counts["changed"] += changed
        counts["vanished"] += shown - kept - changed
        counts["appeared"] += int(second.sum()) - kept - changed
    return counts


def _pairs(overlap: Tensor, allowed: Tensor) -> int:
    """Pair rows and columns, best overlap first, and rule the paired ones out in `overlap`."""
    # Two boxes without area, whose overlap is NaN, come first.
    places = (allowed & ~(overlap < SAME_PLACE_IOU)).nonzero()
    best = overlap[tuple(places.T)].argsort(descending=True, stable=True)
    rows, columns = set[int](), set[int]()
    for row, column in places[best].tolist():
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
    overlap[list(rows)] = 0
    overlap[:, list(columns)] = 0
    return len(rows)
