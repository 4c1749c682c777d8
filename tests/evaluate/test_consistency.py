"""What becomes of detections under attack: cases whose answer is counted by hand."""

from __future__ import annotations

import time

import pytest
import torch

from lipdet.evaluate.consistency import consistency
from lipdet.types import Detections

Row = tuple[float, int, float]


def detections(*rows: Row) -> Detections:
    """Boxes of 10×10 pixels with their left edge, label and score given."""
    return Detections(
        boxes=torch.tensor([[left, 0, left + 10, 10] for left, _, _ in rows]).reshape(-1, 4),
        labels=torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        scores=torch.tensor([score for _, _, score in rows], dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # Nothing on either side.
        ([], [], (0, 0, 0, 0, 0)),
        # Moved by one of ten pixels: IoU 9/11, the same detection.
        ([(0, 3, 0.9)], [(1, 3, 0.5)], (1, 1, 0, 0, 0)),
        # Moved by four of ten pixels: IoU 6/14 < 0.5, so it is gone and another is there.
        ([(0, 3, 0.9)], [(4, 3, 0.9)], (1, 0, 0, 1, 1)),
        # At the same place with another class.
        ([(0, 3, 0.9)], [(0, 5, 0.9)], (1, 0, 1, 0, 0)),
        # Its own class comes first, whatever overlaps more; the other one is new.
        ([(0, 3, 0.9)], [(0, 5, 0.9), (1, 3, 0.4)], (1, 1, 0, 0, 1)),
        # Two before, one after: one of them has no partner left.
        ([(0, 3, 0.9), (1, 3, 0.8)], [(0, 3, 0.9)], (2, 1, 0, 1, 0)),
        # Not shown, before or after: a score of 0.2 does not exceed 0.2.
        ([(0, 3, 0.2)], [], (0, 0, 0, 0, 0)),
        ([(0, 3, 0.9)], [(0, 3, 0.2)], (1, 0, 0, 1, 0)),
    ],
)
def test_counts(before: list[Row], after: list[Row], expected: tuple[int, ...]) -> None:
    found = consistency([detections(*before)], [detections(*after)], 0.2)
    assert tuple(found.values()) == expected
    assert list(found) == ["shown", "kept", "changed", "vanished", "appeared"]


def test_thousands_of_boxes_take_no_longer_than_their_pairs() -> None:
    """A search among all pairs for each box would take a minute."""
    many = detections(*((20.0 * place, 0, 0.9) for place in range(3000)))
    started = time.process_time()
    assert consistency([many], [many], 0.2)["kept"] == 3000
    assert time.process_time() - started < 10
