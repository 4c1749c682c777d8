"""What random scenes contain: a certificate that never met a case says nothing about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

from lipdet.boxes.scores import SigmoidScores, SoftmaxScores, logit
from lipdet.types import Target
from tests.certificate.promises import certificates
from tests.certificate.scenes import CANVAS, Scene, detect, random_scene


def census(numbers: Iterable[int]) -> Counter[str]:
    """In how many scenes each case occurs, and how many objects there are and are certified."""
    found: Counter[str] = Counter()
    for number in numbers:
        scene = random_scene(number)
        found["scenes"] += 1
        found.update(name for name, occurs in CASES.items() if occurs(scene))
        reached, per_class = certificates(scene)
        found["objects"] += len(reached)
        found["objects certified at 0.5"] += int((reached[:, 0] > -torch.inf).sum())
        found["objects certified at 0.75"] += int((reached[:, 5] > -torch.inf).sum())
        found["scenes with certified AP"] += any(one["ap50"] for one in per_class.values())
    return found


def _log_odds(scene: Scene) -> Tensor:
    return scene.verifier.decoder.scores.log_odds(scene.raw.logits)


def _boxes(scene: Scene) -> Tensor:
    return scene.verifier.decoder.boxes(scene.raw.offsets)


def _sides(boxes: Tensor) -> Tensor:
    return boxes[..., 2:] - boxes[..., :2]


def _without_candidate(scene: Scene) -> bool:
    passed = _log_odds(scene) > logit(scene.verifier.selection.score_floor)
    return bool((~passed.flatten(1).any(dim=1)).any())


def _equal_scores(scene: Scene) -> bool:
    columns = _log_odds(scene).transpose(1, 2).flatten(0, 1)
    return any(len(torch.unique(column)) < len(column) for column in columns)


def _intervals_tie(scene: Scene) -> bool:
    """A candidate at its best meets another of its class at its worst."""
    radius = torch.full((len(scene.targets),), scene.epsilon, dtype=torch.float64)
    found = scene.verifier.candidates(scene.raw, radius)
    alike = found.group[:, None] == found.group
    alike.fill_diagonal_(False)
    # Up to the slack that covers float32.
    return bool(((found.high[:, None] - found.low).abs() < 1e-4)[alike].any())


def _same_class_overlap(target: Target) -> Tensor:
    overlap: Tensor = box_iou(target["boxes"], target["boxes"]).nan_to_num().fill_diagonal_(0)
    alike = target["labels"][:, None] == target["labels"]
    return overlap.masked_fill(~alike, 0)


def _at_border(boxes: Tensor) -> bool:
    return bool(((boxes <= 0) | (boxes >= boxes.new_tensor(CANVAS.limits))).any())


def _full(scene: Scene) -> bool:
    found = detect(scene, scene.raw)
    return any(len(one["labels"]) == scene.verifier.selection.top_k for one in found)


def _votes_in_doubt(scene: Scene) -> bool:
    """A class would be above the floor whatever happens, but its box may not vote for it."""
    verifier = scene.verifier
    if isinstance(verifier.decoder.scores, SoftmaxScores):
        return False
    counts = []
    for margin in (verifier.decoder.scores.class_margin, torch.inf):
        decoder = verifier.decoder._replace(scores=SigmoidScores(1.0, margin))
        found = replace(verifier, decoder=decoder).candidates(scene.raw, scene.epsilon)
        counts.append(int((found.low > logit(verifier.selection.score_floor)).sum()))
    return counts[0] < counts[1]


CASES: dict[str, Callable[[Scene], bool]] = {
    "outputs linear in an image": lambda scene: scene.rows is not None,
    "softmax": lambda scene: isinstance(scene.verifier.decoder.scores, SoftmaxScores),
    "image without objects": lambda s: any(len(target["labels"]) == 0 for target in s.targets),
    "image without candidates": _without_candidate,
    "equal boxes": lambda s: any(len(torch.unique(x, dim=0)) < len(x) for x in _boxes(s)),
    "equal scores": _equal_scores,
    "intervals of scores that tie": _intervals_tie,
    "box without area": lambda scene: bool((_sides(_boxes(scene)) <= 0).any()),
    "thin box": lambda scene: bool((_sides(_boxes(scene)) < 0.1).any()),
    "box at the border": lambda scene: _at_border(_boxes(scene)),
    "object without area": lambda s: any((_sides(t["boxes"]) <= 0).any() for t in s.targets),
    "object at the border": lambda s: any(_at_border(target["boxes"]) for target in s.targets),
    "object beyond the border": lambda s: any((t["boxes"] < 0).any() for t in s.targets),
    "equal objects": lambda s: any((_same_class_overlap(t) == 1).any() for t in s.targets),
    "objects of a class that overlap": lambda s: any(
        (_same_class_overlap(target) > 0.3).any() for target in s.targets
    ),
    "top-k full": _full,
    "votes in doubt": _votes_in_doubt,
}
