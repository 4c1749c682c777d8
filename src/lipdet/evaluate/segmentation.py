"""What a segmenter gets right, pixel by pixel: confusions over a data set, and their figures."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.attack.pixels import attack_pixels, pixel_scores
from lipdet.certificate.flips import (
    NOTHING,
    Mask,
    least_iou,
    most_by_budget,
    most_lost,
    most_missed,
    of_budget,
    overlap,
    reach,
)
from lipdet.certificate.pixels import (
    PixelBounds,
    PixelMargins,
    bounds_of_pixels,
    margins_of,
)
from lipdet.checkpoint import LoadedSegmenter
from lipdet.detector.forward import MOST_PIXELS, frozen
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign
from lipdet.evaluate.chunks import weights_hash
from lipdet.images.batches import Part
from lipdet.images.pack import Pack
from lipdet.progress import track
from lipdet.results import (
    AttackedPixels,
    CertifiedClassPixels,
    CertifiedPixels,
    ClassPixels,
    Pixels,
    SegmentationResult,
)
from lipdet.segmenter import Segmenter
from lipdet.types import IGNORED
from lipdet.versions import versions

# Of a picture, where offsets of classes are chosen.
SAMPLED = 4096


@torch.no_grad()
def logits_of(segmenter: Segmenter, images: Tensor) -> Tensor:
    """Return logits (B, K, H, W) of images (B, 3, H, W) in [0, 1] in eval mode, on the CPU."""
    reference = next(segmenter.parameters())
    with frozen(segmenter):
        found: Tensor = segmenter(images.to(reference)).cpu()
    return found


def at_once(pack: Pack) -> int:
    """Return how many pictures of a pack pass together."""
    return max(1, MOST_PIXELS // (2 * pack.canvas.height * pack.canvas.width))


def confusion(logits: Tensor, masks: Tensor) -> NDArray[np.int64]:
    """Count labelled pixels by class (rows) and what has the highest logit (columns), (K, K).

    Args:
        logits: (B, K, H, W).
        masks: (B, H, W) uint8.
    """
    classes, known = logits.shape[1], masks != IGNORED
    pairs = masks[known].long() * classes + logits.argmax(dim=1)[known]
    counts = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return np.asarray(counts.numpy(), np.int64)


def confusion_of_pack(
    segmenter: Segmenter, pack: Pack, indices: Sequence[int]
) -> NDArray[np.int64]:
    """Return the confusions (K, K) of all pixels of some pictures together."""
    masks, step = masks_of(pack), at_once(pack)
    total = np.zeros((len(pack.class_names),) * 2, np.int64)
    for start in track(range(0, len(indices), step), f"Segmenting {pack.name}"):
        chosen = list(indices[start : start + step])
        found = logits_of(segmenter, pack.pixels(chosen))
        total += confusion(found, torch.from_numpy(masks[chosen]))
    return total


def sampled_pixels(segmenter: Segmenter, part: Part, seed: int) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) and classes (N,) of labelled pixels, SAMPLED of each picture at most."""
    rng, masks = np.random.default_rng([seed, 5]), masks_of(part.pack)
    logits, labels = [], []
    for index in part.indices.tolist():
        [found] = logits_of(segmenter, part.pack.pixels([index]))
        mask = masks[index].ravel()
        chosen = rng.permutation(np.flatnonzero(mask != IGNORED))[:SAMPLED]
        logits.append(found.flatten(1).T[chosen])
        labels.append(torch.from_numpy(mask[chosen].astype(np.int64)))
    return torch.cat(logits), torch.cat(labels)


def masks_of(pack: Pack) -> NDArray[np.uint8]:
    """Return the masks (N, H, W) of a pack that has some."""
    assert pack.masks is not None
    return pack.masks


def figures(counts: NDArray[np.int64], class_names: Sequence[str]) -> Pixels:
    """Sum up confusions (K, K): over all pixels together, so that large pictures count as much.

    A class that neither the masks nor the segmenter shows has no IoU, and is left out of the mean.
    """
    right, shown = np.diag(counts), counts.sum(axis=0)
    there = counts.sum(axis=1)
    per_class: dict[str, ClassPixels] = {
        name: {
            "iou": _share(right[k], there[k] + shown[k] - right[k]),
            "recall": _share(right[k], there[k]),
            "precision": _share(right[k], shown[k]),
            "pixels": int(there[k]),
        }
        for k, name in enumerate(class_names)
    }
    known = [one["iou"] for one in per_class.values() if one["iou"] is not None]
    return {
        "accuracy": float(right.sum() / max(counts.sum(), 1)),
        "miou": float(np.mean(known)) if known else 0.0,
        "per_class": per_class,
    }


def _share(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None


def evaluate_segmenter(
    loaded: LoadedSegmenter,
    pack: Pack,
    seed: int,
    campaign: Campaign | None = None,
    certify: Sequence[float] = (),
    bounds: PixelBounds | None = None,
) -> SegmentationResult:
    """Measure a segmenter: clean, under attack and certified.

    Args:
        loaded: the segmenter.
        pack: pictures with masks, of any size.
        seed: the one that the pack was made with; recorded.
        campaign: the attacks to run, with `PixelSettings`, if any.
        certify: L2 radii at which to certify, if any.
        bounds: as `bounds_on` gives them, if they are known.

    Returns:
        The json object that docs/json.md describes; shares are fractions.

    Raises:
        InputError: the pack has no masks, or other classes.
        UnknownLipschitz: it is to be certified, and has a layer without a bound.
    """
    segmenter = loaded.segmenter
    check_pack(loaded, pack)
    started = time.monotonic()
    bounds = (bounds or bounds_on(segmenter, pack)) if certify else None
    if bounds:
        counts, certified = certified_pixels(segmenter, pack, certify, bounds)
    else:
        counts, certified = confusion_of_pack(segmenter, pack, range(len(pack))), []
    answer = np.zeros_like(counts)
    answer[:, counts.sum(axis=1).argmax()] = counts.sum(axis=1)
    attacked = []
    if campaign:
        attacked = [attacked_pixels(segmenter, pack, campaign, one) for one in campaign.epsilons]
    return {
        "weights": loaded.name,
        "weights_hash": weights_hash(segmenter),
        "parameters": sum(parameter.numel() for parameter in segmenter.parameters()),
        "data": pack.describe(),
        "seed": seed,
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 3),
        "clean": figures(counts, pack.class_names),
        "constant": figures(answer, pack.class_names),
        "attacked": attacked,
        "certified": certified,
        "joint_constant": bounds.joint if bounds else None,
        "rounding": bounds.rounding if bounds else None,
    }


def bounds_on(segmenter: Segmenter, pack: Pack) -> PixelBounds:
    """Bound a segmenter, with the rounding of as many pictures of a pack as pass together.

    Raises:
        UnknownLipschitz: as `bounds_of_pixels`.
    """
    return bounds_of_pixels(segmenter, pack.pixels(range(min(len(pack), at_once(pack)))))


def check_pack(loaded: LoadedSegmenter, pack: Pack) -> None:
    """Refuse pictures without masks, or with other classes than the segmenter's."""
    names = loaded.segmenter.config.class_names
    if pack.masks is None:
        raise InputError(f"{pack.name} has no masks; give masks:FOLDER or rendered-ink.")
    if pack.class_names != names:
        raise InputError(
            f"{pack.name} has the classes {', '.join(pack.class_names)}; {loaded.name} knows "
            f"{', '.join(names)}."
        )


def attacked_pixels(
    segmenter: Segmenter, pack: Pack, campaign: Campaign, epsilon: float
) -> AttackedPixels:
    """Return the figures under an attack of one radius."""
    attacks = campaign.attacks(epsilon)
    classes, step = len(pack.class_names), at_once(pack)
    counts, sums = np.zeros((classes, classes), np.int64), np.zeros(3)
    label = f"Attacking {pack.name}, ε = {epsilon:g}"
    for start in track(range(0, len(pack), step), label):
        chosen = range(start, min(start + step, len(pack)))
        images = pack.pixels(chosen)
        masks = torch.from_numpy(masks_of(pack)[list(chosen)])
        found = attack_pixels(segmenter, images, masks, attacks, chosen)
        before, after = (logits_of(segmenter, one) for one in (images, found))
        counts += confusion(after, masks)
        scores = pixel_scores(after, masks, segmenter.temperature)
        flipped = (before.argmax(dim=1) != after.argmax(dim=1)).sum()
        entropy, behind = (one[scores.known].sum() for one in (scores.entropy, scores.behind))
        sums += [float(entropy), -float(behind), float(flipped)]
    labelled = max(int(counts.sum()), 1)
    first = attacks[0]
    return {
        **figures(counts, pack.class_names),
        "epsilon": epsilon,
        "grey_levels": pack.canvas.grey_levels(epsilon, first.norm),
        "attack": campaign.attack,
        "norm": first.norm,
        "objectives": [one.objective for one in attacks],
        "steps": first.steps,
        "restarts": first.restarts,
        "cross_entropy": sums[0] / labelled,
        "margin": sums[1] / labelled,
        "flipped": sums[2] / len(pack),
    }


class _Tally:
    """Certificates so far at one radius."""

    def __init__(self, classes: int) -> None:
        self.kept, self.flipped = np.zeros(3, np.int64), 0
        self.overlaps = [NOTHING] * classes


def certified_pixels(
    segmenter: Segmenter, pack: Pack, epsilons: Sequence[float], bounds: PixelBounds
) -> tuple[NDArray[np.int64], list[CertifiedPixels]]:
    """Return confusions (K, K), and what is certified at each radius.

    Each picture is perturbed for itself.
    """
    classes, step, masks = len(pack.class_names), at_once(pack), masks_of(pack)
    tallies = {epsilon: _Tally(classes) for epsilon in epsilons}
    counts = np.zeros((classes, classes), np.int64)
    for start in track(range(0, len(pack), step), f"Certifying {pack.name}"):
        chosen = range(start, min(start + step, len(pack)))
        batch = logits_of(segmenter, pack.pixels(chosen))
        counts += confusion(batch, torch.from_numpy(masks[list(chosen)]))
        for index, logits in zip(chosen, batch, strict=True):
            found = margins_of(logits, segmenter, bounds)
            for epsilon, tally in tallies.items():
                _count(tally, found, masks[index], bounds, epsilon)
    there = counts.sum(axis=1)
    return counts, [_summed(pack, epsilon, tally, there) for epsilon, tally in tallies.items()]


def _count(
    tally: _Tally, found: PixelMargins, mask: Mask, bounds: PixelBounds, epsilon: float
) -> None:
    right = found.predicted == mask
    within = reach(found, bounds, epsilon)
    # The budget by itself does not know which pixels ε can reach.
    together = of_budget(found.margins.min(axis=0), bounds, epsilon)
    lost = (
        most_lost(within, right),
        int((right & (found.radius <= epsilon)).sum()),
        most_by_budget(together[right]),
    )
    tally.kept += right.sum() - np.array(lost)
    tally.flipped += most_lost(within, np.ones_like(right))
    for label, others in enumerate(tally.overlaps):
        tally.overlaps[label] = others.beside(overlap(found, mask, label, within))


def _summed(pack: Pack, epsilon: float, tally: _Tally, there: NDArray[np.int64]) -> CertifiedPixels:
    kept, single, joint = (float(one / max(there.sum(), 1)) for one in tally.kept)
    per_class: dict[str, CertifiedClassPixels] = {
        name: {
            "iou": least_iou(whole),
            "false_negatives": most_missed(whole, int(count)),
        }
        for name, whole, count in zip(pack.class_names, tally.overlaps, there, strict=True)
    }
    known = [one["iou"] for one in per_class.values() if one["iou"] is not None]
    return {
        "epsilon": epsilon,
        "grey_levels": pack.canvas.grey_levels(epsilon),
        "accuracy": kept,
        "single": single,
        "joint": joint,
        "larger": "single" if single > joint else "joint",
        "miou": float(np.mean(known)) if known else 0.0,
        "per_class": per_class,
        "flipped": tally.flipped / len(pack),
    }
