"""What each verb of the command line does, as plain functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from lipdet.certificate.outputs import output_bounds
from lipdet.certificate.profile import layer_profile
from lipdet.checkpoint import load_detector
from lipdet.config import IMAGE_SIZE, PRESETS, TrainConfig
from lipdet.demo import demo
from lipdet.detect import Found, detect_in_photograph, detect_in_region
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.evaluate.run import evaluate
from lipdet.images.crop import Region
from lipdet.images.download import OFFICIAL, download_svhn
from lipdet.images.pack import open_pack
from lipdet.images.prepare import Crop, pack_rendered, pack_source
from lipdet.images.render import STREAMS
from lipdet.images.source import load_rgb
from lipdet.images.spec import open_data, read_source
from lipdet.job import JOB, Job, load_job
from lipdet.report.lipschitz import bounds_table, plot_profile, profile_json, profile_table
from lipdet.report.overlay import draw_detections
from lipdet.report.table import classes_table, results_table
from lipdet.train import train
from lipdet.types import Detections

LARGEST_IMAGE = 4_096
# Power iteration takes one pass per layer and iteration for each picture.
MOST_OBSERVED = 16
PLOT_FORMATS = ("png", "svg", "pdf")


def data_render(
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
    _positive("--count", count)
    _image_size(image_size)
    if stream not in STREAMS:
        raise InputError(f"--stream {stream!r} is unknown; choose one of: {', '.join(STREAMS)}.")
    _print_pack(pack_rendered(out, stream, count, image_size, seed).describe(), out)


def data_prepare(
    spec: str,
    out: Path,
    crop: Crop = "reference",
    crops: int = 1,
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
) -> None:
    """Cut annotated pictures into squares and pack them.

    Args:
        spec: svhn:FOLDER or coco:FILE.json.
        out: folder of the new pack.
        crop: reference (the published experiment's, for evaluation), jitter (for training) or
            full (whole pictures, letter-boxed).
        crops: squares per picture.
        seed: of the random choices.
        image_size: side of the squares in pixels.
    """
    _positive("--crops", crops)
    _image_size(image_size)
    pack = pack_source(read_source(spec), out, crop, image_size, seed, crops)
    _print_pack(pack.describe(), out)
    for entry in pack.meta["skipped"]:
        print(f"  skipped {entry['name']}: {entry['reason']}")


def data_download(splits: Sequence[str], out: Path, base_url: str = OFFICIAL) -> None:
    """Fetch SVHN archives and unpack them.

    Args:
        splits: train, test, extra.
        out: folder that receives the archives and one folder per split.
        base_url: where the archives lie.
    """
    for split in splits:
        print(f"{download_svhn(split, out, base_url)} is complete; use it as svhn:{out / split}")


def data_info(spec: str, image_size: int = IMAGE_SIZE) -> None:
    """Say what a data set holds.

    Args:
        spec: any SPEC, as it would be evaluated.
        image_size: side of the pictures in pixels.
    """
    _image_size(image_size)
    folder = Path(spec)
    pack = open_pack(folder) if folder.is_dir() else open_data(spec, "test", image_size)
    counts = {
        name: int((pack.labels == label).sum()) for label, name in enumerate(pack.class_names)
    }
    print(
        json.dumps({**pack.describe(), "folder": str(pack.folder), "per_class": counts}, indent=1)
    )


def run_train(
    preset: str,
    data: Sequence[str],
    weights: Sequence[float],
    out: Path,
    resume: bool,
    settings: TrainConfig,
) -> None:
    """Train a preset and say where its weights are."""
    if weights and (len(weights) != len(data) or min(weights) <= 0):
        raise InputError(
            f"--weights needs one positive number for each of the {len(data)} data sets, "
            f"not {' '.join(map(str, weights))}."
        )
    job = Job(preset, PRESETS[preset].detector, settings, tuple(data), tuple(weights))
    if resume and (out / JOB).exists():
        job = _resumed(job, load_job(out), out)
    best = train(job, out, resume)
    print(f"Weights: {best}\nEvaluate them: lipdet eval {out} --data SPEC")


def _resumed(asked: Job, stored: Job, out: Path) -> Job:
    """The stored job, unless other options than its own were given."""
    asked = asked.with_classes(stored.detector.class_names)
    naive = PRESETS["naive"]
    nothing_asked = Job("naive", naive.detector, naive.train, ("rendered",), ())
    if asked not in (stored, nothing_asked.with_classes(stored.detector.class_names)):
        raise InputError(
            f"{out} was started with other options; leave them out (its {JOB} holds them), or "
            "choose another --out."
        )
    return stored


def run_eval(
    detector: str,
    data: str,
    limit: int | None = None,
    seed: int = 0,
    json: Path | None = None,  # the option is called --json
) -> None:
    """Measure average precision.

    Args:
        detector: DETECTOR.
        data: SPEC.
        limit: only the first so many pictures.
        seed: of crops and rendered pictures.
        json: file for the result; `-` prints it instead of the tables.
    """
    if limit is not None:
        _positive("--limit", limit)
    _writable(json)
    loaded = load_detector(detector)
    pack = open_data(data, "test", loaded.detector.config.image_size, seed)
    if limit is not None:
        pack = pack.head(limit)
    result = evaluate(loaded, pack, seed)
    if json == Path("-"):
        print(_json(result))
        return
    if json is not None:
        json.write_text(_json(result) + "\n")
    console = Console()
    console.print(results_table([result]))
    console.print(classes_table(result))


def run_detect(detector: str, images: Sequence[Path], out: Path, crop: str | None = None) -> None:
    """Find digits in pictures; write an overlay of each and one json for all.

    Args:
        detector: DETECTOR.
        images: picture files.
        out: folder for NAME.png and detections.json.
        crop: LEFT,TOP,RIGHT,BOTTOM in pixels: look only there, and do not search.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out needs a folder.")
    loaded = load_detector(detector)
    model, names = loaded.detector, loaded.detector.config.class_names
    region = _region(crop) if crop else None
    found = [_detect_one(model, path, region) for path in images]
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for path, name, (image, one) in zip(images, _distinct(images), found, strict=True):
        draw_detections(image, one.detections, names).save(out / f"{name}.png")
        entries.append({"image": str(path), **_as_dict(image, one, names)})
        digits = [names[label] for label in _left_to_right(one.detections)]
        print(f"{path}: {' '.join(digits) or 'nothing found'}")
    result = {"weights": loaded.name, "pictures": entries}
    (out / "detections.json").write_text(_json(result) + "\n")
    print(f"Overlays and detections.json: {out}")


def _detect_one(model: SSD, path: Path, region: Region | None) -> tuple[Image.Image, Found]:
    image = load_rgb(path)
    if region:
        return image, detect_in_region(model, image, region)
    return image, detect_in_photograph(model, image)


def _as_dict(image: Image.Image, found: Found, names: Sequence[str]) -> dict[str, Any]:
    detections = found.detections
    rows = zip(
        detections["boxes"].tolist(),
        detections["labels"].tolist(),
        detections["scores"].tolist(),
        strict=True,
    )
    return {
        "width": image.width,
        "height": image.height,
        "regions": [list(region) for region in found.regions],
        "detections": [
            {"box": box, "label": names[label], "score": score} for box, label, score in rows
        ],
    }


def _left_to_right(found: Detections) -> list[int]:
    labels: list[int] = found["labels"][found["boxes"][:, 0].argsort()].tolist()
    return labels


def run_lipschitz(
    detector: str,
    data: str = "rendered:4",
    plot: Path | None = None,
    json: Path | None = None,  # the option is called --json
) -> None:
    """Bound a detector's Lipschitz constants, layer by layer and output by output.

    Args:
        detector: DETECTOR.
        data: SPEC of a few pictures at which the constants are also observed, from below.
        plot: file for the figure; its ending chooses the format.
        json: file for the result; `-` prints it instead of the tables.
    """
    _writable(json)
    _writable(plot)
    if plot is not None and plot.suffix[1:].lower() not in PLOT_FORMATS:
        raise InputError(f"--plot {plot}: its ending must be one of: {', '.join(PLOT_FORMATS)}.")
    loaded = load_detector(detector)
    model = loaded.detector
    pack = open_data(data, "test", model.config.image_size).head(MOST_OBSERVED)
    images = torch.from_numpy(pack.images[:].copy()).permute(0, 3, 1, 2).float() / 255
    rows, bounds = layer_profile(model, images), output_bounds(model)
    if plot is not None:
        plot_profile(rows, plot)
    if json == Path("-"):
        print(_json(profile_json(loaded.name, pack, rows, bounds)))
        return
    if json is not None:
        json.write_text(_json(profile_json(loaded.name, pack, rows, bounds)) + "\n")
    console = Console()
    console.print(profile_table(loaded.name, rows))
    console.print(bounds_table(bounds))


def run_demo(out: Path = Path("demo"), seed: int = 0) -> None:
    """Show the whole road on rendered pictures.

    Args:
        out: folder for pictures, page, results and the run.
        seed: of the training.
    """
    demo(out, seed)


def _region(text: str) -> Region:
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--crop {text!r}: give LEFT,TOP,RIGHT,BOTTOM in pixels.") from None
    return Region(left, top, right, bottom)


def _distinct(paths: Sequence[Path]) -> list[str]:
    """File stems, numbered where two pictures share one."""
    stems = [path.stem for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{stem}-{index + 1}"
        for index, stem in enumerate(stems)
    ]


def _writable(file: Path | None) -> None:
    """Refuse a file that cannot be written, before the work is done."""
    if file is not None and file != Path("-") and (file.is_dir() or not file.parent.is_dir()):
        raise InputError(f"{file} cannot be written; name a file in a folder that exists.")


def _image_size(pixels: int) -> None:
    if not 0 < pixels <= LARGEST_IMAGE:
        raise InputError(f"--image_size must lie between 1 and {LARGEST_IMAGE}, not {pixels}.")


def _positive(option: str, value: int) -> None:
    if value <= 0:
        raise InputError(f"{option} must be positive, not {value}.")


def _print_pack(description: dict[str, Any], out: Path) -> None:
    print(
        f"{out}: {description['images']} pictures, {description['objects']} objects, "
        f"{description['skipped']} skipped"
    )


def _json(value: object) -> str:
    return json.dumps(value, indent=1)
