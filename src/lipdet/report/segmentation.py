"""The results of `lipdet eval` of a segmenter as tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from lipdet.report.table import new_table, percent
from lipdet.results import Pixels, SegmentationResult


def segmentation_table(result: SegmentationResult) -> Table:
    """Return what is certified first, then what is right under attack and without; in percent.

    The last row is one answer for all pixels, which every certificate keeps.
    """
    names = list(result["clean"]["per_class"])
    columns = ("", "ε", "accuracy", "mean IoU", *(f"IoU {name}" for name in names))
    title = f"{result['weights']} on {result['data']['name']}, percent"
    table = new_table(title, columns, ("",))

    def row(what: str, epsilon: str, figures: Pixels) -> None:
        ious = [figures["per_class"][name]["iou"] for name in names]
        shares = [figures["accuracy"], figures["miou"], *ious]
        table.add_row(what, epsilon, *map(percent, shares))

    for entry in result["certified"]:
        ious = [entry["per_class"][name]["iou"] for name in names]
        shares = [entry["accuracy"], entry["miou"], *ious]
        table.add_row("certified", f"{entry['epsilon']:g}", *map(percent, shares))
    for attack in result["attacked"]:
        row(f"attacked ({attack['attack']}, {attack['norm']})", f"{attack['epsilon']:g}", attack)
    row("clean", "0", result["clean"])
    row("one answer for all", "any", result["constant"])
    return table


def missed_table(result: SegmentationResult) -> Table:
    """Return the largest share of each class that can be missed, and what promises it."""
    names = list(result["clean"]["per_class"])
    missed = [f"{name} missed at most" for name in names]
    columns = (
        "ε",
        *missed,
        "accuracy by single pixels",
        "accuracy by the budget",
        "pixels flipped at most, mean",
    )
    table = new_table(f"{result['weights']}, certified, percent", columns)
    for entry in result["certified"]:
        shares = [entry["per_class"][name]["false_negatives"] for name in names]
        promises = entry["single"], entry["joint"]
        cells = map(percent, (*shares, *promises))
        table.add_row(f"{entry['epsilon']:g}", *cells, f"{entry['flipped']:,.1f}")
    return table
