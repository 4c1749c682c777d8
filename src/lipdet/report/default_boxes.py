"""Fitted default boxes as a table and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from lipdet.detector.fitting import Fit
from lipdet.images.pack import Pack
from lipdet.report.style import COLOURS, MARKERS, new_figure, save_figure, styled
from lipdet.report.table import new_table

# Objects in the figure.
DRAWN = 3_000


def coverage_table(pack: Pack, fit: Fit) -> Table:
    """Return how many objects each class has, and what the default boxes cover of them."""
    title = "Objects that a default box overlaps by half or more"
    table = new_table(title, ("class", "objects", "covered"), ("class",))
    for label, (name, covered) in enumerate(zip(pack.class_names, fit.covered, strict=True)):
        share = "–" if np.isnan(covered) else f"{100 * covered:.1f} %"
        table.add_row(name, f"{int((pack.labels == label).sum()):,}", share)
    return table


@styled
def plot_default_boxes(pack: Pack, boxes: NDArray[np.floating[Any]], fit: Fit, file: Path) -> None:
    """Draw width and height of objects, and over them those of the default boxes.

    Args:
        pack: the classes of the objects.
        boxes: (N, 4) xyxy pixels of the objects.
        fit: the default boxes.
        file: where to write; its ending chooses the format.
    """
    figure, axes = new_figure(height=4.4)
    rows = np.random.default_rng(0).permutation(len(pack.labels))[:DRAWN]
    sizes, labels = (boxes[:, 2:] - boxes[:, :2])[rows], pack.labels[rows]
    for label, name in enumerate(pack.class_names):
        own, style = sizes[labels == label], label % len(COLOURS)
        [line] = axes.plot(own[:, 0], own[:, 1], MARKERS[style], markersize=3, label=name)
        line.set(color=COLOURS[style], alpha=0.4)
    shapes = np.array(fit.sides)
    axes.plot(shapes[:, 0], shapes[:, 1], "k+", markersize=9, label="default boxes")
    axes.set(xlabel="width in pixels", ylabel="height in pixels")
    axes.legend(fontsize=7, markerscale=1.5)
    save_figure(figure, file)
