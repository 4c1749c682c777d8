"""A median-smoothing certificate beside the deterministic one, on the same detector and images.

    python benchmarks/median_smoothing.py DETECTOR --data rendered:50 --epsilon 0.25 0.5

Chiang et al., "Detection as Regression: Certified Object Detection by Median Smoothing" (NeurIPS
2020): the detector runs on 2,000 noisy copies of an image; its detections are sorted into slots,
and each coordinate of a slot gets bounds from order statistics. For noise of deviation σ, the
median under any perturbation of at most ε lies between the quantiles Φ(−ε/σ) and Φ(ε/σ) of what
the noise shows; a binomial bound says which order statistics enclose those, except with
probability α.

Notable choices:
- Own implementation. A slot is a class, a cell of a grid, and a place in the order of the boxes'
  middles from left to right. A slot without a box holds +∞, so that an upper bound is finite only
  if there surely is one.
- Certified is an object for which a slot of its class, wherever its corners lie within their
  bounds, has IoU ≥ 0.5 with it; no slot counts twice. A slot counts as a detection if it may hold
  a box. Scores are no part of this certificate, so AP is that of the one point (recall, precision).
- α is per order statistic, as published. The deterministic certificate has no such probability; its
  recall and precision are those at the same score.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from statistics import NormalDist

import torch
from torch import Tensor
from torchvision.ops import box_iou

from lipdet.boxes import AP_SELECTION, DISPLAY_SELECTION, select_detections
from lipdet.certificate.average_precision import RECALLS
from lipdet.certificate.verifier import verifier_of
from lipdet.checkpoint import load_detector
from lipdet.detector import SSD
from lipdet.evaluate.certified import certify_batch, join, outputs, pictures, summary
from lipdet.images.spec import open_data
from lipdet.layers import fold
from lipdet.types import Target

SIGMA = 0.25
ALPHA = 0.001
GRID = 3
SLOTS = 4
IOU = 0.5
BATCH = 250


@torch.inference_mode()
def sample_slots(detector: SSD, image: Tensor, samples: int, seed: int) -> Tensor:
    """Boxes in each slot of noisy copies: (samples, classes · GRID² · SLOTS, 4), +∞ where none."""
    generator = torch.Generator().manual_seed(seed)
    size, classes = detector.config.image_size, len(detector.config.class_names)
    slots = torch.full((samples, classes * GRID**2, SLOTS, 4), torch.inf)
    for start in range(0, samples, BATCH):
        count = min(BATCH, samples - start)
        noise = SIGMA * torch.randn(count, *image.shape, generator=generator)
        found = select_detections(detector(image + noise), detector.decoder, DISPLAY_SELECTION)
        for index, one in enumerate(found, start):
            middles = (one["boxes"][:, :2] + one["boxes"][:, 2:]) / 2
            cell = (middles * GRID / size).long().clamp(max=GRID - 1)
            place = (one["labels"] * GRID + cell[:, 1]) * GRID + cell[:, 0]
            order = middles[:, 0].argsort(stable=True)
            taken = [0] * (classes * GRID**2)
            for detection in order.tolist():
                home = int(place[detection])
                if taken[home] < SLOTS:
                    slots[index, home, taken[home]] = one["boxes"][detection]
                    taken[home] += 1
    return slots.flatten(1, 2)


def order_statistics(samples: int, epsilon: float) -> tuple[int, int]:
    """Indices into sorted samples that enclose the two quantiles, each but for probability α."""
    low = NormalDist().cdf(-epsilon / SIGMA)
    tail, lower = 0.0, -1
    for count in range(samples + 1):
        # P(Binomial(samples, low) ≤ count): so many samples may lie below the quantile.
        tail += math.exp(
            math.lgamma(samples + 1)
            - math.lgamma(count + 1)
            - math.lgamma(samples - count + 1)
            + count * math.log(low)
            + (samples - count) * math.log1p(-low)
        )
        if tail > ALPHA:
            break
        lower = count
    return lower, samples - 1 - lower


def certified_objects(slots: Tensor, target: Target, epsilon: float) -> tuple[int, int]:
    """How many objects are certified, and how many slots may hold a detection."""
    lower, upper = order_statistics(len(slots), epsilon)
    if lower < 0:
        return 0, slots.shape[1]
    ordered = slots.sort(dim=0).values
    low, high = ordered[lower], ordered[upper]
    possible = int(low.isfinite().all(dim=1).sum())
    sure = torch.nonzero(high.isfinite().all(dim=1) & low.isfinite().all(dim=1))[:, 0].tolist()
    per_class = GRID**2 * SLOTS
    kept = 0
    for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
        for slot in sure:
            if slot // per_class == label and _worst_iou(low[slot], high[slot], box) >= IOU:
                sure.remove(slot)
                kept += 1
                break
    return kept, possible


def _worst_iou(low: Tensor, high: Tensor, box: Tensor) -> float:
    """The lowest IoU over independent corners: it is at a vertex."""
    corners = itertools.product((False, True), repeat=4)
    vertices = torch.stack([torch.where(torch.tensor(ends), high, low) for ends in corners])
    proper = (vertices[:, 2:] > vertices[:, :2]).all(dim=1)
    return float(box_iou(vertices, box[None]).min()) if proper.all() else 0.0


def main() -> None:
    """Print both certificates side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector")
    parser.add_argument("--data", default="rendered:50")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--samples", type=int, default=2000)
    options = parser.parse_args()
    detector = load_detector(options.detector).detector
    pack = open_data(options.data, "test", detector.config.image_size, 0)
    images = pictures(pack, range(len(pack)))
    targets = [pack.target(index) for index in range(len(pack))]
    objects = sum(len(target["labels"]) for target in targets)
    print(f"{len(pack)} images, {objects} objects, {options.samples} samples, σ = {SIGMA}")
    print("| certificate | ε | recall | precision | AP50 | s per image |")
    print("|---|---|---|---|---|---|")

    network = fold(detector).eval()
    assert isinstance(network, SSD)
    started = time.perf_counter()
    slots = [
        sample_slots(network, image, options.samples, index) for index, image in enumerate(images)
    ]
    sampling = (time.perf_counter() - started) / len(pack)
    for epsilon in options.epsilon:
        pairs = [certified_objects(s, t, epsilon) for s, t in zip(slots, targets, strict=True)]
        kept, possible = (sum(column) for column in zip(*pairs, strict=True))
        recall, precision = kept / objects, kept / max(1, possible)
        ap = precision * float((recall >= RECALLS).double().mean()) if kept else 0.0
        shares = " | ".join(f"{100 * share:.1f}" for share in (recall, precision, ap))
        print(f"| median smoothing | {epsilon:g} | {shares} | {sampling:.2f} |")

    verifier = verifier_of(detector, AP_SELECTION, images)
    for epsilon in options.epsilon:
        started = time.perf_counter()
        found = certify_batch(verifier, outputs(detector, images), targets, epsilon)
        spent = (time.perf_counter() - started) / len(pack)
        entry = summary(epsilon, join([found]), pack.class_names)
        shares = " | ".join(
            f"{100 * (entry[key] or 0.0):.1f}" for key in ("recall", "precision", "ap50")
        )
        print(f"| this one | {epsilon:g} | {shares} | {spent:.3f} |")


if __name__ == "__main__":
    main()
