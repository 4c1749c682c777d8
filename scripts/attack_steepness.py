"""Which steepness of the objective `flip` leaves least, on pictures that are no test pictures.

    python scripts/attack_steepness.py SEGMENTER [...] --data masks:FOLDER --epsilon 0.25 1

What is printed is the mean IoU that 20 steps of PGD leave, and the accuracy, at each steepness of
`lipdet.attack.pixels`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lipdet.attack import pixels
from lipdet.attack.pixels import PixelSettings
from lipdet.checkpoint import load_segmenter
from lipdet.evaluate.attacked import Campaign
from lipdet.evaluate.segmentation import attacked_pixels
from lipdet.images.spec import open_data

TRIED = (1.0, 3.0, 6.0, 12.0, 24.0, 48.0)


def main() -> None:
    """Print a table of each segmenter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("segmenters", nargs="+")
    parser.add_argument("--data", default="rendered-ink:32")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.25, 1.0])
    parser.add_argument("--limit", type=int, default=32)
    options = parser.parse_args()
    for name in options.segmenters:
        loaded = load_segmenter(name)
        pack = open_data(options.data, "train", loaded.framing, 0).head(options.limit)
        print(f"{Path(name).name} on {pack.name}, {len(pack)} pictures\n| steepness |", end="")
        print("".join(f" ε = {one:g} |" for one in options.epsilon))
        print("|---|" + "---|" * len(options.epsilon))
        for steepness in TRIED:
            pixels.STEEPNESS = steepness
            settings = PixelSettings(options.epsilon[0], steps=20)
            campaign = Campaign("pgd", options.epsilon, settings, None)
            cells = []
            for epsilon in options.epsilon:
                found = attacked_pixels(loaded.segmenter, pack, campaign, epsilon)
                cells.append(f" {100 * found['miou']:.1f} ({100 * found['accuracy']:.1f}) |")
            print(f"| {steepness:g} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
