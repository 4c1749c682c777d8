"""Attacks that deserve the name: projected gradients and random search on detectors."""

from lipdet.attack.damage import recall
from lipdet.attack.foreign import attack_torchvision
from lipdet.attack.gradient import attack_batch, attack_images
from lipdet.attack.loop import climb
from lipdet.attack.objectives import OBJECTIVES
from lipdet.attack.outcome import (
    Outcome,
    attack_unlabelled,
    detect,
    look,
    worst_of,
)
from lipdet.attack.settings import (
    DEFAULT_OBJECTIVE,
    NAMED_EPSILONS,
    AttackSettings,
    check_epsilon,
    default_steps,
    parse_epsilon,
)
from lipdet.attack.square import square_attack

__all__ = [
    "DEFAULT_OBJECTIVE",
    "NAMED_EPSILONS",
    "OBJECTIVES",
    "AttackSettings",
    "Outcome",
    "attack_batch",
    "attack_images",
    "attack_torchvision",
    "attack_unlabelled",
    "check_epsilon",
    "climb",
    "default_steps",
    "detect",
    "look",
    "parse_epsilon",
    "recall",
    "square_attack",
    "worst_of",
]
