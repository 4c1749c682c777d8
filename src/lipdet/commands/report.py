"""`lipdet report`: one page about detectors, with figures for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lipdet.attack import AttackSettings
from lipdet.attack.foreign import ForeignDetector
from lipdet.attack.pixels import PixelSettings
from lipdet.attack.settings import AttackName, default_steps
from lipdet.checkpoint import LoadedDetector, LoadedSegmenter, load_network
from lipdet.commands.attack_options import EPSILON_HELP, parse_epsilons
from lipdet.commands.options import (
    ANY_DETECTOR_HELP,
    SPEC_HELP,
    Parser,
    check_folder,
    check_positive,
    check_state,
    check_writable,
    verb_parser,
)
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign
from lipdet.evaluate.run import detector_for, evaluate
from lipdet.hardware import DeviceName, measuring_device
from lipdet.images.pack import Pack, same_pictures
from lipdet.images.spec import open_data
from lipdet.progress import show
from lipdet.report.build import build_report, check_distinct
from lipdet.report.inspection import inspect_segmenter
from lipdet.report.page import write_figures, write_module_page, write_page
from lipdet.report.scenes import scenes
from lipdet.report.segmentation import write_segmentation_page
from lipdet.report.table import comparison_table, segmentation_table
from lipdet.results import read_results
from lipdet.types import Framing


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = verb_parser(
        "Show detectors side by side on one page that opens anywhere, without a network.",
        "lipdet report naive runs/mine --data rendered:200 --epsilon 0.1 0.25 --out report.html",
    )
    parser.add_argument("detectors", nargs="+", help=ANY_DETECTOR_HELP)
    parser.add_argument("--data", required=True, metavar="SPEC", help=SPEC_HELP)
    parser.add_argument("--epsilon", nargs="+", default=[], metavar="E", help=EPSILON_HELP)
    parser.add_argument(
        "--results",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="json files of `lipdet eval` on the same data: what they hold is not measured again",
    )
    parser.add_function_arguments(run, skip={"detectors", "data", "epsilon", "results"})
    return parser


def run(
    detectors: Sequence[str],
    data: str,
    out: Path,
    epsilon: Sequence[str] = (),
    results: Sequence[Path] = (),
    limit: int | None = None,
    seed: int = 0,
    attack: AttackName = "worst",
    steps: int | None = None,
    restarts: int = 1,
    state: Path | None = None,
    pictures: int = 6,
    figures: Path | None = None,
    device: DeviceName | None = None,
) -> None:
    """Evaluate, attack, certify and inspect detectors; write the page.

    Args:
        detectors: DETECTORs, best known first.
        data: SPEC; each detector sees it in its own framing.
        out: the html file.
        epsilon: L2 radii; pictures are attacked at the first one.
        results: json files of `lipdet eval`.
        limit: only the first so many pictures.
        seed: of crops, rendered pictures and random starts of attacks.
        attack: pgd, apgd, or worst: PGD with several objectives.
        steps: gradients of an attack per start; by default 50, and 100 for all detectors if one has
            a canvas of more than 10,000 pixels.
        restarts: random starts of an attack.
        state: folder that keeps finished parts, for going on after an interruption.
        pictures: how many pictures are shown, clean and attacked.
        figures: folder for the figures as SVG and PNG.
        device: cpu or cuda; by default the GPU if there is one.
    """
    check_positive("--limit", limit)
    check_positive("--pictures", pictures)
    check_positive("--steps", steps)
    check_writable(out)
    if figures is not None:
        check_folder(figures)
    epsilons = parse_epsilons(epsilon) if epsilon else ()
    campaign = None
    if epsilons:
        settings = AttackSettings(epsilons[0], restarts=restarts, seed=seed)
        campaign = Campaign(attack, epsilons, settings)
    check_state(state, detectors)
    known = read_results(results)
    place = measuring_device(device)
    given = [load_network(name) for name in detectors]
    segmenters = [one for one in given if isinstance(one, LoadedSegmenter)]
    if segmenters and (len(segmenters) < len(given) or results or state or figures or device):
        raise InputError(
            f"{segmenters[0].name} is a segmenter: segmenters have a page of their own, without "
            "--results, --state, --figures and --device."
        )
    for one in given:
        one.module.to("cpu" if segmenters else place)
    loaded = [one for one in given if isinstance(one, LoadedDetector)]
    foreign = [one for one in given if isinstance(one, ForeignDetector)]
    if foreign and (len(given) > 1 or results or figures is not None):
        raise InputError(
            f"{foreign[0].name} is no lipdet.detector.SSD and has a page of its own: give it "
            "alone, without --results and --figures."
        )
    framings = list(dict.fromkeys(one.framing for one in given))
    if campaign is not None:
        most = max(default_steps(framing.canvas) for framing in framings)
        campaign = campaign.with_steps(steps or most)
    opened = [open_data(data, "test", framing, seed).head(limit) for framing in framings]
    if foreign:
        _report_foreign(foreign[0], opened[0], seed, campaign, out, pictures)
        return
    packs = dict(zip(framings, opened, strict=True))
    shown = dict(zip(framings, same_pictures(opened, pictures), strict=True))
    title = f"{', '.join(detectors)} on {data}"
    if segmenters:
        if campaign:
            count = campaign.settings.steps
            settings = PixelSettings(epsilons[0], steps=count, restarts=restarts, seed=seed)
            campaign = replace(campaign, settings=settings)
        _report_segmenters(segmenters, packs, seed, campaign, out, shown, title)
        return
    measured, inspections = build_report(loaded, packs, seed, campaign, known, shown, state)
    write_page(out, measured, inspections, title)
    show(comparison_table(measured))
    print(f"Page: {out}")
    if figures is not None:
        files = write_figures(figures, measured, inspections)
        print(f"Figures: {len(files)} files in {figures}")


def _report_foreign(
    detector: ForeignDetector,
    pack: Pack,
    seed: int,
    campaign: Campaign | None,
    out: Path,
    pictures: int,
) -> None:
    measured = evaluate(detector, pack, seed, campaign)
    attacks = campaign.attacks(campaign.epsilons[0]) if campaign else []
    shown = range(min(pictures, len(pack)))
    named = detector_for(detector, pack)
    seen = scenes(detector.name, named, pack, shown, attacks) if attacks else []
    write_module_page(out, detector, measured, seen)
    show(comparison_table([measured]))
    print(f"Page: {out}")


def _report_segmenters(
    segmenters: Sequence[LoadedSegmenter],
    packs: Mapping[Framing, Pack],
    seed: int,
    campaign: Campaign | None,
    out: Path,
    shown: Mapping[Framing, Sequence[int]],
    title: str,
) -> None:
    check_distinct("segmenter", [one.name for one in segmenters])
    found = [
        inspect_segmenter(one, packs[one.framing], seed, campaign, shown[one.framing])
        for one in segmenters
    ]
    results, inspections = zip(*found, strict=True)
    write_segmentation_page(out, results, inspections, title)
    for result in results:
        show(segmentation_table(result))
    print(f"Page: {out}")
