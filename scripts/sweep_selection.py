"""What NMS threshold, margin and offset unit suit a detector, on pictures its training held out.

    python scripts/sweep_selection.py DETECTOR --data PACK… --nms-iou 0.1 0.3 --class-margin 0.1 0.2

Prints clean and certified AP50 for each of them. DETECTOR has scores of its own for each class, and
its weights say how its training split the packs; the same photographs are held out here.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import torch

from lipdet.boxes import AP_SELECTION
from lipdet.certificate.verifier import verifier_of
from lipdet.checkpoint import load_detector
from lipdet.detector.forward import BATCH_SIZE
from lipdet.evaluate.selection import Rules, in_turn, outputs_on, pixels_of
from lipdet.images.batches import split
from lipdet.images.pack import open_pack


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--nms-iou", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--class-margin", type=float, nargs="+", default=[0.1, 0.2, torch.inf])
    parser.add_argument("--offset-unit", type=float, nargs="+", help="the detector's own if absent")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.1, 0.25])
    options = parser.parse_args()
    loaded = load_detector(options.detector)
    how = loaded.info["training"]["train"]
    pictures = in_turn(
        [
            split(pack, how["validation_share"], how["validation_limit"], how["seed"])[1]
            for pack in map(open_pack, options.data)
        ]
    )
    held_out = outputs_on(loaded.detector, pictures)
    first = pixels_of(pictures[:BATCH_SIZE])
    verifier = verifier_of(loaded.detector, AP_SELECTION, first)
    print(f"{len(pictures)} pictures")
    units = options.offset_unit or [verifier.decoder.coding.center_variance]
    print("| NMS IoU | margin | unit | clean | " + " | ".join(map(str, options.epsilon)) + " |")
    for rules in itertools.product(options.nms_iou, options.class_margin, units):
        decoder = Rules(*rules).of(verifier.decoder)
        its = replace(verifier, decoder=decoder)
        row = [held_out.clean_ap50(decoder)]
        row += [held_out.certified_ap50(its, epsilon) for epsilon in options.epsilon]
        print("| " + " | ".join([*map(str, rules), *(f"{100 * ap:.1f}" for ap in row)]) + " |")


if __name__ == "__main__":
    main()
