"""All that certificates of one detector need, and the certificate of a batch in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.boxes.scores import SigmoidScores
from lipdet.boxes.select import Decoder, Selection
from lipdet.certificate.candidates import Candidates, find_candidates
from lipdet.certificate.certify import Certifiers, certifiers
from lipdet.certificate.claims import Claims, claims
from lipdet.certificate.cover import Entries, detection_entries
from lipdet.certificate.head_norms import (
    PairwiseLogits,
    class_contrasts,
    collective_class_constants,
)
from lipdet.certificate.numerics import MEASURED, rounding_of
from lipdet.certificate.outputs import OutputBounds, bounds_of_outputs, propagate_detector
from lipdet.certificate.parts import check_parts, check_rounding
from lipdet.certificate.rivals import Rivals
from lipdet.certificate.staying import Staying
from lipdet.certificate.tightenings import ALL, Tightenings
from lipdet.certificate.truths import Truths
from lipdet.detector.ssd import SSD
from lipdet.errors import UnknownLipschitz
from lipdet.types import RawOutput

EXAMPLES = 8


@dataclass(frozen=True)
class Verifier:
    """What is known of a detector, and what it does with its outputs.

    Attributes:
        bounds: constants of single outputs.
        decoder: of the detector, on the CPU.
        selection: floor and top-k for which certificates hold.
        rounding: how far any output of a forward pass may lie from real arithmetic.
        rounding_known: how that is known, as in `numerics.Rounding`.
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
        """Every certificate is made by a verifier, so here is where its parts are checked.

        Raises:
            UnknownLipschitz: a part computes something else than certificates assume.
        """
        check_parts(self.decoder, self.selection)
        check_rounding(self.rounding)

    def candidates(self, raw: RawOutput, epsilon: float | Tensor) -> Candidates:
        """Return what can exceed the floor in a batch, at one ε or at that of each image (B,)."""
        return find_candidates(
            raw,
            self.bounds,
            self.decoder,
            self.selection.score_floor,
            epsilon,
            self.rounding,
            self.contrasts if self.tightenings.pairwise else None,
        )

    def entries(self, candidates: Candidates, epsilon: Tensor) -> Entries:
        """Bounds on the detections of each image and class; `epsilon` (B,)."""
        budget = None
        if self.collective is not None and self.tightenings.collective:
            budget = (self._factor * epsilon[:, None] * self.collective).flatten()
        nms_iou, size = self.decoder.nms_iou, self.decoder.image_size
        return detection_entries(candidates, nms_iou, size, self._most, budget)

    def claims(
        self,
        candidates: Candidates,
        truths: Truths,
        pairs: Staying,
        entries: Entries,
        ious: Sequence[float],
    ) -> Claims:
        """Which detections are no false positives, at rising IoU thresholds; see `claims`."""
        size = self.decoder.image_size
        return claims(candidates, truths, pairs, entries, self._most, size, ious, self.tightenings)

    def certifiers(
        self,
        candidates: Candidates,
        truths: Truths,
        epsilon: Tensor,
        lowest_iou: float,
        entries: Entries | None = None,
    ) -> Certifiers:
        """The candidates that may vouch for objects, with how far they do; `epsilon` (B,)."""
        return certifiers(
            candidates,
            truths,
            self.selection,
            self.decoder.nms_iou,
            self.decoder.image_size,
            lowest_iou,
            entries,
            self._rivals(candidates, epsilon),
            self.tightenings,
        )

    @property
    def _most(self) -> int:
        """Cliques that are counted: one more than what the detector puts out.

        Condition 4 adds up the classes of an image.
        """
        return self.selection.top_k + 1

    def _rivals(self, candidates: Candidates, epsilon: Tensor) -> Rivals | None:
        if self.pairwise is None:
            return None
        return Rivals(candidates, self.pairwise, epsilon, self._factor)

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
        size = detector.config.image_size
        images = _examples(size)
    propagation = propagate_detector(detector)
    bounds = bounds_of_outputs(detector, propagation)
    one_vs_all = isinstance(detector.scores, SigmoidScores)
    rounding = rounding_of(detector, images.to(detector.default_boxes.device))
    return Verifier(
        bounds=OutputBounds(
            bounds.features,
            bounds.anchors,
            bounds.logits.cpu(),
            bounds.offsets.cpu(),
            bounds.offsets_joint.cpu(),
            bounds.joint,
        ),
        decoder=detector.decoder._replace(default_boxes=detector.default_boxes.cpu()),
        selection=selection,
        rounding=rounding.bound,
        rounding_known=rounding.known,
        collective=collective_class_constants(detector, propagation, bounds).cpu()
        if one_vs_all
        else None,
        pairwise=PairwiseLogits(detector, propagation, bounds) if one_vs_all else None,
        contrasts=class_contrasts(detector, propagation, bounds).cpu() if one_vs_all else None,
    )


def _examples(size: int) -> Tensor:
    """Make images of areas of a few colours, since rounding grows with what is in an image."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand((EXAMPLES, 3, 6, 6), generator=generator)
    return functional.interpolate(cells, (size, size))
