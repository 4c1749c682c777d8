"""The checks of an attack as a table and as a figure."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from lipdet.evaluate.attack_checks import Report
from lipdet.evaluate.attack_curves import Curves

# Okabe & Ito's blue and vermilion, told apart with every colour vision; markers differ too.
_ATTACK, _OTHER = "#D55E00", "#0072B2"


def checks_table(name: str, report: Report) -> Table:
    """Return what must hold, what was measured, and whether it passed."""
    table = Table(title=f"Is the attack on {name} strong enough?")
    for column in ("check", "must hold", "measured", ""):
        table.add_column(column, overflow="fold")
    for check in report.checks:
        verdict = "[green]pass[/]" if check.passed else "[red]the attack is too weak here[/]"
        table.add_row(check.name, check.expected, check.measured, verdict)
    return table


def plot_checks(report: Report, file: Path) -> None:
    """Four panels: AP50 against radius, steps and kind of attack, and the objective's rise.

    Args:
        report: of `lipdet.evaluate.attack_checks.judge`.
        file: where to write; its ending chooses the format.
    """
    curves = report.curves
    figure = Figure(figsize=(9.0, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    _against_radius(panels[0, 0], curves)
    _against_steps(panels[0, 1], curves)
    _kinds(panels[1, 0], curves)
    _loss(panels[1, 1], curves)
    for axes in panels.flat:
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(file, dpi=120)


def _against_radius(axes: Axes, curves: Curves) -> None:
    radii = [0.0, *(row[0] for row in curves.sweep)]
    noise = [curves.clean, *(row[2] for row in curves.sweep)]
    attack = [curves.clean, *(row[1] for row in curves.sweep)]
    axes.plot(radii, _percent(noise), color=_OTHER, marker="s", label="random noise")
    axes.plot(radii, _percent(attack), color=_ATTACK, marker="o", label="attack")
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xticks(radii, [f"{radius:g}" for radius in radii], minor=False)
    axes.set_xlabel("radius ε")
    axes.set_ylabel("AP50, percent")
    axes.legend()


def _against_steps(axes: Axes, curves: Curves) -> None:
    counts, precisions = zip(*curves.steps, strict=True)
    axes.plot(counts, _percent(precisions), color=_ATTACK, marker="o")
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"steps, at ε = {curves.epsilon:g}")
    axes.set_ylabel("AP50, percent")


def _kinds(axes: Axes, curves: Curves) -> None:
    bars = {
        "clean": curves.clean,
        "noise": curves.noise,
        "Square": curves.square,
        "transfer": curves.transfer,
        **curves.objectives,
        "attack": curves.attack,
        f"{curves.restarts[-1][0]} restarts": curves.restarts[-1][1],
    }
    colours = [_OTHER] * (len(bars) - 2) + [_ATTACK] * 2
    axes.bar(list(bars), _percent(list(bars.values())), color=colours)
    axes.set_xlabel(f"at ε = {curves.epsilon:g}")
    axes.set_ylabel("AP50, percent")


def _loss(axes: Axes, curves: Curves) -> None:
    axes.plot(curves.loss, color=_ATTACK)
    axes.set_xlabel("step")
    axes.set_ylabel("objective, mean of the best so far")


def _percent(fractions: list[float] | tuple[float, ...]) -> list[float]:
    return [100 * fraction for fraction in fractions]
