"""`lipdet demo`: what attacks leave and what is proven, in a few minutes."""

from __future__ import annotations

from pathlib import Path

from lipdet.commands.options import Parser, verb_parser
from lipdet.demo import demo


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = verb_parser(
        "Attack and certify an ordinary and a certified detector side by side, in a few minutes.",
        "lipdet demo --out demo",
    )
    parser.add_function_arguments(run)
    return parser


def run(out: Path = Path("demo"), seed: int = 0) -> None:
    """Show on rendered pictures what attacks leave, and what is proven.

    Args:
        out: folder for the page, figures, results and what was attacked.
        seed: of the attacks.
    """
    demo(out, seed)
