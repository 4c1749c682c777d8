"""Training: one loop, and what is decided before its first step."""

from lipdet.train.loop import Trainer, train
from lipdet.train.setup import set_up

__all__ = ["Trainer", "set_up", "train"]
