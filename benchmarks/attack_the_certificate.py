"""Attacks on what is certified: every certified object, one by one, around its own radius.

    python benchmarks/attack_the_certificate.py DETECTOR --data rendered:16 --epsilon 0.05 0.1

For each object and each share of its certified radius, all objectives of `worst` are aimed at that
object alone, and three more that know the certificate. Judged by the metric's own matcher, nothing
may be lost up to a share of 1; the exit status is 1 otherwise. At a share of 2 attacks break what
would be certified if all constants were half as large: the first share at which anything breaks
says how loose the certificate is at most. The second table holds certified AP50 against AP50 under
`worst`.

Notable choices:
- All objectives of one object climb as one batch, each from the start that it would have alone.
- An object that is lost at one share is not attacked again at larger ones; it counts as lost there.
- Gradients are those of the folded network, detections those of the detector itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lipdet.attack import OBJECTIVES, AttackSettings, attack_images, detect
from lipdet.attack.objectives import RawObjective, Scene, scene_of
from lipdet.boxes import AP_SELECTION, Decoder
from lipdet.boxes.scores import logit
from lipdet.certificate.conditions.ground_truth import ground_truth_of
from lipdet.certificate.radius import certified_radii
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import load_detector
from lipdet.detector import SSD
from lipdet.detector.forward import raw_output
from lipdet.evaluate.attacked import Campaign, attacked_results, prepare
from lipdet.evaluate.average_precision import coco_evaluation
from lipdet.evaluate.certified import certified_results
from lipdet.images.pack import Pack
from lipdet.images.spec import open_data
from lipdet.layers import fold
from lipdet.types import Detections, RawOutput, Target

IOU = 0.5
SHARES = (0.5, 0.99, 1.5, 2.0, 3.0)
NEAR = 0.15
SHARPNESS = 20.0


class Promise(NamedTuple):
    """One certified object.

    Attributes:
        image: number of its picture.
        place: which object of that picture.
        radius: up to which it is certified.
        anchor: of the candidate that vouches for it.
        constant: Lipschitz constant of that candidate's logit.
    """

    image: int
    place: int
    radius: float
    anchor: int
    constant: float


class Damage(NamedTuple):
    """What attacks did to one object.

    Attributes:
        lost: the objectives after which no detection is matched with it.
        moved: the largest change of the certifying logit, as a share of what its constant allows.
    """

    lost: list[str]
    moved: float


def promises(verifier: Verifier, raw: RawOutput, targets: Sequence[Target]) -> list[Promise]:
    """All objects of a batch that are certified at some ε > 0, at the floor and IoU 0.5."""
    truths = ground_truth_of(targets)
    radii = certified_radii(verifier, raw, truths, IOU, logit(AP_SELECTION.score_floor))
    first = torch.cat([torch.arange(len(target["labels"])) for target in targets])
    found = []
    for number in torch.nonzero(radii > 0)[:, 0].tolist():
        image, index, radius = int(truths.image[number]), int(first[number]), float(radii[number])
        one = RawOutput(raw.logits[image, None], raw.offsets[image, None])
        anchor = _certifier(verifier, one, targets[image], index, radius)
        constant = float(verifier.bounds.logits[anchor, truths.label[number]])
        found.append(Promise(image, index, radius, anchor, constant))
    return found


def _certifier(
    verifier: Verifier, raw: RawOutput, target: Target, index: int, radius: float
) -> int:
    """The default box of the candidate with the highest lowest score that vouches."""
    epsilon = torch.tensor([radius], dtype=torch.float64)
    candidates = verifier.candidates(raw, epsilon)
    cover = verifier.clique_cover(candidates, epsilon)
    found = verifier.certifiers(candidates, ground_truth_of([target]), epsilon, IOU, cover)
    mine = found.certify(IOU) & (found.truth == index)
    alike = candidates.group == int(target["labels"][index])
    best = torch.nonzero(alike & (candidates.low == found.low[mine].max()))[0]
    return int(candidates.anchor[best])


def displace(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """Raise boxes beside the object over those on it, and move these off it: conditions 1 to 3.

    A box counts as matching to the degree sigmoid(SHARPNESS · (IoU − 0.5)), with a gradient.
    """
    own, overlap = _beside(raw, scene, decoder)
    off = functional.logsigmoid(SHARPNESS * (IOU - overlap))
    on = functional.logsigmoid(SHARPNESS * (overlap - IOU))
    return (own + off).logsumexp(dim=1) - (own + on).logsumexp(dim=1)


def overtake(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
    """Raise the best box that does not match above all that do, wherever boxes are by now."""
    own, overlap = _beside(raw, scene, decoder)
    off = own.masked_fill(overlap.detach() >= IOU, -1e4)
    on = own.masked_fill(overlap.detach() < IOU, -1e4)
    return off.logsumexp(dim=1) - on.logsumexp(dim=1)


def _beside(raw: RawOutput, scene: Scene, decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Log-odds (1, A) of the object's class, low for boxes that are not near it, and IoU (1, A)."""
    log_odds = decoder.scores.log_odds(raw.logits)
    boxes, truth = decoder.boxes(raw.offsets), scene.boxes[:, :1]
    ends = torch.minimum(boxes[..., 2:], truth[..., 2:])
    shared = (ends - torch.maximum(boxes[..., :2], truth[..., :2])).clamp(min=0).prod(dim=2)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=2)
    overlap = shared / (areas + (truth[..., 2:] - truth[..., :2]).prod(dim=2) - shared)
    own = log_odds[:, :, int(scene.labels[0, 0])]
    return own.masked_fill(overlap.detach() < NEAR, -1e4), overlap


def gradient_source(detector: SSD) -> SSD:
    """The same network without parametrisations: faster, frozen and in eval mode."""
    folded = fold(detector)
    assert isinstance(folded, SSD)
    return prepare(folded)


def attack_promise(
    detector: SSD,
    source: SSD,
    image: Tensor,
    target: Target,
    promise: Promise,
    epsilon: float,
    names: Sequence[str],
    steps: int,
    seed: int = 0,
) -> Damage:
    """Aim every objective at one object, and look with the metric's own matcher.

    Args:
        detector: looks at the attacked pictures.
        source: whose gradient is used, in eval mode and frozen.
        image: (1, 3, S, S) in [0, 1].
        target: all objects of the picture.
        promise: the object.
        epsilon: radius of the attacks.
        names: of the classes.
        steps: gradients per objective.
        seed: of the random starts.
    """
    label = int(target["labels"][promise.place])
    own = slice(promise.place, promise.place + 1)
    alone = Target(boxes=target["boxes"][own], labels=target["labels"][own])
    scene = scene_of([alone], source.decoder)

    def lower(raw: RawOutput, scene: Scene, decoder: Decoder) -> Tensor:
        return -raw.logits[:, promise.anchor, label]

    aims: dict[str, RawObjective] = {
        **OBJECTIVES, "displace": displace, "overtake": overtake, "certifier": lower
    }  # fmt: skip

    def objective(batch: Tensor, rows: Tensor) -> Tensor:
        raw = source(batch)
        return torch.cat(
            [
                list(aims.values())[row](
                    RawOutput(raw.logits[place, None], raw.offsets[place, None]),
                    scene,
                    source.decoder,
                )
                for place, row in enumerate(rows.tolist())
            ]
        )

    copies = image.expand(len(aims), *image.shape[1:])
    settings = AttackSettings(epsilon, steps=steps, seed=seed)
    attacked = attack_images(objective, copies, settings, [promise.image] * len(aims)).images
    found = detect(detector, attacked)
    kept = matched_scores([target] * len(aims), found, names, IOU)
    lost = [aim for aim, one in zip(aims, kept, strict=True) if one[promise.place] == 0]
    before, after = (
        raw_output(detector, x).logits[:, promise.anchor, label] for x in (image, attacked)
    )
    moved = float((after - before).abs().max()) / (epsilon * promise.constant)
    return Damage(lost, moved)


def matched_scores(
    targets: Sequence[Target],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    iou: float,
) -> list[Tensor]:
    """Return which objects are found, by the same matching that AP is made of.

    Args:
        targets: see `average_precision`.
        detections: see `average_precision`.
        class_names: see `average_precision`.
        iou: threshold of a match.

    Returns:
        For each image (G,) float64: the score of the detection that is matched to each of its
        objects, 0 where there is none.
    """
    evaluation = coco_evaluation(
        targets, detections, class_names, separate_eval=True, extra_calc=True
    )
    evaluation.params.iouThrs = np.array([iou])
    evaluation.evaluate()
    evaluation.accumulate()
    counts = [len(target["labels"]) for target in targets]
    scores = torch.zeros(sum(counts), dtype=torch.float64)
    of_detections = torch.cat([found["scores"] for found in detections]).double()
    # Pairs "detection_object" of numbers that count from 1, in the order given.
    for pair in evaluation.eval["matched"]:
        detection, annotation = (int(part) for part in pair.split("_"))
        if annotation <= len(scores):  # ignored areas follow
            scores[annotation - 1] = of_detections[detection - 1]
    return list(torch.split(scores, counts))


def attack_objects(detector: SSD, pack: Pack, shares: Sequence[float], steps: int) -> bool:
    """Print a table over the shares; return whether all promises were kept."""
    images = pack.pixels(range(len(pack)))
    targets = [pack.target(index) for index in range(len(pack))]
    verifier = verifier_of(detector, AP_SELECTION, images)
    found = promises(verifier, raw_output(detector, images), targets)
    radii = sorted(promise.radius for promise in found)
    print(
        f"{len(found)} of {len(pack.labels)} objects have a certified radius: median "
        f"{radii[len(radii) // 2]:.3f}, largest {radii[-1]:.3f}; {steps} steps; rounding "
        f"{verifier.rounding_known}, {verifier.rounding:.1e}\n"
    )
    print("| share of the radius | attacked | lost | by | largest move of the certifying logit |")
    print("|---|---|---|---|---|")
    source = gradient_source(detector)
    sound, left, lost = True, list(found), 0
    for share in sorted(shares):
        damages = [
            attack_promise(
                detector, source, images[one.image, None], targets[one.image], one,
                share * one.radius, pack.class_names, steps,
            )
            for one in left
        ]  # fmt: skip
        broken = [damage for damage in damages if damage.lost]
        left = [one for one, damage in zip(left, damages, strict=True) if not damage.lost]
        lost += len(broken)
        by = sorted({aim for damage in broken for aim in damage.lost})
        moved = max((damage.moved for damage in damages), default=0.0)
        sound &= share > 1 or not broken
        print(
            f"| {share:g} | {len(found)} | {lost} | {', '.join(by)} | {100 * moved:.0f} % of ε·L |",
            flush=True,
        )
    return sound


def compare_ap(detector: SSD, pack: Pack, epsilons: tuple[float, ...], steps: int) -> bool:
    """Print certified and attacked AP50; return whether the former never exceeds the latter."""
    clean, certified = certified_results(detector, pack, epsilons)
    settings = AttackSettings(epsilons[0], steps=steps)
    attacked = attacked_results(detector, pack, Campaign("worst", epsilons, settings), clean)
    print("\n| ε | certified AP50 | AP50 under `worst` | certified AP | AP under `worst` |")
    print("|---|---|---|---|---|")
    sound = True
    for least, seen in zip(certified, attacked, strict=True):
        cells = (100 * one[key] for key in ("ap50", "ap") for one in (least, seen))
        print(f"| {least['epsilon']:g} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
        sound &= all(least[key] <= seen[key] + 1e-9 for key in ("ap50", "ap"))
    return sound


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector")
    parser.add_argument("--data", default="rendered:16")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--share", type=float, nargs="+", default=SHARES)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    started = time.process_time()
    detector = load_detector(options.detector).detector.eval()
    pack = open_data(options.data, "test", detector.framing, 0).head(options.limit)
    print(f"{options.detector} on {pack.name}: {len(pack)} pictures, {pack.hash[:12]}…")
    sound = attack_objects(detector, pack, options.share, options.steps)
    sound &= compare_ap(detector, pack, tuple(options.epsilon), options.steps)
    print(f"\n{time.process_time() - started:.0f} s of processor time")
    if not sound:
        sys.exit("A certificate does not hold.")


if __name__ == "__main__":
    main()
