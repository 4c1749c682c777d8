"""What is promised of a scene, and whether adversaries can take it away.

The oracle is what the pipeline does with perturbed outputs: select_detections and faster-coco-eval.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.attack_the_certificate import matched_scores
from lipdet.certificate.constants.rounding import MEASURED
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.certified import IOUS, certify_batch, summary
from lipdet.results import CertifiedClass
from lipdet.types import Detections, Objects, RawOutput, Target, ignored_of
from tests.certificate.adversaries import perturbed
from tests.certificate.scenes import Scene, detect

Certificates = tuple[Tensor, dict[str, CertifiedClass]]


def certificates(scene: Scene) -> Certificates:
    """What `lipdet eval` certifies: log-odds per object and IoU (G, len(IOUS)), and each class."""
    found = certify_batch(scene.verifier, scene.raw, scene.targets, scene.epsilon)
    names = [str(label) for label in range(scene.classes)]
    return found.of.reached, summary(scene.epsilon, found, names, MEASURED)["per_class"]


def matched_log_odds(scene: Scene, found: list[Detections], iou: float) -> Tensor:
    """By the real matcher: the score at which each object is matched, as log-odds, or −∞.

    Returns:
        (count, G) float64.
    """
    count = len(found) // len(scene.targets)
    scores = matched_scores(*_at_once(scene, found), iou)
    # Of each image, those of the first perturbation come first.
    shapes = [(count, len(target["labels"])) for target in scene.targets]
    kept = [one.reshape(shape) for one, shape in zip(scores, shapes, strict=True)]
    return torch.cat(kept, dim=1).logit()


def _at_once(
    scene: Scene, found: list[Detections]
) -> tuple[list[Target], list[Detections], list[str]]:
    """All perturbed scenes as one: perturbation p, class c is category p · C + c of an image."""
    images, classes = len(scene.targets), scene.classes
    count = len(found) // images
    shift = torch.arange(count)[:, None] * classes

    def of_all(objects: Objects | Target) -> Objects:
        labels = (objects["labels"] + shift).flatten()
        return Objects(boxes=objects["boxes"].repeat(count, 1), labels=labels)

    targets = [
        Target(**of_all(target), ignored=of_all(ignored_of(target))) for target in scene.targets
    ]
    merged = [
        Detections(
            boxes=torch.cat([part["boxes"] for part in parts]),
            labels=torch.cat([part["labels"] + p * classes for p, part in enumerate(parts)]),
            scores=torch.cat([part["scores"] for part in parts]),
        )
        for parts in (found[image::images] for image in range(images))
    ]
    return targets, merged, [str(index) for index in range(count * classes)]


def average_precisions(scene: Scene, found: list[Detections]) -> dict[int, tuple[Tensor, Tensor]]:
    """The real AP50 and AP of each class that has objects, under each perturbation (count,)."""
    count, classes = len(found) // len(scene.targets), scene.classes
    measured = average_precision(*_at_once(scene, found))["per_class"]
    found_classes = [label for label in range(classes) if measured[str(label)]["ap50"] is not None]
    return {
        label: (
            torch.tensor([one["ap50"] for one in of_class], dtype=torch.float64),
            torch.tensor([one["ap"] for one in of_class], dtype=torch.float64),
        )
        for label in found_classes
        for of_class in [[measured[str(p * classes + label)] for p in range(count)]]
    }


def violations(scene: Scene, count: int, seed: int) -> list[str]:
    """Everything that a certificate of the scene promised and an adversary took away."""
    promised = certificates(scene)
    if not (promised[0] > -torch.inf).any():
        return []
    # One threshold for the objects, to save time; all of them for AP.
    column = int(np.random.default_rng(seed).choice([0, 0, 0, 3, 5]))
    return broken_promises(scene, promised, perturbed(scene, count, seed), column)


def broken_promises(
    scene: Scene, promised: Certificates, outputs: RawOutput, column: int = 0
) -> list[str]:
    """What of `certificates(scene)` does not hold for some outputs (count · B, …).

    Args:
        scene: whose outputs they are.
        promised: from `certificates`.
        outputs: perturbed, all images of the first perturbation first.
        column: index of the IoU threshold at which objects are looked at.
    """
    reached, per_class = promised
    found = detect(scene, outputs)
    kept = matched_log_odds(scene, found, IOUS[column])
    # Scores are float64 sigmoids of float32 log-odds, and τ is real arithmetic.
    lost = (kept < reached[:, column].clamp(max=20) - 1e-5).any(dim=0)
    broken = [f"object {i} at IoU {IOUS[column]:.2f}" for i in torch.nonzero(lost)[:, 0].tolist()]
    for label, (ap50, ap) in average_precisions(scene, found).items():
        least = per_class[str(label)]
        for name, lowest in (("ap50", ap50.min()), ("ap", ap.min())):
            if lowest < least[name] - 1e-9:
                broken.append(f"{name} of class {label}: {lowest} < {least[name]}")
    return broken
