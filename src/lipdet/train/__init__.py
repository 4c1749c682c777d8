"""Training: one loop, and what is decided before its first step."""

from lipdet.train.loop import NonFiniteLossError, Trainer, train
from lipdet.train.setup import set_up

__all__ = ["NonFiniteLossError", "Trainer", "set_up", "train"]
