"""What one detector sees in one picture, clean and under attack, and what is proven about it.

Notable choices:
- A shown detection is certified up to the largest ε at which one of its class surely remains on its
  place: IoU of at least 0.5 with it, above the score at which detections are shown, through NMS.
- The region of the worst case is that of its own default box: every corner lies between the inner
  and the outer rectangle under every perturbation of at most ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.attack import AttackSettings, attack_and_detect, detect, worst_of
from lipdet.boxes import DISPLAY_SELECTION, Decoder, select_detections
from lipdet.boxes.scores import logit
from lipdet.certificate import UnknownLipschitz
from lipdet.certificate.box_range import box_range, corner_range
from lipdet.certificate.outputs import OutputBounds
from lipdet.certificate.radius import certified_radii
from lipdet.certificate.truths import free_truths
from lipdet.certificate.verifier import verifier_of
from lipdet.detector import SSD
from lipdet.evaluate.attacked import pictures, prepare
from lipdet.images.pack import Pack
from lipdet.types import Detections, RawOutput, Target

SAME_PLACE_IOU = 0.5

Box = tuple[float, float, float, float]


class Shown(NamedTuple):
    """One detection in pixels of the network's input.

    Attributes:
        box: x1, y1, x2, y2.
        label: class name.
        score: in [0, 1].
        radius: largest ε up to which it is certified; None where nothing was asked or bounded.
        outer: smallest rectangle that holds its box under every perturbation of at most ε.
        inner: rectangle that every such box holds; None if there is none.
    """

    box: Box
    label: str
    score: float
    radius: float | None = None
    outer: Box | None = None
    inner: Box | None = None


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
    detector: SSD,
    pack: Pack,
    indices: Sequence[int],
    attacks: Sequence[AttackSettings],
) -> list[Scene]:
    """Pictures of a pack, attacked, with what is certified about each detection.

    Args:
        name: of the detector.
        detector: of the pack's input size and classes.
        pack: annotated pictures.
        indices: of the pictures.
        attacks: at one ε; of each picture the most damaging one is shown.
    """
    prepared = prepare(detector)
    device = detector.default_boxes.device
    images = torch.cat([pictures(pack, index, index + 1, device) for index in indices])
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
    detector: SSD, images: Tensor, epsilon: float, class_names: Sequence[str]
) -> list[tuple[Shown, ...]]:
    """What is shown on images (B, 3, S, S), with radii, and regions at ε.

    Without radii and regions where a layer has no Lipschitz bound.
    """
    raw = RawOutput(*(part.cpu() for part in detector(images)))
    decoder = detector.decoder._replace(default_boxes=detector.default_boxes.cpu())
    found = select_detections(raw, decoder, DISPLAY_SELECTION)
    plain = [list(_shown(one, class_names)) for one in found]
    try:
        verifier = verifier_of(detector, DISPLAY_SELECTION, images)
    except UnknownLipschitz:
        return [tuple(one) for one in plain]
    counts = torch.tensor([len(one["labels"]) for one in found])
    place = torch.repeat_interleave(counts)
    truths = free_truths(
        place,
        torch.cat([one["labels"] for one in found]),
        torch.cat([one["boxes"] for one in found]),
    )
    floor = logit(DISPLAY_SELECTION.score_floor)
    radii = certified_radii(verifier, raw, truths, SAME_PLACE_IOU, floor).tolist()
    marked = []
    for image, one in enumerate(plain):
        anchors = _anchors(found[image], raw, decoder, image)
        regions = _regions(raw.offsets[image], anchors, verifier.bounds, decoder, epsilon)
        marked.append(
            tuple(
                shown._replace(radius=radii.pop(0), outer=outer, inner=inner)
                for shown, (outer, inner) in zip(one, regions, strict=True)
            )
        )
    return marked


def _shown(found: Detections, class_names: Sequence[str]) -> list[Shown]:
    rows = zip(
        found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
    )
    return [Shown(tuple(box), class_names[label], score) for box, label, score in rows]


def _anchors(found: Detections, raw: RawOutput, decoder: Decoder, image: int) -> list[int]:
    """The default box that each detection comes from: that of its class with its box and score."""
    boxes = decoder.boxes(raw.offsets[image])
    log_odds = decoder.scores.log_odds(raw.logits[image]).double().sigmoid()
    return [
        int(((boxes == box).all(dim=1).double() - (log_odds[:, label] - score).abs()).argmax())
        for box, label, score in zip(
            found["boxes"], found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
    ]


def _regions(
    offsets: Tensor, anchors: list[int], bounds: OutputBounds, decoder: Decoder, epsilon: float
) -> list[tuple[Box, Box | None]]:
    """Outer and inner rectangle of each detection."""
    reach = epsilon * bounds.offsets[anchors]
    boxes = box_range(offsets[anchors], reach, decoder.default_boxes[anchors], decoder.coding)
    low, high = corner_range(boxes, decoder.image_size)
    regions: list[tuple[Box, Box | None]] = []
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(low.tolist(), high.tolist(), strict=True):
        inner = (u1, v1, x2, y2) if u1 < x2 and v1 < y2 else None
        regions.append(((x1, y1, u2, v2), inner))
    return regions


def _names(target: Target, class_names: Sequence[str]) -> tuple[str, ...]:
    """The objects of a picture, left to right."""
    order = target["labels"][target["boxes"][:, 0].argsort()].tolist()
    return tuple(class_names[label] for label in order)
