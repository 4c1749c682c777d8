"""Fitted default boxes as a table and as a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from lipdet.detector.fitting import Fit
from lipdet.images.pack import Pack
from lipdet.report.style import COLOURS, MARKERS

# Objects in the figure.
DRAWN = 3_000


def coverage_table(pack: Pack, fit: Fit) -> Table:
    """Return how many objects each class has, and what the default boxes cover of them."""
    table = Table(title="Objects that a default box overlaps by half or more")
    for column in ("class", "objects", "covered"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for label, (name, covered) in enumerate(zip(pack.class_names, fit.covered, strict=True)):
        share = "–" if np.isnan(covered) else f"{100 * covered:.1f} %"
        table.add_row(name, f"{int((pack.labels == label).sum()):,}", share)
    return table


def plot_default_boxes(pack: Pack, fit: Fit, file: Path) -> None:
    """Draw width and height of objects, and over them those of the default boxes.

    Args:
        pack: the objects.
        fit: the default boxes.
        file: where to write; its ending chooses the format.
    """
    figure = Figure(figsize=(4.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rows = np.random.default_rng(0).permutation(len(pack.labels))[:DRAWN]
    sizes, labels = (pack.boxes[:, 2:] - pack.boxes[:, :2])[rows], pack.labels[rows]
    for label, name in enumerate(pack.class_names):
        own, style = sizes[labels == label], label % len(COLOURS)
        [line] = axes.plot(own[:, 0], own[:, 1], MARKERS[style], markersize=3, label=name)
        line.set(color=COLOURS[style], alpha=0.4)
    shapes = np.array(fit.sides)
    axes.plot(shapes[:, 0], shapes[:, 1], "k+", markersize=9, label="default boxes")
    axes.set_xlabel("width in pixels")
    axes.set_ylabel("height in pixels")
    axes.legend(fontsize=7, markerscale=1.5)
    figure.savefig(file, dpi=150)
