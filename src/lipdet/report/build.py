"""Everything a report needs of its detectors: results, taken or measured, and inspections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipdet.attack.settings import single_attacks
from lipdet.certificate import UnknownLipschitz, output_bounds
from lipdet.checkpoint import LoadedDetector
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign
from lipdet.evaluate.chunks import State
from lipdet.evaluate.run import evaluate
from lipdet.images.pack import Pack
from lipdet.report.inspection import Inspection, inspect_detector
from lipdet.results import EvaluationResult, same_data


def build_report(
    detectors: Sequence[LoadedDetector],
    pack: Pack,
    seed: int,
    campaign: Campaign | None,
    known: Sequence[EvaluationResult],
    shown: Sequence[int],
    state: Path | None,
) -> tuple[list[EvaluationResult], list[Inspection]]:
    """Measure what is not known yet.

    Args:
        detectors: with different names and one input size.
        pack: pictures of that size.
        seed: the one that the pack was made with.
        campaign: attacks, whose radii are those of the certificates too; None for neither.
        known: results of `lipdet eval` on the same pack.
        shown: indices of the pictures that are attacked and shown.
        state: folder in which finished parts are kept and looked for.

    Returns:
        A result and an inspection for each detector, in their order.

    Raises:
        InputError: two detectors share a name or differ in what they take, or results do not fit.
    """
    _check(detectors, known)
    by_name = {result["weights"]: result for result in known}
    results = []
    for loaded in detectors:
        result = by_name.get(loaded.name)
        results.append(result if result else _measure(loaded, pack, seed, campaign, state))
    same_data(pack.describe(), results)
    attacks = single_attacks(campaign.attack, campaign.settings) if campaign else []
    return results, [inspect_detector(loaded, pack, shown, attacks) for loaded in detectors]


def _check(detectors: Sequence[LoadedDetector], known: Sequence[EvaluationResult]) -> None:
    names = [loaded.name for loaded in detectors]
    if len(set(names)) < len(names):
        raise InputError(f"Each detector can be given once only: {', '.join(names)}.")
    given = [result["weights"] for result in known]
    for name in given:
        if name not in names:
            raise InputError(
                f"There are results of {name}, which is none of the detectors: {', '.join(names)}."
            )
        if given.count(name) > 1:
            raise InputError(f"There are several results of {name}; give one file of each.")
    first = detectors[0].framing
    for loaded in detectors:
        if loaded.framing != first:
            raise InputError(
                f"{loaded.name} takes {loaded.framing} and {names[0]} {first}; a report needs "
                "detectors of one framing."
            )


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
