"""Views: regions of a picture through a network, and what of its detections surely remains.

A region may be the whole picture. All that is said here is in pixels of the network's input;
`lipdet.reading.read` says it of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lipdet.boxes import Selection, select_detections
from lipdet.boxes.scores import logit
from lipdet.boxes.select import left_to_right, one_per_place
from lipdet.certificate import UnknownLipschitz
from lipdet.certificate.conditions.scores_and_votes import log_odds_interval
from lipdet.certificate.counting import certified_counts, reading_radii
from lipdet.certificate.radius import (
    REMAINING_IOU,
    TOLERANCE,
    Remaining,
    regions_at,
    remaining_detections,
)
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.detector import SSD
from lipdet.detector.forward import BATCH_SIZE, Network, decoder_on_cpu, raw_output
from lipdet.errors import InputError
from lipdet.images.crop import Region, cut
from lipdet.images.tensors import to_tensor
from lipdet.reading.detections import Box, Detection, as_rows, named, radius_text
from lipdet.types import Canvas, Detections, RawOutput, spell


def shown_above(network: Network, score: float | None) -> Selection:
    """Return which boxes of a network are shown: those whose score exceeds a threshold.

    None is for the network's own threshold. Certificates are for one selection: with this one they
    say that a detection remains above this threshold.

    Raises:
        InputError: the threshold is not between 0 and 1.
    """
    if score is None:
        return network.display
    if not (isinstance(score, Real) and 0 < score < 1):
        raise InputError(
            f"The score above which detections are shown lies between 0 and 1, not at {score!r}."
        )
    return replace(network.display, score_floor=float(score))


@dataclass(frozen=True, eq=False)
class View:
    """One region of a picture through a network.

    Attributes:
        region: in pixels of the picture.
        pixels: (H, W, 3) uint8, what the network sees of it; radii are about these values.
        raw: the outputs, on the CPU, B = 1.
        found: what NMS leaves of them.
        class_names: names in the order of the labels.
        remaining: how much perturbation each detection survives; None where that was not asked for.
    """

    region: Region
    pixels: NDArray[np.uint8]
    raw: RawOutput
    found: Detections
    class_names: tuple[str, ...]
    remaining: Remaining | None = None

    @property
    def canvas(self) -> Canvas:
        """Height and width of the pixels."""
        return Canvas(*self.pixels.shape[:2])

    @property
    def image(self) -> Tensor:
        """The pixels as (3, H, W) in [0, 1]."""
        return to_tensor(self.pixels)

    @property
    def detections(self) -> tuple[Detection, ...]:
        """Detections, best first."""
        return named(self.found, self.class_names, self.remaining)

    def at(self, epsilon: float, verifier: Verifier | None) -> tuple[Detection, ...]:
        """Return the detections, with their reach at ε where they are certified up to that.

        Args:
            epsilon: L2 radius; at 0 nothing may change, and nothing is claimed.
            verifier: the one that the radii are from, at REMAINING_IOU; None if there is none.
        """
        reaches: list[Box | None] = [None] * len(self.found["labels"])
        if verifier is not None and self.remaining is not None:
            radius = self.remaining.radius
            reaches = regions_at(verifier, self.raw, self.found, radius, epsilon, REMAINING_IOU)
        pairs = zip(self.detections, reaches, strict=True)
        return tuple(replace(one, reach=reach) for one, reach in pairs)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json."""
        rows = as_rows(self.detections, radius="radius", reach="reach")
        return {"region": list(self.region), "detections": rows}


def look(
    network: Network,
    class_names: Sequence[str],
    image: Image.Image,
    regions: Sequence[Region],
    selection: Selection | None = None,
) -> list[View]:
    """Run a network on regions of a picture.

    Args:
        network: its mode is left as it was.
        class_names: of its labels.
        image: RGB.
        regions: of the picture, each with at least one pixel of it.
        selection: which boxes become detections; None for those that the network shows.
    """
    cuts = [cut(image, region, network.framing.canvas) for region in regions]
    return look_at_pixels(network, class_names, cuts, regions, selection)


def look_at_pixels(
    network: Network,
    class_names: Sequence[str],
    pixels: Sequence[NDArray[np.uint8]],
    regions: Sequence[Region],
    selection: Selection | None = None,
) -> list[View]:
    """Run a network on pixels (H, W, 3) that are cut out already; else as `look`."""
    decoder, views = decoder_on_cpu(network), []
    selection = selection or network.display
    for start in range(0, len(pixels), BATCH_SIZE):
        raw = raw_output(network, to_tensor(pixels[start : start + BATCH_SIZE]))
        for row, found in enumerate(select_detections(raw, decoder, selection)):
            place, own = start + row, RawOutput(*(part[row, None] for part in raw))
            views.append(View(regions[place], pixels[place], own, found, tuple(class_names)))
    return views


def certified(views: Sequence[View], verifier: Verifier, iou: float = REMAINING_IOU) -> list[View]:
    """Return views with the largest L2 perturbation that each of their detections survives.

    Args:
        views: of the verifier's detector.
        verifier: for the selection that the views were made with.
        iou: how much of a box must remain.
    """
    kept = remaining_of(views, [view.found for view in views], verifier, iou)
    return [replace(view, remaining=one) for view, one in zip(views, kept, strict=True)]


def remaining_of(
    views: Sequence[View],
    found: Sequence[Detections],
    verifier: Verifier,
    iou: float = REMAINING_IOU,
    most_covered: float | None = None,
) -> list[Remaining]:
    """Certify boxes `found` in views by `remaining_detections`; all 0 where no score stays."""
    if not any(any_score_stays(view, verifier) for view in views):
        return [Remaining(torch.zeros(len(one["labels"])).double(), one["boxes"]) for one in found]
    return remaining_detections(verifier, _joined(views), found, iou, most_covered=most_covered)


class Count(NamedTuple):
    """Number of objects of a class that are shown, and the two numbers between which it stays."""

    found: int
    least: int
    most: int


@dataclass(frozen=True)
class Tally:
    """Labels and counts of one region, of each place only the best detection.

    Attributes:
        labels: class names from left to right.
        radius: the largest ε (L2, [0, 1] pixel units at the network's input) up to which these
            names and their order provably stay; 0 if nothing is proven.
        counts: by ε the `Count` of each class by name, under every perturbation of at most that.
    """

    labels: tuple[str, ...]
    radius: float
    counts: dict[float, dict[str, Count]]

    @property
    def words(self) -> str:
        """The certificate in one line."""
        told = []
        if spell(self.labels):
            sure = (
                f"sure up to ε = {radius_text(self.radius)}" if self.radius else "not sure at any ε"
            )
            told.append(f"reads {' '.join(self.labels) or 'nothing'} ({sure})")
        for epsilon, counts in self.counts.items():
            ranges = (
                f"{name}: {one.found}"
                + (f" ({one.least} to {one.most})" if one.least < one.most else "")
                for name, one in counts.items()
                if one.most
            )
            told.append(f"up to ε = {epsilon:g} counts {', '.join(ranges) or 'nothing'}")
        return "; ".join(told)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json."""
        counts = [
            {"epsilon": epsilon, "per_class": {name: one._asdict() for name, one in of.items()}}
            for epsilon, of in self.counts.items()
        ]
        reading = {"labels": list(self.labels), "radius": self.radius}
        return {"reading": reading, "counts": counts}


def tallied(views: Sequence[View], verifier: Verifier, epsilons: Sequence[float]) -> list[Tally]:
    """Return the labels read in each view, and the number of objects of each class.

    Args:
        views: of the verifier's detector.
        verifier: for the selection that the views were made with.
        epsilons: L2 radii at which the counts are bounded.
    """
    if not views:
        return []
    raw = _joined(views)
    radii = reading_radii(verifier, raw)
    ones = torch.ones(len(views), dtype=torch.float64)
    at = [(epsilon, certified_counts(verifier, raw, ones * epsilon)) for epsilon in epsilons]
    tallies = []
    for row, (view, radius) in enumerate(zip(views, radii.tolist(), strict=True)):
        names, labels = view.class_names, left_to_right(one_per_place(view.found))
        found = torch.bincount(labels, minlength=len(names)).tolist()
        counts = {
            epsilon: {
                name: Count(*numbers)
                for name, *numbers in zip(
                    names, found, of.least[row].tolist(), of.most[row].tolist(), strict=True
                )
            }
            for epsilon, of in at
        }
        tallies.append(Tally(tuple(names[label] for label in labels.tolist()), radius, counts))
    return tallies


def _joined(views: Sequence[View]) -> RawOutput:
    """Return the outputs of all views as one batch."""
    return RawOutput(
        *(torch.cat(parts) for parts in zip(*(view.raw for view in views), strict=True))
    )


def any_score_stays(view: View, verifier: Verifier) -> bool:
    """Return whether any score surely stays above the floor; certificates need that (condition 1).

    At half the tolerance of radii: below that none is tried but 0.
    """
    moved = TOLERANCE / 2 * verifier.bounds.logits
    low, _ = log_odds_interval(verifier.decoder.scores, view.raw.logits.double(), moved)
    return bool((low > logit(verifier.selection.score_floor)).any())


def known_verifier(network: Network, selection: Selection | None = None) -> Verifier | None:
    """Return the verifier of a network; None where a constant is not known."""
    if not isinstance(network, SSD):
        return None
    try:
        return verifier_of(network, selection or network.display)
    except UnknownLipschitz:
        return None
