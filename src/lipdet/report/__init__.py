"""Results for people: tables, figures, one self-contained page."""

from lipdet.report.architecture import describe_architecture, draw_architecture
from lipdet.report.figures import plot_consistency, plot_curves, plot_frontier, plot_reasons
from lipdet.report.inspection import inspect_detector
from lipdet.report.lipschitz import plot_profiles
from lipdet.report.page import write_figures, write_page
from lipdet.report.scenes import plot_scenes, scenes
from lipdet.report.style import save_drawing
from lipdet.results import read_results

__all__ = [
    "describe_architecture",
    "draw_architecture",
    "inspect_detector",
    "plot_consistency",
    "plot_curves",
    "plot_frontier",
    "plot_profiles",
    "plot_reasons",
    "plot_scenes",
    "read_results",
    "save_drawing",
    "scenes",
    "write_figures",
    "write_page",
]
