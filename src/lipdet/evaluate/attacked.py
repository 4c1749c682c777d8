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

from lipdet.attack import AttackSettings, attack_and_detect, recall
from lipdet.attack.damage import damage
from lipdet.attack.settings import AttackName, single_attacks
from lipdet.boxes import DISPLAY_SELECTION
from lipdet.detector import SSD
from lipdet.evaluate.attack_state import attack_key, detecting_pass, in_order
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.chunks import Pass
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


def attacked_results(
    detector: SSD, pack: Pack, campaign: Campaign, clean: Sequence[Detections]
) -> list[dict[str, Any]]:
    """Return one entry per radius, as docs/json.md describes it.

    Args:
        detector: of the pack's input size and classes.
        pack: the pictures.
        campaign: the attacks.
        clean: detections on the clean pictures.
    """
    prepared = prepare(detector)
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
    return in_order(_attack_pass(detector, pack, settings, state, source).results())


def attack_passes(detector: SSD, pack: Pack, campaign: Campaign) -> list[Pass[list[Detections]]]:
    """Return all passes over the pack that `attacked_results` sums up."""
    prepared, state = prepare(detector), campaign.state
    return [
        _attack_pass(prepared, pack, single, state)
        for epsilon in campaign.epsilons
        for single in _singles(campaign, epsilon)
    ]


def prepare(detector: SSD) -> SSD:
    """Return a frozen copy of a detector in eval mode, in the memory layout that is fastest."""
    prepared = copy.deepcopy(detector).eval().requires_grad_(False)
    return prepared.to(memory_format=torch.channels_last)


def pictures(pack: Pack, start: int, stop: int, device: torch.device) -> Tensor:
    """Return pictures of a pack as a batch (B, 3, S, S) in [0, 1]."""
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
    return _lowest([*candidates, *composites(candidates, pack)], pack)[0]


def _lowest(
    every: Sequence[list[Detections]], pack: Pack
) -> tuple[list[Detections], list[dict[str, float]]]:
    """Return what has the lowest AP50, and the figures of each."""
    figures = [measure(one, pack) for one in every]
    return every[min(range(len(every)), key=lambda index: figures[index]["ap50"])], figures


def attacked_entry(
    attack: AttackName,
    singles: Sequence[AttackSettings],
    found: Sequence[list[Detections]],
    clean: Sequence[Detections],
    pack: Pack,
) -> dict[str, Any]:
    """Return the json entry of one radius.

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
    if attack != "worst":
        fates = consistency(clean, found[0], RECALL_SCORE)
        figures = measure(found[0], pack)
        return {**entry, "consistency": fates, "objective": first.objective, **figures}
    chosen, every = _lowest([*found, *composites(found, pack)], pack)
    single, joined = every[: len(found)], every[len(found) :]
    names = [one.objective for one in singles]
    return {
        **entry,
        "consistency": consistency(clean, chosen, RECALL_SCORE),
        **{name: min(one[name] for one in every) for name in every[0]},
        "composite": min(joined, key=lambda one: one["ap50"]),
        "objectives": dict(zip(names, single, strict=True)),
    }


def _singles(campaign: Campaign, epsilon: float) -> list[AttackSettings]:
    return single_attacks(campaign.attack, replace(campaign.settings, epsilon=epsilon))


def _entry(
    detector: SSD, pack: Pack, campaign: Campaign, epsilon: float, clean: Sequence[Detections]
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
) -> Pass[list[Detections]]:
    def compute(chunk: range) -> list[Detections]:
        images = pictures(pack, chunk.start, chunk.stop, detector.default_boxes.device)
        targets = [pack.target(index) for index in chunk]
        outcome = attack_and_detect(detector, images, targets, settings, chunk, source=source)
        return outcome.detections

    folder = state and state / attack_key(detector, pack, settings, source)
    label = f"{settings.schedule} {settings.objective} ε={settings.epsilon:g}"
    return detecting_pass(label, len(pack), CHUNK, compute, folder)
