"""The README's picture: the same number under attack, read by a naive and by a certified detector.

    python scripts/readme_figure.py naive certified --epsilon 0.1 --out docs

Of the rendered test stream, the picture is chosen on which the certified detector reads the whole
number, under attack too, and proves the most, and the naive one reads it until it is attacked. Both
are attacked with every objective, each with its own gradients.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lipdet.attack import AttackSettings
from lipdet.attack.settings import single_attacks
from lipdet.checkpoint import LoadedDetector, load_detector
from lipdet.evaluate.attacked import pictures, prepare
from lipdet.images.pack import Pack
from lipdet.images.spec import open_data
from lipdet.report.gallery import plot_scenes
from lipdet.report.scenes import Shown, certified_detections, scenes
from lipdet.report.style import save_drawing


def main() -> None:
    """Choose a picture, attack it, draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("naive")
    parser.add_argument("certified")
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--data", default="rendered:200")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    naive, certified = load_detector(options.naive), load_detector(options.certified)
    pack = open_data(options.data, "test", naive.detector.config.image_size)
    attacks = single_attacks("worst", AttackSettings(options.epsilon, steps=options.steps))
    for index, radius in provable(certified, pack, options.epsilon):
        before = scenes(naive.name, naive.detector, pack, [index], attacks)[0]
        if right(before.truth, before.found) and not right(before.truth, before.found_attacked):
            after = scenes(certified.name, certified.detector, pack, [index], attacks)[0]
            # What is certified stays; that nothing appears beside it is not promised.
            if not right(after.truth, after.found_attacked):
                continue
            drawing = plot_scenes([before, after], "attacked")
            print(*save_drawing(drawing, options.out), sep="\n")
            print(f"picture {index}, certified up to {radius:.3f}\n{drawing.alternative}")
            return
    print("No such picture: try a smaller --epsilon or more pictures with --data rendered:N.")


def provable(loaded: LoadedDetector, pack: Pack, epsilon: float) -> list[tuple[int, float]]:
    """Pictures that are read right with everything certified at ε, the largest radius first."""
    images = pictures(pack, 0, len(pack), loaded.detector.default_boxes.device)
    found = certified_detections(prepare(loaded.detector), images, epsilon, pack.class_names)
    rows = []
    for index, shown in enumerate(found):
        target = pack.target(index)
        order = target["labels"][target["boxes"][:, 0].argsort()].tolist()
        least = min((one.radius or 0.0 for one in shown), default=0.0)
        if right(tuple(pack.class_names[label] for label in order), shown) and least >= epsilon:
            rows.append((index, least))
    # Longer numbers first: they show more.
    return sorted(rows, key=lambda row: (-len(found[row[0]]), -row[1]))


def right(truth: tuple[str, ...], found: tuple[Shown, ...]) -> bool:
    """Whether the digits that are shown, left to right, are the number."""
    return tuple(one.label for one in sorted(found, key=lambda one: one.box[0])) == truth


if __name__ == "__main__":
    main()
