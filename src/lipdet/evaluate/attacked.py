"""AP under attack over a data set: resumable, and independent of how the pictures are batched.

Notable choices:
- `worst` runs several objectives and keeps, per image, the result with the largest damage. AP is a
  measure of the whole set, which no share of an image adds up to, so damage is weighed in several
  ways; each figure of `worst` is the lowest of these composites and of every single objective.
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
from lipdet.attack.damage import damage
from lipdet.attack.settings import AttackName, single_attacks
from lipdet.boxes import DISPLAY_SELECTION
from lipdet.detector import SSD
from lipdet.evaluate.attack_state import attack_key, detections_of, detections_to_tensors
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.chunks import Pass, Tensors, code, pass_key, weights_hash
from lipdet.evaluate.consistency import consistency
from lipdet.images.pack import Pack
from lipdet.types import Detections

CHUNK = 32
# How much a false positive counts beside a true one where the worst result of an image is chosen.
FALSE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
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
) -> list[Detections]:
    """Attack every picture of a pack, and detect in what comes out.

    Args:
        detector: looks at the attacked pictures; `prepare` makes it faster.
        pack: pictures of the detector's input size.
        settings: of one attack.
        state: folder in which finished chunks are kept and looked for.
        source: detector whose gradient is used, if another one.
    """
    return detections_of(_attack_pass(detector, pack, settings, state, source).results())


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


def measure(found: Sequence[Detections], pack: Pack) -> dict[str, float]:
    """`ap50`, `ap` and `recall` of detections on a pack."""
    targets = [pack.target(index) for index in range(len(pack))]
    precision = average_precision(targets, found, pack.class_names)
    return {
        "ap50": precision.ap50,
        "ap": precision.ap,
        "recall": recall(found, targets, RECALL_SCORE),
    }


def composites(candidates: Sequence[Sequence[Detections]], pack: Pack) -> list[list[Detections]]:
    """Take of each picture the most damaging candidate, for each weight of false positives."""
    targets = [pack.target(index) for index in range(len(pack))]
    return [
        [
            max(of_picture, key=lambda found: damage(found, target, weight))
            for *of_picture, target in zip(*candidates, targets, strict=True)
        ]
        for weight in FALSE_WEIGHTS
    ]


def worst(candidates: Sequence[list[Detections]], pack: Pack) -> list[Detections]:
    """Choose what has the lowest AP50: a candidate or a composite of them."""
    every = [*candidates, *composites(candidates, pack)]
    return min(every, key=lambda found: measure(found, pack)["ap50"])


def attacked_entry(
    attack: AttackName,
    singles: Sequence[AttackSettings],
    found: Sequence[list[Detections]],
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
    first = singles[0]
    entry: dict[str, Any] = {
        "epsilon": first.epsilon,
        "attack": attack,
        "norm": first.norm,
        "steps": first.steps,
        "restarts": first.restarts,
        "seed": first.seed,
        "recall_score": RECALL_SCORE,
    }
    figures = [measure(one, pack) for one in found]
    if attack != "worst":
        fates = consistency(clean, found[0], RECALL_SCORE)
        return {**entry, "consistency": fates, "objective": first.objective, **figures[0]}
    joined = [measure(one, pack) for one in composites(found, pack)]
    lowest = {name: min(one[name] for one in [*figures, *joined]) for name in figures[0]}
    names = [single.objective for single in singles]
    return {
        **entry,
        "consistency": consistency(clean, worst(found, pack), RECALL_SCORE),
        **lowest,
        "composite": min(joined, key=lambda one: one["ap50"]),
        "objectives": dict(zip(names, figures, strict=True)),
    }


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
        return detections_to_tensors(outcome.detections)

    folder = state and state / attack_key(detector, pack, settings, source)
    label = f"{settings.schedule} {settings.objective} ε={settings.epsilon:g}"
    return Pass(label, len(pack), CHUNK, compute, folder)
