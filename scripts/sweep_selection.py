"""What NMS threshold and margin between classes suit a detector, on pictures its training held out.

    python scripts/sweep_selection.py DETECTOR --data PACK… --nms-iou 0.1 0.3 --class-margin 0.1 0.2

Prints clean and certified AP50 for each pair. DETECTOR has scores of its own for each class, and
its weights say how its training split the packs; the same photographs are held out here.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lipdet.boxes import AP_SELECTION, SigmoidScores, select_detections
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import load_detector
from lipdet.detector.forward import BATCH_SIZE, raw_output
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.certified import certify_batch, join, summary
from lipdet.images.batches import split
from lipdet.images.pack import open_pack
from lipdet.types import RawOutput, Target


def changed(verifier: Verifier, nms_iou: float, class_margin: float) -> Verifier:
    """The verifier of the same detector with other rules."""
    scores = verifier.decoder.scores
    assert isinstance(scores, SigmoidScores), "a margin between classes needs one-vs-all scores"
    scores = replace(scores, class_margin=class_margin)
    return replace(verifier, decoder=verifier.decoder._replace(scores=scores, nms_iou=nms_iou))


def measure(
    verifier: Verifier,
    raw: Sequence[RawOutput],
    targets: Sequence[Sequence[Target]],
    names: Sequence[str],
    epsilons: Sequence[float],
) -> list[float]:
    """Clean AP50, and certified AP50 at each radius."""
    found = [
        one
        for batch in raw
        for one in select_detections(batch, verifier.decoder, verifier.selection)
    ]
    clean = average_precision([one for batch in targets for one in batch], found, names)
    certified = [
        summary(
            epsilon,
            join(
                [
                    certify_batch(verifier, batch, truth, epsilon)
                    for batch, truth in zip(raw, targets, strict=True)
                ]
            ),
            names,
            verifier.rounding_known,
        )["ap50"]
        for epsilon in epsilons
    ]
    return [clean["ap50"], *certified]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--nms-iou", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--class-margin", type=float, nargs="+", default=[0.1, 0.2, torch.inf])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.1, 0.25])
    options = parser.parse_args()
    loaded = load_detector(options.detector)
    how = loaded.info["training"]["train"]
    raw, targets = [], []
    for pack in map(open_pack, options.data):
        _, part = split(pack, how["validation_share"], how["validation_limit"], how["seed"])
        for indices in np.array_split(part.indices, -(-len(part.indices) // BATCH_SIZE)):
            images = pack.pixels(indices.tolist())
            raw.append(raw_output(loaded.detector, images))
            targets.append([pack.target(index) for index in indices.tolist()])
    names = loaded.detector.config.class_names
    verifier = verifier_of(loaded.detector, AP_SELECTION, images)
    print(f"{sum(map(len, targets))} pictures")
    print("| NMS IoU | margin | clean | " + " | ".join(map(str, options.epsilon)) + " |")
    for nms_iou, margin in itertools.product(options.nms_iou, options.class_margin):
        row = measure(changed(verifier, nms_iou, margin), raw, targets, names, options.epsilon)
        print(f"| {nms_iou} | {margin} | " + " | ".join(f"{100 * ap:.1f}" for ap in row) + " |")


if __name__ == "__main__":
    main()
