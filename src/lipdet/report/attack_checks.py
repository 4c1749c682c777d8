"""The checks of an attack as a table and as a figure."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.table import Table
from rich.text import Text

from lipdet.evaluate.attack_checks import Report
from lipdet.evaluate.attack_curves import Curves
from lipdet.report.style import COLOURS, save_figure, styled
from lipdet.report.table import new_table

_OTHER, _ATTACK = COLOURS[:2]


def checks_table(name: str, report: Report) -> Table:
    """Return what must hold, what was measured, and whether it passed."""
    columns = ("check", "must hold", "measured", "")
    table = new_table(f"Is the attack on {name} strong enough?", columns, columns)
    for check in report.checks:
        weak = Text("the attack is too weak here", "red")
        verdict = Text("pass", "green") if check.passed else weak
        table.add_row(check.name, check.expected, check.measured, verdict)
    return table


@styled
def plot_checks(report: Report, file: Path) -> None:
    """Draw four panels: AP50 against radius, steps and kind of attack, and the objective's rise.

    Args:
        report: of `lipdet.evaluate.attack_checks.judge`.
        file: where to write; its ending chooses the format.
    """
    figure = Figure(figsize=(9.0, 6.5), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, draw in zip(panels, (_against_radius, _against_steps, _kinds, _loss), strict=True):
        draw(axes, report.curves)
        axes.grid(visible=False, axis="x")
    save_figure(figure, file)


def _against_radius(axes: Axes, curves: Curves) -> None:
    radii, attack, noise = zip((0.0, curves.clean, curves.clean), *curves.sweep, strict=True)
    axes.plot(radii, noise, color=_OTHER, marker="s", label="random noise")
    axes.plot(radii, attack, color=_ATTACK, marker="o", label="attack")
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xticks(radii, [f"{radius:g}" for radius in radii], minor=False)
    axes.set_xlabel("radius ε")
    axes.legend()
    _percent(axes)


def _against_steps(axes: Axes, curves: Curves) -> None:
    counts, precisions = zip(*curves.steps, strict=True)
    axes.plot(counts, precisions, color=_ATTACK, marker="o")
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"steps, at ε = {curves.epsilon:g}")
    _percent(axes)


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
    axes.bar(range(len(bars)), list(bars.values()), color=colours)
    axes.set_xticks(range(len(bars)), list(bars), rotation=45, ha="right")
    axes.set_xlabel(f"at ε = {curves.epsilon:g}")
    _percent(axes)


def _loss(axes: Axes, curves: Curves) -> None:
    axes.plot(curves.loss, color=_ATTACK)
    axes.set(xlabel="step", ylabel="objective, mean of the best so far")


def _percent(axes: Axes) -> None:
    axes.set_ylabel("AP50, percent")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
