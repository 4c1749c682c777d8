"""Stacked bars: what becomes of detections under attack, and why objects are not certified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lipdet.report.results import Result, attacked, certified
from lipdet.report.style import COLOURS, Drawing, new_figure, styled

# In the order in which certificates check them; the words are the page's.
REASONS = {
    "missed": "not detected even when clean",
    "score": "its score can fall too low",
    "box": "its box can move away",
    "suppressor": "a rival can suppress it",
    "truncation": "it can be cut off the list",
    "matching": "its box can match another object",
}
FATES = {
    "kept": "kept",
    "changed": "another class",
    "vanished": "vanished",
    "appeared": "appeared",
}

Bar = tuple[str, Mapping[str, float]]


def plot_consistency(results: Sequence[Result]) -> Drawing | None:
    """What becomes of the shown detections of each detector at each radius; None if unknown."""
    bars = [
        (f"{result['weights']}, ε {epsilon:g}", _shares(entry["consistency"]))
        for result in results
        for epsilon, entry in sorted(attacked(result).items())
        if entry.get("consistency", {}).get("shown")
    ]
    colours = (COLOURS[0], COLOURS[4], COLOURS[1], COLOURS[3])
    return _stacked(
        "consistency",
        bars,
        dict(zip(FATES.items(), colours, strict=True)),
        "percent of the detections shown on clean pictures",
        "What becomes of detections under attack, in percent of those shown on clean pictures.",
    )


def plot_failures(results: Sequence[Result]) -> Drawing | None:
    """Why objects are not certified, per detector and radius; None where nothing was certified."""
    bars = [
        (f"{result['weights']}, ε {epsilon:g}", _failed(entry, result["data"]["objects"]))
        for result in results
        for epsilon, entry in sorted(certified(result).items())
        if "failed" in entry
    ]
    words = {"certified": "certified", **REASONS}
    colours = (COLOURS[0], COLOURS[6], COLOURS[1], COLOURS[4], COLOURS[3], COLOURS[2], COLOURS[5])
    return _stacked(
        "failures",
        bars,
        dict(zip(words.items(), colours, strict=True)),
        "percent of the objects",
        "What each object's certificate fails at first, in percent of all objects.",
    )


@styled
def _stacked(
    name: str,
    bars: Sequence[Bar],
    series: Mapping[tuple[str, str], str],
    axis: str,
    caption: str,
) -> Drawing | None:
    if not bars:
        return None
    figure, axes = new_figure(height=1.3 + 0.28 * len(bars))
    lefts = [0.0] * len(bars)
    places = range(len(bars))
    for (key, words), colour in series.items():
        widths = [100 * shares.get(key, 0.0) for _, shares in bars]
        axes.barh(places, widths, left=lefts, color=colour, label=words, height=0.7)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(places, [label for label, _ in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(axis)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    told = "; ".join(
        f"{label}: "
        + ", ".join(f"{words} {100 * shares.get(key, 0.0):.1f}" for key, words in series)
        for label, shares in bars
    )
    return Drawing(name, figure, caption, f"{caption} {told}.")


def _shares(consistency: Mapping[str, int]) -> dict[str, float]:
    return {key: consistency[key] / consistency["shown"] for key in FATES}


def _failed(entry: Result, objects: int) -> dict[str, float]:
    shares = {reason: value / max(1, objects) for reason, value in entry["failed"].items()}
    return {"certified": entry["recall"], **shares}
