"""All that certificates of one detector need, and the certificate of a batch in one call.

A certificate computes with scores, boxes and NMS as this package defines them. A part of the user's
own may do anything with an output, so only the exact classes are taken, with values for which the
arguments hold: log-odds that rise with their logit, and boxes that rise with their offsets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.boxes.coding import BoxCoding
from lipdet.boxes.scores import SigmoidScores, SoftmaxScores
from lipdet.boxes.select import Decoder, Selection
from lipdet.certificate.certified_ap import CliqueClaims, claim_cliques, judged_beside
from lipdet.certificate.conditions.candidates import Candidates, find_candidates
from lipdet.certificate.conditions.certify import ALL, Certifiers, Tightenings, certifiers
from lipdet.certificate.conditions.clique_cover import CliqueCover, cover_by_cliques
from lipdet.certificate.conditions.ground_truth import GroundTruth, SureMatches
from lipdet.certificate.conditions.suppressors import JointMotion
from lipdet.certificate.constants.joint_outputs import (
    PairwiseLogits,
    class_contrasts,
    collective_class_constants,
)
from lipdet.certificate.constants.outputs import OutputBounds, bounds_of_outputs, propagate_detector
from lipdet.certificate.constants.rounding import MEASURED, rounding_of
from lipdet.detector.forward import on_cpu
from lipdet.detector.ssd import SSD
from lipdet.errors import UnknownLipschitz
from lipdet.types import Canvas, RawOutput

# Products with a factor in between lose no more digits in float32 than the certificate allows for.
_LEAST, _MOST = 1e-10, 1e10
# Far below where numbers of cliques leave the range of int64.
_MOST_TOP_K = 10**6


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
    _check_class(decoder.canvas, "canvas", Canvas)
    _check(all(0 < side <= _MOST for side in decoder.canvas), "canvas", decoder.canvas)
    _check(0 < selection.score_floor < 1, "score_floor", selection.score_floor)
    _check(0 <= selection.top_k <= _MOST_TOP_K, "top_k", selection.top_k)
    _check(isinstance(selection.top_k, int), "top_k", selection.top_k)
    default = decoder.default_boxes
    if not (default.isfinite().all() and (default[:, 2:] > 0).all()):
        raise UnknownLipschitz(
            "Nothing can be certified: default_boxes must be finite, with sides above 0."
        )


def _check_class(part: object, name: str, *kinds: type) -> None:
    """Refuse a part that is not of one of these classes itself, or has more than its fields."""
    fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
    added = set(getattr(part, "__dict__", ())) - {field.name for field in fields}
    if type(part) not in kinds or added:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UnknownLipschitz(
            f'Nothing can be certified with the {name} "{type(part).__name__}": what another part '
            f"than a {wanted} as it is computes is not known."
        )


def _is_factor(value: float) -> bool:
    return isinstance(value, int | float) and _LEAST <= value <= _MOST


def _check(holds: bool, name: str, value: object) -> None:
    # NaN fails every comparison.
    if not holds or value != value:
        raise UnknownLipschitz(f"Nothing can be certified with {name} = {value}.")


# Images that are made up, unless so many outputs are seen in fewer larger ones.
EXAMPLES = 8
EXAMPLE_PIXELS = EXAMPLES * 74 * 74


@dataclass(frozen=True)
class Verifier:
    """The constants of a detector and its way from outputs to detections: all a certificate needs.

    Attributes:
        bounds: constants of single outputs.
        decoder: of the detector, on the CPU.
        selection: floor and top-k for which certificates hold.
        rounding: how far any output of a forward pass may lie from real arithmetic.
        rounding_known: how that is known, as in `rounding.Rounding`.
        collective: (C,) of all logits of a class together; None if unknown.
        pairwise: of differences of two logits of a class; None if unknown.
        contrasts: (A, C, C) of differences of two logits of a default box; None if unknown.
        tightenings: which sharpenings are used.
    """

    bounds: OutputBounds
    decoder: Decoder
    selection: Selection
    rounding: float = 0.0
    collective: Tensor | None = None
    pairwise: PairwiseLogits | None = None
    contrasts: Tensor | None = None
    tightenings: Tightenings = ALL
    rounding_known: str = MEASURED

    def __post_init__(self) -> None:
        """Check the parts: every certificate is made by a verifier.

        Raises:
            UnknownLipschitz: a part computes something else than certificates assume.
        """
        check_parts(self.decoder, self.selection)
        _check(self.rounding >= 0, "rounding", self.rounding)

    def candidates(self, raw: RawOutput, epsilon: float | Tensor) -> Candidates:
        """Return the candidates of a batch, at one ε or at that of each image (B,)."""
        return find_candidates(
            raw,
            self.bounds,
            self.decoder,
            self.selection.score_floor,
            epsilon,
            self.rounding,
            self.contrasts if self.tightenings.pairwise else None,
        )

    def clique_cover(self, candidates: Candidates, epsilon: Tensor) -> CliqueCover:
        """Bound the detections of each image and class; `epsilon` (B,)."""
        budget = None
        if self.collective is not None and self.tightenings.collective:
            budget = (self._factor * epsilon[:, None] * self.collective).flatten()
        return cover_by_cliques(candidates, self._most_cliques, budget)

    def claim_cliques(
        self,
        candidates: Candidates,
        truths: GroundTruth,
        matches: SureMatches,
        cover: CliqueCover,
        ious: Sequence[float],
    ) -> CliqueClaims:
        """Find detections that are no false positives, at rising IoU thresholds (theory §6.7)."""
        most = self._most_cliques
        return claim_cliques(candidates, truths, matches, cover, most, ious, self.tightenings)

    def judged(
        self,
        candidates: Candidates,
        truths: GroundTruth,
        areas: GroundTruth,
        cover: CliqueCover,
        ious: Sequence[float],
    ) -> tuple[CliqueCover, Tensor]:
        """Leave out what lies in areas that are not judged (theory §6.8).

        Returns:
            Bounds on the other detections; and of each object whether only these can be matched
            with it, (G,) bool.
        """
        found = judged_beside(candidates, truths, areas, ious)
        cover = cover.judged(found.candidates, candidates.high, self._most_cliques)
        return cover, found.objects

    def certifiers(
        self,
        candidates: Candidates,
        truths: GroundTruth,
        epsilon: Tensor,
        lowest_iou: float,
        cover: CliqueCover | None = None,
    ) -> Certifiers:
        """Find candidates that may vouch for objects, and how far they do; `epsilon` (B,)."""
        return certifiers(
            candidates,
            truths,
            self.selection,
            lowest_iou,
            cover,
            self.joint_motion(candidates, epsilon),
            self.tightenings,
        )

    @property
    def _most_cliques(self) -> int:
        """Number of cliques of a group that are counted: one more than the detector puts out."""
        return self.selection.top_k + 1

    def joint_motion(self, candidates: Candidates, epsilon: Tensor) -> JointMotion | None:
        """Return bounds on joint motion of candidates, if they are known; `epsilon` (B,)."""
        if self.pairwise is None:
            return None
        return JointMotion(candidates, self.pairwise, epsilon, self._factor)

    @property
    def _factor(self) -> float:
        scores = self.decoder.scores
        assert isinstance(scores, SigmoidScores), "collective and pairwise constants are one-vs-all"
        return scores.temperature


def verifier_of(detector: SSD, selection: Selection, images: Tensor | None = None) -> Verifier:
    """Bound a detector's outputs, once for all certificates.

    Args:
        detector: in eval mode.
        selection: for which certificates shall hold.
        images: (B, 3, H, W) in [0, 1], at which the rounding of a forward pass is measured, besides
            noise; a batch as large as those to be certified. Made-up ones of coloured areas if none
            are given.

    Raises:
        UnknownLipschitz: the detector has a layer without a bound, or a part that is not known; the
            message names it.
    """
    if type(detector).decoder is not SSD.decoder:
        raise UnknownLipschitz('Nothing can be certified with another "decoder" than that of SSD.')
    check_parts(detector.decoder, selection)
    if images is None:
        images = _examples(detector.config.canvas)
    # Constants are those of the weights; rounding is that of the device.
    placed, detector = detector, on_cpu(detector)
    propagation = propagate_detector(detector)
    bounds = bounds_of_outputs(detector, propagation)
    one_vs_all = isinstance(detector.scores, SigmoidScores)
    rounding = rounding_of(placed, images)
    return Verifier(
        bounds=bounds,
        decoder=detector.decoder,
        selection=selection,
        rounding=rounding.bound,
        rounding_known=rounding.known,
        collective=collective_class_constants(detector, propagation, bounds)
        if one_vs_all
        else None,
        pairwise=PairwiseLogits(detector, propagation, bounds) if one_vs_all else None,
        contrasts=class_contrasts(detector, propagation, bounds) if one_vs_all else None,
    )


def _examples(canvas: Canvas) -> Tensor:
    """Make images of areas of a few colours, since rounding grows with what is in an image."""
    generator = torch.Generator().manual_seed(0)
    count = min(EXAMPLES, math.ceil(EXAMPLE_PIXELS / (canvas.height * canvas.width)))
    cells = torch.rand((count, 3, 6, 6), generator=generator)
    return functional.interpolate(cells, tuple(canvas))
