"""Detectors side by side: clean, attacked and certified AP50 as text and for documents."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lipdet.report.table import percent
from lipdet.results import EvaluationResult, attacked, certified, radii


def comparison_rows(results: Sequence[EvaluationResult]) -> tuple[list[str], list[list[str]]]:
    """Column names, and one row of text per result; AP50 in percent, a dash if not measured."""
    epsilons = radii(results)
    names = ["detector", "parameters", "clean"]
    names += [f"attacked {epsilon:g}" for epsilon in epsilons]
    names += [f"certified {epsilon:g}" for epsilon in epsilons]
    rows = []
    for result in results:
        row = [str(result["weights"]), f"{result['parameters']:,}"]
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
    table = Table(title="AP50, percent, by L2 radius in [0, 1] pixel units")
    for index, name in enumerate(names):
        # Two short lines: eighty columns hold three radii.
        heading = name.replace(" ", "\n")
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
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
    return f"AP50 under attack of ε = {epsilon:g}: {'; '.join(clauses)}."


def comparison_markdown(results: Sequence[EvaluationResult]) -> str:
    """Return the comparison as a Markdown table."""
    names, rows = comparison_rows(results)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
