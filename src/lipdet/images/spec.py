"""The `--data SPEC` of every verb: what is rendered, an annotation format and its path, or a pack.

What has to be cut or rendered first is packed once into the user's cache, under a name made of
everything that determines its bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lipdet.errors import InputError
from lipdet.images.coco import read_coco
from lipdet.images.masks import read_masks
from lipdet.images.pack import Pack, open_pack
from lipdet.images.prepare import Crop, Rendered, pack_rendered, pack_source
from lipdet.images.source import Source
from lipdet.images.svhn import read_svhn
from lipdet.images.voc import read_voc
from lipdet.images.yolo import read_yolo
from lipdet.types import Framing

Purpose = Literal["train", "validation", "test"]
RENDERED_DEFAULT = {"train": 10_000, "validation": 1_000, "test": 1_000}
MOST_RENDERED = 10_000_000
TRAINING_CROPS = 8
READERS: dict[str, Callable[[Path], Source]] = {
    "svhn": read_svhn,
    "coco": read_coco,
    "yolo": read_yolo,
    "voc": read_voc,
    "masks": read_masks,
}
SOURCES = "svhn:FOLDER, coco:FILE.json, yolo:FOLDER, voc:FOLDER, masks:FOLDER"
FORMS = f"rendered[:N], rendered-ink[:N], {SOURCES}, or the folder of a pack"


def open_data(spec: str, purpose: Purpose, framing: Framing, seed: int = 0) -> Pack:
    """Return the pack that a SPEC means, for a detector; see `find_data`.

    Raises:
        InputError: as `find_data`, or the pictures are whole and the detector looks at crops, or
            the other way round.
    """
    pack = find_data(spec, purpose, framing, seed)
    if pack.crops and framing.whole:
        raise InputError(
            f"{spec} holds crops around objects, but the detector looks at whole pictures; prepare "
            "them with `lipdet data prepare --crop full`."
        )
    if pack.whole and framing.whole is False:
        raise InputError(
            f"{spec} holds whole pictures, but the detector looks at crops around objects; prepare "
            "them with `lipdet data prepare --crop reference`."
        )
    return pack


def find_data(spec: str, purpose: Purpose, framing: Framing, seed: int = 0) -> Pack:
    """Return the pack that a SPEC means, of whole pictures or crops.

    Of `svhn:` a detector of crops gets, for training, eight jittered crops of each picture and,
    otherwise, one reference crop; a detector of whole pictures gets these, letter-boxed, as all
    do of the other formats. `rendered` is the stream of that name, of scenes for a detector of
    whole pictures. `lipdet data prepare` and `render` make packs with other choices.

    Args:
        spec: see the module's first line.
        purpose: train, validation (which chooses weights) or test.
        framing: how pictures get onto the network's canvas, where the SPEC leaves it open.
        seed: of crops and rendered pictures.

    Raises:
        InputError: the SPEC has no known form, or what it names cannot be used.
    """
    if seed < 0:
        raise InputError(f"seed must not be negative, but is {seed}.")
    kind, _, rest = spec.partition(":")
    canvas = framing.canvas
    if kind in ("rendered", "rendered-ink"):
        count = _count(spec, rest, RENDERED_DEFAULT[purpose])
        drawn: Rendered = "scenes" if framing.whole else "crops"
        drawn = "ink" if kind == "rendered-ink" else drawn
        return _cached(
            f"rendered-{drawn}-{purpose}-{count}",
            {"count": count, "stream": purpose, "canvas": canvas, "seed": seed},
            lambda folder: pack_rendered(folder, purpose, count, canvas, seed, drawn),
        )
    if kind in READERS and rest:
        source = read_source(spec)
        crop, crops = default_crop(kind, purpose, framing.whole)
        return _cached(
            f"{kind}-{purpose}",
            {
                "crop": crop,
                "crops": crops,
                "canvas": canvas,
                "seed": seed,
                "source": fingerprint(source),
            },
            lambda folder: pack_source(source, folder, crop, canvas, seed, crops),
        )
    if spec and Path(spec).is_dir():
        pack = open_pack(Path(spec))
        if pack.canvas != canvas:
            raise InputError(
                f"{spec} holds pictures of {pack.canvas} pixels, the detector takes {canvas}; "
                f"prepare them with --image_size {canvas}."
            )
        return pack
    raise InputError(f"--data {spec!r} is not understood or does not exist; give {FORMS}.")


def read_source(spec: str) -> Source:
    """Return the annotated pictures of a format and its path."""
    kind, _, path = spec.partition(":")
    if kind in READERS and path:
        return READERS[kind](Path(path))
    raise InputError(f"{spec!r} names no annotated pictures; give one of: {SOURCES}.")


def default_crop(kind: str, purpose: Purpose, whole: bool | None) -> tuple[Crop, int]:
    """Return how a kind of source is cut, and how often, when nothing else is asked for."""
    if kind == "svhn" and not whole:
        return ("jitter", TRAINING_CROPS) if purpose == "train" else ("reference", 1)
    return "full", 1


def cache_folder() -> Path:
    """Return `$LIPDET_CACHE`, or `lipdet` in the user's cache folder."""
    if own := os.environ.get("LIPDET_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lipdet"


def fingerprint(source: Source) -> str:
    """Return a short hash of all that a source says and of each file's size and time of change."""
    said = source.name, source.class_names, *source.skipped
    digest = hashlib.sha256(repr(said).encode())
    for picture in source.pictures:
        for file in (picture.path, *([picture.mask.path] if picture.mask else [])):
            status = file.stat()
            digest.update(f"{file.resolve()}{status.st_size}{status.st_mtime_ns}".encode())
        digest.update(picture.boxes.tobytes())
        digest.update(picture.labels.tobytes())
        digest.update(picture.ignored.tobytes())
    return digest.hexdigest()[:16]


def _cached(stem: str, choices: dict[str, object], make: Callable[[Path], Pack]) -> Pack:
    digest = hashlib.sha256(json.dumps(choices, sort_keys=True).encode())
    # The code of this stage determines the bytes too; a new renderer must not meet old pictures.
    for path in sorted(Path(__file__).parent.glob("*.[pj][ys]*")):
        digest.update(path.read_bytes())
    folder = cache_folder() / "packs" / f"{stem}-{digest.hexdigest()[:12]}"
    if not folder.exists():
        try:
            return make(folder)
        except InputError:
            # Another process may have finished the same pack in the meantime.
            if not folder.exists():
                raise
    return open_pack(folder)


def _count(spec: str, text: str, default: int) -> int:
    if not text:
        return default
    if not text.isdecimal() or not 0 < int(text) <= MOST_RENDERED:
        raise InputError(
            f"--data {spec!r}: the number of pictures must lie between 1 and {MOST_RENDERED}."
        )
    return int(text)
