"""What is certified, and what the certificate fails at, as tables and a figure."""

from __future__ import annotations

from matplotlib.ticker import PercentFormatter
from rich.table import Table

from lipdet.certificate.diagnosis import REASONS
from lipdet.report.style import Drawing, colour, new_figure, styled
from lipdet.report.table import percent
from lipdet.results import EvaluationResult

# Condition by condition, for people.
MEANING = {
    "missed": "not detected even in the clean picture",
    "score": "the score can fall below the threshold",
    "box": "the box can move off the object",
    "suppressor": "a box that does not match can suppress it",
    "truncation": "too many others can rank before it",
    "matching": "it can be matched with another object",
}


def certified_table(result: EvaluationResult) -> Table:
    """Certified AP, recall and precision of one result of `lipdet eval`, at each radius."""
    table = Table(title=f"{result['weights']} under every L2 perturbation, percent, at least")
    columns = ("ε", "AP50", "AP", "recall", "precision", "any class", "class alone")
    for column in columns:
        table.add_column(column, justify="right")
    for entry in result["certified"]:
        shares = [
            percent(entry[key])
            for key in ("ap50", "ap", "recall", "precision", "vanish_recall", "class_recall")
        ]
        table.add_row(f"{entry['epsilon']:g}", *shares)
    score = result["certified"][0]["recall_score"]
    table.caption = (
        f"Recall and precision at IoU 0.5 and scores of {score:g} or more, pooled over the "
        f"classes; rounding {result['certified'][0]['rounding']}."
    )
    return table


def certified_classes_table(result: EvaluationResult) -> Table:
    """Certified AP50, AP, recall and precision of each class, at each radius."""
    table = Table(title="Certified, by class, percent: AP50 / AP / recall / precision")
    table.add_column("class")
    for entry in result["certified"]:
        table.add_column(f"ε = {entry['epsilon']:g}", justify="right")
    for name in result["certified"][0]["per_class"]:
        cells = [
            " / ".join(
                percent(entry["per_class"][name][key])
                for key in ("ap50", "ap", "recall", "precision")
            )
            for entry in result["certified"]
        ]
        table.add_row(name, *cells)
    return table


def reasons_table(result: EvaluationResult) -> Table:
    """Return how many objects fail at which condition, at each radius."""
    table = Table(title="Objects that are not certified, by the condition that fails")
    table.add_column("condition")
    for entry in result["certified"]:
        table.add_column(f"ε = {entry['epsilon']:g}", justify="right")
    for reason in REASONS:
        counts = (str(entry["failed"][reason]) for entry in result["certified"])
        table.add_row(f"{reason}: {MEANING[reason]}", *counts)
    return table


@styled
def plot_reasons(result: EvaluationResult) -> Drawing | None:
    """Return what becomes of all objects at each radius: certified, or the condition that fails.

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
    left = [0.0] * len(entries)
    names = [f"ε = {entry['epsilon']:g}" for entry in entries]
    for index, (reason, counts) in enumerate(rows.items()):
        shares = [count / objects for count in counts]
        axes.barh(names, shares, left=left, color=colour(index), label=reason)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.grid(visible=False)
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
