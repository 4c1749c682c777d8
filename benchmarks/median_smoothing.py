"""A median-smoothing certificate beside the deterministic one, on the same detector and images.

    python benchmarks/median_smoothing.py DETECTOR --data rendered:50 --epsilon 0.25 0.5

Chiang et al., "Detection as Regression: Certified Object Detection by Median Smoothing" (NeurIPS
2020): the detector runs on 2,000 noisy copies of an image; its detections are sorted into slots,
and each coordinate of a slot gets bounds from order statistics. For noise of deviation σ, the
median under any perturbation of at most ε lies between the quantiles Φ(−ε/σ) and Φ(ε/σ) of what
the noise shows; a binomial bound says which order statistics enclose those, except with
probability α.

Notable choices:
- Own implementation, with the settings of the paper: α = 1e-5 for each order statistic and no
  correction for their number, slots sorted by score or from left to right, in bins by class or by
  class and cell of a 3×3 grid, scores of 0.1, 0.2, 0.4, 0.6 and 0.8. A slot without a box holds +∞,
  so that an upper bound is finite only if there surely is one.
- Certified is an object for which a slot of its class, wherever its corners lie within their
  bounds, has IoU ≥ 0.5 with it; no slot counts twice. A slot counts as a detection if it may hold
  a box. Recall and precision are those at RECALL_SCORE; AP is, as for the deterministic
  certificate, the mean over classes and 101 recalls, here of a curve with a point for each score.
- The detector is used as it is, without training on noise and without a denoiser: that is the
  "training-free" case of the paper.
- Seconds are of the processor, without what other programs take.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes import AP_SELECTION, Selection, select_detections
from lipdet.boxes.coding import pairwise_iou
from lipdet.certificate.certified_ap import RECALLS
from lipdet.certificate.verifier import verifier_of
from lipdet.checkpoint import load_detector
from lipdet.detector import SSD
from lipdet.detector.forward import raw_output
from lipdet.evaluate.certified import (
    RECALL_SCORE,
    certify_batch,
    join,
    summary,
)
from lipdet.images.spec import open_data
from lipdet.layers import fold
from lipdet.types import Canvas, Target

ALPHA = 1e-5
SCORES = (0.1, RECALL_SCORE, 0.4, 0.6, 0.8)
GRID = 3
IOU = 0.5
BATCH = 50


class Noisy(NamedTuple):
    """Detections in all noisy copies of one image, (M,) each.

    Attributes:
        sample: which copy.
        label: class.
        score: of the detection.
        box: (M, 4) xyxy pixels.
        seconds: what finding them took.
    """

    sample: Tensor
    label: Tensor
    score: Tensor
    box: Tensor
    seconds: float


@torch.inference_mode()
def detect_noisy(detector: SSD, image: Tensor, sigma: float, samples: int, seed: int) -> Noisy:
    """Run a detector on noisy copies of an image."""
    started = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    choice = Selection(SCORES[0], AP_SELECTION.top_k)
    found = []
    for start in range(0, samples, BATCH):
        count = min(BATCH, samples - start)
        noise = sigma * torch.randn(count, *image.shape, generator=generator)
        found += select_detections(detector(image + noise), detector.decoder, choice)
    return Noisy(
        torch.repeat_interleave(torch.tensor([len(one["labels"]) for one in found])),
        torch.cat([one["labels"] for one in found]),
        torch.cat([one["scores"] for one in found]),
        torch.cat([one["boxes"] for one in found]),
        time.process_time() - started,
    )


def sort_into_slots(
    found: Noisy, samples: int, canvas: Canvas, score: float, cells: bool, by_place: bool
) -> tuple[Tensor, Tensor]:
    """Boxes (samples, slots, 4) of detections above a score, +∞ where none, and slots' classes."""
    # NMS keeps of these what it would keep at this score: lower boxes suppress no higher ones.
    chosen = found.score > score
    sample, label, box = found.sample[chosen], found.label[chosen], found.box[chosen]
    middle = (box[:, :2] + box[:, 2:]) / 2
    cell = (middle * GRID / middle.new_tensor(canvas.limits[:2])).long().clamp(max=GRID - 1)
    home = label * GRID**2 + (cell[:, 1] * GRID + cell[:, 0] if cells else 0)
    rank = (middle[:, 0] if by_place else -found.score[chosen]).argsort(stable=True)
    homes = int(home.max()) + 1 if len(home) else 0
    key = sample * homes + home
    rank = rank[key[rank].argsort(stable=True)]
    place = torch.arange(len(rank)) - torch.searchsorted(key[rank], key[rank])
    width = torch.zeros(homes, dtype=torch.int64)
    width = width.scatter_reduce(0, home[rank], place + 1, "amax")
    slots = torch.full((samples, int(width.sum()), 4), torch.inf)
    slots[sample[rank], (width.cumsum(0) - width)[home[rank]] + place] = box[rank]
    return slots, torch.arange(homes).repeat_interleave(width) // GRID**2


def order_statistics(samples: int, ratio: float) -> tuple[int, int]:
    """Indices into sorted samples that enclose the two quantiles, each but for probability α.

    Args:
        samples: how many there are.
        ratio: ε / σ.

    Returns:
        The lower one is negative if there are too few samples.
    """
    low = NormalDist().cdf(-ratio)
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


def certified_objects(
    slots: Tensor, labels: Tensor, target: Target, ends: tuple[int, int], classes: int
) -> Tensor:
    """How many objects of each class are certified, and how many slots may hold a box, (2, C)."""
    ordered = slots.sort(dim=0).values
    low, high = ordered[ends[0]], ordered[ends[1]]
    possible = torch.bincount(labels[low.isfinite().all(dim=1)], minlength=classes)
    sure = torch.nonzero(high.isfinite().all(dim=1))[:, 0].tolist()
    kept = torch.zeros(classes, dtype=torch.int64)
    for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
        for slot in sure:
            if int(labels[slot]) == label and _worst_iou(low[slot], high[slot], box) >= IOU:
                sure.remove(slot)
                kept[label] += 1
                break
    return torch.stack([kept, possible])


def _worst_iou(low: Tensor, high: Tensor, box: Tensor) -> float:
    """The lowest IoU over independent corners: it is at a vertex."""
    corners = itertools.product((False, True), repeat=4)
    vertices = torch.stack([torch.where(torch.tensor(ends), high, low) for ends in corners])
    proper = (vertices[:, 2:] > vertices[:, :2]).all(dim=1)
    return float(pairwise_iou(vertices, box[None]).min()) if proper.all() else 0.0


def average_precision(counts: Tensor, objects: Tensor) -> float:
    """Mean over classes of the AP of a few points (points, 2, C), of `objects` (C,) per class."""
    present = objects > 0
    kept, possible = counts[:, 0, present].double(), counts[:, 1, present].double()
    recall, precision = kept / objects[present], kept / possible.clamp(min=1)
    reached = recall[None] >= RECALLS[:, None, None]
    return float((precision * reached).amax(dim=1).mean())


def smoothed_rows(
    found: Sequence[Noisy],
    targets: Sequence[Target],
    samples: int,
    sigma: float,
    epsilons: Sequence[float],
    canvas: Canvas,
    classes: int,
) -> None:
    """Print what median smoothing certifies at one σ, for every way to make slots."""
    objects = torch.bincount(torch.cat([one["labels"] for one in targets]), minlength=classes)
    seconds = sum(one.seconds for one in found) / len(found)
    for epsilon, cells, by_place in itertools.product(epsilons, (False, True), (False, True)):
        ends = order_statistics(samples, epsilon / sigma)
        if ends[0] < 0:
            print(f"| smoothing, σ = {sigma:g} | {epsilon:g} | too few samples | | | |")
            continue
        counts = torch.stack(
            [
                torch.stack(
                    [
                        certified_objects(
                            *sort_into_slots(one, samples, canvas, score, cells, by_place),
                            target, ends, classes,
                        )
                        for one, target in zip(found, targets, strict=True)
                    ]
                ).sum(dim=0)
                for score in SCORES
            ]
        )  # fmt: skip
        kept, possible = counts[SCORES.index(RECALL_SCORE)].sum(dim=1).tolist()
        way = f"{'class and cell' if cells else 'class'}, {'place' if by_place else 'score'}"
        _print_row(
            f"smoothing, σ = {sigma:g}; {way}",
            epsilon,
            (kept / int(objects.sum()), kept / max(1, possible)),
            average_precision(counts, objects),
            seconds,
        )


def _print_row(
    name: str, epsilon: float, points: tuple[float, float], ap: float, seconds: float
) -> None:
    shares = " | ".join(f"{100 * share:.1f}" for share in (*points, ap))
    print(f"| {name} | {epsilon:g} | {shares} | {seconds:.3f} |", flush=True)


def main() -> None:
    """Print both certificates side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector")
    parser.add_argument("--data", default="rendered:50")
    parser.add_argument("--limit", type=int, default=50, help="only the first so many images")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument(
        "--state",
        type=Path,
        required=True,
        help="folder that keeps the samples of this detector and these images",
    )
    options = parser.parse_args()
    detector = load_detector(options.detector).detector
    pack = open_data(options.data, "test", detector.framing, 0).head(options.limit)
    images = pack.pixels(range(len(pack)))
    targets = [pack.target(index) for index in range(len(pack))]
    objects = sum(len(target["labels"]) for target in targets)
    print(f"{len(pack)} images ({pack.hash}), {objects} objects, {options.samples} samples")
    print("| certificate | ε | recall | precision | AP50 | s per image |")
    print("|---|---|---|---|---|---|", flush=True)

    verifier = verifier_of(detector, AP_SELECTION, images)
    for epsilon in options.epsilon:
        started = time.process_time()
        found = certify_batch(verifier, raw_output(detector, images), targets, epsilon)
        spent = (time.process_time() - started) / len(pack)
        entry = summary(epsilon, join([found]), pack.class_names, verifier.rounding_known)
        points = entry["recall"], entry["precision"] or 0.0
        _print_row("lipdet", epsilon, points, entry["ap50"], spent)

    network = fold(detector).eval()
    assert isinstance(network, SSD)
    options.state.mkdir(parents=True, exist_ok=True)
    for sigma in options.sigma:
        noisy = []
        for index, image in enumerate(images):
            file = options.state / f"{sigma:g}-{index}.pt"
            if not file.exists():
                one = detect_noisy(network, image, sigma, options.samples, index)
                torch.save(tuple(one), file)
            noisy.append(Noisy(*torch.load(file)))
        canvas, classes = detector.config.canvas, len(pack.class_names)
        smoothed_rows(noisy, targets, options.samples, sigma, options.epsilon, canvas, classes)


if __name__ == "__main__":
    main()
