"""Is an attack strong enough to be believed? The sanity checks of theory §7 as one report.

Notable choices:
- A check that fails says that the attack is too weak here, never that the detector is robust.
- Collapse means a twentieth of the clean AP50 at a radius whose random noise leaves three quarters
  of it: at 64, any image can be turned into grey, and every attack would pass. It is not zero,
  since of boxes all over a picture some are right by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lipdet.evaluate.attack_curves import COLLAPSED, Curves

# Fraction of AP50 and a number of objects, whichever is more: no attack aims at AP itself, so that
# of two equally strong ones either may leave an object or two more.
TOLERANCE = 0.02
TOLERATED_OBJECTS = 2
# Share of the whole rise of the objective that may come in the last fifth of the steps.
LATE_RISE = 0.05
LEFT_BY_NOISE = 0.75
# By how much another objective may leave less: a figure that is off by more misleads.
OBJECTIVE_TOLERANCE = 0.03


@dataclass(frozen=True)
class Check:
    """One check: what must hold, and what was measured (AP50 and objective values)."""

    name: str
    expected: str
    measured: str
    passed: bool


@dataclass(frozen=True)
class Report:
    """All checks of one attack on one detector, and the curves behind them."""

    curves: Curves
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Return whether all checks passed."""
        return all(check.passed for check in self.checks)


def judge(curves: Curves) -> Report:
    """Return all checks on what `measure_attack` measured."""
    attack = curves.attack
    tolerance = max(TOLERANCE, TOLERATED_OBJECTS / curves.objects)
    by_radius = [curves.clean, *(row[1] for row in curves.sweep)]
    by_steps = [precision for _, precision in curves.steps]
    checks = (
        _collapse(curves),
        _falls("AP falls with the radius", by_radius, tolerance),
        _falls("more steps never help the detector", by_steps, tolerance),
        _settled("more steps change nothing", "steps", curves.steps[-2:], tolerance),
        _settled("more restarts change nothing", "restarts", curves.restarts, tolerance),
        _plateau(curves.loss),
        _strongest(curves),
        _weaker("random noise is weaker", curves.noise, attack, 0),
        _weaker("Square, a black-box attack, is weaker", curves.square, attack, 0),
        _weaker("a transferred attack is weaker", curves.transfer, attack, tolerance),
    )
    return Report(curves, checks)


def _collapse(curves: Curves) -> Check:
    row = next((row for row in curves.sweep if row[1] < COLLAPSED * curves.clean), None)
    return Check(
        "AP collapses",
        f"below {COLLAPSED:.0%} of clean AP50 at a radius whose noise leaves {LEFT_BY_NOISE:.0%}",
        f"ε = {row[0]:g}: attack {row[1]:.1%}, noise {row[2]:.1%}" if row else "never",
        row is not None and row[2] >= LEFT_BY_NOISE * curves.clean,
    )


def _falls(name: str, precisions: Sequence[float], tolerance: float) -> Check:
    rises = [later - earlier for earlier, later in pairwise(precisions)]
    return Check(
        name,
        f"no AP50 above the one before by {tolerance:.1%} or more",
        " → ".join(f"{value:.1%}" for value in precisions),
        max(rises) < tolerance,
    )


def _settled(name: str, what: str, pair: Sequence[tuple[int, float]], tolerance: float) -> Check:
    (few, before), (many, after) = pair
    return Check(
        name,
        f"AP50 falls by less than {tolerance:.1%}",
        f"{few} {what} {before:.1%}, {many} {what} {after:.1%}",
        before - after < tolerance,
    )


def _plateau(loss: Sequence[float]) -> Check:
    rise = loss[-1] - loss[0]
    late = loss[-1] - loss[(len(loss) - 1) * 4 // 5]
    share = late / rise if rise > 0 else float("nan")
    return Check(
        "the objective rises to a plateau",
        f"less than {LATE_RISE:.0%} of its rise in the last fifth of the steps",
        f"from {loss[0]:.2f} to {loss[-1]:.2f}, {share:.1%} of it late",
        rise > 0 and share < LATE_RISE,
    )


def _strongest(curves: Curves) -> Check:
    name = min(curves.objectives, key=lambda one: curves.objectives[one])
    lowest = curves.objectives[name]
    return Check(
        "no other objective is much stronger",
        f"none of {', '.join(curves.objectives)} leaves {OBJECTIVE_TOLERANCE:.0%} of AP50 less",
        f"{curves.attack:.1%} against {lowest:.1%} with {name}",
        curves.attack - lowest < OBJECTIVE_TOLERANCE,
    )


def _weaker(name: str, other: float, attack: float, tolerance: float) -> Check:
    return Check(
        name,
        "its AP50 is not below that of the attack" + (f" by {tolerance:.1%}" if tolerance else ""),
        f"{other:.1%} against {attack:.1%}",
        other >= attack - tolerance,
    )
