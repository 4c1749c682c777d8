"""The README's picture: the same number under attack, read by a naive and by a certified detector.

    python scripts/readme_figure.py naive certified --out docs

Of the rendered test stream, the picture is chosen on which the certified detector reads the whole
number, under attack too, and proves the most, and the naive one reads it until it is attacked. Both
are attacked with every objective, each with its own gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from lipdet.attack import AttackSettings, detect
from lipdet.attack.settings import single_attacks
from lipdet.boxes.select import left_to_right as labels_in_order
from lipdet.checkpoint import LoadedDetector, load_detector
from lipdet.evaluate.attacked import prepare
from lipdet.images.pack import Pack
from lipdet.images.spec import open_data
from lipdet.reading import Detection
from lipdet.reading.detections import left_to_right
from lipdet.report.scenes import certified_detections, plot_scenes, scenes
from lipdet.report.style import save_drawing


def main() -> None:
    """Choose a picture, attack it, draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("naive")
    parser.add_argument("certified")
    parser.add_argument("--epsilon", type=float, default=0.5)
    parser.add_argument("--data", default="rendered:1000")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    naive, certified = load_detector(options.naive), load_detector(options.certified)
    pack = open_data(options.data, "test", naive.framing)
    attacks = single_attacks("worst", AttackSettings(options.epsilon, steps=options.steps))
    readable = sorted(read_right(naive, pack) & read_right(certified, pack))
    for index, radius in provable(certified, pack, readable, options.epsilon):
        before = scenes(naive.name, naive.detector, pack, [index], attacks)[0]
        if not right(before.truth, before.found_attacked):
            after = scenes(certified.name, certified.detector, pack, [index], attacks)[0]
            # What is certified stays; that nothing appears beside it is not promised.
            if not right(after.truth, after.found_attacked):
                continue
            options.out.mkdir(parents=True, exist_ok=True)
            drawing = plot_scenes([before, after], "attacked")
            print(*save_drawing(drawing, options.out), sep="\n")
            print(f"picture {index}, certified up to {radius:.3f}\n{drawing.alternative}")
            return
    print("No such picture: try a smaller --epsilon or more pictures with --data rendered:N.")


def read_right(loaded: LoadedDetector, pack: Pack) -> set[int]:
    """The pictures whose digits a detector reads, left to right, all of them and no other."""
    images = pack.pixels(range(len(pack)))
    found = detect(prepare(loaded.detector), images, loaded.detector.display)
    return {
        index
        for index, one in enumerate(found)
        if torch.equal(labels_in_order(one), labels_in_order(pack.target(index)))
    }


def provable(
    loaded: LoadedDetector, pack: Pack, indices: Sequence[int], epsilon: float
) -> list[tuple[int, float]]:
    """Those of the pictures with everything certified at ε; the longest numbers first.

    Of numbers of one length, those with the largest radius come first.
    """
    pixels = pack.images[list(indices)]
    found = certified_detections(prepare(loaded.detector), pixels, epsilon, pack.class_names)
    rows = [
        (index, min(one.radius or 0.0 for one in shown), len(shown))
        for index, shown in zip(indices, found, strict=True)
    ]
    rows.sort(key=lambda row: (-row[2], -row[1]))
    return [(index, radius) for index, radius, _ in rows if radius >= epsilon]


def right(truth: tuple[str, ...], found: tuple[Detection, ...]) -> bool:
    """Whether the digits that are shown, left to right, are the number."""
    return tuple(one.label for one in left_to_right(found)) == truth


if __name__ == "__main__":
    main()
