"""`lipdet train`: train a preset on any mixture of data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from lipdet import distributed
from lipdet.checkpoint import read_info
from lipdet.commands.options import SPEC_HELP, Parser, add_processes, verb_parser
from lipdet.config import (
    PRESETS,
    Change,
    DetectorConfig,
    SegmenterConfig,
    TrainConfig,
    as_plain,
    train_config,
)
from lipdet.detector import build_detector
from lipdet.errors import InputError
from lipdet.progress import show
from lipdet.report.table import rules_table
from lipdet.segmenter import build_segmenter
from lipdet.train import train
from lipdet.train.job import JOB, Job, load_job
from lipdet.types import Canvas

# Fields of TrainConfig that are written as words, like the other lists of this verb.
_LISTS: dict[str, dict[str, Any]] = {
    "augment": {
        "nargs": "*",
        "choices": get_args(Change),
        "help": "changes of training pictures that leave an object what it is; without a CHANGE "
        "none (default: by the data: of whole pictures scale and light, of crops of digits light, "
        "inversion and channels, with a margin only scale)",
    },
    "scales": {
        "nargs": 2,
        "type": float,
        "metavar": ("SMALLEST", "LARGEST"),
        "help": "factors by which `scale` changes the sides of a picture",
    },
}


def parser(preset_name: str = "naive") -> Parser:
    """Return the parser of options whose defaults are those of a preset."""
    parser = verb_parser(
        "Train a detector; the run folder can be evaluated, used and resumed.",
        "lipdet train --preset naive --data svhn:SVHN/train rendered:10000 --weights 2 1 "
        "--out runs/first",
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="naive",
        help="what to train; the defaults below are its own: train --preset NAME --help shows them",
    )
    segments = isinstance(PRESETS[preset_name].detector, SegmenterConfig)
    data = ["rendered-ink" if segments else "rendered"]
    parser.add_argument("--data", nargs="+", default=data, metavar="SPEC", help=SPEC_HELP)
    parser.add_argument(
        "--weights",
        nargs="+",
        type=float,
        default=[],
        metavar="SHARE",
        help="relative share of each SPEC in an epoch (default: by their number of pictures)",
    )
    parser.add_argument(
        "--validation",
        nargs="+",
        default=[],
        metavar="SPEC",
        help="data to choose the best weights by (default: a part of --data is held out)",
    )
    parser.add_argument(
        "--image_size",
        type=Canvas,
        metavar="HEIGHTxWIDTH",
        help="the network's input in pixels, or one side of a square (default: the preset's)",
    )
    parser.add_argument(
        "--width",
        type=int,
        help="channels of the finest map, and twice as many of each that is half as fine: a larger "
        "network learns more and takes longer (default: the preset's)",
    )
    parser.add_argument(
        "--offset_unit",
        type=float,
        help="what a box offset of 1 means, in sides of the default box: certified detectors with "
        "0.15 instead of 0.25 lose some clean AP and are certified at larger ε; whether boxes move "
        "less still is chosen at the end (default: that of --start_from, or the preset's)",
    )
    parser.add_argument(
        "--head_size",
        type=int,
        metavar="CELLS",
        help="cells along each side of what a default box reads, an odd number: certified "
        "detectors with 5 instead of 3 are certified at larger ε (default: the preset's)",
    )
    parser.add_argument("--out", type=Path, required=True, help="the run folder")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the run folder's last checkpoint"
    )
    add_processes(parser)
    parser.add_class_arguments(TrainConfig, skip=set(_LISTS))
    for name, form in _LISTS.items():
        parser.add_argument(f"--{name}", **form)
    parser.set_defaults(as_plain(PRESETS[preset_name].train))
    return parser


def run(
    preset: str,
    data: Sequence[str],
    weights: Sequence[float],
    validation: Sequence[str],
    out: Path,
    resume: bool,
    image_size: Canvas | None = None,
    width: int | None = None,
    offset_unit: float | None = None,
    head_size: int | None = None,
    **settings: Any,
) -> None:
    """Train a preset and say where its weights are."""
    if weights and (len(weights) != len(data) or min(weights) <= 0):
        raise InputError(
            f"--weights needs one positive number for each of the {len(data)} data sets, "
            f"not {' '.join(map(str, weights))}."
        )
    detector = PRESETS[preset].detector
    if image_size is not None:
        detector = replace(detector, canvas=image_size)
    if width is not None:
        if not detector.width:
            raise InputError(f"{preset} has a width of its own: leave out --width.")
        detector = replace(detector, width=width)
    # What cannot be built is refused before any data are prepared.
    if isinstance(detector, DetectorConfig):
        if offset_unit is not None:
            detector = replace(detector, offset_unit=offset_unit)
        if head_size is not None:
            if not detector.sides:
                raise InputError(f"{preset} has heads of its own: leave out --head_size.")
            detector = replace(detector, head_size=head_size)
        build_detector(detector)
    else:
        if offset_unit is not None or head_size is not None:
            raise InputError(f"{preset} has no boxes: leave out --offset_unit and --head_size.")
        build_segmenter(detector)
    specs = tuple(data), tuple(weights), tuple(validation)
    job = Job(preset, detector, train_config(settings), *specs)
    if distributed.rank() == 0 and resume:
        job = resumed(job, load_job(out), out)
    best = train(distributed.of_first(job), out, resume)
    if distributed.rank() == 0 and (rules := read_info(best).get("rules")):
        show(rules_table(rules))
    print(f"Weights: {best}\nEvaluate them: lipdet eval {out} --data SPEC")


def resumed(asked: Job, stored: Job, out: Path) -> Job:
    """Return the stored job, unless other options than its own were given.

    Other threads than before may be asked for.
    """
    threads = asked.train.threads or stored.train.threads
    asked, stored = asked.with_threads(threads), stored.with_threads(threads)
    of_data = "class_names", "whole", "stride", "sides", "most_shown"
    found = {
        name: getattr(stored.detector, name) for name in of_data if hasattr(stored.detector, name)
    }
    decided = {
        name: getattr(stored.train, name) for name in ("epochs", "validate_every", "augment")
    }
    given = {
        name: one if getattr(asked.train, name) in (0, None) else getattr(asked.train, name)
        for name, one in decided.items()
    }
    naive = PRESETS["naive"]
    nothing_asked = Job("naive", naive.detector, naive.train, ("rendered",)).with_threads(threads)
    asked_for = replace(asked.with_detector(**found), train=replace(asked.train, **given))
    if asked_for != stored and asked != nothing_asked:
        raise InputError(
            f"{out} was started with other options; leave them out (its {JOB} holds them). To go "
            f"on from its weights with others, choose another --out and --start_from {out}."
        )
    return stored
