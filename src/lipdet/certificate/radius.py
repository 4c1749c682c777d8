"""The largest ε at which something is certified, by bisection over many things at once.

Notable choices:
- What is returned was itself checked, so it is a certificate whatever the check does in between.
  A certificate at ε is one at every smaller ε: it speaks of all perturbations up to it.
- Each object brings its own ε: its image is certified as if alone, at that ε.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipdet.certificate.certify import certified_up_to
from lipdet.certificate.truths import Truths
from lipdet.certificate.verifier import Verifier
from lipdet.types import RawOutput

TOLERANCE = 1e-3
# Beyond any perturbation of interest: a picture of 74×74 pixels has 16,428 values in [0, 1].
LARGEST_RADIUS = 64.0
# Objects that are certified at once, each with the outputs of its image.
OBJECTS_AT_ONCE = 64


def largest_radius(
    holds: Callable[[Tensor, Tensor], Tensor],
    count: int,
    tolerance: float = TOLERANCE,
    largest: float = LARGEST_RADIUS,
) -> Tensor:
    """The largest ε, to within `tolerance` from below, at which each of `count` things holds.

    Args:
        holds: from indices (n,) of things and one ε for each (n,) to whether they hold (n,).
        count: number of things.
        tolerance: of the result, in the unit of ε.
        largest: where the search ends; powers of two times 1/8 are tried on the way to it.

    Returns:
        (count,) float64; 0 where nothing holds at ε = 0, and where it holds there alone.
    """
    low = torch.zeros(count, dtype=torch.float64)
    high = torch.full_like(low, torch.inf)
    high[~holds(torch.arange(count), low)] = 0.0
    while len(open_ := torch.nonzero((high - low > tolerance) & (low < largest))[:, 0]):
        bounded = high[open_].isfinite()
        middle = torch.where(
            bounded, (low[open_] + high[open_]) / 2, (2 * low[open_]).clamp(0.125, largest)
        )
        held = holds(open_, middle)
        low[open_[held]] = middle[held]
        high[open_[~held]] = middle[~held]
    return low


def certified_radii(
    verifier: Verifier,
    raw: RawOutput,
    truths: Truths,
    iou: float,
    log_odds: float,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """The largest ε at which each object is certified.

    Args:
        verifier: of the detector.
        raw: its outputs for the images of `truths`.
        truths: objects, or boxes that shall remain.
        iou: threshold of a match.
        log_odds: score that the detection shall keep, not below the floor.
        tolerance: how far below the largest the result may lie.

    Returns:
        (G,) float64; 0 where there is no certificate.
    """

    def holds(objects: Tensor, epsilon: Tensor) -> Tensor:
        parts = (torch.split(values, OBJECTS_AT_ONCE) for values in (objects, epsilon))
        return torch.cat([_certified(*part) for part in zip(*parts, strict=True)])

    def _certified(objects: Tensor, epsilon: Tensor) -> Tensor:
        images = truths.image[objects]
        copies = RawOutput(raw.logits[images], raw.offsets[images])
        alone = truths._replace(
            image=torch.arange(len(objects)),
            label=truths.label[objects],
            box=truths.box[objects],
            rival_starts=truths.rival_starts[objects],
            rival_counts=truths.rival_counts[objects],
        )
        candidates = verifier.candidates(copies, epsilon)
        found = verifier.certifiers(candidates, alone, epsilon, iou)
        return certified_up_to(found, len(objects), [iou])[:, 0] >= log_odds

    return largest_radius(holds, len(truths.image), tolerance)
