"""AP under attack over a data set: resumable, and independent of how the pictures are batched.

Notable choices:
- `worst` runs every objective and keeps, per image, the result with the largest damage. AP is a
  measure of the whole set, so this composite need not have the lowest AP; each figure of `worst` is
  the lowest of the composite and of every single objective.
- A chunk of pictures that is done is a file in the state folder, under the hash of everything that
  determines it; nothing is rewritten, and an interrupted run loses one chunk at most.
- Attacked pictures are judged as they are, in float32; rounding to 8 bits would change them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipdet.attack import AttackSettings, attack_and_detect, detect, recall
from lipdet.attack.settings import AttackName, single_attacks
from lipdet.boxes import DISPLAY_SELECTION
from lipdet.detector import SSD
from lipdet.evaluate.attack_state import (
    Found,
    attack_key,
    damage_of,
    detections_of,
    detections_to_tensors,
)
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.chunks import Pass, Tensors, code, pass_key, weights_hash
from lipdet.evaluate.consistency import consistency
from lipdet.images.pack import Pack
from lipdet.types import Detections

CHUNK = 32
# Of the recall that is reported beside AP: what a user is shown.
RECALL_SCORE = DISPLAY_SELECTION.score_floor


@dataclass(frozen=True)
class Campaign:
    """The attacks of one evaluation.

    Attributes:
        attack: pgd or apgd with the objective of `settings`, or worst: PGD with every objective.
        epsilons: radii, in [0, 1] pixel units at the network's input size.
        settings: everything else; its epsilon and schedule do not matter.
        state: folder for finished chunks, or None to keep none.
    """

    attack: AttackName
    epsilons: tuple[float, ...]
    settings: AttackSettings
    state: Path | None = None


def attacked_results(detector: SSD, pack: Pack, campaign: Campaign) -> list[dict[str, Any]]:
    """One entry per radius, as docs/json.md describes it."""
    prepared = prepare(detector)
    clean = detections_of(_clean_pass(prepared, pack, campaign.state).results())
    return [_entry(prepared, pack, campaign, epsilon, clean) for epsilon in campaign.epsilons]


def attack_pack(
    detector: SSD,
    pack: Pack,
    settings: AttackSettings,
    state: Path | None = None,
    source: SSD | None = None,
) -> Found:
    """Attack every picture of a pack.

    Args:
        detector: looks at the attacked pictures; `prepare` makes it faster.
        pack: pictures of the detector's input size.
        settings: of one attack.
        state: folder in which finished chunks are kept and looked for.
        source: detector whose gradient is used, if another one.
    """
    chunks = _attack_pass(detector, pack, settings, state, source).results()
    return Found(detections_of(chunks), damage_of(chunks))


def attack_passes(detector: SSD, pack: Pack, campaign: Campaign) -> list[Pass]:
    """All passes over the pack that `attacked_results` sums up."""
    prepared, state = prepare(detector), campaign.state
    attacks = [
        _attack_pass(prepared, pack, single, state)
        for epsilon in campaign.epsilons
        for single in _singles(campaign, epsilon)
    ]
    return [_clean_pass(prepared, pack, state), *attacks]


def prepare(detector: SSD) -> SSD:
    """A frozen copy of a detector in eval mode, in the memory layout that is fastest."""
    prepared = copy.deepcopy(detector).eval().requires_grad_(False)
    return prepared.to(memory_format=torch.channels_last)


def pictures(pack: Pack, start: int, stop: int, device: torch.device) -> Tensor:
    """Pictures of a pack as a batch (B, 3, S, S) in [0, 1]."""
    pixels = torch.from_numpy(pack.images[start:stop].copy()).to(device)
    images: Tensor = pixels.permute(0, 3, 1, 2).float() / 255
    return images


def measure(found: Found, pack: Pack) -> dict[str, float]:
    """`ap50`, `ap` and `recall` of detections on a pack."""
    targets = [pack.target(index) for index in range(len(pack))]
    precision = average_precision(targets, found.detections, pack.class_names)
    return {
        "ap50": precision.ap50,
        "ap": precision.ap,
        "recall": recall(found.detections, targets, RECALL_SCORE),
    }


def worst(candidates: Sequence[Found]) -> Found:
    """Of each picture the candidate with the largest damage, the first where equal."""
    best = [
        max(candidates, key=lambda one: one.damage[index])
        for index in range(len(candidates[0].damage))
    ]
    return Found(
        [one.detections[index] for index, one in enumerate(best)],
        [one.damage[index] for index, one in enumerate(best)],
    )


def attacked_entry(
    attack: AttackName,
    singles: Sequence[AttackSettings],
    found: Sequence[Found],
    clean: Sequence[Detections],
    pack: Pack,
) -> dict[str, Any]:
    """The json entry of one radius.

    Args:
        attack: the name behind which the single attacks are.
        singles: at one ε.
        found: what each of them left.
        clean: detections on the clean pictures.
        pack: the pictures.
    """
    figures = {
        single.objective: measure(one, pack) for single, one in zip(singles, found, strict=True)
    }
    first, most = singles[0], worst(found)
    entry: dict[str, Any] = {
        "epsilon": first.epsilon,
        "attack": attack,
        "norm": first.norm,
        "steps": first.steps,
        "restarts": first.restarts,
        "seed": first.seed,
        "recall_score": RECALL_SCORE,
        "consistency": consistency(clean, most.detections, RECALL_SCORE),
    }
    if attack != "worst":
        return {**entry, "objective": first.objective, **figures[first.objective]}
    composite = measure(most, pack)
    lowest = {
        name: min(composite[name], *(one[name] for one in figures.values())) for name in composite
    }
    return {**entry, **lowest, "composite": composite, "objectives": figures}


def _clean_pass(detector: SSD, pack: Pack, state: Path | None) -> Pass:
    def compute(chunk: range) -> Tensors:
        images = pictures(pack, chunk.start, chunk.stop, detector.default_boxes.device)
        return detections_to_tensors(detect(detector, images))

    # Apart from that of clean AP, which has other chunks.
    key = state and pass_key(
        to="compare", detector=weights_hash(detector), data=pack.hash, **code()
    )
    folder = state and state / "clean" / str(key)
    return Pass(f"Detecting in {pack.name}", len(pack), CHUNK, compute, folder)


def _singles(campaign: Campaign, epsilon: float) -> list[AttackSettings]:
    return single_attacks(campaign.attack, replace(campaign.settings, epsilon=epsilon))


def _entry(
    detector: SSD, pack: Pack, campaign: Campaign, epsilon: float, clean: list[Detections]
) -> dict[str, Any]:
    singles = _singles(campaign, epsilon)
    found = [attack_pack(detector, pack, single, campaign.state) for single in singles]
    return attacked_entry(campaign.attack, singles, found, clean, pack)


def _attack_pass(
    detector: SSD,
    pack: Pack,
    settings: AttackSettings,
    state: Path | None,
    source: SSD | None = None,
) -> Pass:
    def compute(chunk: range) -> Tensors:
        images = pictures(pack, chunk.start, chunk.stop, detector.default_boxes.device)
        targets = [pack.target(index) for index in chunk]
        outcome = attack_and_detect(detector, images, targets, settings, chunk, source=source)
        damage = torch.tensor(outcome.damage, dtype=torch.float64)
        return {**detections_to_tensors(outcome.detections), "damage": damage}

    folder = state and state / attack_key(detector, pack, settings, source)
    label = f"{settings.schedule} {settings.objective} ε={settings.epsilon:g}"
    return Pass(label, len(pack), CHUNK, compute, folder)
