"""Switches of what sharpens a certificate without being needed for its soundness (theory §6)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tightenings:
    """All are on; scripts and tests take single ones away to see what each is worth.

    Attributes:
        collective: bound detections by what it costs to raise many logits at once.
        pairwise: a rival must be able to pass the certifier itself, not only its interval.
        overtaking: a rival that must rise to pass the certifier has less left to move its box with.
        ball: the four offsets of a box move in a ball.
        relaxed_match: another object may be reached where the own one is matched better.
        counted_cliques: count what can be kept, instead of all candidates, against top-k.
        claims: a detection that must match an object is no false positive, certified or not.
    """

    collective: bool = True
    pairwise: bool = True
    overtaking: bool = True
    ball: bool = True
    relaxed_match: bool = True
    counted_cliques: bool = True
    claims: bool = True


ALL = Tightenings()
