"""`lipdet lipschitz`: certified constants, layer by layer and output by output."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from lipdet.checkpoint import LoadedDetector, LoadedSegmenter, load_network, load_own
from lipdet.commands.options import (
    DETECTOR_HELP,
    Parser,
    check_plot,
    check_writable,
    verb_parser,
    write_json,
)
from lipdet.errors import InputError
from lipdet.images.spec import open_data
from lipdet.progress import show
from lipdet.report.audit import audit_json, audit_module, audit_sentence, audit_table
from lipdet.report.lipschitz import (
    DetectorProfile,
    SegmenterProfile,
    bounds_table,
    pixel_bounds,
    plot_profile,
    profile_detector,
    profile_segmenter,
    profile_table,
    segmenter_sentence,
)
from lipdet.types import Canvas

# Power iteration takes one pass per layer and iteration for each picture.
MOST_OBSERVED = 16


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = verb_parser(
        "Bound a detector's Lipschitz constants in [0, 1] pixel units, layer by layer.",
        "lipdet lipschitz naive --plot profile.png",
    )
    parser.add_argument("detector", nargs="?", help=DETECTOR_HELP)
    parser.add_argument(
        "--audit",
        metavar="MODULE",
        help="say what makes the bound large and what to use instead; any DETECTOR, or "
        "package.module:callable of yours that returns any nn.Module",
    )
    parser.add_function_arguments(run, skip={"detector", "audit"})
    return parser


def run(
    detector: str | None = None,
    audit: str | None = None,
    image_size: Canvas | None = None,
    data: str | None = None,
    plot: Path | None = None,
    json: Path | None = None,  # the option is called --json
) -> None:
    """Bound a detector's Lipschitz constants, layer by layer and output by output.

    Args:
        detector: DETECTOR.
        audit: MODULE.
        image_size: HEIGHTxWIDTH of the pictures that a MODULE of yours takes, or one side;
            74 if it does not say.
        data: SPEC of a few pictures at which the constants are also observed, from below;
            rendered:4 if none is given.
        plot: file for the figure; its ending chooses the format.
        json: file for the result; `-` prints it instead of the tables.
    """
    check_writable(json)
    check_plot(plot)
    if audit is not None:
        if detector is not None or data is not None or plot is not None:
            raise InputError(
                "--audit MODULE stands alone: without a DETECTOR before it, --data or --plot."
            )
        _audit(audit, image_size, json)
        return
    if detector is None:
        raise InputError("Give a DETECTOR, or --audit MODULE.")
    if image_size is not None:
        raise InputError("--image_size is for --audit MODULE: a DETECTOR has a size of its own.")
    loaded = load_own(detector)
    pack = open_data(data or "rendered:4", "test", loaded.framing).head(MOST_OBSERVED)
    profile: DetectorProfile | SegmenterProfile
    told: Table | str
    if isinstance(loaded, LoadedSegmenter):
        rows, profile = profile_segmenter(loaded, pack, pixel_bounds(loaded.segmenter, pack))
        told = segmenter_sentence(profile)
    else:
        rows, profile, bounds = profile_detector(loaded, pack)
        told = bounds_table(bounds)
    if plot is not None:
        plot_profile(rows, plot)
    if write_json(json, profile):
        return
    show(profile_table(loaded.name, rows), told)


def _audit(spec: str, image_size: Canvas | None, file: Path | None) -> None:
    loaded = load_network(spec)
    if isinstance(loaded, LoadedDetector) and image_size not in (None, loaded.framing.canvas):
        raise InputError(
            f"{spec} takes pictures of {loaded.framing.canvas} pixels, not {image_size}."
        )
    canvas = image_size or loaded.framing.canvas
    found = audit_module(loaded.module, canvas)
    if write_json(file, audit_json(spec, canvas, found)):
        return
    print(audit_sentence(spec, found))
    show(audit_table(found))
