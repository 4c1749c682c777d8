"""The results of `lipdet eval` as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lipdet.results import EvaluationResult

COLUMNS = ("detector", "data", "pictures", "objects", "AP50", "AP", "parameters")


def rows(results: Sequence[EvaluationResult]) -> list[tuple[str, ...]]:
    """Return one row of text per result, in the order of COLUMNS; AP in percent."""
    return [
        (
            str(result["weights"]),
            str(result["data"]["name"]),
            f"{result['data']['images']:,}",
            f"{result['data']['objects']:,}",
            percent(result["clean"]["ap50"]),
            percent(result["clean"]["ap"]),
            f"{result['parameters']:,}",
        )
        for result in results
    ]


def results_table(results: Sequence[EvaluationResult]) -> Table:
    """Return the results side by side."""
    table = Table(title="Clean average precision, percent")
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 2 else "right", overflow="fold")
    for row in rows(results):
        table.add_row(*row)
    return table


def classes_table(result: EvaluationResult) -> Table:
    """AP of each class of one result."""
    table = Table(title=f"{result['weights']} by class, percent")
    for column in ("class", "AP50", "AP"):
        table.add_column(column, justify="right")
    for name, values in result["clean"]["per_class"].items():
        table.add_row(name, percent(values["ap50"]), percent(values["ap"]))
    return table


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with one digit; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"
