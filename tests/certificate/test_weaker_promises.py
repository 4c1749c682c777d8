"""What is said of objects without a certificate: a box of some class stays, the class stays.

The oracle is what the detector's own NMS does with perturbed outputs, and torchvision's IoU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lipdet.boxes.scores import logit
from lipdet.certificate import diagnosis
from lipdet.certificate.conditions.candidates import Candidates
from lipdet.certificate.conditions.certify import Certifiers
from lipdet.certificate.conditions.ground_truth import GroundTruth, independent_objects
from lipdet.evaluate import certified
from lipdet.evaluate.certified import RECALL_SCORE, certify_batch
from lipdet.types import Detections
from tests.certificate.adversaries import perturbed
from tests.certificate.scenes import Scene, detect, random_scene

SCENES = range(100)
PERTURBED = 60
# Scores are rounded to float32.
ROUNDED = 1e-6


class Outcome(NamedTuple):
    """Promises to objects beyond what is certified, and how many of all are broken."""

    boxes: int
    classes: int
    broken_boxes: int
    broken_classes: int


def outcome(scenes: Iterable[int], score: float = RECALL_SCORE) -> Outcome:
    """Make all promises at a score, and let adversaries try each scene of which one is made."""
    counts = torch.zeros(4, dtype=torch.int64)
    for number in scenes:
        scene = random_scene(number)
        of = certify_batch(scene.verifier, scene.raw, scene.targets, scene.epsilon, score).of
        promised = torch.stack([of.box, of.of_class])
        kept = of.reached[:, 0] >= logit(score)
        assert (promised >= kept).all()
        if promised.any():
            held = _held(scene, detect(scene, perturbed(scene, PERTURBED, number)), score)
            beyond, broken = promised & ~kept, promised & ~held
            counts += torch.cat([beyond.sum(dim=1), broken.sum(dim=1)])
    return Outcome(*counts.tolist())


def _held(scene: Scene, found: list[Detections], score: float) -> Tensor:
    """Whether, in all perturbed scenes, a box stays on each object and its class in the image."""
    images = len(scene.targets)
    columns = []
    for image, target in enumerate(scene.targets):
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            shown = [_shown(one, score) for one in found[image::images]]
            on_it = [bool((box_iou(box[None], one["boxes"]) >= 0.5).any()) for one in shown]
            of_class = [bool((one["labels"] == label).any()) for one in shown]
            columns.append(torch.tensor([all(on_it), all(of_class)]))
    return torch.stack(columns, dim=1)


def _shown(found: Detections, score: float) -> Detections:
    rows = found["scores"] >= score - ROUNDED
    return Detections(
        boxes=found["boxes"][rows], labels=found["labels"][rows], scores=found["scores"][rows]
    )


@pytest.mark.slow
@pytest.mark.parametrize("score", [1e-3, RECALL_SCORE, 0.6])
def test_what_is_promised_stays(score: float) -> None:
    found = outcome(SCENES, score)
    # Without such promises the test could not fail.
    assert found.boxes > 10
    assert found.classes > 5
    assert (found.broken_boxes, found.broken_classes) == (0, 0)


# A scene in which each is caught, and what is mistaken of certifiers.
MISTAKEN: dict[str, tuple[int, Callable[[Certifiers], Certifiers]]] = {
    "can be suppressed": (94, lambda found: found._replace(kept_iou=found.matched_iou)),
    "can be cut off": (5, lambda found: found._replace(untruncated=found.untruncated | True)),
}


@pytest.mark.parametrize(("scene", "mistake"), MISTAKEN.values(), ids=MISTAKEN)
def test_a_box_that_may_go_is_caught(
    scene: int, mistake: Callable[[Certifiers], Certifiers], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = certified.box_stays
    monkeypatch.setattr(
        certified, "box_stays", lambda found, *others: right(mistake(found), *others)
    )
    assert outcome([scene]).broken_boxes


def test_a_class_that_can_be_cut_off_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(_: object, group: Tensor, *others: object) -> Tensor:
        return torch.ones(len(group), dtype=torch.bool)

    monkeypatch.setattr(diagnosis, "not_truncated", always)
    assert outcome([2]).broken_classes


def with_all_classes(
    candidates: Candidates, truths: GroundTruth, *_: object
) -> tuple[GroundTruth, Tensor]:
    """What `with_other_classes` gives, with no class left out."""
    other = torch.arange(candidates.classes) != truths.label[:, None]
    truth, label = torch.nonzero(other, as_tuple=True)
    added = independent_objects(truths.image[truth], label, truths.box[truth])
    return truths.and_independent(added), torch.cat([torch.arange(len(truths.image)), truth])


def with_no_class(_: Candidates, truths: GroundTruth, *__: object) -> tuple[GroundTruth, Tensor]:
    """Only what is certified by the object's own class."""
    return truths, torch.arange(len(truths.image))


def boxes_that_stay() -> Tensor:
    """The promise of some box to the objects of a few scenes."""
    scenes = map(random_scene, range(20))
    return torch.cat(
        [certify_batch(at.verifier, at.raw, at.targets, at.epsilon).of.box for at in scenes]
    )


@pytest.mark.slow
def test_the_classes_left_out_promise_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = boxes_that_stay()
    monkeypatch.setattr(certified, "with_other_classes", with_all_classes)
    assert torch.equal(boxes_that_stay(), found)
    monkeypatch.setattr(certified, "with_other_classes", with_no_class)
    assert (found & ~boxes_that_stay()).any()
