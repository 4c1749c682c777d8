"""Certified recall, precision and AP over a data set: bounds under every perturbation up to ε.

Notable choices:
- The same pictures, selection, matcher rules and recalls as for clean AP.
- Recall and precision are stated at the score above which detections are shown to users, but like
  AP under AP_SELECTION: among at most 100 detections of a picture, not the 20 that are shown.
- What is read and counted is what is shown of a picture, of each place only the best detection.
- One forward pass of each picture serves all ε, and clean AP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lipdet.boxes import AP_SELECTION, DISPLAY_SELECTION, Decoder, Selection, select_detections
from lipdet.boxes.scores import logit
from lipdet.boxes.select import left_to_right, one_per_place
from lipdet.certificate.certified_ap import (
    ClassObjects,
    PossibleDetections,
    certified_average_precision,
    false_positives,
)
from lipdet.certificate.conditions.certify import MAX_DETECTIONS, certified_up_to
from lipdet.certificate.conditions.ground_truth import ground_truth_of, ignored_areas_of
from lipdet.certificate.constants.rounding import MEASURED, PROVEN
from lipdet.certificate.counting import Counts, certified_counts
from lipdet.certificate.diagnosis import (
    REASONS,
    box_stays,
    class_stays,
    clean_matches,
    reasons,
    with_other_classes,
)
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.detector import SSD
from lipdet.detector.forward import BATCH_SIZE, raw_output
from lipdet.evaluate.chunks import (
    Pass,
    State,
    Tensors,
    detections_from_tensors,
    detections_to_tensors,
    in_order,
)
from lipdet.images.pack import Pack
from lipdet.results import CertifiedClass, CertifiedCount, CertifiedReading, CertifiedResult
from lipdet.types import Detections, RawOutput, Target, ignored_of, spell

IOUS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
# Of recall and precision, where a detector has no threshold of its own.
RECALL_SCORE = DISPLAY_SELECTION.score_floor


class PerObject(NamedTuple):
    """Certificates of G objects at one ε.

    Attributes:
        label: (G,) class.
        reached: (G, len(IOUS)) log-odds up to which it is certified, −∞ if it is not.
        up_to: (G, len(IOUS)) ends of what it claims, as in `CliqueClaims`.
        above: see `up_to`.
        judged: (G,) bool, as in `ClassObjects`.
        box: (G,) whether a detection of any class stays on it, at the score of recall and IoU 0.5.
        of_class: (G,) whether a detection of its class stays, wherever, at that score.
        reason: (G,) index in REASONS of what fails at that score and IoU 0.5, −1 if nothing.
    """

    label: Tensor
    reached: Tensor
    up_to: Tensor
    above: Tensor
    judged: Tensor
    box: Tensor
    of_class: Tensor
    reason: Tensor


class Certified(NamedTuple):
    """Certificates of some pictures at one ε.

    Attributes:
        of: their objects.
        possible: detections of each class.
    """

    of: PerObject
    possible: tuple[PossibleDetections, ...]

    def objects(self, label: int, column: int) -> ClassObjects:
        """Return those of one class at one of IOUS."""
        mine, of = self.of.label == label, self.of
        reached, up_to, above = (part[mine, column] for part in (of.reached, of.up_to, of.above))
        return ClassObjects(reached, up_to, above, of.judged[mine])


class Chunk(NamedTuple):
    """Detections and certificates of some pictures.

    Attributes:
        detections: under AP_SELECTION.
        found: at each ε.
        counts: at each ε, of what is shown of each picture.
        right: (B,) whether the labels that are shown are those of the objects, left to right.
        proven: whether rounding is.
    """

    detections: list[Detections]
    found: tuple[Certified, ...]
    counts: tuple[Counts, ...]
    right: Tensor
    proven: bool


def certified_results(
    detector: SSD, pack: Pack, epsilons: Sequence[float], state: State | None = None
) -> tuple[list[Detections], list[CertifiedResult]]:
    """Return what is detected, and one entry per radius, as docs/json.md describes it.

    Args:
        detector: of an architecture whose layers all have a Lipschitz bound.
        pack: pictures of its input size.
        epsilons: L2 radii in [0, 1] pixel units.
        state: where finished chunks are kept and looked for.

    Raises:
        UnknownLipschitz: a layer has no bound; the message names it.
    """
    chunks = certificate_pass(detector, pack, epsilons, state).results()
    rounding = PROVEN if all(chunk.proven for chunk in chunks) else MEASURED
    right, names = torch.cat([one.right for one in chunks]), pack.class_names
    # Whether what is there but not judged was to be read, nobody says.
    areas = (ignored_of(pack.target(index))["labels"] for index in range(len(pack)))
    judged = torch.tensor([not len(one) for one in areas])
    entries: list[CertifiedResult] = []
    for index, epsilon in enumerate(epsilons):
        found = join([one.found[index] for one in chunks])
        counts = Counts(*map(torch.cat, zip(*(one.counts[index] for one in chunks), strict=True)))
        entry: CertifiedResult = {
            **summary(epsilon, found, names, rounding, detector.display.score_floor),
            "grey_levels": pack.canvas.grey_levels(epsilon),
            "counts": _count_summaries(counts, names),
        }
        if judged.any() and spell(names):
            entry["reading"] = _reading_summary(right[judged], counts.steady[judged])
        entries.append(entry)
    return in_order([one.detections for one in chunks]), entries


def certificate_pass(
    detector: SSD, pack: Pack, epsilons: Sequence[float], state: State | None
) -> Pass[Chunk]:
    """Make the pass over the pack that `certified_results` sums up."""
    detector.eval()

    @cache
    def verifier() -> Verifier:
        first = pack.pixels(range(min(BATCH_SIZE, len(pack))))
        return verifier_of(detector, AP_SELECTION, first)

    def compute(chunk: range) -> Chunk:
        raw = raw_output(detector, pack.pixels(chunk))
        targets = [pack.target(index) for index in chunk]
        display = detector.display
        shown = replace(verifier(), selection=display)
        radii = [torch.full((len(targets),), epsilon, dtype=torch.float64) for epsilon in epsilons]
        return Chunk(
            select_detections(raw, verifier().decoder, AP_SELECTION),
            tuple(
                certify_batch(verifier(), raw, targets, epsilon, display.score_floor)
                for epsilon in epsilons
            ),
            tuple(certified_counts(shown, raw, radius) for radius in radii),
            read_right(verifier().decoder, raw, targets, display),
            verifier().rounding_known == PROVEN,
        )

    folder = state.of_pass("certificates", pack, epsilons=list(epsilons)) if state else None
    label = f"Certifying {pack.name}"
    codec = chunk_to_tensors, chunk_from_tensors
    return Pass(label, len(pack), BATCH_SIZE, compute, *codec, folder)


def chunk_to_tensors(chunk: Chunk) -> Tensors:
    """Turn a chunk into what its file holds."""
    tensors = {
        name: value
        for index, pair in enumerate(zip(chunk.found, chunk.counts, strict=True))
        for name, value in _to_tensors(*pair, index).items()
    }
    return {
        **detections_to_tensors(chunk.detections),
        **tensors,
        "right": chunk.right,
        "proven": torch.tensor(chunk.proven),
    }


def chunk_from_tensors(tensors: Tensors) -> Chunk:
    """Return what `chunk_to_tensors` was given."""
    radii = sum(name.endswith(".label") for name in tensors)
    found = tuple(_from_tensors(tensors, index) for index in range(radii))
    counts = tuple(
        Counts(*(tensors[f"{index}.{name}"] for name in Counts._fields)) for index in range(radii)
    )
    detections = detections_from_tensors(tensors)
    return Chunk(detections, found, counts, tensors["right"], bool(tensors["proven"]))


def _to_tensors(found: Certified, shown: Counts, index: int) -> Tensors:
    """Return what is certified at one ε of several, under names of its own."""
    objects = {f"{index}.{name}": value for name, value in found.of._asdict().items()}
    possible = {
        f"{index}.{name}.{label}": value
        for label, of_class in enumerate(found.possible)
        for name, value in of_class._asdict().items()
    }
    counts = {f"{index}.{name}": value for name, value in shown._asdict().items()}
    return {**objects, **possible, **counts}


def _from_tensors(tensors: Tensors, index: int) -> Certified:
    classes = sum(name.startswith(f"{index}.cliques.") for name in tensors)
    return Certified(
        PerObject(*(tensors[f"{index}.{name}"] for name in PerObject._fields)),
        tuple(
            PossibleDetections(
                *(tensors[f"{index}.{name}.{label}"] for name in PossibleDetections._fields)
            )
            for label in range(classes)
        ),
    )


def certify_batch(
    verifier: Verifier,
    raw: RawOutput,
    targets: Sequence[Target],
    epsilon: float,
    score: float = RECALL_SCORE,
) -> Certified:
    """Return everything that `summary` needs of one batch."""
    truths, iou, tau = ground_truth_of(targets), IOUS[0], logit(score)
    count = len(truths.image)
    radius = torch.full((len(targets),), epsilon, dtype=torch.float64)
    candidates = verifier.candidates(raw, radius)
    cover = verifier.clique_cover(candidates, radius)
    every, objects = with_other_classes(candidates, truths, iou, tau)
    found = verifier.certifiers(candidates, every, radius, iou, cover)
    own = found.of_first(count)
    matches = clean_matches(candidates, truths, iou)
    claimed = verifier.claim_cliques(candidates, truths, own.matches, cover, IOUS)
    reached = certified_up_to(own, count, IOUS)
    kept = reached[:, 0] >= tau
    most = min(verifier.selection.top_k, MAX_DETECTIONS)
    areas, classes = ignored_areas_of(targets), candidates.classes
    possible, judged = verifier.judged(candidates, truths, areas, cover, IOUS)
    return Certified(
        PerObject(
            label=truths.label,
            reached=reached,
            up_to=claimed.up_to,
            above=claimed.above,
            judged=judged,
            box=box_stays(found, objects, count, iou, tau),
            of_class=class_stays(verifier, candidates, matches, kept, tau, cover),
            reason=reasons(candidates, own, matches, count, iou, tau),
        ),
        tuple(
            PossibleDetections(
                possible.pooled(label, classes, most), possible.pooled_highest(label, classes)
            )
            for label in range(classes)
        ),
    )


def read_right(
    decoder: Decoder, raw: RawOutput, targets: Sequence[Target], display: Selection
) -> Tensor:
    """Return whether what is shown of each picture is what is there, left to right, (B,) bool."""
    found = map(one_per_place, select_detections(raw, decoder, display))
    pairs = zip(found, targets, strict=True)
    return torch.tensor(
        [torch.equal(left_to_right(shown), left_to_right(there).cpu()) for shown, there in pairs]
    )


def join(parts: Sequence[Certified]) -> Certified:
    """Pool pictures."""
    objects, possible = zip(*parts, strict=True)
    return Certified(
        PerObject(*map(torch.cat, zip(*objects, strict=True))),
        tuple(
            PossibleDetections(*map(torch.cat, zip(*of_class, strict=True)))
            for of_class in zip(*possible, strict=True)
        ),
    )


def summary(
    epsilon: float,
    found: Certified,
    class_names: Sequence[str],
    rounding: str,
    score: float = RECALL_SCORE,
) -> CertifiedResult:
    """Return what is certified of objects at one radius, as fractions.

    Recall and precision are those of detections with a score of `score` or more.
    """
    per_class = {
        name: _class_summary(found, label, score) for label, name in enumerate(class_names)
    }
    known = [entry for entry in per_class.values() if entry["ap"] is not None]
    objects = max(1, len(found.of.label))
    kept = int((found.of.reached[:, 0] >= logit(score)).sum())
    wrong = sum(_false_positives(found, label, score) for label in range(len(class_names)))
    failed = Counter(REASONS[index] for index in found.of.reason[found.of.reason >= 0].tolist())
    return {
        "epsilon": epsilon,
        "ap50": float(np.mean([entry["ap50"] for entry in known])) if known else 0.0,
        "ap": float(np.mean([entry["ap"] for entry in known])) if known else 0.0,
        "recall_score": score,
        "recall": kept / objects,
        "precision": _share(kept, wrong),
        "vanish_recall": float(found.of.box.sum()) / objects,
        "class_recall": float(found.of.of_class.sum()) / objects,
        "failed": {reason: failed[reason] for reason in REASONS},
        "per_class": per_class,
        "rounding": rounding,
    }


def _reading_summary(right: Tensor, steady: Tensor) -> CertifiedReading:
    return {
        "right": _mean(right),
        "steady": _mean(steady),
        "certified": _mean(right & steady),
    }


def _count_summaries(counts: Counts, class_names: Sequence[str]) -> dict[str, CertifiedCount]:
    leeway = (counts.most - counts.least).T
    return {
        name: {"exact": _mean(of == 0), "leeway": _mean(of)}
        for name, of in zip(class_names, leeway, strict=True)
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _class_summary(found: Certified, label: int, score: float) -> CertifiedClass:
    columns = [found.objects(label, column) for column in range(len(IOUS))]
    count, possible = len(columns[0].certified), found.possible[label]
    if count == 0:
        return {"ap50": None, "ap": None, "recall": None, "precision": None}
    precisions = [certified_average_precision(objects, possible) for objects in columns]
    kept = int((columns[0].certified >= logit(score)).sum())
    return {
        "ap50": precisions[0],
        "ap": float(np.mean(precisions)),
        "recall": kept / count,
        "precision": _share(kept, _false_positives(found, label, score)),
    }


def _false_positives(found: Certified, label: int, score: float) -> int:
    """Bound how many there can be of one class, at a score and IoU 0.5."""
    tau = torch.tensor([logit(score)], dtype=torch.float64)
    return int(false_positives(found.objects(label, 0), found.possible[label], tau))


def _share(right: int, wrong: int) -> float | None:
    """Return the precision; None where nothing is certified and no false positive is possible.

    There may be detections all the same, on objects that are not certified.
    """
    return right / (right + wrong) if right + wrong else None
