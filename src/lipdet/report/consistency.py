"""What becomes of detections under attack, as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lipdet.report.style import COLOURS, Drawing, new_figure, styled
from lipdet.results import EvaluationResult, attacked

Fate = Literal["kept", "changed", "vanished", "appeared"]
# Key in the json, words, colour; the first three are what can become of a detection.
FATES: tuple[tuple[Fate, str, str], ...] = (
    ("kept", "kept", COLOURS[0]),
    ("changed", "another class", COLOURS[4]),
    ("vanished", "vanished", COLOURS[1]),
    ("appeared", "appeared", COLOURS[3]),
)


@styled
def plot_consistency(results: Sequence[EvaluationResult]) -> Drawing | None:
    """Return what becomes of the shown detections of each detector at each radius.

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
    lefts = [0.0] * len(bars)
    for key, words, colour in FATES:
        widths = [100 * counts[key] / counts["shown"] for _, counts in bars]
        axes.barh(range(len(bars)), widths, left=lefts, color=colour, label=words, height=0.7)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
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
