"""Certified figures, and the conditions at which certificates fail, as tables."""

from __future__ import annotations

from rich.table import Table

from lipdet.certificate.diagnosis import REASONS
from lipdet.report.table import GREY_LEVELS, grey_levels, new_table, percent
from lipdet.results import EvaluationResult, input_size

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
    """Return certified AP, recall and precision of one result of `lipdet eval`, at each radius."""
    columns = (
        "ε", "grey levels", "AP50", "AP", "recall", "precision", "any class", "class alone",
    )  # fmt: skip
    title = f"{result['weights']} under every L2 perturbation, percent, at least"
    table = new_table(title, columns)
    for entry in result["certified"]:
        shares = [
            percent(entry[key])
            for key in ("ap50", "ap", "recall", "precision", "vanish_recall", "class_recall")
        ]
        table.add_row(f"{entry['epsilon']:g}", grey_levels(entry), *shares)
    score = result["certified"][0]["recall_score"]
    table.caption = (
        f"Recall and precision at IoU 0.5 and scores of {score:g} or more, pooled over the "
        f"classes; rounding {result['certified'][0]['rounding']}. Input: {input_size(result)} "
        f"pixels. {GREY_LEVELS}"
    )
    return table


def reading_table(result: EvaluationResult) -> Table:
    """Return what is counted of whole pictures, and read where labels spell, at each radius."""
    spelt = any("reading" in entry for entry in result["certified"])
    title = "Numbers of each class, percent of pictures"
    table = Table(title=f"Labels from left to right, and {title.lower()}" if spelt else title)
    read = ("read right", "right and sure", "sure") if spelt else ()
    for column in ("ε", *read, "count sure", "leeway"):
        table.add_column(column, justify="right")
    for entry in result["certified"]:
        reading, counts = entry.get("reading"), list(entry["counts"].values())
        exact, leeway = (
            sum(one[key] for one in counts) / len(counts) for key in ("exact", "leeway")
        )
        shares = (reading["right"], reading["certified"], reading["steady"]) if reading else ()
        cells = [*map(percent, shares), percent(exact), f"{leeway:.2f}"]
        table.add_row(f"{entry['epsilon']:g}", *cells)
    table.caption = (
        "Sure: no perturbation changes it. Counts are means over the classes; the leeway is by how "
        "much the two ends between which a number stays differ."
    )
    return table


def certified_classes_table(result: EvaluationResult) -> Table:
    """Return certified AP50, AP, recall, precision and counts of each class, at each radius."""
    title = (
        "Certified, by class, percent: AP50 / AP / recall / precision / pictures with a sure count"
    )
    table = new_table(title, ("class", *_radii(result)), ("class",))
    for name in result["certified"][0]["per_class"]:
        cells = [
            " / ".join(
                percent(share)
                for share in (
                    *(
                        entry["per_class"][name][key]
                        for key in ("ap50", "ap", "recall", "precision")
                    ),
                    entry["counts"][name]["exact"],
                )
            )
            for entry in result["certified"]
        ]
        table.add_row(name, *cells)
    return table


def reasons_table(result: EvaluationResult) -> Table:
    """Return how many objects fail at which condition, at each radius."""
    title = "Objects that are not certified, by the condition that fails"
    table = new_table(title, ("condition", *_radii(result)), ("condition",))
    for reason in REASONS:
        counts = (str(entry["failed"][reason]) for entry in result["certified"])
        table.add_row(f"{reason}: {MEANING[reason]}", *counts)
    return table


def _radii(result: EvaluationResult) -> list[str]:
    return [f"ε = {entry['epsilon']:g}" for entry in result["certified"]]
