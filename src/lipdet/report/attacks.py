"""What attacks did, as a table."""

from __future__ import annotations

from rich.table import Table

from lipdet.report.table import percent
from lipdet.results import EvaluationResult


def attacked_table(result: EvaluationResult) -> Table:
    """AP and recall under each attack of one result of `lipdet eval`."""
    table = Table(title=f"{result['weights']} under attack, percent")
    for column in ("ε", "attack", "objective", "steps", "restarts", "AP50", "AP", "recall"):
        table.add_column(column, justify="left" if column in ("attack", "objective") else "right")
    for entry in result["attacked"]:
        figures = [percent(entry[name]) for name in ("ap50", "ap", "recall")]
        table.add_row(
            f"{entry['epsilon']:g}",
            f"{entry['attack']} ({entry['norm']})",
            entry.get("objective", "all, the lowest"),
            str(entry["steps"]),
            str(entry["restarts"]),
            *figures,
        )
    return table
