"""Detectors that lipdet did not build: found in the user's code, audited, attacked, measured.

The protocol is that of `torchvision.models.detection`; docs/your-own-detector.md has it in full.

Notable choices:
- Labels of the module count from 1, as torchvision's do; everything here counts from 0.
- Nothing is certified: no theorem here speaks of box decoding that lipdet does not do itself.
"""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lipdet.attack import AttackSettings, attack_torchvision
from lipdet.attack.damage import damage
from lipdet.attack.gradient import frozen
from lipdet.attack.settings import AttackName, single_attacks
from lipdet.attack.torchvision_models import LOSSES
from lipdet.boxes import DISPLAY_SELECTION
from lipdet.certificate.audit import Audit, audit
from lipdet.certificate.torchvision_models import PixelsToHeads, is_torchvision
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.evaluate.attack_state import Found
from lipdet.evaluate.attacked import RECALL_SCORE, Campaign, measure, pictures, worst
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.consistency import consistency
from lipdet.images.pack import Pack
from lipdet.progress import track
from lipdet.report.scenes import Scene, Shown
from lipdet.types import Detections, Target
from lipdet.versions import versions

MODULE_HELP = "package.module:callable that returns an nn.Module"
IMAGE_SIZE = 74


class ForeignDetector(NamedTuple):
    """A module of the user's, in eval mode, with its name and the side of its pictures."""

    name: str
    module: nn.Module
    image_size: int


def is_foreign(spec: str) -> bool:
    """Whether a DETECTOR names a callable and no file."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec) is not None


def load_foreign(spec: str) -> ForeignDetector:
    """Call `package.module:callable`, looked for here first, and take the module it returns.

    Raises:
        InputError: it cannot be imported, or returns no nn.Module.
    """
    if not is_foreign(spec):
        raise InputError(f"{spec!r} names no module; give {MODULE_HELP}.")
    name, _, attribute = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        build = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{spec} cannot be imported ({error}).") from None
    module = build() if callable(build) else build
    if not isinstance(module, nn.Module):
        raise InputError(f"{spec} returned {type(module).__name__}; it must return an nn.Module.")
    size = getattr(module, "image_size", IMAGE_SIZE)
    return ForeignDetector(spec, module.eval(), int(size))


def audit_module(module: nn.Module, image_size: int) -> Audit:
    """Audit a module for square RGB pictures, from the pixels.

    Of torchvision's detectors up to the maps of the heads; of a module with an attribute `network`,
    that part.

    Raises:
        UnknownLipschitz: it cannot be seen as a graph.
        InputError: it does not accept this size.
    """
    shape = (3, image_size, image_size)
    if not isinstance(module, SSD) and is_torchvision(module):
        module = PixelsToHeads(module, shape)
    elif isinstance(network := getattr(module, "network", None), nn.Module):
        module = network
    return audit(module, shape)


def can_be_audited(module: nn.Module) -> bool:
    """Whether it is known which part of a detector of this protocol maps pixels to raw output."""
    return is_torchvision(module) or isinstance(getattr(module, "network", None), nn.Module)


def detect(module: nn.Module, images: Tensor, classes: int) -> list[Detections]:
    """Detections on images (B, 3, S, S) in [0, 1], best first, on the CPU.

    Raises:
        InputError: the module does not follow the protocol.
    """
    with frozen(module), torch.no_grad():
        found = module(list(images))
    return [_detections(one, classes) for one in found]


def evaluate_foreign(
    detector: ForeignDetector, pack: Pack, seed: int, campaign: Campaign | None
) -> dict[str, Any]:
    """Clean and attacked AP, in the form of `lipdet eval`; nothing is certified."""
    started = time.monotonic()
    module, classes = detector.module, len(pack.class_names)
    targets = [pack.target(index) for index in range(len(pack))]
    clean = [
        one
        for index in track(range(len(pack)), f"Detecting in {pack.name}")
        for one in detect(module, _image(module, pack, index), classes)
    ]
    attacked = []
    for epsilon in campaign.epsilons if campaign else ():
        assert campaign is not None
        singles = attacks_at(campaign.attack, replace(campaign.settings, epsilon=epsilon))
        found = [_attack_pack(module, pack, one) for one in singles]
        attacked.append(_entry(campaign.attack, singles, found, clean, pack))
    return {
        "weights": detector.name,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "data": pack.describe(),
        "seed": seed,
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 3),
        "clean": average_precision(targets, clean, pack.class_names).as_dict(),
        "attacked": attacked,
        "certified": [],
    }


def attacks_at(attack: AttackName, settings: AttackSettings) -> list[AttackSettings]:
    """The attacks behind a name, with the objectives that a module's losses allow."""
    if attack != "worst":
        return single_attacks(attack, settings)
    return [replace(settings, schedule="pgd", objective=name) for name in LOSSES]


def foreign_scenes(
    detector: ForeignDetector, pack: Pack, count: int, attacks: Sequence[AttackSettings]
) -> list[Scene]:
    """What the module shows in the first pictures, clean and under the most damaging attack."""
    result = []
    for index in range(min(count, len(pack))):
        image, target = _image(detector.module, pack, index), pack.target(index)
        candidates = []
        for settings in attacks:
            attacked = _attack(detector.module, image, target, settings, index)
            [found] = detect(detector.module, attacked, len(pack.class_names))
            candidates.append((damage(found, target), attacked, found))
        _, attacked, after = max(candidates, key=lambda one: one[0])
        [before] = detect(detector.module, image, len(pack.class_names))
        rounded = (attacked[0].permute(1, 2, 0).cpu() * 255).round().byte().numpy()
        order = target["labels"][target["boxes"][:, 0].argsort()].tolist()
        names = tuple(pack.class_names[label] for label in order)
        shown = (_shown(one, pack.class_names) for one in (before, after))
        epsilon = attacks[0].epsilon
        clean = pack.images[index].copy()
        result.append(Scene(detector.name, index, epsilon, clean, rounded, names, *shown))
    return result


def _attack_pack(module: nn.Module, pack: Pack, settings: AttackSettings) -> Found:
    found, damages = [], []
    label = f"{settings.schedule} {settings.objective} ε={settings.epsilon:g}"
    for index in track(range(len(pack)), label):
        target = pack.target(index)
        attacked = _attack(module, _image(module, pack, index), target, settings, index)
        [one] = detect(module, attacked, len(pack.class_names))
        found.append(one)
        damages.append(damage(one, target))
    return Found(found, damages)


def _attack(
    module: nn.Module, image: Tensor, target: Target, settings: AttackSettings, index: int
) -> Tensor:
    numbered = Target(
        boxes=target["boxes"].to(image.device), labels=target["labels"].to(image.device) + 1
    )
    return attack_torchvision(module, image, [numbered], settings, [index])


def _entry(
    attack: AttackName,
    singles: Sequence[AttackSettings],
    found: Sequence[Found],
    clean: Sequence[Detections],
    pack: Pack,
) -> dict[str, Any]:
    figures = {
        single.objective: measure(one, pack) for single, one in zip(singles, found, strict=True)
    }
    most = worst(found)
    # As for lipdet's detectors: the lowest of the composite and of every single objective.
    composite = measure(most, pack)
    lowest = {
        name: min(composite[name], *(one[name] for one in figures.values())) for name in composite
    }
    first = singles[0]
    return {
        "epsilon": first.epsilon,
        "attack": attack,
        "norm": first.norm,
        "steps": first.steps,
        "restarts": first.restarts,
        "seed": first.seed,
        "recall_score": RECALL_SCORE,
        "consistency": consistency(clean, most.detections, RECALL_SCORE),
        **lowest,
        "objectives": figures,
    }


def _image(module: nn.Module, pack: Pack, index: int) -> Tensor:
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    return pictures(pack, index, index + 1, device)


def _detections(found: Any, classes: int) -> Detections:
    if not isinstance(found, dict) or not {"boxes", "labels", "scores"} <= set(found):
        raise InputError(
            "In eval mode the module must return, per picture, a dictionary with the tensors "
            "boxes, labels and scores."
        )
    boxes, labels, scores = (found[key].cpu() for key in ("boxes", "labels", "scores"))
    if len(labels) and not (labels.min() >= 1 and labels.max() <= classes):
        raise InputError(
            f"The module returned labels from {labels.min()} to {labels.max()}; with {classes} "
            "classes they must lie between 1 and that number."
        )
    order = scores.argsort(descending=True, stable=True)
    return Detections(
        boxes=boxes[order].float(), labels=labels[order] - 1, scores=scores[order].double()
    )


def _shown(found: Detections, class_names: Sequence[str]) -> tuple[Shown, ...]:
    rows = zip(
        found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
    )
    return tuple(
        Shown(tuple(box), class_names[label], score)
        for box, label, score in rows
        if score > DISPLAY_SELECTION.score_floor
    )
