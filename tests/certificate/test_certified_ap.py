"""Certified AP by hand, and what a data set's summary says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lipdet.boxes import AP_SELECTION, BoxCoding, Decoder, SigmoidScores, select_detections
from lipdet.boxes.scores import logit
from lipdet.certificate.certified_ap import (
    ClassObjects,
    PossibleDetections,
    certified_average_precision,
    false_positives,
)
from lipdet.certificate.conditions.clique_cover import CliqueCover, affordable_log_odds, first_fit
from lipdet.certificate.constants.rounding import MEASURED
from lipdet.certificate.diagnosis import REASONS
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.certified import RECALL_SCORE, certify_batch, join, summary
from lipdet.results import CertifiedResult
from lipdet.types import Detections, RawOutput, Target
from tests.certificate.detectors import small_detector
from tests.certificate.directed import TIED_RIVALS
from tests.certificate.scenes import CANVAS, output_constants


def _values(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _objects(certified: torch.Tensor) -> ClassObjects:
    """Objects that claim nothing."""
    nothing = torch.full_like(certified, -torch.inf)
    return ClassObjects(certified, nothing, nothing, torch.ones_like(certified, dtype=torch.bool))


def test_average_precision_by_hand() -> None:
    objects = _objects(_values(3.0, 1.0, -torch.inf, -torch.inf))
    # Two detections at 3 or more, four at 1 or more: precisions 1/2 and 2/4 at recalls 1/4 and 2/4.
    entries = _values(5.0, 3.5, 1.0, 2.0, -1.0)
    found = certified_average_precision(objects, PossibleDetections(entries, entries))
    # Recalls 0 to 0.5 are 51 of 101.
    assert found == pytest.approx(0.5 * 51 / 101)
    # With one fewer above 3: precision 1 for the recalls 0 to 0.25, 26 of them.
    entries = _values(5.0, 2.0, 1.0, 1.0)
    found = certified_average_precision(objects, PossibleDetections(entries, entries))
    assert found == pytest.approx((26 * 1 + 25 * 0.5) / 101)


def test_false_positives_by_hand() -> None:
    # At 1: four cliques; the first object is certified, the second claims one, the third does not
    # any more, the fourth not yet. At 2: three cliques, and the third claims one.
    objects = ClassObjects(
        certified=_values(2.0, -torch.inf, -torch.inf, -torch.inf),
        up_to=_values(3.0, 2.5, 2.5, 0.5),
        above=_values(-torch.inf, -torch.inf, 1.5, -torch.inf),
        judged=torch.ones(4, dtype=torch.bool),
    )
    cliques = _values(4.0, 3.0, 2.5, 1.2, 0.7)
    thresholds = _values(1.0, 2.0)
    wrong = false_positives(objects, PossibleDetections(cliques, cliques), thresholds)
    assert wrong.tolist() == [2, 0]
    # Where fewer detections are possible than cliques: one at 1, which is the certified one's.
    wrong = false_positives(objects, PossibleDetections(_values(3.0), cliques), thresholds)
    assert wrong.tolist() == [0, 0]
    # What finds the first may be none of the detections that are counted.
    objects = objects._replace(judged=torch.tensor([False, True, True, True]))
    wrong = false_positives(objects, PossibleDetections(cliques, cliques), thresholds)
    assert wrong.tolist() == [3, 1]


def test_recalls_are_those_of_coco() -> None:
    # Some of torch's 101 recalls are a digit below numpy's, which COCO uses: too many would count.
    grid = np.linspace(0.0, 1.0, 101)
    for found in range(1, 100):
        certified = torch.cat([torch.zeros(found), torch.full((100 - found,), -torch.inf)])
        entries = torch.zeros(found).double()
        objects = _objects(certified.double())
        reached = certified_average_precision(objects, PossibleDetections(entries, entries))
        assert reached == pytest.approx((grid <= found / 100).sum() / 101)


def test_first_fit_by_hand() -> None:
    # 0 overlaps 1 and 2, which do not overlap; 3 overlaps 2 alone. As masks of later ones. The
    # second group has three boxes that overlap nothing, and a clique too few.
    overlaps = np.array([[0b0110, 0, 0b1000, 0], [0, 0, 0, 0]], np.uint64)
    inside = np.array([[True] * 4, [True, True, True, False]])
    assert first_fit(overlaps, inside, 2).tolist() == [[0, 0, 1, 1], [0, 1, -1, -1]]


def test_first_fit_takes_as_many_boxes_as_a_mask_has_bits() -> None:
    # Every box overlaps the next two: cliques of three, the last of one.
    overlaps = np.array([[0b11 << box + 1 & 2**64 - 1 for box in range(64)]], np.uint64)
    found = first_fit(overlaps, np.ones((1, 64), np.bool_), 64)
    assert found.tolist() == [[box // 3 for box in range(64)]]


def test_affordable_by_hand() -> None:
    # Three cliques at 0 and a budget of 3: one rises to 3, two to 3/√2, three to √3.
    group, place = torch.zeros(3, dtype=torch.int64), torch.arange(3)
    found = affordable_log_odds(group, place, _values(0, 0, 0), _values(3), limit=10)
    assert found.tolist() == pytest.approx([3, 3 / 2**0.5, 3**0.5], abs=1e-6)
    # One stands at 2 already: raising the other to 4 costs 4² + 2² = 20 of 20.
    found = affordable_log_odds(group[:2], place[:2], _values(2, 0), _values(20**0.5), limit=10)
    assert found[1].item() == pytest.approx(4, abs=1e-6)


def test_summary_of_a_softmax_detector() -> None:
    detector = small_detector()
    verifier = verifier_of(detector, AP_SELECTION)
    torch.manual_seed(0)
    with torch.no_grad():
        raw = detector(torch.rand(2, 3, 8, 8))
    targets = [
        Target(boxes=torch.tensor([[1.0, 1, 5, 5]]), labels=torch.tensor([0])),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
    ]
    entry = summary(0.1, join([certify_batch(verifier, raw, targets, 0.1)]), ("a", "b"), MEASURED)
    assert set(entry["failed"]) == set(REASONS)
    assert entry["per_class"]["b"]["ap"] is None
    assert 0 <= entry["ap"] <= entry["ap50"] <= 1


def test_the_reason_is_the_condition_that_fails() -> None:
    scene = TIED_RIVALS.scene
    for epsilon, wanted in ((0.9, {}), (1.1, {"suppressor": 1}), (4.0, {"score": 1})):
        found = certify_batch(scene.verifier, scene.raw, scene.targets, epsilon)
        entry = summary(epsilon, join([found]), ("a",), MEASURED)
        assert {key: count for key, count in entry["failed"].items() if count} == wanted
        assert entry["recall"] == (0.0 if wanted else 1.0)


def _certified(
    logits: list[float], crowd: bool = False
) -> tuple[CertifiedResult, list[Target], list[Detections]]:
    """What is certified where logits move by 1: a box on the object, one on nothing or a crowd."""
    boxes = torch.tensor([[4.0, 4, 12, 12], [18, 4, 26, 12]])
    target = Target(boxes=boxes[:1], labels=torch.tensor([0]))
    if crowd:
        target["ignored"] = {"boxes": boxes[1:], "labels": torch.tensor([0])}
    default = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
    decoder = Decoder(default, BoxCoding(), SigmoidScores(1.0), CANVAS)
    constants = output_constants(torch.ones(2, 1), torch.zeros(2, 4))
    verifier = Verifier(constants, decoder, AP_SELECTION)
    raw = RawOutput(torch.tensor(logits).reshape(1, 2, 1), torch.zeros(1, 2, 4))
    found = certify_batch(verifier, raw, [target], 1.0)
    detections = select_detections(raw, decoder, AP_SELECTION)
    return summary(1.0, join([found]), ("a",), MEASURED), [target], detections


def test_what_is_found_in_a_crowd_counts_neither_way() -> None:
    """The object is certified; what is found in the crowd comes first."""
    entry, targets, detections = _certified([2.0, 5.0], crowd=True)
    # Oracle: tests/evaluate compares AP with crowds with pycocotools.
    assert average_precision(targets, detections, ("a",))["ap50"] == pytest.approx(1)
    assert (entry["recall"], entry["ap50"], entry["precision"]) == (1, pytest.approx(1), 1)
    # By hand: without the crowd, one of two possible detections is the object's.
    assert _certified([2.0, 5.0])[0]["ap50"] == pytest.approx(0.5)


def test_one_of_two_cliques_that_are_judged_can_reach_what_one_alone_can() -> None:
    # By hand: each can reach 5, both together 3. The first is ignored, the second alone is at 5.
    cover = CliqueCover(
        torch.zeros(2, dtype=torch.int64), _values(5.0, 3.0), _values(5.0, 5.0), torch.arange(2)
    )
    judged = cover.judged(torch.tensor([False, True]), _values(5.0, 5.0), limit=101)
    assert judged.log_odds.tolist() == [5, -torch.inf]
    # Where no more are counted, the first counts as well.
    judged = cover.judged(torch.tensor([False, True]), _values(5.0, 5.0), limit=2)
    assert judged.log_odds.tolist() == [5, 3]


def test_without_a_precision_there_may_be_detections() -> None:
    """None is certified, and no false positive is possible."""
    # By hand: a score may fall below the one that counts and rise above it again; the box stays.
    tau = logit(RECALL_SCORE)
    entry, _, [detections] = _certified([tau + 0.5, -20.0])
    assert len(detections["scores"]) == 1
    assert (entry["recall"], entry["precision"]) == (0.0, None)
    # What may be found on no object can be wrong.
    assert _certified([tau + 0.5, tau - 0.5])[0]["precision"] == 0.0
    assert _certified([tau + 1.5, -20.0])[0]["precision"] == 1.0
