"""Options of attacks that several verbs share, and their check."""

from __future__ import annotations

from collections.abc import Sequence

from lipdet.attack import NAMED_EPSILONS, parse_epsilon
from lipdet.errors import InputError

EPSILON_HELP = (
    f"radius in [0, 1] pixel units at the network's input size, or {' or '.join(NAMED_EPSILONS)} "
    "(the reference experiment's 0.5 in either unit)"
)


def parse_epsilons(words: Sequence[str]) -> tuple[float, ...]:
    """Return the radii of `--epsilon`.

    Raises:
        InputError: one is no radius, or there is none.
    """
    if not words:
        raise InputError("An attack needs a radius: give --epsilon, such as --epsilon 0.25.")
    return tuple(parse_epsilon(word) for word in words)
