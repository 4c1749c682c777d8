"""What all verbs share: the parser, the words of their help, and checks of what users give."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt, register_type

from lipdet import distributed, files
from lipdet.errors import InputError
from lipdet.images.crop import Region
from lipdet.images.spec import FORMS
from lipdet.types import Canvas
from lipdet.user_module import names_module

PROGRAM = "lipdet"
SPEC_HELP = FORMS
_WEIGHTS_HELP = "name of packaged weights, a run folder, a weights file, or package.module:callable"
DETECTOR_HELP = f"{_WEIGHTS_HELP} of yours that returns a lipdet.detector.SSD"
ANY_DETECTOR_HELP = (
    f"{_WEIGHTS_HELP} of yours that returns a detector, or ultralytics:FILE "
    "(docs/your-own-detector.md)"
)
FLOAT64_HELP = (
    "compute in float64, twice as slow: what certificates allow for rounding is then proven, not "
    "measured"
)
LARGEST_IMAGE = 4_096
# Options of every verb that are not for its function.
COMMON = frozenset({"config", "quiet", "processes"})
PLOT_FORMATS = ("png", "svg", "pdf")


class Parser(ArgumentParser):
    """A parser that states a mistake in one sentence, with a hint where one is due."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence on stderr and exit with status 2."""
        words, verbs = " ".join(message.split()), ""
        for key in re.findall(r"(?:required: |, |Parser key \")((?:[a-z][\w-]*\.)+\w+)", words):
            verbs, typed = self._typed(key)
            words = re.sub(rf"(?<![\w.]){re.escape(key)}(?![\w.])", typed, words)
        words = re.sub(r"Parser key \"(?:--)?([\w<> ]+)\"", r"--\1", words)
        program = self.prog.replace("[options] ", "") + verbs
        fail(f"{words} (see `{program} --help`)", 2)

    def _typed(self, key: str) -> tuple[str, str]:
        """Return the verbs of a key such as `data.prepare.out`, and the rest as it is typed."""
        parser: argparse.ArgumentParser = self
        *verbs, name = key.split(".")
        for verb in verbs:
            [subcommands] = [
                one for one in parser._actions if isinstance(one, argparse._SubParsersAction)
            ]
            parser = subcommands.choices[verb]
        flags = [one.option_strings for one in parser._actions if one.dest == name]
        return "".join(f" {verb}" for verb in verbs), flags[0][-1] if any(flags) else f"<{name}>"


def verb_parser(summary: str, example: str) -> Parser:
    """Return a parser with an example in its help, which also reads its options from YAML."""
    parser = Parser(description=f"{summary}\n\nexample: {example}")
    parser.add_argument("--config", action="config", help="YAML file with options of this verb")
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing but errors, and json that was asked for"
    )
    return parser


def add_processes(parser: Parser) -> None:
    """Add the option of verbs that several processes can share (`distributed.launch`)."""
    parser.add_argument(
        "--processes",
        type=PositiveInt,
        default=1,
        metavar="N",
        help="share the work among N processes of this machine; on several machines use torchrun "
        "(docs/more-machines.md)",
    )


def fail(sentence: str, status: int) -> NoReturn:
    """Print a sentence on stderr and exit; of several processes that fail, the first speaks."""
    if distributed.may_speak():
        print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    sys.exit(status)


def write_json(file: Path | None, value: object) -> bool:
    """Write a result where `--json` says; return whether it was printed in place of tables."""
    if file == Path("-"):
        print(json.dumps(value, indent=1))
        return True
    if file is not None:
        files.write_json(file, value)
    return False


def check_writable(file: Path | None) -> None:
    """Refuse a file that cannot be written, before the work is done."""
    if file is not None and file != Path("-") and (file.is_dir() or not file.parent.is_dir()):
        raise InputError(f"{file} cannot be written; name a file in a folder that exists.")


def check_plot(file: Path | None) -> None:
    """Refuse a figure that cannot be written, or of a format that is not known."""
    check_writable(file)
    if file is not None and file.suffix[1:].lower() not in PLOT_FORMATS:
        raise InputError(f"--plot {file}: its ending must be one of: {', '.join(PLOT_FORMATS)}.")


def check_state(state: Path | None, detectors: Sequence[str]) -> None:
    """Refuse to keep finished parts of what code computes that is not lipdet's."""
    own = next(filter(names_module, detectors), None)
    if state is not None and own is not None:
        raise InputError(
            f"{own}: finished parts are found again by a hash of the weights, which says nothing "
            "of its code; leave out --state."
        )


def check_folder(out: Path) -> None:
    """Refuse a file where a folder is needed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out needs a folder.")


def parse_canvas(text: object) -> Canvas:
    """Return the size that `--image_size` names: `240x320`, height first, or one side."""
    sides = text if isinstance(text, Canvas) else str(text).lower().split("x")
    try:
        canvas = Canvas(*(int(side) for side in (sides if len(sides) == 2 else [*sides, *sides])))
    except (TypeError, ValueError):
        raise ValueError(f"give HEIGHTxWIDTH in pixels, or one side, not {text!r}") from None
    if not 0 < min(canvas) <= max(canvas) <= LARGEST_IMAGE:
        raise ValueError(f"sides must lie between 1 and {LARGEST_IMAGE}, not {text}")
    return canvas


register_type(Canvas, str, parse_canvas)


def check_positive(option: str, value: int | None) -> None:
    """Refuse a number below one, if one was given."""
    if value is not None and value <= 0:
        raise InputError(f"{option} must be positive, not {value}.")


def check_seed(seed: int) -> None:
    """Refuse a negative seed: NumPy takes none."""
    if seed < 0:
        raise InputError(f"--seed must not be negative, but is {seed}.")


def parse_region(text: str) -> Region:
    """Return the rectangle that `--crop` names."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--crop {text!r}: give LEFT,TOP,RIGHT,BOTTOM in pixels.") from None
    return Region(left, top, right, bottom)
