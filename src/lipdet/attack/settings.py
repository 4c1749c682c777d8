"""Settings of attacks, with the published radius under a name of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar, get_args

from lipdet.attack.objectives import OBJECTIVES
from lipdet.errors import InputError
from lipdet.types import Canvas

Norm = Literal["l2", "linf"]
ScheduleName = Literal["pgd", "apgd"]
AttackName = Literal["pgd", "apgd", "worst"]

# The strongest single objective; what PGD tries where none is named, and what `worst` tries, each
# with its share of the steps. Chosen by scripts/choose_attack.py; a new objective changes no figure
# unless it is added here.
DEFAULT_OBJECTIVE = "demote"
UNNAMED = {DEFAULT_OBJECTIVE: 0.3, "mislabel": 0.3, "fabricate": 0.2, "multibox": 0.2}
WORST = {DEFAULT_OBJECTIVE: 0.8, "mislabel": 0.4, "fabricate": 0.4, "multibox": 0.4}

# Gradients per start, by the pixels of the canvas: attacks on large ones take longer to converge
# (docs/attacks.md). Measured at 74x74 and at 160x320; where between them it changes is a guess.
STEPS = 50
STEPS_OF_LARGE = 100
LARGE = 10_000

# The distance of two pictures of 5,773 pixels a side, one black and one white.
LARGEST_EPSILON = 1e4
# The reference experiment attacks by L2 PGD with a radius of 0.5 and does not say in which unit.
# Its preprocessing maps pixels to [-1, 1], where 0.5 is 0.25 here; docs/attacks.md has the reasons.
NAMED_EPSILONS = {"reference-minus1-1": 0.25, "reference-0-1": 0.5}


@dataclass(frozen=True)
class AttackSettings:
    """One attack on a detector; with these, an image and its index, the result is determined.

    Attributes:
        objectives: the names that there are.
        unnamed: what is tried where no objective is named, each with its share of the steps.
        worst: the same of `worst`.
        epsilon: radius in [0, 1] pixel units at the network's input size.
        objective: what is raised, one of `objectives`.
        schedule: pgd or apgd.
        norm: l2 or linf.
        steps: gradients per start; `default_steps` knows how many a canvas wants.
        restarts: random starts; the best result counts.
        seed: of the random starts.
    """

    objectives: ClassVar[tuple[str, ...]] = tuple(OBJECTIVES)
    unnamed: ClassVar[Mapping[str, float]] = UNNAMED
    worst: ClassVar[Mapping[str, float]] = WORST

    epsilon: float
    objective: str = DEFAULT_OBJECTIVE
    schedule: ScheduleName = "pgd"
    norm: Norm = "l2"
    steps: int = STEPS
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before anything is computed."""
        check_epsilon(self.epsilon)
        if self.norm == "linf" and self.epsilon > 1:
            raise InputError(
                f"An L∞ radius of {self.epsilon:g} is more than all there is between black and "
                f"white, which is 1; of 255 grey levels write {self.epsilon:g}/255."
            )
        for name in ("steps", "restarts"):
            if not getattr(self, name) >= 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.seed < 0:
            raise InputError(f"seed must not be negative, but is {self.seed}.")
        choices = {
            "objective": self.objectives,
            "schedule": get_args(ScheduleName),
            "norm": get_args(Norm),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} {getattr(self, name)!r} is unknown; choose one of: {', '.join(known)}."
                )


Settings = TypeVar("Settings", bound=AttackSettings)


def default_steps(canvas: Canvas) -> int:
    """Return the gradients per start that an attack on a canvas takes where nobody says."""
    return STEPS_OF_LARGE if canvas.height * canvas.width > LARGE else STEPS


def single_attacks(
    attack: AttackName, settings: Settings, objective: str | None = None
) -> list[Settings]:
    """List the attacks behind a name, each on one objective.

    Args:
        attack: pgd and apgd raise `objective`, `worst` is PGD with each of its own.
        settings: everything else; their schedule and objective do not matter.
        objective: None for those that are tried where none is named.

    Raises:
        InputError: an objective is named for `worst`, or is unknown.
    """
    if objective is not None and attack == "worst":
        raise InputError(
            f"worst has objectives of its own: to raise {objective}, choose --attack pgd or apgd."
        )
    shares = settings.worst if attack == "worst" else settings.unnamed
    if objective is not None:
        shares = {objective: 1.0}
    schedule: ScheduleName = "apgd" if attack == "apgd" else "pgd"
    return [
        replace(
            settings,
            schedule=schedule,
            objective=name,
            steps=max(1, round(share * settings.steps)),
        )
        for name, share in shares.items()
    ]


def check_epsilon(epsilon: float) -> None:
    """Refuse a radius that is no number, negative, or so large that float32 loses the picture."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise InputError(f"epsilon must be a number of at least 0, not {epsilon}.")
    if epsilon > LARGEST_EPSILON:
        raise InputError(
            f"epsilon must be at most {LARGEST_EPSILON:g}, not {epsilon:g}: no two pictures with "
            "values in [0, 1] are further apart."
        )


def parse_epsilon(text: str) -> float:
    """Return a radius as a user writes it: a number, a fraction, or the name of a setting.

    Raises:
        InputError: it is neither, or negative, infinite or not a number.
    """
    if text in NAMED_EPSILONS:
        return NAMED_EPSILONS[text]
    try:
        number, slash, divisor = text.partition("/")
        epsilon = float(number) / (float(divisor) if slash else 1)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"--epsilon {text!r}: give a radius in [0, 1] pixel units, such as 0.25 or 8/255, or: "
            f"{', '.join(NAMED_EPSILONS)}."
        ) from None
    check_epsilon(epsilon)
    return epsilon
