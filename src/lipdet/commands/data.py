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
    Verb,
    check_image_size,
    check_positive,
    verb_parser,
)
from lipdet.config import IMAGE_SIZE
from lipdet.errors import InputError
from lipdet.images.download import OFFICIAL, download_svhn
from lipdet.images.pack import open_pack
from lipdet.images.prepare import Crop, pack_rendered, pack_source
from lipdet.images.render import STREAMS
from lipdet.images.spec import SOURCES, default_crop, open_data, read_source
from lipdet.results import DataSummary


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
        "Cut annotated pictures into squares and pack them.",
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

    action = verb_parser("Say what a data set holds.", "lipdet data info rendered:100")
    action.add_argument("spec", help=SPEC_HELP)
    action.add_function_arguments(info, skip={"spec"})
    actions.add_subcommand("info", action, help="say what a data set holds")


def run(action: str, **options: Any) -> None:
    """Do what the action says; its options are nested under its name."""
    chosen = {key: value for key, value in options[action].items() if key not in COMMON}
    actions: dict[str, Callable[..., None]] = {
        "render": render,
        "prepare": prepare,
        "download": download,
        "info": info,
    }
    actions[action](**chosen)


def render(
    out: Path,
    count: int = 10_000,
    stream: str = "train",
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
) -> None:
    """Render house numbers into a pack.

    Args:
        out: folder of the new pack.
        count: number of pictures.
        stream: train or test; the two never share a picture.
        seed: of everything that is drawn.
        image_size: side of the pictures in pixels.
    """
    check_positive("--count", count)
    check_image_size(image_size)
    if stream not in STREAMS:
        raise InputError(f"--stream {stream!r} is unknown; choose one of: {', '.join(STREAMS)}.")
    _print_pack(pack_rendered(out, stream, count, image_size, seed).describe(), out)


def prepare(
    spec: str,
    out: Path,
    crop: Crop | None = None,
    crops: int = 1,
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
) -> None:
    """Cut annotated pictures into squares and pack them.

    Args:
        spec: annotated pictures, as FORMAT:PATH.
        out: folder of the new pack.
        crop: reference (the published experiment's, for evaluation), jitter (for training) or
            full (whole pictures, letter-boxed); by default reference for svhn: and full for the
            other formats.
        crops: squares per picture.
        seed: of the random choices.
        image_size: side of the squares in pixels.
    """
    check_positive("--crops", crops)
    check_image_size(image_size)
    source = read_source(spec)
    chosen = crop or default_crop(spec.partition(":")[0], "test")[0]
    pack = pack_source(source, out, chosen, image_size, seed, crops)
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


def info(spec: str, image_size: int = IMAGE_SIZE) -> None:
    """Say what a data set holds.

    Args:
        spec: any SPEC, as it would be evaluated.
        image_size: side of the pictures in pixels.
    """
    check_image_size(image_size)
    folder = Path(spec)
    pack = open_pack(folder) if folder.is_dir() else open_data(spec, "test", image_size)
    counts = {
        name: int((pack.labels == label).sum()) for label, name in enumerate(pack.class_names)
    }
    print(
        json.dumps({**pack.describe(), "folder": str(pack.folder), "per_class": counts}, indent=1)
    )


def _print_pack(description: DataSummary, out: Path) -> None:
    print(
        f"{out}: {description['images']} pictures, {description['objects']} objects, "
        f"{description['skipped']} skipped"
    )


VERB = Verb("render, prepare, download, inspect", parser, run)
