"""What certifying the pixels of a picture costs beside segmenting it.

    python benchmarks/certify_pixels.py segment --data masks:FOLDER [--epsilon 0.1 0.25 1]

Segmenting is the forward pass and the class of each pixel, of one picture at a time; a map of radii
and the number of pixels that can flip at each ε come on top, as `lipdet certify` computes them. The
median over the pictures; processor time, so that another process on the machine does not count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from lipdet.certificate.flips import most_flipped
from lipdet.certificate.pixels import margins_of
from lipdet.checkpoint import load_segmenter
from lipdet.evaluate.segmentation import bounds_on, logits_of
from lipdet.images.spec import open_data

PICTURES = 40
Found = TypeVar("Found")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("segmenter")
    parser.add_argument("--data", default=f"rendered-ink:{PICTURES}")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.1, 0.25, 1.0])
    options = parser.parse_args()
    loaded = load_segmenter(options.segmenter)
    segmenter = loaded.segmenter
    pack = open_data(options.data, "test", loaded.framing, 0).head(PICTURES)
    bounds = bounds_on(segmenter, pack)
    spent: dict[str, list[float]] = {}

    def timed(what: str, step: Callable[[], Found]) -> Found:
        started = time.process_time()
        found = step()
        spent.setdefault(what, []).append(1000 * (time.process_time() - started))
        return found

    for index in range(len(pack)):
        picture = pack.pixels([index])
        timed("segmenting", lambda seen=picture: logits_of(segmenter, seen).max(dim=1))
        [logits] = logits_of(segmenter, picture)
        found = timed("radii", lambda seen=logits: margins_of(seen, segmenter, bounds))
        for epsilon in options.epsilon:
            name = f"flips, ε = {epsilon:g}"
            timed(name, lambda of=found, at=epsilon: most_flipped(of, bounds, at))
    print(f"{pack.name}, {pack.canvas}, {len(pack)} pictures, {torch.get_num_threads()} threads")
    print("| | ms a picture | of segmenting |\n|---|---|---|")
    whole = statistics.median(spent["segmenting"])
    for what, times in spent.items():
        middle = statistics.median(times)
        print(f"| {what} | {middle:.2f} | {middle / whole:.2f} |")


if __name__ == "__main__":
    main()
