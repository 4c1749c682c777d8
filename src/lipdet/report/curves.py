"""AP against the radius, and clean against guaranteed AP: figures from results of `lipdet eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lipdet.report.style import Drawing, colour, marker, new_figure, styled
from lipdet.report.table import percent
from lipdet.results import AveragePrecision, EvaluationResult, Figures, attacked, certified, radii

# Of the range of AP.
LABEL_HEIGHT = 0.05
# Lower, the axis would run through it.
LABEL_LOWEST = 0.03
# On either side of the clean AP50 of all detectors.
AROUND = 0.05


@styled
def plot_curves(results: Sequence[EvaluationResult]) -> Drawing | None:
    """AP50 of each detector against ε: attacked above, certified below, the truth between them.

    Args:
        results: json objects of `lipdet eval`.

    Returns:
        None if nothing was measured at any radius.
    """
    if not radii(results):
        return None
    figure, axes = new_figure()
    for index, result in enumerate(results):
        _curve(axes, index, result)
    axes.set_xlabel("radius ε of the perturbation (L2, pixels in [0, 1])")
    axes.set_ylabel("AP50, percent")
    _percent(axes)
    axes.legend()
    return Drawing(
        "curves",
        figure,
        "AP50 against the radius ε. Solid: under attack, so the worst case is at most this. "
        "Dashed: certified, so no perturbation does worse. The truth lies in the band between.",
        "AP50 in percent against the radius. " + " ".join(_described(result) for result in results),
    )


@styled
def plot_frontier(results: Sequence[EvaluationResult]) -> Drawing | None:
    """Clean AP50 against certified AP50 (filled) and attacked AP50 (open) at each radius.

    Returns:
        None if nothing was measured at any radius.
    """
    if not any(radii([result]) for result in results):
        return None
    figure, axes = new_figure()
    for index, result in enumerate(results):
        clean = result["clean"]["ap50"]
        axes.plot([], [], color=colour(index), marker=marker(index), ls="", label=result["weights"])
        for entries, face in ((attacked(result), "none"), (certified(result), colour(index))):
            axes.plot(
                [clean] * len(entries), [entry["ap50"] for entry in entries.values()],
                color=colour(index), marker=marker(index), markerfacecolor=face, ls="",
                clip_on=False,
            )  # fmt: skip
        # Left and right by turns, so that detectors of nearly the same clean AP do not collide.
        right = index % 2
        side: dict[str, Any] = {
            "xytext": (6 if right else -6, 0), "ha": "left" if right else "right",
        }  # fmt: skip
        for height, words in _labels(result):
            axes.annotate(
                words,
                (clean, max(height, LABEL_LOWEST)),
                textcoords="offset points",
                fontsize=7,
                va="center",
                **side,
            )
    axes.axline((0, 0), slope=1, color=colour(6), lw=0.8, ls=":")
    every = [result["clean"]["ap50"] for result in results]
    # Detectors worth comparing are close to each other.
    around = (max(0, min(every) - AROUND), min(1.02, max(every) + AROUND))
    axes.set(xlim=around, xlabel="clean AP50, percent")
    axes.set_ylabel("AP50 at radius ε, percent")
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    _percent(axes)
    # Beside the axes: markers may be anywhere inside.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    has_certificates = any(result["certified"] for result in results)
    return Drawing(
        "frontier",
        figure,
        "What robustness costs: clean AP50 to the right, AP50 at the radius beside each marker "
        "upwards. Filled: certified; open: under attack."
        + ("" if has_certificates else " No certificate was computed for these results."),
        "Clean AP50 against AP50 at each radius, in percent. "
        + " ".join(_described(result) for result in results),
    )


def _labels(result: EvaluationResult) -> list[tuple[float, str]]:
    """Height and radii of the markers of a detector; markers too close for two share one label."""
    markers = sorted(
        (entry["ap50"], epsilon)
        for entries in (attacked(result), certified(result))
        for epsilon, entry in entries.items()
    )
    groups: list[list[tuple[float, float]]] = []
    for one in markers:
        if groups and one[0] - groups[-1][-1][0] < LABEL_HEIGHT:
            groups[-1].append(one)
        else:
            groups.append([one])
    return [
        (
            sum(height for height, _ in group) / len(group),
            ", ".join(f"{epsilon:g}" for epsilon in sorted({epsilon for _, epsilon in group})),
        )
        for group in groups
    ]


def _curve(axes: Axes, index: int, result: EvaluationResult) -> None:
    above: dict[float, AveragePrecision | Figures] = {0.0: result["clean"], **attacked(result)}
    below = certified(result)
    style: dict[str, Any] = {"color": colour(index), "marker": marker(index), "clip_on": False}
    axes.plot(*_line(above), label=result["weights"], **style)
    if below:
        axes.plot(*_line(below), ls="--", markerfacecolor="none", **style)
    both = sorted(set(above) & set(below))
    axes.fill_between(
        both,
        [below[radius]["ap50"] for radius in both],
        [above[radius]["ap50"] for radius in both],
        color=colour(index),
        alpha=0.18,
        linewidth=0,
    )


def _line(entries: Mapping[float, AveragePrecision | Figures]) -> tuple[list[float], list[float]]:
    ordered = sorted(entries)
    return ordered, [entries[radius]["ap50"] for radius in ordered]


def _percent(axes: Axes) -> None:
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))


def _described(result: EvaluationResult) -> str:
    parts = [f"clean {percent(result['clean']['ap50'])}"]
    for word, entries in (("attacked", attacked(result)), ("certified", certified(result))):
        parts += [
            f"{word} at {radius:g}: {percent(entries[radius]['ap50'])}"
            for radius in sorted(entries)
        ]
    return f"{result['weights']}: {', '.join(parts)}."
