"""What one detector sees in one picture, clean and under attack, and what is proven about it.

Notable choices:
- Radii and regions are those of `lipdet certify`: a box of the same class remains that overlaps the
  shown one by an IoU of at least 0.5, above the score at which detections are shown, through NMS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.attack import AttackSettings, attack_and_detect, detect, worst_of
from lipdet.attack.attackable import Attackable, attackable
from lipdet.boxes import DISPLAY_SELECTION, select_detections
from lipdet.certificate import UnknownLipschitz
from lipdet.certificate.radius import REMAINING_IOU, Region, regions_at, remaining_detections
from lipdet.certificate.verifier import verifier_of
from lipdet.detector import SSD
from lipdet.evaluate.attacked import prepare
from lipdet.images.pack import Pack
from lipdet.types import Detections, RawOutput, Target


class Shown(NamedTuple):
    """One detection in pixels of the network's input.

    Attributes:
        box: x1, y1, x2, y2.
        label: class name.
        score: in [0, 1].
        radius: largest ε up to which it is certified; None where nothing was asked or bounded.
        region: rectangle in which the box that remains lies under every perturbation of at most ε;
            None where it is not certified up to that.
    """

    box: Region
    label: str
    score: float
    radius: float | None = None
    region: Region | None = None


class Scene(NamedTuple):
    """One picture through the eyes of one detector.

    Attributes:
        weights: the detector's name.
        picture: its number in the data.
        epsilon: radius of the attack and of the worst-case regions.
        clean: (S, S, 3) uint8.
        attacked: (S, S, 3) uint8, rounded for show.
        truth: class names of the objects, left to right.
        found: on the clean picture.
        found_attacked: on the attacked one, before rounding.
    """

    weights: str
    picture: int
    epsilon: float
    clean: NDArray[np.uint8]
    attacked: NDArray[np.uint8]
    truth: tuple[str, ...]
    found: tuple[Shown, ...]
    found_attacked: tuple[Shown, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json, without the pictures."""
        return {
            "picture": self.picture,
            "epsilon": self.epsilon,
            "truth": list(self.truth),
            "clean": [one._asdict() for one in self.found],
            "attacked": [one._asdict() for one in self.found_attacked],
        }


def scenes(
    name: str,
    detector: SSD | Attackable,
    pack: Pack,
    indices: Sequence[int],
    attacks: Sequence[AttackSettings],
) -> list[Scene]:
    """Return pictures of a pack, attacked, with what is certified about each detection.

    Args:
        name: of the detector.
        detector: of the pack's input size and classes.
        pack: annotated pictures.
        indices: of the pictures.
        attacks: at one ε; of each picture the most damaging one is shown.
    """
    prepared = prepare(detector) if isinstance(detector, SSD) else detector
    images = pack.pixels(indices).to(attackable(prepared).device)
    targets = [pack.target(index) for index in indices]
    outcomes = [attack_and_detect(prepared, images, targets, one, indices) for one in attacks]
    outcome = worst_of(outcomes)
    after = detect(prepared, outcome.images, DISPLAY_SELECTION)
    before = certified_detections(prepared, images, attacks[0].epsilon, pack.class_names)
    rounded = (outcome.images.permute(0, 2, 3, 1).cpu() * 255).round().byte().numpy()
    return [
        Scene(
            name,
            index,
            attacks[0].epsilon,
            pack.images[index].copy(),
            rounded[place],
            _names(targets[place], pack.class_names),
            before[place],
            tuple(_shown(after[place], pack.class_names)),
        )
        for place, index in enumerate(indices)
    ]


@torch.no_grad()
def certified_detections(
    detector: SSD | Attackable, images: Tensor, epsilon: float, class_names: Sequence[str]
) -> list[tuple[Shown, ...]]:
    """Return what is shown on images (B, 3, S, S), with radii, and regions at ε.

    Without radii and regions where a layer has no Lipschitz bound, or the detector is no `SSD`.
    """
    if not isinstance(detector, SSD):
        found = detect(detector, images, DISPLAY_SELECTION)
        return [tuple(_shown(one, class_names)) for one in found]
    raw = RawOutput(*(part.cpu() for part in detector(images)))
    decoder = detector.decoder._replace(default_boxes=detector.default_boxes.cpu())
    found = select_detections(raw, decoder, DISPLAY_SELECTION)
    plain = [list(_shown(one, class_names)) for one in found]
    try:
        verifier = verifier_of(detector, DISPLAY_SELECTION)
    except UnknownLipschitz:
        return [tuple(one) for one in plain]
    marked = []
    kept = remaining_detections(verifier, raw, found, REMAINING_IOU)
    for image, (one, remaining) in enumerate(zip(found, kept, strict=True)):
        alone = RawOutput(raw.logits[image, None], raw.offsets[image, None])
        regions = regions_at(verifier, alone, one, remaining.radius, epsilon, REMAINING_IOU)
        rows = zip(plain[image], remaining.radius.tolist(), regions, strict=True)
        marked.append(tuple(shown._replace(radius=r, region=where) for shown, r, where in rows))
    return marked


def _shown(found: Detections, class_names: Sequence[str]) -> list[Shown]:
    rows = zip(
        found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
    )
    return [Shown(tuple(box), class_names[label], score) for box, label, score in rows]


def _names(target: Target, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the objects of a picture, left to right."""
    order = target["labels"][target["boxes"][:, 0].argsort()].tolist()
    return tuple(class_names[label] for label in order)
