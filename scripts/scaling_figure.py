"""Draw clean and certified AP50 against the pictures seen in training, and against parameters.

    lipdet train --config configs/certified.yaml --epochs 4 --out runs/certified-4
    lipdet eval runs/certified-4 --data svhn:SVHN/test --epsilon 0.25 --certify --json rows/4.json
    python scripts/scaling_figure.py rows/*.json --out docs/scaling.png

The detectors of the rows may differ in the length of their training, in their width and in what
held-out pictures have chosen; anything else is refused.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lipdet.checkpoint import load_detector
from lipdet.errors import InputError
from lipdet.report.style import COLUMN, colour, marker, save_figure, styled
from lipdet.report.table import percent
from lipdet.results import EvaluationResult, certified, read_results, same_data
from lipdet.train.setup import trained_unit

MAY_DIFFER = {"epochs", "validate_every", "threads", "checkpoint_seconds"}


class Point(NamedTuple):
    """A detector: the pictures of its training, its parameters, and AP50 by radius, 0 for clean."""

    pictures: int
    parameters: int
    ap50: dict[float, float]


def main() -> None:
    """Read the rows, draw them, and print them as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", type=Path, nargs="+", help="json files of lipdet eval --certify")
    parser.add_argument("--out", type=Path, default=Path("docs/scaling.png"))
    options = parser.parse_args()
    points = trained_alike(read_results(options.rows))
    plot_scaling(points, options.out)
    print(table(points))


def trained_alike(results: Sequence[EvaluationResult]) -> list[Point]:
    """Return the points, by pictures and then parameters.

    Raises:
        InputError: they were measured on different pictures or at different radii, or trained
            differently in more than length and width.
    """
    same_data(results[0]["data"], results)
    points, recipes = [], []
    for result in results:
        loaded = load_detector(result["weights"])
        config = loaded.detector.config
        info = loaded.info
        shape = config.architecture, config.canvas, config.stride, config.sides
        body = *shape, trained_unit(loaded)
        settings, radii = info["training"]["train"], certified(result)
        data = [pack["hash"] for pack in info["training_data"]]
        kept = {name: settings[name] for name in settings.keys() - MAY_DIFFER}
        recipes.append((body, kept, data, info["training"]["weights"], sorted(radii)))
        ap50 = {0.0: result["clean"]["ap50"]} | {at: one["ap50"] for at, one in radii.items()}
        points.append(
            Point(settings["epochs"] * settings["epoch_pictures"], result["parameters"], ap50)
        )
    if any(recipe != recipes[0] for recipe in recipes):
        raise InputError(
            "These detectors differ in more than the length of their training and their width, or "
            "in the radii at which they were certified."
        )
    return sorted(points, key=lambda point: point[:2])


@styled
def plot_scaling(points: Sequence[Point], file: Path) -> None:
    """Draw AP50 against pictures, at the commonest width, and against parameters, at a length."""
    figure = Figure(figsize=(2 * COLUMN, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    [(parameters, _)] = Counter(point.parameters for point in points).most_common(1)
    [(pictures, _)] = Counter(point.pictures for point in points).most_common(1)
    of_a_width = [point for point in points if point.parameters == parameters]
    of_a_length = [point for point in points if point.pictures == pictures]
    _curves(left, [point.pictures for point in of_a_width], of_a_width)
    _curves(right, [point.parameters for point in of_a_length], of_a_length)
    left.set(xlabel="pictures seen in training", title=f"{parameters:,} parameters")
    right.set(xlabel="parameters", title=f"{pictures:,} pictures")
    left.set_ylabel("AP50, percent")
    left.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    save_figure(figure, file)


def _curves(axes: Axes, places: Sequence[int], points: Sequence[Point]) -> None:
    for index, epsilon in enumerate(points[0].ap50):
        label = f"certified at {epsilon:g}" if epsilon else "clean"
        heights = [point.ap50[epsilon] for point in points]
        axes.plot(places, heights, color=colour(index), marker=marker(index), label=label)
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:,}" for place in places], rotation=30)
    axes.minorticks_off()


def table(points: Sequence[Point]) -> str:
    """Return the points as a table of Markdown."""
    heads = [f"certified {epsilon:g}" if epsilon else "clean" for epsilon in points[0].ap50]
    rows = [
        [f"{point.pictures:,}", f"{point.parameters:,}", *map(percent, point.ap50.values())]
        for point in points
    ]
    lines = [["pictures", "parameters", *heads], ["---"] * (len(heads) + 2), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
