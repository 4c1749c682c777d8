"""Results for people: tables, figures, one self-contained page."""

from lipdet.report.figures import plot_consistency, plot_curves, plot_frontier, plot_reasons
from lipdet.report.style import save_drawing
from lipdet.results import read_results

__all__ = [
    "plot_consistency",
    "plot_curves",
    "plot_frontier",
    "plot_reasons",
    "read_results",
    "save_drawing",
]
