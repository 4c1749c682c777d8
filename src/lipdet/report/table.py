"""The results of `lipdet eval` as tables and sentences, for the terminal and for documents."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.console import JustifyMethod
from rich.table import Table

from lipdet.results import (
    AttackedResult,
    CertifiedPixels,
    CertifiedResult,
    EvaluationResult,
    Pixels,
    SegmentationResult,
    attacked,
    certified,
    input_size,
    radii,
    radius_told,
)

GREY_LEVELS = "Grey levels: the root mean square of a change of ε over all values, white being 255."


def new_table(title: str, columns: Iterable[str], words: Collection[str] = ()) -> Table:
    """Return an empty table for the terminal; all columns but those in `words` hold numbers."""
    table = Table(title=title)
    for column in columns:
        justify: JustifyMethod = "left" if column in words else "right"
        table.add_column(column, justify=justify, overflow="fold")
    return table


def rules_table(rules: Mapping[str, Any]) -> Table:
    """Return what training chose at its end on held-out pictures, beside what was there before.

    Args:
        rules: as stored with the weights, `lipdet.evaluate.selection.Choice.as_dict`.
    """
    title = f"Chosen by AP50 of {rules['pictures']} held-out pictures, percent"
    if rules["certified_pictures"]:
        title += f" ({rules['certified_pictures']} of them certified)"
    certified = [f"certified, ε = {one['epsilon']:g}" for one in rules["certified_ap50"]]
    names = "NMS IoU", "class margin", "offset unit", "clean", *certified
    table = new_table(title, ("", *names), ("",))
    for name, of in (("before", rules["own"]), ("chosen", rules)):
        # Older trainings chose fewer of them.
        numbers = [constant(of.get(key)) for key in ("nms_iou", "class_margin", "offset_unit")]
        measured = of["clean_ap50"], *(one["ap50"] for one in of["certified_ap50"])
        table.add_row(name, *numbers, *map(percent, measured))
    if "shown_above" in rules:
        above = rules["shown_above"]
        table.caption = f"Shown is what scores above {above:g}: F1 {percent(rules['f1'])}."
    return table


def results_table(results: Sequence[EvaluationResult]) -> Table:
    """Return the results side by side; AP in percent."""
    columns = ("detector", "data", "input", "pictures", "objects", "AP50", "AP", "parameters")
    table = new_table("Clean average precision, percent", columns, ("detector", "data"))
    for result in results:
        data, clean = result["data"], result["clean"]
        table.add_row(
            str(result["weights"]),
            str(data["name"]),
            input_size(result),
            f"{data['images']:,}",
            f"{data['objects']:,}",
            percent(clean["ap50"]),
            percent(clean["ap"]),
            f"{result['parameters']:,}",
        )
    return table


def classes_table(result: EvaluationResult) -> Table:
    """Return the AP of each class of one result."""
    table = new_table(f"{result['weights']} by class, percent", ("class", "AP50", "AP"))
    for name, values in result["clean"]["per_class"].items():
        table.add_row(name, percent(values["ap50"]), percent(values["ap"]))
    return table


def attacked_table(result: EvaluationResult) -> Table:
    """Return AP and recall under each attack of one result of `lipdet eval`."""
    settings = ("attack", "objective", "steps", "restarts")
    columns = ("ε", "grey levels", *settings, "AP50", "AP", "recall")
    title = f"{result['weights']} under attack, percent"
    table = new_table(title, columns, ("attack", "objective"))
    for entry in result["attacked"]:
        figures = [percent(entry[name]) for name in ("ap50", "ap", "recall")]
        table.add_row(
            f"{entry['epsilon']:g}",
            grey_levels(entry),
            f"{entry['attack']} ({entry['norm']})",
            entry.get("objective", "several, the lowest"),
            str(entry["steps"]),
            str(entry["restarts"]),
            *figures,
        )
    table.caption = f"Input: {input_size(result)} pixels. {GREY_LEVELS}"
    return table


def comparison_rows(results: Sequence[EvaluationResult]) -> tuple[list[str], list[list[str]]]:
    """Return column names and a row of text per result; AP50 in percent, a dash if not measured."""
    epsilons = radii(results)
    names = ["detector", "input", "parameters", "clean"]
    names += [f"attacked {epsilon:g}" for epsilon in epsilons]
    names += [f"certified {epsilon:g}" for epsilon in epsilons]
    rows = []
    for result in results:
        row = [str(result["weights"]), input_size(result), f"{result['parameters']:,}"]
        row.append(percent(result["clean"]["ap50"]))
        for entries in (attacked(result), certified(result)):
            row += [
                percent(entries[epsilon]["ap50"] if epsilon in entries else None)
                for epsilon in epsilons
            ]
        rows.append(row)
    return names, rows


def comparison_table(results: Sequence[EvaluationResult]) -> Table:
    """Return the comparison for the terminal."""
    names, rows = comparison_rows(results)
    # Two short lines: eighty columns hold three radii.
    columns = [name.replace(" ", "\n") for name in names]
    table = new_table("AP50, percent, by L2 radius in [0, 1] pixel units", columns, names[:1])
    for row in rows:
        table.add_row(*row)
    if epsilons := radii(results):
        told = "; ".join(radius_told(results, epsilon) for epsilon in epsilons)
        table.caption = f"{told}. {GREY_LEVELS}"
    return table


def finding(results: Sequence[EvaluationResult], epsilon: float) -> str:
    """Say in one sentence what an attack of this size leaves of each detector, and what is proven.

    Args:
        results: json objects of `lipdet eval`.
        epsilon: a radius at which any of them was attacked or certified.
    """
    clauses = []
    for result in results:
        attack, proof = attacked(result).get(epsilon), certified(result).get(epsilon)
        name, clean = result["weights"], percent(result["clean"]["ap50"])
        proven = percent(proof["ap50"]) if proof and proof["ap50"] else "nothing"
        if attack:
            kept = percent(attack["ap50"])
            clauses.append(f"{name} keeps {kept} of {clean}, of which {proven} is proven")
        else:
            clauses.append(f"{name} was not attacked ({clean} clean, {proven} proven)")
    return f"AP50 under attack of {radius_told(results, epsilon)}: {'; '.join(clauses)}."


def comparison_markdown(results: Sequence[EvaluationResult]) -> str:
    """Return the comparison as a Markdown table."""
    names, rows = comparison_rows(results)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def grey_levels(entry: AttackedResult | CertifiedResult) -> str:
    """Return the radius of an entry in grey levels; a dash where it does not say it."""
    return f"{entry['grey_levels']:.2g}" if "grey_levels" in entry else "–"


def segmentation_table(result: SegmentationResult) -> Table:
    """Return what is certified first, then what is right under attack and without; in percent.

    The last row is one answer for all pixels, which every certificate keeps.
    """
    names = list(result["clean"]["per_class"])
    columns = ("", "ε", "accuracy", "mean IoU", *(f"IoU {name}" for name in names))
    title = f"{result['weights']} on {result['data']['name']}, percent"
    table = new_table(title, columns, ("",))

    def row(what: str, epsilon: str, figures: Pixels | CertifiedPixels) -> None:
        ious = [figures["per_class"][name]["iou"] for name in names]
        shares = [figures["accuracy"], figures["miou"], *ious]
        table.add_row(what, epsilon, *map(percent, shares))

    for entry in result["certified"]:
        row("certified", f"{entry['epsilon']:g}", entry)
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


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with one digit; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def constant(value: float | None) -> str:
    """Return a number with four significant digits; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"
