"""What segmenters reach on the pictures that their training held out, by which margins are chosen.

    python scripts/held_out_pixels.py RUN [...] --data masks:FOLDER --epsilon 0.1 0.25 0.5 1

A run says how its training split the data; the same pictures are held out here. Printed are the IoU
of the last class and, in brackets, the accuracy: clean, and certified at each ε.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from lipdet.checkpoint import load_segmenter
from lipdet.evaluate.segmentation import evaluate_segmenter, masks_of
from lipdet.images.batches import split
from lipdet.images.spec import open_data


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("segmenters", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0])
    options = parser.parse_args()
    print("| | clean | " + " | ".join(map(str, options.epsilon)) + " |")
    for name in options.segmenters:
        loaded = load_segmenter(name)
        how = loaded.info["training"]["train"]
        seed, share, limit = (how[key] for key in ("seed", "validation_share", "validation_limit"))
        pack = open_data(options.data, "train", loaded.framing, seed)
        chosen = split(pack, share, limit, seed)[1].indices
        pictures = {"images": pack.images[chosen], "masks": masks_of(pack)[chosen]}
        held_out = replace(pack, **pictures, pictures=pack.pictures[chosen])
        result = evaluate_segmenter(loaded, held_out, seed, certify=options.epsilon)
        label = pack.class_names[-1]
        figures = [
            f"{100 * one['per_class'][label]['iou']:.1f} ({100 * one['accuracy']:.1f})"
            for one in (result["clean"], *result["certified"])
        ]
        print(f"| {Path(name).name} | " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    main()
