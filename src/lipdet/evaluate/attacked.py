"""AP under attack over a data set: resumable, and independent of how the pictures are batched.

Notable choices:
- Of several objectives each image takes the result that costs AP50 most; each figure is the lowest
  of these composites and of every single objective.
- A chunk of pictures that is done is a file in the state folder, under the hash of everything that
  determines it; nothing is rewritten, and an interrupted run loses one chunk at most.
- Attacked pictures are judged as they are, in float32; rounding to 8 bits would change them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import torch

from lipdet.attack import AttackSettings, attack_batch, detect, recall
from lipdet.attack.attackable import Attackable, attackable, raisable
from lipdet.attack.settings import AttackName, single_attacks
from lipdet.boxes import DISPLAY_SELECTION
from lipdet.detector import SSD
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.chunks import Pass, State, detecting_pass, in_order
from lipdet.evaluate.composites import composites
from lipdet.evaluate.consistency import consistency
from lipdet.images.pack import Pack
from lipdet.results import AttackedResult, Figures
from lipdet.types import Detections

Looking = TypeVar("Looking", bound=SSD | Attackable)

CHUNK = 32


@dataclass(frozen=True)
class Campaign:
    """The attacks of one evaluation.

    Attributes:
        attack: pgd, apgd or worst, as `lipdet.attack.settings.single_attacks` reads it.
        epsilons: radii, in [0, 1] pixel units at the network's input size.
        settings: everything else; their epsilon, schedule and objective do not matter.
        objective: of pgd and apgd; None for those that are tried where none is named.
    """

    attack: AttackName
    epsilons: tuple[float, ...]
    settings: AttackSettings
    objective: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be attacked, before anything is computed."""
        self.attacks(self.epsilons[0])

    def attacks(self, epsilon: float) -> list[AttackSettings]:
        """List the attacks at one radius, each on one objective."""
        settings = replace(self.settings, epsilon=epsilon)
        return single_attacks(self.attack, settings, self.objective)

    def with_steps(self, steps: int) -> Campaign:
        """Return the same attacks with another number of gradients per start."""
        return replace(self, settings=replace(self.settings, steps=steps))


def attacked_results(
    detector: SSD | Attackable,
    pack: Pack,
    campaign: Campaign,
    clean: Sequence[Detections],
    state: State | None = None,
) -> list[AttackedResult]:
    """Return one entry per radius, as docs/json.md describes it.

    Args:
        detector: of the pack's input size and classes.
        pack: the pictures.
        campaign: the attacks.
        clean: detections on the clean pictures.
        state: where finished chunks are kept and looked for.
    """
    prepared = prepare(detector)
    score = attackable(prepared).display.score_floor
    entries = []
    for epsilon in campaign.epsilons:
        singles = raisable(prepared, campaign.attacks(epsilon))
        found = [attack_pack(prepared, pack, single, state) for single in singles]
        entries.append(_entry(campaign, singles, found, clean, pack, score))
    return entries


def attack_pack(
    detector: SSD | Attackable, pack: Pack, settings: AttackSettings, state: State | None = None
) -> list[Detections]:
    """Attack every picture of a pack, and detect in what comes out.

    Args:
        detector: looks at the attacked pictures; `prepare` makes it faster.
        pack: pictures of the detector's input size.
        settings: of one attack.
        state: of this detector; where finished chunks are kept and looked for.
    """
    return in_order(_attack_pass(detector, pack, settings, state).results())


def attack_passes(
    detector: SSD, pack: Pack, campaign: Campaign, state: State
) -> list[Pass[list[Detections]]]:
    """Return all passes over the pack that `attacked_results` sums up."""
    prepared = prepare(detector)
    return [
        _attack_pass(prepared, pack, single, state)
        for epsilon in campaign.epsilons
        for single in campaign.attacks(epsilon)
    ]


def prepare(detector: Looking) -> Looking:
    """Return a frozen copy of a detector in eval mode, in the memory layout that is fastest.

    One that is no `SSD` is taken as it is.
    """
    if not isinstance(detector, SSD):
        return detector
    prepared = copy.deepcopy(detector).eval().requires_grad_(False)
    return prepared.to(memory_format=torch.channels_last)


def measure(
    found: Sequence[Detections], pack: Pack, score: float = DISPLAY_SELECTION.score_floor
) -> Figures:
    """Return AP50 and AP of detections on a pack, and the recall of those above a score."""
    targets = [pack.target(index) for index in range(len(pack))]
    precision = average_precision(targets, found, pack.class_names)
    share = recall(found, targets, score)
    return {"ap50": precision["ap50"], "ap": precision["ap"], "recall": share}


def worst(candidates: Sequence[list[Detections]], pack: Pack) -> list[Detections]:
    """Choose what has the lowest AP50: a candidate or a composite of them."""
    every = [*candidates, *composites(candidates, pack)]
    return every[_lowest([measure(one, pack) for one in every])]


def _lowest(figures: Sequence[Figures]) -> int:
    """Return which has the lowest AP50."""
    return min(range(len(figures)), key=lambda index: figures[index]["ap50"])


def _entry(
    campaign: Campaign,
    singles: Sequence[AttackSettings],
    found: Sequence[list[Detections]],
    clean: Sequence[Detections],
    pack: Pack,
    score: float,
) -> AttackedResult:
    """Return what the attacks of a campaign at one ε left of the clean detections."""
    first = singles[0]
    tried = [*found, *composites(found, pack)] if len(found) > 1 else found
    every = [measure(one, pack, score) for one in tried]
    entry: AttackedResult = {
        "epsilon": first.epsilon,
        "grey_levels": pack.canvas.grey_levels(first.epsilon, first.norm),
        "attack": campaign.attack,
        "norm": first.norm,
        "steps": campaign.settings.steps,
        "restarts": first.restarts,
        "seed": first.seed,
        "recall_score": score,
        "consistency": consistency(clean, tried[_lowest(every)], score),
        "ap50": min(one["ap50"] for one in every),
        "ap": min(one["ap"] for one in every),
        "recall": min(one["recall"] for one in every),
    }
    if len(found) == 1:
        return {**entry, "objective": first.objective}
    single, joined = every[: len(found)], every[len(found) :]
    names = [one.objective for one in singles]
    return {
        **entry,
        "composite": min(joined, key=lambda one: one["ap50"]),
        "objectives": dict(zip(names, single, strict=True)),
    }


def _attack_pass(
    detector: SSD | Attackable, pack: Pack, settings: AttackSettings, state: State | None
) -> Pass[list[Detections]]:
    def compute(chunk: range) -> list[Detections]:
        targets = [pack.target(index) for index in chunk]
        return detect(
            detector, attack_batch(detector, pack.pixels(chunk), targets, settings, chunk)
        )

    folder = state.of_pass("attacks", pack, settings=asdict(settings)) if state else None
    size = min(CHUNK, attackable(detector).at_once)
    label = f"{settings.schedule} {settings.objective} ε={settings.epsilon:g}"
    return detecting_pass(label, len(pack), size, compute, folder)
