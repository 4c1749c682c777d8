"""`lipdet eval`: average precision on a data set."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lipdet.checkpoint import load_detector
from lipdet.commands.options import (
    DETECTOR_HELP,
    SPEC_HELP,
    Parser,
    Verb,
    as_json,
    check_positive,
    check_writable,
    verb_parser,
)
from lipdet.evaluate.run import evaluate
from lipdet.images.spec import open_data
from lipdet.report.table import classes_table, results_table


def parser() -> Parser:
    """Options of `run`."""
    parser = verb_parser(
        "Measure average precision on a data set.", "lipdet eval naive --data svhn:SVHN/test"
    )
    parser.add_argument("detector", help=DETECTOR_HELP)
    parser.add_argument("--data", required=True, metavar="SPEC", help=SPEC_HELP)
    parser.add_function_arguments(run, skip={"detector", "data"})
    return parser


def run(
    detector: str,
    data: str,
    limit: int | None = None,
    seed: int = 0,
    json: Path | None = None,  # the option is called --json
) -> None:
    """Measure average precision.

    Args:
        detector: DETECTOR.
        data: SPEC.
        limit: only the first so many pictures.
        seed: of crops and rendered pictures.
        json: file for the result; `-` prints it instead of the tables.
    """
    if limit is not None:
        check_positive("--limit", limit)
    check_writable(json)
    loaded = load_detector(detector)
    pack = open_data(data, "test", loaded.detector.config.image_size, seed)
    if limit is not None:
        pack = pack.head(limit)
    result = evaluate(loaded, pack, seed)
    if json == Path("-"):
        print(as_json(result))
        return
    if json is not None:
        json.write_text(as_json(result) + "\n")
    console = Console()
    console.print(results_table([result]))
    console.print(classes_table(result))


VERB = Verb("average precision on a data set", parser, run)
