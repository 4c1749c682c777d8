"""Parts whose code or values a certificate does not know are refused, each by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lipdet.boxes import BoxCoding, Decoder, Selection
from lipdet.boxes.scores import Scores, SigmoidScores, SoftmaxScores
from lipdet.certificate import UnknownLipschitz
from lipdet.certificate.verifier import verifier_of
from lipdet.detector import SSD
from tests.certificate.detectors import small_detector

SHOWN = Selection(0.2, 20)


@dataclass(frozen=True)
class OwnVotes(SigmoidScores):
    """A softmax detector of the user's would not vote for the first class."""

    def votes(self, log_odds: Tensor) -> Tensor:
        return log_odds.roll(1, dims=-1)


class OwnLogOdds(SoftmaxScores):
    def log_odds(self, logits: Tensor) -> Tensor:
        return -super().log_odds(logits)


class OwnCandidates(SoftmaxScores):
    pass


class OwnScores(Scores):
    def log_odds(self, logits: Tensor) -> Tensor:
        return -logits


class OwnDecode(BoxCoding):
    def decode(self, offsets: Tensor, default_boxes: Tensor) -> Tensor:
        return super().decode(offsets * 10, default_boxes)


class OwnDecoder(SSD):
    @property
    def decoder(self) -> Decoder:
        return super().decoder._replace(nms_iou=0.0)


def _replaced(part: object, name: str) -> object:
    object.__setattr__(part, name, lambda *rest: rest[0])
    return part


def _refused(detector: SSD, name: str, selection: Selection = SHOWN) -> None:
    with pytest.raises(UnknownLipschitz, match=name) as caught:
        verifier_of(detector, selection)
    assert str(caught.value).count(". ") == 0


def test_the_plain_parts_are_known() -> None:
    verifier_of(small_detector(), SHOWN)


FACTORS = [math.nan, math.inf, 0.0, -1.0, 1e-40]


@pytest.mark.parametrize(
    ("attribute", "part", "name"),
    [
        # Classes and methods of the user's own.
        ("__class__", OwnDecoder, "decoder"),
        ("scores", OwnVotes(1.0), "scores"),
        ("scores", OwnLogOdds(), "scores"),
        ("scores", OwnCandidates(), "scores"),
        ("scores", OwnScores(), "scores"),
        ("scores", _replaced(SoftmaxScores(), "votes"), "scores"),
        ("scores", _replaced(SigmoidScores(1.0), "log_odds"), "scores"),
        ("scores", _replaced(SigmoidScores(1.0), "candidates"), "scores"),
        ("coding", OwnDecode(), "coding"),
        ("coding", _replaced(BoxCoding(), "decode"), "coding"),
        # Factors that reverse or end an order, and other numbers that are none.
        *(("scores", SigmoidScores(value), "temperature") for value in FACTORS),
        *(("coding", BoxCoding(value, 0.2), "center_variance") for value in FACTORS),
        *(("coding", BoxCoding(0.1, value), "size_variance") for value in FACTORS),
        *(("coding", BoxCoding.of_unit(value), "center_variance") for value in FACTORS),
        *(
            ("scores", SigmoidScores(1.0, margin), "class_margin")
            for margin in (math.nan, -0.1, -math.inf)
        ),
        *(("nms_iou", value, "nms_iou") for value in (math.nan, -0.1, 1.1, math.inf)),
    ],
)
def test_other_parts_are_refused(attribute: str, part: object, name: str) -> None:
    """Subclasses with votes or decoding of their own, and odd numbers."""
    detector = small_detector()
    setattr(detector, attribute, part)
    _refused(detector, name)


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, math.nan), (0, math.inf), (1, -math.inf), (2, 0.0), (3, -1.0), (3, math.nan)],
)
def test_default_boxes_are_checked(column: int, value: float) -> None:
    detector = small_detector()
    detector.default_boxes = torch.rand(40, 4) + 1
    detector.default_boxes[7, column] = value
    _refused(detector, "default_boxes")


@pytest.mark.parametrize(
    ("selection", "name"),
    [
        (Selection(math.nan, 20), "score_floor"),
        (Selection(0.0, 20), "score_floor"),
        (Selection(1.0, 20), "score_floor"),
        (Selection(0.2, -1), "top_k"),
    ],
)
def test_selections_are_checked(selection: Selection, name: str) -> None:
    _refused(small_detector(), name, selection)
