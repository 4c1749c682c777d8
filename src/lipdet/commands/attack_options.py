"""Options of attacks that several verbs share, and their check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lipdet.attack import NAMED_EPSILONS, AttackSettings, parse_epsilon
from lipdet.attack.settings import AttackName, Norm
from lipdet.checkpoint import AnyDetector, LoadedSegmenter
from lipdet.commands.options import Parser
from lipdet.errors import InputError
from lipdet.versions import versions

EPSILON_HELP = (
    f"radius in [0, 1] pixel units at the network's input size, or {' or '.join(NAMED_EPSILONS)} "
    "(the reference experiment's 0.5 in either unit)"
)


def add_objective(parser: Parser) -> None:
    """Add the option that names what attacks raise."""
    names = ", ".join(AttackSettings.objectives)
    mix = ", ".join(f"{name} {share:g}" for name, share in AttackSettings.unnamed.items())
    parser.add_argument(
        "--objective",
        metavar="NAME",
        help=f"what pgd and apgd raise, one of: {names}; by default these, each with its share of "
        f"the steps: {mix}",
    )


def parse_epsilons(words: Sequence[str]) -> tuple[float, ...]:
    """Return the radii of `--epsilon`, each once.

    Raises:
        InputError: one is no radius, or there is none.
    """
    if not words:
        raise InputError(
            "Attacks and certificates need a radius: give --epsilon, such as --epsilon 0.25."
        )
    return tuple(dict.fromkeys(map(parse_epsilon, words)))


def measured_epsilons(
    words: Sequence[str], attack: AttackName | None, certify: bool, norm: Norm
) -> tuple[float, ...]:
    """Return the radii at which `eval` attacks or certifies; none if it does neither.

    Raises:
        InputError: a radius has no use, one is missing, or certificates are asked for in L∞.
    """
    if certify and norm != "l2":
        raise InputError("Certificates hold for L2 perturbations: leave out --norm, or --certify.")
    if attack or certify:
        return parse_epsilons(words)
    if words:
        raise InputError("--epsilon needs --certify, or an attack such as --attack worst.")
    return ()


def attack_facts(
    loaded: AnyDetector | LoadedSegmenter,
    attack: AttackName,
    settings: AttackSettings,
    singles: Sequence[AttackSettings],
) -> dict[str, Any]:
    """Return what attack.json says of the attack; `singles` are those behind its name."""
    canvas = loaded.framing.canvas
    return {
        "weights": loaded.name,
        "canvas": list(canvas),
        "epsilon": settings.epsilon,
        "grey_levels": canvas.grey_levels(settings.epsilon, settings.norm),
        "attack": attack,
        "norm": settings.norm,
        "objectives": [one.objective for one in singles],
        "steps": settings.steps,
        "restarts": settings.restarts,
        "seed": settings.seed,
        "versions": versions(),
    }
