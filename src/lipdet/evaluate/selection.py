"""Choose, after training, which boxes may stand side by side and are shown, on held-out pictures.

From which overlap on NMS suppresses, for which classes a default box votes, how far an offset moves
it, and from which score on detections are shown are rules and no weights; which of them are best
depends on how close objects lie, how alike classes look, and what there is besides.

Notable choices:
- One forward pass serves the whole search. Certificates read the rules from the decoder, so they
  hold for whatever is chosen.
- One rule after the other, the overlap first: twelve of them instead of 80. What is best by the
  mean of clean and certified AP50, to a tenth of a percent, is taken; of equals the first, which is
  that before the choice.
- Where something is certified, boxes may move less than training had them move: what attacks can do
  to them shrinks as much, and what a weak network says of a box is better not believed in full.
- The score is chosen last, by the F1 of what is shown.
- The shift of logits (`detector.calibration`) is not searched: it changes no ranking, only what
  lies below the low floor of AP. Likelihood says what a score has to mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes import AP_SELECTION, BoxCoding, Decoder, SigmoidScores, select_detections
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.detector import SSD
from lipdet.detector.forward import BATCH_SIZE, decoder_on_cpu, raw_output
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.certified import certify_batch, join, summary
from lipdet.evaluate.ranking import ranked
from lipdet.images.batches import Part
from lipdet.progress import track
from lipdet.types import RawOutput, Target

NMS_IOUS = (0.2, 0.3, 0.45, 0.6)
# In log-odds, which mean the same at every temperature.
CLASS_MARGINS = (0.0, 1.0, 2.0, 3.0)
# Of the offset unit of the training.
SHRINKING = (0.8, 0.65, 0.5)
# The first is that of detectors without a choice. Of scores with nearly the same F1 the lowest is
# taken: what is harder than held-out pictures has lower scores.
SHOWN_ABOVE, NEARLY = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 0.01
EPSILONS = (0.1, 0.25)
MOST_PICTURES = 256
# Certificates take longer, the more objects there are.
MOST_CERTIFIED, MOST_CERTIFIED_OBJECTS = 64, 150


class Rules(NamedTuple):
    """Rules of where boxes are and may stand side by side; see `Decoder` and `SigmoidScores`."""

    nms_iou: float
    class_margin: float
    offset_unit: float

    def of(self, decoder: Decoder) -> Decoder:
        """Return a decoder with these rules instead of its own."""
        assert isinstance(decoder.scores, SigmoidScores), "a margin needs one-vs-all scores"
        scores = replace(decoder.scores, class_margin=self.class_margin)
        coding = BoxCoding.of_unit(self.offset_unit)
        return decoder._replace(coding=coding, scores=scores, nms_iou=self.nms_iou)


class HeldOut(NamedTuple):
    """The outputs of a detector on N pictures.

    Attributes:
        raw: logits (N, A, K) and offsets (N, A, 4), on the CPU.
        targets: of each picture.
        class_names: in the order of the labels.
    """

    raw: RawOutput
    targets: list[Target]
    class_names: tuple[str, ...]

    def head(self, count: int) -> HeldOut:
        """Return the first pictures."""
        raw = RawOutput(*(part[:count] for part in self.raw))
        return self._replace(raw=raw, targets=self.targets[:count])

    def clean_ap50(self, decoder: Decoder) -> float:
        """Return AP50 as a fraction."""
        found = select_detections(self.raw, decoder, AP_SELECTION)
        return average_precision(self.targets, found, self.class_names)["ap50"]

    def certified_ap50(self, verifier: Verifier, epsilon: float) -> float:
        """Return what of AP50 is certified at an L2 radius, as a fraction."""
        found = []
        for start in range(0, len(self.targets), BATCH_SIZE):
            own = slice(start, start + BATCH_SIZE)
            raw = RawOutput(*(part[own] for part in self.raw))
            found.append(certify_batch(verifier, raw, self.targets[own], epsilon))
        names, rounding = self.class_names, verifier.rounding_known
        return summary(epsilon, join(found), names, rounding)["ap50"]


class Figures(NamedTuple):
    """AP50 under some rules, as fractions.

    Attributes:
        clean: of all pictures.
        certified: at each of EPSILONS, of the first pictures; empty where nothing is certified.
    """

    clean: float
    certified: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return what the choice goes by, to a tenth of a percent."""
        return round((self.clean + sum(self.certified)) / (1 + len(self.certified)), 3)


class Choice(NamedTuple):
    """The chosen rules, and what they give beside those before the choice.

    Attributes:
        rules: the best.
        figures: of the best.
        own_rules: before the choice: of the architecture, and the offset unit of the training.
        own_figures: of those.
        pictures: held out, by which was chosen.
        certified_pictures: how many of them were certified.
        shown_above: the score from which on detections are shown.
        f1: of what is shown then.
    """

    rules: Rules
    figures: Figures
    own_rules: Rules
    own_figures: Figures
    pictures: int
    certified_pictures: int
    shown_above: float
    f1: float

    def as_dict(self) -> dict[str, object]:
        """Return plain values for json; fractions."""
        return {
            **_plain(self.rules, self.figures),
            "own": _plain(self.own_rules, self.own_figures),
            "pictures": self.pictures,
            "certified_pictures": self.certified_pictures,
            "shown_above": self.shown_above,
            "f1": self.f1,
        }


def _plain(rules: Rules, figures: Figures) -> dict[str, object]:
    certified = [
        {"epsilon": epsilon, "ap50": ap}
        for epsilon, ap in zip(EPSILONS, figures.certified, strict=False)
    ]
    return {**rules._asdict(), "clean_ap50": figures.clean, "certified_ap50": certified}


def choose_rules(detector: SSD, parts: Sequence[Part], certify: bool) -> Choice:
    """Find the best rules for a detector with one-vs-all scores.

    Args:
        detector: calibrated, in eval mode.
        parts: held-out pictures of its classes; the first MOST_PICTURES are used.
        certify: whether certified AP counts, as well as clean AP.

    Raises:
        UnknownLipschitz: `certify` is asked for, and a layer has no bound.
    """
    pictures = in_turn(parts)[:MOST_PICTURES]
    verifier = None
    if certify:
        verifier = verifier_of(detector, AP_SELECTION, pixels_of(pictures[:BATCH_SIZE]))
    return best_rules(decoder_on_cpu(detector), outputs_on(detector, pictures), verifier)


def outputs_on(detector: SSD, pictures: Sequence[tuple[Part, int]]) -> HeldOut:
    """Run a detector on pictures of packs, in one pass."""
    batches = [pictures[at : at + BATCH_SIZE] for at in range(0, len(pictures), BATCH_SIZE)]
    raws = [raw_output(detector, pixels_of(batch)) for batch in batches]
    return HeldOut(
        RawOutput(*(torch.cat(same) for same in zip(*raws, strict=True))),
        [part.pack.target(index) for part, index in pictures],
        detector.config.class_names,
    )


def pixels_of(pictures: Sequence[tuple[Part, int]]) -> Tensor:
    """Return pictures of packs, (B, 3, H, W) in [0, 1]."""
    return torch.cat([part.pack.pixels([index]) for part, index in pictures])


def best_rules(decoder: Decoder, held_out: HeldOut, verifier: Verifier | None) -> Choice:
    """Search the grid; see `choose_rules`.

    Args:
        decoder: of the detector, with the rules before the choice.
        held_out: what the detector puts out.
        verifier: of the detector; without one, clean AP decides alone.
    """
    scores = decoder.scores
    assert isinstance(scores, SigmoidScores), "a margin needs one-vs-all scores"
    first = held_out.head(certified_count(held_out.targets))

    @cache
    def figures(rules: Rules) -> Figures:
        changed, certified = rules.of(decoder), []
        if verifier:
            its = replace(verifier, decoder=changed)
            certified = [first.certified_ap50(its, epsilon) for epsilon in EPSILONS]
        return Figures(held_out.clean_ap50(changed), tuple(certified))

    def best(rules: Sequence[Rules], what: str) -> Rules:
        return max(track(rules, f"Choosing the {what}"), key=lambda one: figures(one).mean)

    own = Rules(decoder.nms_iou, scores.class_margin, decoder.coding.center_variance)
    rules = best([own, *(own._replace(nms_iou=iou) for iou in NMS_IOUS)], "NMS threshold")
    # Where there is one class, none competes.
    if len(held_out.class_names) > 1:
        margins = [margin / scores.temperature for margin in CLASS_MARGINS]
        others = [rules._replace(class_margin=margin) for margin in margins]
        rules = best([rules, *others], "class margin")
    if verifier:
        units = [round(own.offset_unit * factor, 4) for factor in SHRINKING]
        rules = best([rules, *(rules._replace(offset_unit=u) for u in units)], "offset unit")
    score, f1 = best_score(rules.of(decoder), held_out)
    counts = len(held_out.targets), len(first.targets) if verifier else 0
    return Choice(rules, figures(rules), own, figures(own), *counts, score, f1)


def best_score(decoder: Decoder, held_out: HeldOut) -> tuple[float, float]:
    """Return the lowest score above which what is shown has nearly the best F1, and that F1.

    Args:
        decoder: with the rules that are chosen.
        held_out: what the detector puts out.
    """
    found = select_detections(held_out.raw, decoder, AP_SELECTION)
    # Neither NMS nor matching looks at lower scores, so that one pass serves every threshold.
    every = ranked(held_out.targets, found)
    objects = sum(len(target["labels"]) for target in held_out.targets)
    f1 = {}
    for score in SHOWN_ABOVE:
        shown = every.score > score
        hits = int(every.right[shown].sum())
        f1[score] = 2 * hits / max(1, int(shown.sum()) + objects)
    best = next(score for score in SHOWN_ABOVE if f1[score] >= max(f1.values()) - NEARLY)
    return best, f1[best]


def in_turn(parts: Sequence[Part]) -> list[tuple[Part, int]]:
    """Return the pictures of all parts, one of each in turn."""
    rows = zip_longest(*([(part, int(index)) for index in part.indices] for part in parts))
    return [picture for picture in chain.from_iterable(rows) if picture is not None]


def certified_count(targets: Sequence[Target]) -> int:
    """Return how many of the first pictures are certified: as many as their objects allow."""
    objects = torch.tensor([len(target["labels"]) for target in targets]).cumsum(0)
    return max(1, min(MOST_CERTIFIED, int((objects <= MOST_CERTIFIED_OBJECTS).sum())))
