"""Attack, then look: what the detector finds in the attacked images, and the worst of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.attack.attackable import Attackable, attackable
from lipdet.attack.damage import damage
from lipdet.attack.gradient import attack_batch
from lipdet.attack.loop import OnStep
from lipdet.attack.settings import AttackSettings
from lipdet.boxes import AP_SELECTION, Selection
from lipdet.detector import SSD
from lipdet.types import Detections, Target


class Outcome(NamedTuple):
    """Result of an attack on B images.

    Attributes:
        images: (B, 3, H, W) attacked, in [0, 1].
        detections: on the attacked images, on the CPU.
        damage: `lipdet.attack.damage.damage` of each.
    """

    images: Tensor
    detections: list[Detections]
    damage: list[float]


def attack_unlabelled(
    detector: SSD | Attackable,
    images: Tensor,
    attacks: Sequence[AttackSettings],
    indices: Sequence[int] | None = None,
    on_step: OnStep | None = None,
) -> tuple[Outcome, Outcome]:
    """Attack images without annotation: what the detector shows on them is taken for the truth.

    Args:
        detector: attacks and looks.
        images: (B, 3, H, W) in [0, 1].
        attacks: the worst of them counts, per image.
        indices: of the images, see `attack_batch`.
        on_step: told about every step of every attack.

    Returns:
        What is shown on the clean images, and on the attacked ones.
    """
    display = attackable(detector).display
    images = images.to(attackable(detector).device)
    shown = detect(detector, images, display)
    targets = [Target(boxes=one["boxes"], labels=one["labels"]) for one in shown]
    attacked = [
        attack_batch(detector, images, targets, one, indices, on_step=on_step) for one in attacks
    ]
    clean, *outcomes = (look(detector, batch, targets, display) for batch in [images, *attacked])
    return clean, worst_of(outcomes)


def look(
    detector: SSD | Attackable,
    images: Tensor,
    targets: Sequence[Target],
    selection: Selection = AP_SELECTION,
) -> Outcome:
    """Return detections and damage on images as they are."""
    detections = detect(detector, images, selection)
    damages = [damage(one, target) for one, target in zip(detections, targets, strict=True)]
    return Outcome(images, detections, damages)


def detect(
    detector: SSD | Attackable, images: Tensor, selection: Selection = AP_SELECTION
) -> list[Detections]:
    """Return detections (on the CPU) on images (B, 3, H, W) in [0, 1], in eval mode."""
    return attackable(detector).detect(images, selection)


def worst_of(candidates: Sequence[Outcome]) -> Outcome:
    """Take of each image the candidate with the largest damage, the first where equal."""
    columns = range(len(candidates[0].damage))
    choice = [max(range(len(candidates)), key=lambda c: candidates[c].damage[i]) for i in columns]
    return Outcome(
        torch.stack([candidates[c].images[i] for i, c in enumerate(choice)]),
        [candidates[c].detections[i] for i, c in enumerate(choice)],
        [candidates[c].damage[i] for i, c in enumerate(choice)],
    )
