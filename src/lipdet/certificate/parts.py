"""What certificates assume of the parts that turn raw outputs into detections, checked once.

A certificate computes with scores, boxes and NMS as this package defines them. A part of the user's
own may do anything with an output, so only the exact classes are taken, with values for which the
arguments hold: log-odds that rise with their logit, and boxes that rise with their offsets.
"""

from __future__ import annotations

import dataclasses

from lipdet.boxes.coding import BoxCoding
from lipdet.boxes.scores import SigmoidScores, SoftmaxScores
from lipdet.boxes.select import Decoder, Selection
from lipdet.errors import UnknownLipschitz

# Products with a factor in between lose no more digits in float32 than the certificate allows for.
_LEAST, _MOST = 1e-10, 1e10
# Far below where numbers of cliques leave the range of int64.
_MOST_DETECTIONS = 10**6


def check_parts(decoder: Decoder, selection: Selection) -> None:
    """Refuse what computes, or may compute, something else than certificates assume.

    Raises:
        UnknownLipschitz: with the name of the part.
    """
    _check_class(decoder, "decoder", Decoder)
    _check_class(selection, "selection", Selection)
    scores, coding = decoder.scores, decoder.coding
    _check_class(scores, "scores", SigmoidScores, SoftmaxScores)
    _check_class(coding, "coding", BoxCoding)
    if isinstance(scores, SigmoidScores):
        _check(_is_factor(scores.temperature), "temperature", scores.temperature)
        _check(scores.class_margin >= 0, "class_margin", scores.class_margin)
    for name in ("center_variance", "size_variance"):
        _check(_is_factor(getattr(coding, name)), name, getattr(coding, name))
    _check(0 <= decoder.nms_iou <= 1, "nms_iou", decoder.nms_iou)
    _check(0 < decoder.image_size <= _MOST, "image_size", decoder.image_size)
    _check(0 < selection.score_floor < 1, "score_floor", selection.score_floor)
    _check(0 <= selection.top_k <= _MOST_DETECTIONS, "top_k", selection.top_k)
    _check(isinstance(selection.top_k, int), "top_k", selection.top_k)
    default = decoder.default_boxes
    if not (default.isfinite().all() and (default[:, 2:] > 0).all()):
        raise UnknownLipschitz(
            "Nothing can be certified: default_boxes must be finite, with sides above 0."
        )


def check_rounding(rounding: float) -> None:
    """Refuse an allowance for rounding that is no number.

    Raises:
        UnknownLipschitz: it is not.
    """
    _check(rounding >= 0, "rounding", rounding)


def _check_class(part: object, name: str, *kinds: type) -> None:
    """Whether a part is of one of these classes itself, and has nothing but its fields."""
    if type(part) not in kinds or not _own_names(part) <= _fields(part):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UnknownLipschitz(
            f'Nothing can be certified with the {name} "{type(part).__name__}": what another part '
            f"than a {wanted} as it is computes is not known."
        )


def _own_names(part: object) -> set[str]:
    return set(getattr(part, "__dict__", ()))


def _fields(part: object) -> set[str]:
    if not dataclasses.is_dataclass(part):
        return set()
    return {field.name for field in dataclasses.fields(part)}


def _is_factor(value: float) -> bool:
    return isinstance(value, int | float) and _LEAST <= value <= _MOST


def _check(holds: bool, name: str, value: float) -> None:
    # What is not a number fails every comparison.
    if not holds or value != value:
        raise UnknownLipschitz(f"Nothing can be certified with {name} = {value}.")
