"""`lipdet reproduce`: the published table and what lies beyond it, in one command."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lipdet.checkpoint import weights_file
from lipdet.commands.attack_options import EPSILON_HELP, parse_epsilons
from lipdet.commands.options import SPEC_HELP, Parser, check_folder, verb_parser
from lipdet.config import PRESETS, DetectorConfig
from lipdet.errors import InputError
from lipdet.hardware import DeviceName, measuring_device
from lipdet.progress import show
from lipdet.report.table import comparison_table
from lipdet.reproduce import EPSILONS, FULL, QUICK, QUICK_ROWS, ROWS, reproduce, row_name
from lipdet.user_module import names_module

DEFAULT = " ".join(f"{epsilon:g}" for epsilon in EPSILONS)


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = verb_parser(
        "Train or load every detector of the comparison; measure each clean, attacked, certified.",
        "lipdet reproduce --quick --out quick",
    )
    parser.add_argument(
        "--presets",
        nargs="+",
        metavar="ROW",
        help=f"rows: presets, or DETECTORs to load (default: {' '.join(ROWS)})",
    )
    parser.add_argument(
        "--training",
        nargs="+",
        metavar="SPEC",
        help="training data of rows without packaged weights (default: rendered:20000)",
    )
    parser.add_argument("--data", default="rendered:1000", metavar="SPEC", help=SPEC_HELP)
    parser.add_argument(
        "--epsilon", nargs="+", metavar="E", help=f"{EPSILON_HELP} (default: {DEFAULT})"
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="steps of each attack (default: 50, and 100 on canvases of more than 10,000 pixels)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small detectors, short trainings, few pictures and weak attacks: every step of the "
        "way in about a quarter of an hour on two cores, figures without meaning",
    )
    parser.add_function_arguments(
        run, skip={"presets", "training", "data", "epsilon", "steps", "quick"}
    )
    return parser


def run(
    presets: Sequence[str] | None = None,
    training: Sequence[str] | None = None,
    data: str = "rendered:1000",
    out: Path = Path("reproduce"),
    epsilon: Sequence[str] = (),
    steps: int | None = None,
    quick: bool = False,
    seed: int = 0,
    device: DeviceName | None = None,
) -> None:
    """Make the table.

    Args:
        presets: see its help.
        training: SPECs.
        data: SPEC to evaluate on.
        out: folder for runs, results, table and figures; a second call goes on where it stopped.
        epsilon: L2 radii of attacks and certificates.
        steps: of each attack.
        quick: see its help.
        seed: of trainings, crops and random starts.
        device: where to measure, cpu or cuda; by default the GPU if there is one.
    """
    check_folder(out)
    rows = tuple(presets or (QUICK_ROWS if quick else ROWS))
    _check(rows)
    effort = QUICK if quick else FULL
    if training:
        effort = dataclasses.replace(effort, training=tuple(training))
    if epsilon:
        effort = dataclasses.replace(effort, epsilons=parse_epsilons(epsilon))
    if steps is not None:
        effort = dataclasses.replace(effort, steps=steps)
    results = reproduce(out, rows, data, effort, seed, measuring_device(device))
    show(comparison_table(results))
    print(f"Page: {out}/index.html; figures: {out}/figures; results: {out}/results.json")


def _check(rows: Sequence[str]) -> None:
    """Refuse what is neither a preset nor a DETECTOR, and names given twice, before any work."""
    for row in rows:
        if names_module(row):
            raise InputError(
                f"{row}: finished parts are found again by a hash of the weights, which says "
                "nothing of your code; compare it with lipdet report."
            )
        if row not in PRESETS:
            weights_file(row)
        elif not isinstance(PRESETS[row].detector, DetectorConfig):
            raise InputError(f"{row} is a segmenter, and the rows of this table are detectors.")
    names = [row_name(row) for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"Two rows are called {name}; give each once, under its own name.")
