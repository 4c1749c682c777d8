"""Figure of a Lipschitz profile: certified bound against observed constant, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lipdet.certificate.profile import LayerRow

# Okabe & Ito's blue and vermilion, told apart with every colour vision; markers differ too.
_BOUND, _OBSERVED = "#0072B2", "#D55E00"


def plot_profile(rows: Sequence[LayerRow], file: Path) -> None:
    """Plot the cumulative constants along the path to each head, on a logarithmic scale.

    Args:
        rows: from `layer_profile`.
        file: where to write; its ending chooses the format.
    """
    figure = Figure(figsize=(max(6.0, 0.22 * len(rows)), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for head in sorted({head for row in rows for head in row.heads}):
        path = [index for index, row in enumerate(rows) if head in row.heads]
        bounds = [rows[index].cumulative for index in path]
        axes.plot(path, bounds, color=_BOUND, marker="o", markersize=3, linewidth=1)
        seen = [row.observed for row in rows if head in row.heads]
        observed = [value for value in seen if value is not None]
        if len(observed) == len(path):
            axes.plot(path, observed, color=_OBSERVED, marker="x", markersize=4, linewidth=1)
    axes.plot([], [], color=_BOUND, marker="o", markersize=3, label="certified upper bound")
    if any(row.observed is not None for row in rows):
        axes.plot([], [], color=_OBSERVED, marker="x", label="observed at images (lower bound)")
    axes.set_yscale("log")
    axes.set_ylabel("Lipschitz constant from the image, L2")
    axes.set_xticks(range(len(rows)), [row.name for row in rows], rotation=90, fontsize=6)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
