"""Where lists are cut off, empty or undefined: no certificate may come out of that."""

from __future__ import annotations

import math

import pytest
import torch

from lipdet.boxes import (
    BoxCoding,
    Decoder,
    Scores,
    Selection,
    SigmoidScores,
    SoftmaxScores,
    select_detections,
)
from lipdet.certificate.conditions.certify import certified_up_to
from lipdet.certificate.conditions.ground_truth import ground_truth_of
from lipdet.certificate.constants.outputs import OutputBounds
from lipdet.certificate.constants.rounding import MEASURED
from lipdet.certificate.verifier import Verifier
from lipdet.evaluate.certified import certify_batch, join, summary
from lipdet.types import Canvas, RawOutput, Target


def verifier(boxes: list[list[float]], scores: Scores, top_k: int, logits: int = 2) -> Verifier:
    count = len(boxes)
    bounds = OutputBounds(
        (1.0,),
        (slice(0, count),),
        torch.full((count, logits), 0.1, dtype=torch.float64),
        torch.zeros(count, 4, dtype=torch.float64),
        torch.zeros(count, dtype=torch.float64),
        1.0,
    )
    decoder = Decoder(torch.tensor(boxes), BoxCoding(), scores, Canvas(400, 400))
    return Verifier(bounds, decoder, Selection(0.01, top_k))


@pytest.mark.parametrize("top_k", [100, 150, 200, 201])
def test_many_strong_detections_of_another_class_push_an_object_out(top_k: int) -> None:
    # 200 disjoint boxes of class 1 above one of class 0, which is put out only as the 201st.
    centres = [(10.0 + 20 * i, 10.0 + 20 * j) for i in range(20) for j in range(10)]
    boxes = [[x, y, 10.0, 10.0] for x, y in centres] + [[200.0, 300.0, 40.0, 40.0]]
    logits = torch.full((1, 201, 2), -20.0)
    logits[0, :200, 1], logits[0, 200, 0] = 5.0, 2.0
    raw = RawOutput(logits, torch.zeros(1, 201, 4))
    target = Target(boxes=torch.tensor([[180.0, 280, 220, 320]]), labels=torch.tensor([0]))
    judge, radius = verifier(boxes, SigmoidScores(1.0), top_k), torch.tensor([0.1]).double()
    candidates = judge.candidates(raw, radius)
    cover = judge.clique_cover(candidates, radius)
    found = judge.certifiers(candidates, ground_truth_of([target]), radius, 0.5, cover)
    certified = certified_up_to(found, 1, [0.5]).item() > -math.inf
    # Oracle: the detector itself.
    [detections] = select_detections(raw, judge.decoder, judge.selection)
    assert certified == bool((detections["labels"] == 0).any())


@pytest.mark.parametrize(("scores", "logits"), [(SigmoidScores(20.0), 2), (SoftmaxScores(), 3)])
@pytest.mark.parametrize("objects", [0, 2])
def test_a_batch_in_which_nothing_can_rise(scores: Scores, logits: int, objects: int) -> None:
    judge = verifier([[10.0, 10, 10, 10]] * 3, scores, 100, logits)
    low = torch.full((1, 3, logits), -20.0)
    if logits == 3:
        low[..., 0] = 20.0
    boxes = torch.tensor([[5.0, 5, 15, 15]] * objects).reshape(-1, 4)
    target = Target(boxes=boxes, labels=torch.zeros(objects, dtype=torch.int64))
    part = certify_batch(judge, RawOutput(low, torch.zeros(1, 3, 4)), [target], 0.1)
    entry = summary(0.1, join([part, part]), ("a", "b"), MEASURED)
    # By hand: nothing can be detected, so nothing is certified and nothing is a false positive.
    assert (entry["ap50"], entry["recall"], entry["precision"]) == (0.0, 0.0, None)
