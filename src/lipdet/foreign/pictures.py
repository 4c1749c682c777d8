"""What a detector that lipdet did not build shows in single pictures, clean and under attack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from lipdet.attack import AttackSettings, worst_of
from lipdet.attack.loop import OnStep
from lipdet.attack.outcome import Outcome
from lipdet.boxes import DISPLAY_SELECTION
from lipdet.foreign.protocol import attack, detect, look, picture
from lipdet.images.pack import Pack
from lipdet.reading import Detection, named
from lipdet.reading.marks import to_picture
from lipdet.report.scenes import Scene
from lipdet.types import Detections, Target
from lipdet.user_module import ForeignDetector


def attack_pictures(
    module: nn.Module,
    images: Tensor,
    attacks: Sequence[AttackSettings],
    on_step: OnStep | None = None,
) -> tuple[Outcome, Outcome]:
    """As `lipdet.attack.attack_unlabelled`: what is shown is taken for the truth.

    Args:
        module: attacks and looks.
        images: (B, 3, S, S) in [0, 1].
        attacks: the worst of them counts, per image.
        on_step: told about every step of every attack.

    Returns:
        What is shown on the clean images, and on the attacked ones.
    """
    shown = _shown(detect(module, images))
    targets = [Target(boxes=one["boxes"], labels=one["labels"]) for one in shown]
    clean = look(module, images, targets)
    outcomes = [
        look(module, attack(module, images, targets, one, on_step=on_step), targets)
        for one in attacks
    ]
    before, after = (
        one._replace(detections=_shown(one.detections)) for one in (clean, worst_of(outcomes))
    )
    return before, after


def foreign_scenes(
    detector: ForeignDetector, pack: Pack, count: int, attacks: Sequence[AttackSettings]
) -> list[Scene]:
    """What the module shows in the first pictures, clean and under the most damaging attack."""
    result = []
    module, classes = detector.module, len(pack.class_names)
    for index in range(min(count, len(pack))):
        image, target = picture(pack, index), pack.target(index)
        after = worst_of(
            [
                look(module, attack(module, image, [target], one, [index]), [target], classes)
                for one in attacks
            ]
        )
        order = target["labels"][target["boxes"][:, 0].argsort()].tolist()
        result.append(
            Scene(
                weights=detector.name,
                picture=index,
                epsilon=attacks[0].epsilon,
                clean=pack.images[index].copy(),
                attacked=np.array(to_picture(after.images[0])),
                truth=tuple(pack.class_names[label] for label in order),
                found=_as_shown(detect(module, image, classes), pack.class_names),
                found_attacked=_as_shown(after.detections, pack.class_names),
            )
        )
    return result


def names_of(detector: ForeignDetector, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Class names in the order of the labels; the module's own numbers if it has no names."""
    if detector.class_names is not None:
        return detector.class_names
    found = [one for outcome in outcomes for one in outcome.detections]
    largest = max((int(label) for one in found for label in one["labels"]), default=0)
    return tuple(str(number) for number in range(1, largest + 2))


def _shown(found: Sequence[Detections]) -> list[Detections]:
    """What of it a user is shown, by the score and number that hold for lipdet's detectors."""
    result = []
    for one in found:
        # Best first, so these are the first rows.
        above = int((one["scores"] > DISPLAY_SELECTION.score_floor).sum())
        rows = slice(min(above, DISPLAY_SELECTION.top_k))
        result.append(
            Detections(
                boxes=one["boxes"][rows], labels=one["labels"][rows], scores=one["scores"][rows]
            )
        )
    return result


def _as_shown(found: Sequence[Detections], class_names: Sequence[str]) -> tuple[Detection, ...]:
    """Return the one picture's detections for a page."""
    [one] = _shown(found)
    return named(one, class_names)
