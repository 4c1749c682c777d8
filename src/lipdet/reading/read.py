"""Read a picture: join its views, each place once, and certify what remains.

Notable choices:
- A given crop is one region and one pass; so is a whole picture. For a network of crops, a
  photograph is searched first.
- A radius is about the region that a detection was found in; the regions stay where they are, and
  what was found in other ones as it was. Where that comes near, nothing is promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lipdet.boxes import Selection
from lipdet.boxes.select import MOST_COVERED, best_rows, one_per_place
from lipdet.certificate.radius import REMAINING_IOU, Remaining
from lipdet.certificate.verifier import Verifier
from lipdet.detector.forward import Network
from lipdet.errors import InputError
from lipdet.images.crop import Region, around, cut, full_region, out_of_region, picture_part
from lipdet.reading.detections import Detection, as_rows, named
from lipdet.reading.search import put_together, searched_regions
from lipdet.reading.views import View, look_at_pixels, remaining_of
from lipdet.types import Detections, Framing


@dataclass(frozen=True, eq=False)
class Reading:
    """The regions of one picture, and the detections in it.

    Attributes:
        size: width and height of the picture.
        views: its regions through the network.
        detections: in pixels of the picture, best first, of each place only the best one.
    """

    size: tuple[int, int]
    views: tuple[View, ...]
    detections: tuple[Detection, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json."""
        return {
            "width": self.size[0],
            "height": self.size[1],
            "regions": [list(view.region) for view in self.views],
            "detections": as_rows(self.detections, radius="radius"),
        }


class Framed(Protocol):
    """What says how pictures get onto its canvas; where they are crops, it is a `Network`."""

    @property
    def framing(self) -> Framing:
        """Return canvas, and whether whole pictures or crops are seen."""


def regions_of(network: Framed, image: Image.Image, crop: Region | None) -> list[Region]:
    """Return the regions of a picture that a network looks at.

    A network of crops looks at the crop, or where a search finds something; any other at all of
    the picture, or at the smallest rectangle of its canvas's shape around the crop.

    Raises:
        InputError: the crop has no area or reaches outside the picture.
    """
    canvas, whole = network.framing
    if crop is None and whole is False:
        return searched_regions(cast(Network, network), image)
    if crop is None:
        return [full_region(*image.size, canvas)]
    text, (width, height) = ",".join(f"{value:g}" for value in crop), image.size
    if crop.left >= crop.right or crop.top >= crop.bottom:
        raise InputError(f"The crop {text} has no area; give LEFT,TOP,RIGHT,BOTTOM.")
    # Written so that what is no number is refused.
    if not (crop.left >= 0 and crop.right <= width and crop.top >= 0 and crop.bottom <= height):
        raise InputError(f"The crop {text} reaches outside the picture of {width}×{height} pixels.")
    return [crop if whole is False else around(crop, canvas)]


def read(
    network: Network,
    class_names: Sequence[str],
    image: Image.Image,
    crop: Region | None = None,
    selection: Selection | None = None,
) -> Reading:
    """Find objects in one picture, as `read_all` in several."""
    [reading] = read_all(network, class_names, [image], crop, selection)
    return reading


def read_all(
    network: Network,
    class_names: Sequence[str],
    images: Sequence[Image.Image],
    crop: Region | None = None,
    selection: Selection | None = None,
) -> list[Reading]:
    """Find objects in pictures, whose regions pass the network together.

    Args:
        network: its mode is left as it was.
        class_names: of its labels.
        images: RGB.
        crop: look only there, in each.
        selection: which boxes become detections. A search for regions has its own.

    Raises:
        InputError: the crop has no area or reaches outside a picture.
    """
    regions = [regions_of(network, image, crop) for image in images]
    pairs = [(image, one) for image, own in zip(images, regions, strict=True) for one in own]
    cuts = [cut(image, region, network.framing.canvas) for image, region in pairs]
    places = [region for _, region in pairs]
    every = iter(look_at_pixels(network, class_names, cuts, places, selection))
    readings = []
    for image, own in zip(images, regions, strict=True):
        views = tuple(islice(every, len(own)))
        readings.append(Reading(image.size, views, _shown(views, image.size)))
    return readings


def certified_reading(reading: Reading, verifier: Verifier) -> Reading:
    """Return a reading with the largest L2 perturbation that leaves each box what is shown.

    A box is shown as far as the picture reaches, and that is what must remain, as the best one at
    its place. *Proof.* Let P be the part of the region that shows the picture, and g what is shown
    of the box. For any box B that NMS puts out, P has all that B and g have in common, and B ∩ P is
    no larger than B: IoU(B ∩ P, g) ≥ IoU(B, g), and the right side is what is certified. A box of
    which nothing is shown has no area to remain on, and radius 0.

    Args:
        reading: of the verifier's detector.
        verifier: for the selection that the reading was made with.
    """
    views, size = reading.views, reading.size
    if not views:
        return reading
    shown = [_shown_part(one_per_place(view.found), view, size) for view in views]
    kept = remaining_of(views, shown, verifier, REMAINING_IOU, MOST_COVERED)
    reach = [
        _reach_in_picture(one.region, view, size) for one, view in zip(kept, views, strict=True)
    ]
    remaining = Remaining(torch.cat([one.radius for one in kept]), torch.cat(reach))
    return Reading(size, views, _shown(views, size, remaining))


def _shown(
    views: Sequence[View], size: tuple[int, int], remaining: Remaining | None = None
) -> tuple[Detection, ...]:
    """Return the best detection of each place, in pixels of a picture of this size."""
    if not views:
        return ()
    found, square = put_together(views, size)
    if remaining is not None:
        remaining = remaining_alone(found["boxes"], square, remaining)
    every = named(found, views[0].class_names, remaining)
    return tuple(every[row] for row in best_rows(found, square))


def remaining_alone(boxes: Tensor, square: Tensor, remaining: Remaining) -> Remaining:
    """Set the radius of a box to 0 where it may meet the box of another square.

    Args:
        boxes: (N, 4) in pixels of the picture.
        square: (N,) where each was found.
        remaining: of each, with its reach in pixels of the picture.
    """
    reach = remaining.region
    meet = (boxes[:, :2] <= reach[:, None, 2:]) & (boxes[:, 2:] >= reach[:, None, :2])
    met = (meet.all(dim=2) & (square[:, None] != square)).any(dim=1)
    return Remaining(remaining.radius.masked_fill(met, 0), reach)


def _shown_part(found: Detections, view: View, size: tuple[int, int]) -> Detections:
    """Return boxes in pixels of the network's input, without what lies beyond the picture."""
    left, top, right, bottom = picture_part(view.region, *size, view.canvas).tolist()
    low, high = torch.tensor([left, top] * 2), torch.tensor([right, bottom] * 2)
    boxes = torch.minimum(torch.maximum(found["boxes"], low), high)
    return Detections(boxes=boxes, labels=found["labels"], scores=found["scores"])


def _reach_in_picture(reach: Tensor, view: View, size: tuple[int, int]) -> Tensor:
    boxes = out_of_region(reach.numpy(), view.region, view.canvas)
    return torch.from_numpy(boxes.clip(0, np.array([*size, *size])))
