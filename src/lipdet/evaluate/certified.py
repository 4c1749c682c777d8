"""Certified recall, precision and AP over a data set: bounds under every perturbation up to ε.

Notable choices:
- The same pictures, selection, matcher rules and recalls as for clean AP.
- Recall and precision are stated at the score above which detections are shown to users, but like
  AP under AP_SELECTION: among at most 100 detections of a picture, not the 20 that are shown.
- One forward pass of each picture serves all ε.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lipdet.boxes import AP_SELECTION, DISPLAY_SELECTION
from lipdet.boxes.scores import logit
from lipdet.certificate.average_precision import (
    RANKING_SLACK,
    at_least,
    certified_average_precision,
)
from lipdet.certificate.certify import MAX_DETECTIONS, certified_up_to
from lipdet.certificate.diagnosis import REASONS, box_stays, class_stays, clean_matches, reasons
from lipdet.certificate.numerics import MEASURED, PROVEN
from lipdet.certificate.truths import truths_of
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.detector import SSD
from lipdet.evaluate.chunks import Pass, Tensors, code, pass_key, weights_hash
from lipdet.images.pack import Pack
from lipdet.types import RawOutput, Target

BATCH_SIZE = 64
IOUS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALL_SCORE = DISPLAY_SELECTION.score_floor


class Certified(NamedTuple):
    """What is certified at one ε of some pictures with G objects.

    Attributes:
        label: (G,) class of each object.
        reached: (G, len(IOUS)) log-odds up to which it is certified, −∞ if it is not.
        box: (G,) the same for a detection of any class on it, at IoU 0.5.
        of_class: (G,) the same for a detection of its class, wherever.
        reason: (G,) index in REASONS of what fails at RECALL_SCORE and IoU 0.5, −1 if nothing.
        entries: for each class, log-odds from which on downward one more detection is possible.
    """

    label: Tensor
    reached: Tensor
    box: Tensor
    of_class: Tensor
    reason: Tensor
    entries: tuple[Tensor, ...]


def certified_results(
    detector: SSD, pack: Pack, epsilons: Sequence[float], state: Path | None = None
) -> list[dict[str, Any]]:
    """One entry per radius, as docs/json.md describes it.

    Args:
        detector: of an architecture whose layers all have a Lipschitz bound.
        pack: pictures of its input size.
        epsilons: L2 radii in [0, 1] pixel units.
        state: folder in which finished chunks are kept and looked for.

    Raises:
        UnknownLipschitz: a layer has no bound; the message names it.
    """
    chunks = certificate_pass(detector, pack, epsilons, state).results()
    proven = all(bool(one["proven"]) for one in chunks)
    return [
        {
            **summary(
                epsilon, join([_from_tensors(one, index) for one in chunks]), pack.class_names
            ),
            "rounding": PROVEN if proven else MEASURED,
        }
        for index, epsilon in enumerate(epsilons)
    ]


def certificate_pass(
    detector: SSD, pack: Pack, epsilons: Sequence[float], state: Path | None
) -> Pass:
    """The pass over the pack that `certified_results` sums up."""
    detector.eval()

    @cache
    def verifier() -> Verifier:
        first = pictures(pack, range(min(BATCH_SIZE, len(pack))))
        return verifier_of(detector, AP_SELECTION, first)

    def compute(chunk: range) -> Tensors:
        raw = outputs(detector, pictures(pack, chunk))
        targets = [pack.target(index) for index in chunk]
        found = [certify_batch(verifier(), raw, targets, epsilon) for epsilon in epsilons]
        tensors = {
            name: value
            for index, one in enumerate(found)
            for name, value in _to_tensors(one, index).items()
        }
        return {**tensors, "proven": torch.tensor(verifier().rounding_known == PROVEN)}

    key = state and pass_key(
        detector=weights_hash(detector),
        data=pack.hash,
        epsilons=list(epsilons),
        **code(),
    )
    folder = state and state / "certificates" / str(key)
    return Pass(f"Certifying {pack.name}", len(pack), BATCH_SIZE, compute, folder)


def _to_tensors(found: Certified, index: int) -> Tensors:
    """What is certified at one ε of several, under names of its own."""
    columns = {name: getattr(found, name) for name in Certified._fields if name != "entries"}
    entries = {f"entries.{label}": value for label, value in enumerate(found.entries)}
    return {f"{index}.{name}": value for name, value in {**columns, **entries}.items()}


def _from_tensors(tensors: Tensors, index: int) -> Certified:
    columns = {name: tensors[f"{index}.{name}"] for name in Certified._fields if name != "entries"}
    classes = sum(name.startswith(f"{index}.entries.") for name in tensors)
    entries = tuple(tensors[f"{index}.entries.{label}"] for label in range(classes))
    return Certified(**columns, entries=entries)


def pictures(pack: Pack, indices: Sequence[int]) -> Tensor:
    """Pictures of a pack as (B, 3, S, S) float32 in [0, 1]."""
    pixels = np.stack([pack.images[index] for index in indices])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def outputs(detector: SSD, images: Tensor) -> RawOutput:
    """Raw outputs on the CPU, in the precision of the detector."""
    raw = detector(images.to(detector.default_boxes))
    return RawOutput(raw.logits.cpu(), raw.offsets.cpu())


def certify_batch(
    verifier: Verifier, raw: RawOutput, targets: Sequence[Target], epsilon: float
) -> Certified:
    """Everything that `summary` needs of one batch."""
    truths, iou = truths_of(targets), IOUS[0]
    count, size = len(truths.image), verifier.decoder.image_size
    radius = torch.full((len(targets),), epsilon, dtype=torch.float64)
    candidates = verifier.candidates(raw, radius)
    entries = verifier.entries(candidates, radius)
    found = verifier.certifiers(candidates, truths, radius, iou, entries)
    matches = clean_matches(candidates, truths, size, iou)
    most = min(verifier.selection.top_k, MAX_DETECTIONS)
    return Certified(
        label=truths.label,
        reached=certified_up_to(found, count, IOUS),
        box=box_stays(verifier, candidates, truths, radius, iou, entries),
        of_class=class_stays(verifier, candidates, matches, count, entries),
        reason=reasons(candidates, found, matches, count, iou, logit(RECALL_SCORE)),
        entries=tuple(
            entries.pooled(label, candidates.classes, most) for label in range(candidates.classes)
        ),
    )


def join(parts: Sequence[Certified]) -> Certified:
    """Pool pictures."""
    pooled = zip(*(part.entries for part in parts), strict=True)
    *columns, _ = zip(*parts, strict=True)
    label, reached, box, of_class, reason = (torch.cat(column) for column in columns)
    entries = tuple(torch.cat(of_one) for of_one in pooled)
    return Certified(label, reached, box, of_class, reason, entries)


def summary(epsilon: float, found: Certified, class_names: Sequence[str]) -> dict[str, Any]:
    """The json entry of one radius; AP, recall and precision are fractions."""
    tau = logit(RECALL_SCORE)
    per_class = {name: _class_summary(found, label, tau) for label, name in enumerate(class_names)}
    known = [entry for entry in per_class.values() if entry["ap"] is not None]
    objects = max(1, len(found.label))
    kept = int((found.reached[:, 0] >= tau).sum())
    possible = sum(_possible(entries, tau) for entries in found.entries)
    failed = Counter(REASONS[index] for index in found.reason[found.reason >= 0].tolist())
    return {
        "epsilon": epsilon,
        "ap50": float(np.mean([entry["ap50"] for entry in known])) if known else 0.0,
        "ap": float(np.mean([entry["ap"] for entry in known])) if known else 0.0,
        "recall_score": RECALL_SCORE,
        "recall": kept / objects,
        "precision": kept / possible if possible else None,
        "vanish_recall": float((found.box >= tau).sum()) / objects,
        "class_recall": float((found.of_class >= tau).sum()) / objects,
        "failed": {reason: failed[reason] for reason in REASONS},
        "per_class": per_class,
    }


def _class_summary(found: Certified, label: int, tau: float) -> dict[str, float | None]:
    reached, entries = found.reached[found.label == label], found.entries[label]
    if len(reached) == 0:
        return {"ap50": None, "ap": None, "recall": None, "precision": None}
    precisions = [
        certified_average_precision(column, entries, len(reached)) for column in reached.T
    ]
    kept, possible = int((reached[:, 0] >= tau).sum()), _possible(entries, tau)
    return {
        "ap50": precisions[0],
        "ap": float(np.mean(precisions)),
        "recall": kept / len(reached),
        "precision": kept / possible if possible else None,
    }


def _possible(entries: Tensor, tau: float) -> int:
    """At most how many detections there can be at log-odds of `tau` or more."""
    return int(at_least(entries, torch.tensor([tau - RANKING_SLACK], dtype=torch.float64)))
