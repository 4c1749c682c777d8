"""Everything a report needs of its detectors: results, taken or measured, and inspections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lipdet.certificate import UnknownLipschitz, output_bounds
from lipdet.checkpoint import LoadedDetector
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign
from lipdet.evaluate.chunks import State, weights_hash
from lipdet.evaluate.run import evaluate
from lipdet.images.pack import Pack
from lipdet.report.inspection import Inspection, inspect_detector
from lipdet.results import EvaluationResult, radii, same_data, same_weights
from lipdet.types import Framing


def build_report(
    detectors: Sequence[LoadedDetector],
    packs: Mapping[Framing, Pack],
    seed: int,
    campaign: Campaign | None,
    known: Sequence[EvaluationResult],
    shown: Mapping[Framing, Sequence[int]],
    state: Path | None,
) -> tuple[list[EvaluationResult], list[Inspection]]:
    """Measure what is not known yet.

    Args:
        detectors: with different names.
        packs: the same data in the framing of each.
        seed: the one that the packs were made with.
        campaign: attacks, whose radii are those of the certificates too; None for neither.
        known: results of `lipdet eval` on the same packs.
        shown: indices of the pictures that are attacked and shown, the same ones in each pack.
        state: folder in which finished parts are kept and looked for.

    Returns:
        A result and an inspection for each detector, in their order.

    Raises:
        InputError: two detectors share a name, or results do not fit.
    """
    _check(detectors, known, campaign)
    by_name = {result["weights"]: result for result in known}
    results = []
    for loaded in detectors:
        pack, result = packs[loaded.framing], by_name.get(loaded.name)
        if result:
            same_data(pack.describe(), [result])
            same_weights(loaded.name, weights_hash(loaded.detector), [result])
        else:
            result = _measure(loaded, pack, seed, campaign, state)
        results.append(result)
    attacks = campaign.attacks(campaign.epsilons[0]) if campaign else []
    inspections = [
        inspect_detector(loaded, packs[loaded.framing], shown[loaded.framing], attacks)
        for loaded in detectors
    ]
    return results, inspections


def _check(
    detectors: Sequence[LoadedDetector],
    known: Sequence[EvaluationResult],
    campaign: Campaign | None,
) -> None:
    names = [loaded.name for loaded in detectors]
    check_distinct("detector", names)
    given = [result["weights"] for result in known]
    for name in given:
        if name not in names:
            raise InputError(
                f"There are results of {name}, which is none of the detectors: {', '.join(names)}."
            )
        if given.count(name) > 1:
            raise InputError(f"There are several results of {name}; give one file of each.")
    asked = campaign.epsilons if campaign else ()
    for result in known:
        held = radii([result])
        if lacking := [f"{one:g}" for one in asked if one not in held]:
            raise InputError(
                f"The results of {result['weights']} say nothing of ε = {', '.join(lacking)}: "
                "leave their file out, so that it is measured, or choose among their radii "
                f"({', '.join(f'{one:g}' for one in held) or 'none'})."
            )


def check_distinct(what: str, names: Sequence[str]) -> None:
    """Refuse a network that stands on a page twice.

    Raises:
        InputError: one does.
    """
    if len(set(names)) < len(names):
        raise InputError(f"Each {what} can be given once only: {', '.join(names)}.")


def _measure(
    loaded: LoadedDetector, pack: Pack, seed: int, campaign: Campaign | None, state: Path | None
) -> EvaluationResult:
    certify = campaign.epsilons if campaign and _has_bounds(loaded.detector) else ()
    kept = State.of(state, loaded.detector)
    return evaluate(loaded, pack, seed, campaign, certify, kept)


def _has_bounds(detector: SSD) -> bool:
    try:
        output_bounds(detector)
    except UnknownLipschitz:
        return False
    return True
