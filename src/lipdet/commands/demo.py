"""`lipdet demo`: the whole road in a few minutes."""

from __future__ import annotations

from pathlib import Path

from lipdet.commands.options import Parser, Verb, verb_parser
from lipdet.demo import demo


def parser() -> Parser:
    """Options of `run`."""
    parser = verb_parser(
        "Render, train, evaluate, attack, certify and show, in a few minutes.",
        "lipdet demo --out demo",
    )
    parser.add_function_arguments(run)
    return parser


def run(out: Path = Path("demo"), seed: int = 0) -> None:
    """Show the whole road on rendered pictures.

    Args:
        out: folder for the page, figures, results and the run.
        seed: of the training.
    """
    demo(out, seed)


VERB = Verb("the whole road in a few minutes", parser, run)
