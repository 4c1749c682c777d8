"""Is an attack strong enough to be believed? The sanity checks of theory §7 as one report.

Notable choices:
- A check that fails says that the attack is too weak here, never that the detector is robust.
- Collapse means AP50 below one point at a radius whose random noise leaves three quarters of AP50:
  at 64, any image can be turned into grey, and every attack would pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lipdet.evaluate.attack_curves import COLLAPSED, Curves

# Fraction of AP50. A few dozen pictures have few objects, and one more or less is a point or two.
TOLERANCE = 0.02
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
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)


def judge(curves: Curves) -> Report:
    """Return all checks on what `measure_attack` measured."""
    attack = curves.attack
    checks = (
        _collapse(curves),
        _falls("AP falls with the radius", [curves.clean, *(row[1] for row in curves.sweep)]),
        _falls("more steps never help the detector", [ap for _, ap in curves.steps]),
        _settled("more steps change nothing", "steps", curves.steps[-2:]),
        _settled("more restarts change nothing", "restarts", curves.restarts),
        _plateau(curves.loss),
        _strongest(curves),
        _weaker("random noise is weaker", curves.noise, attack, 0),
        _weaker("Square, a black-box attack, is weaker", curves.square, attack, 0),
        _weaker("a transferred attack is weaker", curves.transfer, attack, TOLERANCE),
    )
    return Report(curves, checks)


def _collapse(curves: Curves) -> Check:
    row = next((row for row in curves.sweep if row[1] < COLLAPSED), None)
    return Check(
        "AP collapses",
        f"AP50 below {COLLAPSED:.0%} at a radius whose noise leaves {LEFT_BY_NOISE:.0%} of it",
        f"ε = {row[0]:g}: attack {row[1]:.1%}, noise {row[2]:.1%}" if row else "never",
        row is not None and row[2] >= LEFT_BY_NOISE * curves.clean,
    )


def _falls(name: str, precisions: Sequence[float]) -> Check:
    rises = [later - earlier for earlier, later in pairwise(precisions)]
    return Check(
        name,
        f"no AP50 above the one before by {TOLERANCE:.0%} or more",
        " → ".join(f"{value:.1%}" for value in precisions),
        max(rises) < TOLERANCE,
    )


def _settled(name: str, what: str, pair: Sequence[tuple[int, float]]) -> Check:
    (few, before), (many, after) = pair
    return Check(
        name,
        f"AP50 falls by less than {TOLERANCE:.0%}",
        f"{few} {what} {before:.1%}, {many} {what} {after:.1%}",
        before - after < TOLERANCE,
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
        "its AP50 is not below that of the attack" + (f" by {tolerance:.0%}" if tolerance else ""),
        f"{other:.1%} against {attack:.1%}",
        other >= attack - tolerance,
    )
