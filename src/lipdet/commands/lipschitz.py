"""`lipdet lipschitz`: certified constants, layer by layer and output by output."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from lipdet.certificate.outputs import output_bounds
from lipdet.certificate.profile import layer_profile
from lipdet.checkpoint import load_detector
from lipdet.commands.options import (
    DETECTOR_HELP,
    Parser,
    Verb,
    as_json,
    check_writable,
    verb_parser,
)
from lipdet.errors import InputError
from lipdet.images.spec import open_data
from lipdet.report.lipschitz import bounds_table, plot_profile, profile_json, profile_table

# Power iteration takes one pass per layer and iteration for each picture.
MOST_OBSERVED = 16
PLOT_FORMATS = ("png", "svg", "pdf")


def parser() -> Parser:
    """Options of `run`."""
    parser = verb_parser(
        "Bound a detector's Lipschitz constants in [0, 1] pixel units, layer by layer.",
        "lipdet lipschitz naive --plot profile.png",
    )
    parser.add_argument("detector", help=DETECTOR_HELP)
    parser.add_function_arguments(run, skip={"detector"})
    return parser


def run(
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
    check_writable(json)
    check_writable(plot)
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
        print(as_json(profile_json(loaded.name, pack, rows, bounds)))
        return
    if json is not None:
        json.write_text(as_json(profile_json(loaded.name, pack, rows, bounds)) + "\n")
    console = Console()
    console.print(profile_table(loaded.name, rows))
    console.print(bounds_table(bounds))


VERB = Verb("bound a detector's constants", parser, run)
