"""`lipdet data`: render, prepare, download, inspect."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lipdet.commands.options import (
    COMMON,
    SPEC_HELP,
    Parser,
    check_plot,
    check_positive,
    check_seed,
    verb_parser,
)
from lipdet.config import DIGIT_CROP
from lipdet.detector.fitting import LEAST_COVERED, described, fit_default_boxes, warning_of
from lipdet.errors import InputError
from lipdet.images.download import OFFICIAL, download_svhn
from lipdet.images.pack import Pack, open_pack
from lipdet.images.prepare import Crop, Rendered, pack_rendered, pack_source
from lipdet.images.render import STREAMS
from lipdet.images.spec import SOURCES, Purpose, default_crop, find_data, read_source
from lipdet.progress import show
from lipdet.report.default_boxes import coverage_table, plot_default_boxes
from lipdet.results import DataSummary
from lipdet.train.setup import random_scales
from lipdet.types import Canvas, Framing

WHOLE_HELP = "of svhn:, whole pictures instead of crops"


def parser() -> Parser:
    """Return the parser whose actions `add_actions` adds."""
    return Parser(description="Make, fetch and inspect data.")


def add_actions(data: Parser) -> None:
    """Add the actions, once the parser is a subcommand itself: jsonargparse wants that order."""
    actions = data.add_subcommands(dest="action", metavar="ACTION")

    action = verb_parser(
        "Render house numbers into a pack.",
        "lipdet data render --count 10000 --out packs/rendered",
    )
    action.add_function_arguments(render)
    actions.add_subcommand("render", action, help="render house numbers into a pack")

    action = verb_parser(
        "Cut annotated pictures and pack what was cut.",
        "lipdet data prepare svhn:SVHN/train --crop jitter --crops 8 --out packs/train",
    )
    action.add_argument("spec", help=f"one of {SOURCES}")
    action.add_function_arguments(prepare, skip={"spec"})
    actions.add_subcommand("prepare", action, help="cut and pack annotated pictures")

    action = verb_parser(
        "Fetch the official SVHN archives and unpack them.",
        "lipdet data download train test --out SVHN",
    )
    action.add_argument("splits", nargs="+", choices=("train", "test", "extra"))
    action.add_function_arguments(download, skip={"splits"})
    actions.add_subcommand("download", action, help="fetch the official SVHN archives")

    action = verb_parser(
        "Fit default boxes to the objects of a data set, and show what they cover.",
        "lipdet data boxes voc:CELLS --image_size 240x320 --plot boxes.png",
    )
    action.add_argument("spec", help=SPEC_HELP)
    action.add_argument("--whole", action="store_true", help=WHOLE_HELP)
    action.add_argument(
        "--scales",
        nargs=2,
        type=float,
        metavar=("SMALLEST", "LARGEST"),
        help="factors of sides, as of a training that changes the scale (default: as they are)",
    )
    action.add_function_arguments(boxes, skip={"spec", "whole", "scales"})
    actions.add_subcommand("boxes", action, help="fit default boxes to a data set")

    action = verb_parser("Say what a data set holds.", "lipdet data info rendered:100")
    action.add_argument("spec", help=SPEC_HELP)
    action.add_argument("--whole", action="store_true", help=WHOLE_HELP)
    action.add_function_arguments(info, skip={"spec", "whole"})
    actions.add_subcommand("info", action, help="say what a data set holds")


def run(action: str, **options: Any) -> None:
    """Do what the action says; its options are nested under its name."""
    chosen = {key: value for key, value in options[action].items() if key not in COMMON}
    actions: dict[str, Callable[..., None]] = {
        "render": render,
        "prepare": prepare,
        "download": download,
        "boxes": boxes,
        "info": info,
    }
    actions[action](**chosen)


def render(
    out: Path,
    count: int = 10_000,
    stream: str = "train",
    seed: int = 0,
    image_size: Canvas = DIGIT_CROP,
    scenes: bool = False,
) -> None:
    """Render house numbers into a pack.

    Args:
        out: folder of the new pack.
        count: number of pictures.
        stream: train, validation or test; no two share a picture.
        seed: of everything that is drawn.
        image_size: HEIGHTxWIDTH of the pictures in pixels, or one side.
        scenes: whole photographs with a number anywhere, or none, instead of crops.
    """
    check_positive("--count", count)
    check_seed(seed)
    if stream not in STREAMS:
        raise InputError(f"--stream {stream!r} is unknown; choose one of: {', '.join(STREAMS)}.")
    kind: Rendered = "scenes" if scenes else "crops"
    _print_pack(pack_rendered(out, stream, count, image_size, seed, kind).describe(), out)


def prepare(
    spec: str,
    out: Path,
    crop: Crop | None = None,
    crops: int = 1,
    seed: int = 0,
    image_size: Canvas = DIGIT_CROP,
) -> None:
    """Cut annotated pictures and pack what was cut.

    Args:
        spec: annotated pictures, as FORMAT:PATH.
        out: folder of the new pack.
        crop: reference (the published experiment's, for evaluation), jitter (for training) or
            full (whole pictures, letter-boxed); by default reference for svhn: and full for the
            other formats.
        crops: of each picture; more than one with jitter only.
        seed: of the random choices.
        image_size: HEIGHTxWIDTH of what is cut in pixels, or one side.
    """
    check_positive("--crops", crops)
    check_seed(seed)
    chosen = crop or default_crop(spec.partition(":")[0], "test", whole=False)[0]
    if crops > 1 and chosen != "jitter":
        raise InputError(f"--crops {crops} of --crop {chosen} would be alike; add --crop jitter.")
    pack = pack_source(read_source(spec), out, chosen, image_size, seed, crops)
    _print_pack(pack.describe(), out)
    for entry in pack.meta["skipped"]:
        print(f"  skipped {entry['name']}: {entry['reason']}")


def download(splits: Sequence[str], out: Path, base_url: str = OFFICIAL) -> None:
    """Fetch SVHN archives and unpack them.

    Args:
        splits: train, test, extra.
        out: folder that receives the archives and one folder per split.
        base_url: where the archives lie.
    """
    for split in splits:
        print(f"{download_svhn(split, out, base_url)} is complete; use it as svhn:{out / split}")


def boxes(
    spec: str,
    image_size: Canvas | None = None,
    whole: bool = False,
    scales: Sequence[float] | None = None,
    seed: int = 0,
    plot: Path | None = None,
) -> None:
    """Fit default boxes, as a training from random weights does.

    Args:
        spec: any SPEC, as it would be trained on.
        image_size: HEIGHTxWIDTH of the network's input in pixels, or one side; by default that of
            a pack, or 74x74.
        whole: of svhn:, whole pictures instead of crops.
        scales: smallest and largest factor of sides, as of a training that changes the scale.
        seed: of crops, rendered pictures and the clustering.
        plot: file for a figure of objects and default boxes; its ending chooses the format.
    """
    check_plot(plot)
    check_seed(seed)
    if scales and not 0 < scales[0] <= scales[1]:
        raise InputError(f"--scales must be positive and in order, not {scales[0]} {scales[1]}.")
    pack = _opened(spec, "train", image_size, whole, seed)
    if not len(pack.labels):
        raise InputError(f"{pack.name} has no objects, so no default box fits.")
    objects = pack.boxes[:]
    if scales:
        objects = objects * random_scales(len(objects), scales, seed)
    fit = fit_default_boxes(objects, pack.labels[:], len(pack.class_names), seed)
    print(described(fit))
    show(coverage_table(pack, fit))
    if fit.share < LEAST_COVERED:
        print(warning_of(fit, pack.class_names))
    if plot is not None:
        plot_default_boxes(pack, objects, fit, plot)


def info(spec: str, image_size: Canvas | None = None, whole: bool = False) -> None:
    """Say what a data set holds; per class objects, or pixels where these are labelled.

    Args:
        spec: any SPEC, as it would be evaluated.
        image_size: HEIGHTxWIDTH of the pictures in pixels, or one side; by default that of a pack,
            or 74x74.
        whole: of svhn:, whole pictures instead of crops.
    """
    pack = _opened(spec, "test", image_size, whole)
    labels = pack.labels if pack.masks is None else pack.masks
    counts = {name: int((labels == label).sum()) for label, name in enumerate(pack.class_names)}
    print(
        json.dumps({**pack.describe(), "folder": str(pack.folder), "per_class": counts}, indent=1)
    )


def _opened(spec: str, purpose: Purpose, canvas: Canvas | None, whole: bool, seed: int = 0) -> Pack:
    """Open data; a pack has a size of its own."""
    if not Path(spec).is_dir():
        return find_data(spec, purpose, Framing(canvas or DIGIT_CROP, whole), seed)
    pack = open_pack(Path(spec))
    if canvas not in (None, pack.canvas):
        raise InputError(
            f"{spec} holds pictures of {pack.canvas} pixels, not {canvas}; leave out --image_size."
        )
    return pack


def _print_pack(description: DataSummary, out: Path) -> None:
    print(
        f"{out}: {description['images']} pictures, {description['objects']} objects, "
        f"{description['skipped']} skipped"
    )
