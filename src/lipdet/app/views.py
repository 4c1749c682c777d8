"""What one detector sees in one square: clean, proven, and attacked.

Notable choices:
- Radii do not depend on the ε that a visitor chooses, so they are computed once per square.
- Where no score is proven to stay above the floor even at the smallest radius of interest, radii
  are 0 by condition 1 alone, and the search for them is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lipdet.app.exhibits import Exhibit
from lipdet.attack import AttackSettings, attack_unlabelled
from lipdet.boxes import DISPLAY_SELECTION, select_detections
from lipdet.boxes.scores import logit
from lipdet.certificate import UnknownLipschitz
from lipdet.certificate.conditions.scores_and_votes import log_odds_interval
from lipdet.certificate.radius import REMAINING_IOU, TOLERANCE, regions_at, remaining_detections
from lipdet.certificate.radius import Region as Rectangle
from lipdet.certificate.verifier import Verifier
from lipdet.evaluate.certified import outputs
from lipdet.images.crop import Region, cut
from lipdet.types import Detections, RawOutput


class View(NamedTuple):
    """One square through the eyes of one detector, whatever ε.

    Attributes:
        name: of the detector.
        image: (3, S, S) in [0, 1].
        raw: the outputs, B = 1.
        found: detections in pixels of the network's input.
        radii: of each, the largest ε up to which it surely remains; 0 where nothing is proven.
        largest_constant: the largest Lipschitz constant of a logit; None if unknown.
        reason: why nothing can be certified; empty if something could.
    """

    name: str
    image: Tensor
    raw: RawOutput
    found: Detections
    radii: list[float]
    largest_constant: float | None
    reason: str


class Attacked(NamedTuple):
    """What an attack made of a square.

    Attributes:
        settings: of each attack tried; the worst result is shown.
        image: (3, S, S) in [0, 1].
        found: detections in it.
    """

    settings: tuple[AttackSettings, ...]
    image: Tensor
    found: Detections

    @property
    def epsilon(self) -> float:
        """Radius of the attack."""
        return self.settings[0].epsilon


def look(exhibit: Exhibit, picture: Image.Image, region: Region) -> View:
    """Detect in a square of a picture and certify what is found.

    Args:
        exhibit: the detector.
        picture: RGB.
        region: the square.
    """
    pixels = torch.from_numpy(np.array(cut(picture, region, exhibit.size)))
    image = pixels.permute(2, 0, 1).float() / 255
    raw = outputs(exhibit.detector, image[None])
    decoder = exhibit.detector.decoder
    decoder = decoder._replace(default_boxes=decoder.default_boxes.cpu())
    [found] = select_detections(raw, decoder, DISPLAY_SELECTION)
    none = [0.0] * len(found["labels"])
    try:
        verifier = exhibit.verifier()
    except UnknownLipschitz as unknown:
        return View(exhibit.name, image, raw, found, none, None, str(unknown))
    constant = float(verifier.bounds.logits.max())
    if not anything_certified(verifier, raw):
        reason = (
            f"A change of ε can move a score's logit by {constant:.2g} ε as far as is known, and "
            f"already ε = {TOLERANCE:g} could take every score below the floor."
        )
        return View(exhibit.name, image, raw, found, none, constant, reason)
    [remaining] = remaining_detections(verifier, raw, [found], REMAINING_IOU)
    return View(exhibit.name, image, raw, found, remaining.radius.tolist(), constant, "")


def anything_certified(verifier: Verifier, raw: RawOutput, epsilon: float = TOLERANCE) -> bool:
    """Whether any score surely stays above the floor at ε; certificates need that (condition 1)."""
    moved = epsilon * verifier.bounds.logits
    low, _ = log_odds_interval(verifier.decoder.scores, raw.logits.double(), moved)
    return bool((low > logit(verifier.selection.score_floor)).any())


def regions(view: View, exhibit: Exhibit, epsilon: float) -> list[Rectangle | None]:
    """Where the box that remains of each detection lies at worst; None where it is not certified.

    Args:
        view: what was found.
        exhibit: the detector that found it.
        epsilon: L2 radius in pixel units at the network's input.
    """
    radii = torch.tensor(view.radii, dtype=torch.float64)
    if not any(radius >= epsilon > 0 for radius in view.radii):
        return [None] * len(radii)  # Perhaps there is no verifier either.
    return regions_at(exhibit.verifier(), view.raw, view.found, radii, epsilon, REMAINING_IOU)


def attack(
    exhibit: Exhibit,
    image: Tensor,
    settings: tuple[AttackSettings, ...],
    on_progress: Callable[[int, int], None],
) -> Attacked:
    """Change a square by at most ε so that the detector errs.

    Args:
        exhibit: the detector.
        image: (3, S, S) in [0, 1].
        settings: of each attack to try, all at one ε.
        on_progress: told how many steps of how many are done; may raise to stop the attack.
    """
    total = sum(one.restarts * (one.steps + 1) for one in settings)
    done = 0

    def on_step(step: int, places: Tensor, values: Tensor) -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    _, outcome = attack_unlabelled(exhibit.detector, image[None], settings, on_step)
    return Attacked(settings, outcome.images[0].cpu(), outcome.detections[0])
