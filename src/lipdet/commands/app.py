"""`lipdet app`: the web page to play with."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from lipdet.app.exhibits import bounding, load_exhibits
from lipdet.app.server import serving
from lipdet.checkpoint import is_segmenter, packaged_names
from lipdet.commands.options import DETECTOR_HELP, Parser, verb_parser
from lipdet.errors import InputError


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = verb_parser(
        "Serve a web page: choose pictures and detectors, move epsilon, attack, see what is "
        "certified.",
        "lipdet app naive --port 7860",
    )
    parser.add_argument(
        "detectors", nargs="*", help=f"{DETECTOR_HELP}; all packaged ones if none is given"
    )
    parser.add_function_arguments(run, skip={"detectors"})
    return parser


def run(
    detectors: Sequence[str] = (), host: str = "127.0.0.1", port: int = 7860, root_path: str = ""
) -> None:
    """Serve the page until interrupted.

    Args:
        detectors: DETECTORs.
        host: address to listen on; others than 127.0.0.1 let other machines in.
        port: to listen on; 0 takes any free one.
        root_path: path under which a proxy serves the page, such as /lipdet.
    """
    if not 0 <= port <= 65_535:
        raise InputError(f"--port must lie between 0 and 65535, not {port}.")
    # Visitors share the cores; networks this small gain nothing from several.
    torch.set_num_threads(1)
    packaged = [name for name in packaged_names() if not is_segmenter(name)]
    exhibits = load_exhibits(list(detectors) or sorted(packaged, key=_order))
    with serving(exhibits, host, port, root_path) as address, bounding(exhibits):
        print(f"The page is at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def _order(name: str) -> tuple[bool, str]:
    """Return the naive detector first: it is the one to compare with."""
    return name != "naive", name
