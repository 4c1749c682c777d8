"""Figures from results of `lipdet eval`: AP, and what becomes of detections and of objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lipdet.certificate.diagnosis import REASONS
from lipdet.report.style import (
    COLOURS,
    Drawing,
    colour,
    in_legend,
    marker,
    new_figure,
    styled,
)
from lipdet.report.table import percent
from lipdet.results import (
    AveragePrecision,
    EvaluationResult,
    Figures,
    attacked,
    certified,
    input_size,
    radii,
)

Fate = Literal["kept", "changed", "vanished", "appeared"]
# Key in the json, words, colour; the first three are what can become of a detection.
FATES: tuple[tuple[Fate, str, str], ...] = (
    ("kept", "kept", COLOURS[0]),
    ("changed", "another class", COLOURS[4]),
    ("vanished", "vanished", COLOURS[1]),
    ("appeared", "appeared", COLOURS[3]),
)
# Markers nearer to each other than this, in AP, share a label.
LABEL_HEIGHT = 0.05
# Lower, the axis would run through it.
LABEL_LOWEST = 0.03
# The width of a label, of the width of the axes.
LABEL_WIDE = 0.07
# On either side of the clean AP50 of all detectors.
AROUND = 0.05


@styled
def plot_curves(results: Sequence[EvaluationResult]) -> Drawing | None:
    """Draw AP50 of each detector against ε: attacked above, certified below, the truth between.

    Args:
        results: json objects of `lipdet eval`.

    Returns:
        None if nothing was measured at any radius.
    """
    if not radii(results):
        return None
    figure, axes = new_figure()
    for index, result in enumerate(results):
        _curve(axes, index, result, _name(result, results))
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
    """Draw clean AP50 against certified (filled) and attacked AP50 (open) at each radius.

    Returns:
        None if nothing was measured at any radius.
    """
    if not radii(results):
        return None
    figure, axes = new_figure()
    every = [result["clean"]["ap50"] for result in results]
    for index, result in enumerate(results):
        clean = every[index]
        name = _name(result, results)
        axes.plot([], [], color=colour(index), marker=marker(index), ls="", label=in_legend(name))
        for entries, face in ((attacked(result), "none"), (certified(result), colour(index))):
            axes.plot(
                [clean] * len(entries), [entry["ap50"] for entry in entries.values()],
                color=colour(index), marker=marker(index), markerfacecolor=face, ls="",
                clip_on=False,
            )  # fmt: skip
        right = _has_room_to_the_right(every, index)
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


def _has_room_to_the_right(values: Sequence[float], index: int) -> bool:
    """Return whether a label fits between one value and the next; of equal ones, behind the last.

    Where it does not, it stands on the left.
    """
    order = sorted(range(len(values)), key=lambda one: (values[one], one))
    at = order.index(index)
    if at + 1 == len(order):
        return True
    shown = max(values) - min(values) + 2 * AROUND
    return values[order[at + 1]] - values[index] > LABEL_WIDE * shown


@styled
def plot_consistency(results: Sequence[EvaluationResult]) -> Drawing | None:
    """Draw what becomes of the shown detections of each detector at each radius.

    Args:
        results: json objects of `lipdet eval`.

    Returns:
        None where no detection was shown or nothing was attacked.
    """
    bars = [
        (f"{result['weights']}, ε {epsilon:g}", entry["consistency"])
        for result in results
        for epsilon, entry in sorted(attacked(result).items())
        if entry.get("consistency", {}).get("shown")
    ]
    if not bars:
        return None
    figure, axes = new_figure(height=1.3 + 0.28 * len(bars))
    parts = [
        (words, own, [100 * counts[key] / counts["shown"] for _, counts in bars])
        for key, words, own in FATES
    ]
    _stack(axes, [label for label, _ in bars], parts)
    axes.grid(visible=True, axis="x")
    axes.set_xlabel("percent of the detections shown on clean pictures")
    figure.legend(loc="outside lower center", ncols=len(FATES))
    told = (
        f"{label}: of {counts['shown']} shown, "
        + ", ".join(f"{counts[key]} {words}" for key, words, _ in FATES)
        for label, counts in bars
    )
    return Drawing(
        "consistency",
        figure,
        "What becomes of a detector's own detections under attack. What appears comes on top of "
        "the hundred percent that were there.",
        f"{'; '.join(told)}.",
    )


@styled
def plot_reasons(result: EvaluationResult) -> Drawing | None:
    """Draw what becomes of all objects at each radius: certified, or the condition that fails.

    Args:
        result: json object of `lipdet eval --certify`.

    Returns:
        None if nothing was certified or there are no objects.
    """
    entries, objects = result["certified"], result["data"]["objects"]
    if not entries or not objects:
        return None
    figure, axes = new_figure()
    rows = {"certified": [objects - sum(entry["failed"].values()) for entry in entries]}
    rows |= {reason: [entry["failed"][reason] for entry in entries] for reason in REASONS}
    names = [f"ε = {entry['epsilon']:g}" for entry in entries]
    parts = [
        (reason, colour(index), [count / objects for count in counts])
        for index, (reason, counts) in enumerate(rows.items())
    ]
    _stack(axes, names, parts)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of all objects")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    told = (
        f"{name}: " + ", ".join(f"{reason} {counts[index]}" for reason, counts in rows.items())
        for index, name in enumerate(names)
    )
    return Drawing(
        "reasons",
        figure,
        f"What {result['weights']} can guarantee, and the condition at which the other objects "
        "fail. Missed: not detected in the clean picture either.",
        f"Of {objects} objects, " + "; ".join(told) + ".",
    )


def _stack(
    axes: Axes, names: Sequence[str], parts: Sequence[tuple[str, str, Sequence[float]]]
) -> None:
    """Draw a bar per name from top to bottom; a part has a label, a colour and a width in each."""
    lefts = [0.0] * len(names)
    for label, own, widths in parts:
        axes.barh(range(len(names)), widths, left=lefts, color=own, label=label, height=0.7)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False)


def _labels(result: EvaluationResult) -> list[tuple[float, str]]:
    """Return height and radii of a detector's markers; those too close for two share a label."""
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


def _name(result: EvaluationResult, results: Sequence[EvaluationResult]) -> str:
    """Return the name of a detector, with its input size where these differ."""
    size = input_size(result)
    return result["weights"] + (f" at {size}" if len(set(map(input_size, results))) > 1 else "")


def _curve(axes: Axes, index: int, result: EvaluationResult, name: str) -> None:
    above: dict[float, AveragePrecision | Figures] = {0.0: result["clean"], **attacked(result)}
    below = certified(result)
    style: dict[str, Any] = {"color": colour(index), "marker": marker(index), "clip_on": False}
    axes.plot(*_line(above), label=in_legend(name), **style)
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
