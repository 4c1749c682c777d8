"""The protocol of `torchvision.models.detection`: detections, attacks, and what can be audited.

docs/your-own-detector.md has it in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lipdet.attack import AttackSettings, attack_torchvision
from lipdet.attack.damage import damage
from lipdet.attack.gradient import frozen
from lipdet.attack.loop import OnStep
from lipdet.attack.outcome import Outcome
from lipdet.certificate.constants.outputs import propagate_detector
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.evaluate.attacked import pictures
from lipdet.foreign.torchvision_heads import PixelsToHeads, is_torchvision
from lipdet.images.pack import Pack
from lipdet.lipschitz.audit import Audit, audit
from lipdet.lipschitz.propagation import propagate
from lipdet.types import Detections, Target


def picture(pack: Pack, index: int) -> Tensor:
    """Return one picture of a pack as a batch (1, 3, S, S) in [0, 1]."""
    return pictures(pack, index, index + 1, torch.device("cpu"))


def detect(module: nn.Module, images: Tensor, classes: int | None = None) -> list[Detections]:
    """Return detections on images (B, 3, S, S) in [0, 1], best first, on the CPU.

    Args:
        module: follows the protocol.
        images: of its size.
        classes: how many there are, if that is known.

    Raises:
        InputError: the module does not follow the protocol.
    """
    with frozen(module), torch.no_grad():
        found = module(list(images.to(_device(module))))
    return [_detections(one, classes) for one in found]


def look(
    module: nn.Module, images: Tensor, targets: Sequence[Target], classes: int | None = None
) -> Outcome:
    """Return detections and damage on images as they are."""
    found = detect(module, images, classes)
    damages = [damage(one, target) for one, target in zip(found, targets, strict=True)]
    return Outcome(images, found, damages)


def attack(
    module: nn.Module,
    images: Tensor,
    targets: Sequence[Target],
    settings: AttackSettings,
    indices: Sequence[int] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """`attack_torchvision` for targets whose labels count from 0; the result is on the CPU."""
    device = _device(module)
    numbered = [
        Target(boxes=one["boxes"].to(device), labels=one["labels"].to(device) + 1)
        for one in targets
    ]
    found = attack_torchvision(module, images.to(device), numbered, settings, indices, on_step)
    return found.cpu()


def audit_module(module: nn.Module, image_size: int) -> Audit:
    """Audit a module for square RGB pictures, from the pixels.

    Of torchvision's detectors up to the maps of the heads; of a module with an attribute `network`,
    that part.

    Raises:
        UnknownLipschitz: it cannot be seen as a graph.
        InputError: it does not accept this size.
    """
    shape = (3, image_size, image_size)
    if isinstance(module, SSD):
        return audit(propagate_detector(module, shape, past_obstacles=True))
    if is_torchvision(module):
        module = PixelsToHeads(module, shape)
    elif isinstance(network := getattr(module, "network", None), nn.Module):
        module = network
    return audit(propagate(module, shape, past_obstacles=True))


def can_be_audited(module: nn.Module) -> bool:
    """Whether it is known which part of a detector of this protocol maps pixels to raw output."""
    return is_torchvision(module) or isinstance(getattr(module, "network", None), nn.Module)


def _device(module: nn.Module) -> torch.device:
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _detections(found: Any, classes: int | None) -> Detections:
    if not isinstance(found, dict) or not {"boxes", "labels", "scores"} <= set(found):
        raise InputError(
            "In eval mode the module must return, per picture, a dictionary with the tensors "
            "boxes, labels and scores."
        )
    boxes, labels, scores = (found[key].cpu() for key in ("boxes", "labels", "scores"))
    if len(labels) and labels.min() < 1:
        raise InputError(f"The module returned the label {labels.min()}; they count from 1.")
    if len(labels) and classes is not None and labels.max() > classes:
        raise InputError(
            f"The module returned labels from {labels.min()} to {labels.max()}; with {classes} "
            "classes they must lie between 1 and that number."
        )
    order = scores.argsort(descending=True, stable=True)
    return Detections(
        boxes=boxes[order].float(), labels=labels[order] - 1, scores=scores[order].double()
    )
