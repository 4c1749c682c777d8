"""Candidates, per-class NMS and top-k against naive loops in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.ops
from torch import Tensor

from lipdet.boxes import (
    AP_SELECTION,
    DISPLAY_SELECTION,
    NMS_IOU,
    BoxCoding,
    Decoder,
    Selection,
    SigmoidScores,
    SoftmaxScores,
    select_detections,
)
from lipdet.boxes import select as select_module
from lipdet.boxes.select import nms
from lipdet.types import Canvas, Detections, RawOutput

SIZE = 74
SOFTMAX = SoftmaxScores()


def decoder(boxes: Tensor, nms_iou: float = NMS_IOU) -> Decoder:
    return Decoder(boxes, BoxCoding(), SOFTMAX, Canvas(SIZE, SIZE), nms_iou)


def select(
    logits: Tensor, boxes: Tensor, selection: Selection, nms_iou: float = NMS_IOU
) -> Detections:
    """Detections of one image whose default boxes are `boxes` (A, 4) cx, cy, w, h themselves."""
    raw = RawOutput(logits[None], torch.zeros(1, len(boxes), 4))
    [found] = select_detections(raw, decoder(boxes, nms_iou), selection)
    return found


def random_case(seed: int, anchors: int = 120, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(anchors, classes + 1, generator=generator)
    centres = torch.rand(anchors, 2, generator=generator) * SIZE
    sides = 4 + 30 * torch.rand(anchors, 2, generator=generator)
    return logits, torch.cat([centres, sides], dim=1)


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def log_odds(row: list[float], index: int) -> float:
    """ln p / (1 - p) of one class under a softmax, in float64."""
    rivals = [value for other, value in enumerate(row) if other != index]
    return row[index] - math.log(sum(math.exp(value) for value in rivals))


def naive_selection(
    logits: Tensor, boxes: Tensor, selection: Selection, nms_iou: float
) -> list[tuple[int, float, list[float]]]:
    """(label, log-odds, box), best first: greedy NMS of each class by definition."""
    found = []
    clipped = [
        [
            min(max(value, 0.0), float(SIZE))
            for value in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        ]
        for x, y, w, h in boxes.tolist()
    ]
    for label in range(logits.shape[1] - 1):
        ranked = sorted(
            ((log_odds(row, label + 1), anchor) for anchor, row in enumerate(logits.tolist())),
            reverse=True,
        )
        kept: list[tuple[int, float, list[float]]] = []
        for odds, anchor in ranked:
            above = 1 / (1 + math.exp(-odds)) > selection.score_floor
            if above and all(iou(box, clipped[anchor]) <= nms_iou for *_, box in kept):
                kept.append((label, odds, clipped[anchor]))
        found += kept
    return sorted(found, key=lambda entry: -entry[1])[: selection.top_k]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("selection", "nms_iou"),
    [
        (AP_SELECTION, 0.3),
        (DISPLAY_SELECTION, 0.3),
        (Selection(0.01, 1000), 0.5),
        (Selection(0.3, 5), 0.1),
    ],
)
def test_selection_equals_a_naive_one(seed: int, selection: Selection, nms_iou: float) -> None:
    logits, boxes = random_case(seed)
    found = select(logits, boxes, selection, nms_iou)
    # Oracle: greedy NMS per class in plain Python.
    expected = naive_selection(logits, boxes, selection, nms_iou)
    assert found["labels"].tolist() == [label for label, *_ in expected]
    scores = torch.tensor([odds for _, odds, _ in expected]).double().sigmoid()
    torch.testing.assert_close(found["scores"], scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["boxes"], torch.tensor([box for *_, box in expected]))


def test_ranking_does_not_saturate() -> None:
    """Log-odds of 18, 30 and 24 are all 1.0 in float32, but their order is known."""
    logits = torch.tensor([[0.0, 18], [0, 30], [0, 24]])
    # The trap is real: a float32 softmax ties.
    assert (logits.softmax(dim=1)[:, 1] == 1).all()
    apart = torch.tensor([[10.0, 10, 8, 8], [37, 37, 8, 8], [60, 60, 8, 8]])
    found = select(logits, apart, AP_SELECTION)
    assert found["boxes"][:, 0].tolist() == [33, 56, 6]
    assert found["scores"].diff().lt(0).all()
    # Where they overlap, the one of 30 suppresses the others, wherever it stands.
    together = apart[1].expand(3, 4) + torch.tensor([[0.0], [1], [2]]) * torch.tensor(
        [1.0, 0, 0, 0]
    )
    found = select(logits, together, AP_SELECTION)
    assert found["boxes"].tolist() == [[34, 33, 42, 41]]


def test_no_candidates() -> None:
    logits = torch.tensor([[10.0, 0, 0]]).repeat(7, 1)
    found = select(logits, torch.tensor([[37.0, 37, 20, 20]] * 7), AP_SELECTION)
    assert {name: (tuple(value.shape), value.dtype) for name, value in found.items()} == {
        "boxes": ((0, 4), torch.float32),
        "labels": ((0,), torch.int64),
        "scores": ((0,), torch.float64),
    }


def test_softmax_log_odds_stay_apart_and_have_gradients_where_they_saturate() -> None:
    logits = torch.tensor([[0.0, 18, -5], [0, 30, -5], [4, 4, 4]], requires_grad=True)
    found = SOFTMAX.log_odds(logits)
    # Oracle: the definition in float64.
    expected = [[log_odds(row, label) for label in (1, 2)] for row in logits.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    found[:, 0].sum().backward()
    assert logits.grad is not None
    # z_c minus a log-sum-exp of the others: the class's own derivative is 1 wherever it stands.
    assert logits.grad[:, 1].tolist() == [1, 1, 1]
    torch.testing.assert_close(logits.grad.sum(dim=1), torch.zeros(3), rtol=0, atol=1e-6)


def test_one_vs_all_scores_are_sigmoids_at_a_temperature() -> None:
    scores = SigmoidScores(temperature=10.0)
    candidates = scores.candidates(torch.tensor([[0.1, -0.1], [0.3, 0.0]]), 0.5)
    # By hand: only positive logits exceed a probability of one half.
    assert candidates.anchors.tolist() == [0, 1]
    assert candidates.labels.tolist() == [0, 0]
    torch.testing.assert_close(candidates.log_odds, torch.tensor([1.0, 3.0]))


def test_a_box_votes_for_classes_near_its_best_one() -> None:
    scores = SigmoidScores(temperature=2.0, class_margin=0.5)
    candidates = scores.candidates(torch.tensor([[1.0, 0.5, 0.4], [-3.0, -2.75, -4.0]]), 0.001)
    # By hand: 1.0 and 0.5 differ by the margin exactly; 0.4 is left out however high its score.
    assert candidates.anchors.tolist() == [0, 0, 1, 1]
    assert candidates.labels.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(candidates.log_odds, torch.tensor([2.0, 1.0, -6.0, -5.5]))


def test_boxes_are_clipped_to_the_image_before_nms() -> None:
    # Two boxes that differ outside the image only are one box inside: the better one remains.
    logits = torch.tensor([[0.0, 3], [0, 2]])
    boxes = torch.tensor([[70.0, 70, 20, 20], [80, 80, 40, 40]])
    found = select(logits, boxes, AP_SELECTION)
    assert found["boxes"].tolist() == [[60, 60, 74, 74]]


def test_each_image_of_a_batch_is_selected_by_itself() -> None:
    cases = [random_case(seed) for seed in (1, 2)]
    boxes = cases[0][1]
    raw = RawOutput(torch.stack([logits for logits, _ in cases]), torch.zeros(2, len(boxes), 4))
    together = select_detections(raw, decoder(boxes), AP_SELECTION)
    for (logits, _), found in zip(cases, together, strict=True):
        alone = select(logits, boxes, AP_SELECTION)
        assert all(torch.equal(found[name], alone[name]) for name in ("boxes", "labels", "scores"))


@pytest.mark.parametrize("seed", range(20))
def test_nms_is_torchvisions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ties, copies of boxes, boxes without area, and more boxes than one block."""
    monkeypatch.setattr(select_module, "BLOCK", 64)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 40, (200, 2), generator=generator)
    boxes = torch.cat([start, start + torch.randint(0, 30, (200, 2), generator=generator)], 1)
    boxes = boxes.float() + (torch.rand(200, 4, generator=generator) if seed % 2 else 0.0)
    scores = torch.randint(0, 30, (200,), generator=generator).float()
    labels = torch.randint(0, 3, (200,), generator=generator)
    for iou in (0.0, 0.2, 0.5, 1.0):
        expected = []
        for label in range(3):
            own = torch.nonzero(labels == label).squeeze(1)
            expected += own[torchvision.ops.nms(boxes[own], scores[own], iou)].tolist()
        expected.sort(key=lambda index: -scores[index])
        assert nms(boxes, scores, labels, iou, 200).tolist() == expected, iou
        assert nms(boxes, scores, labels, iou, 7).tolist() == expected[:7], iou


def test_nms_of_no_box_keeps_none() -> None:
    nothing = torch.zeros(0)
    assert nms(torch.zeros(0, 4), nothing, nothing.long(), 0.5, 9).tolist() == []
