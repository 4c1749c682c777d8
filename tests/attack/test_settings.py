"""Settings that cannot be meant are refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from lipdet.attack import NAMED_EPSILONS, AttackSettings, parse_epsilon
from lipdet.attack.settings import default_steps, single_attacks
from lipdet.errors import InputError
from lipdet.types import Canvas


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"seed": -1}, "seed"),
        ({"objective": "annoy"}, "annoy"),
        ({"norm": "l7"}, "l7"),
        ({"schedule": "sgd"}, "sgd"),
    ],
)
def test_bad_settings(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        AttackSettings(**{"epsilon": 0.5, **changes})


def test_radii_by_number_and_by_name() -> None:
    assert parse_epsilon("0.25") == 0.25
    # 0.5 where pixels lie in [-1, 1] is 0.25 where they lie in [0, 1].
    assert {name: parse_epsilon(name) for name in NAMED_EPSILONS} == {
        "reference-minus1-1": 0.25,
        "reference-0-1": 0.5,
    }
    for text in ("much", "", "nan", "-1"):
        with pytest.raises(InputError, match="epsilon"):
            parse_epsilon(text)


def test_fractions_are_read_and_linf_has_its_limit() -> None:
    """8/255 is a radius, and 8 is none of L∞."""
    assert parse_epsilon("8/255") == 8 / 255
    for text in ("8/0", "8/", "a/b", "1/2/3"):
        with pytest.raises(InputError, match=r"such as 0\.25 or 8/255"):
            parse_epsilon(text)
    AttackSettings(1.0, norm="linf")
    with pytest.raises(InputError, match="write 8/255"):
        AttackSettings(8.0, norm="linf")


def test_worst_takes_no_objective() -> None:
    with pytest.raises(InputError, match=r"to raise vanish, choose --attack pgd or apgd\."):
        single_attacks("worst", AttackSettings(0.1), "vanish")


@pytest.mark.parametrize(
    ("canvas", "steps"), [((74, 74), 50), ((100, 100), 50), ((100, 101), 100), ((160, 320), 100)]
)
def test_large_canvases_get_more_steps(canvas: tuple[int, int], steps: int) -> None:
    assert default_steps(Canvas(*canvas)) == steps
