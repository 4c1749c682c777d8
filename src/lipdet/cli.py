"""The command `lipdet VERB …`: typed options, one clear sentence for every mistake.

Exit status: 0 done, 1 a training that diverged, 2 bad input, 130 interrupted (state kept).
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from lipdet import __version__, verbs
from lipdet.config import PRESETS, TrainConfig, as_plain
from lipdet.errors import InputError
from lipdet.train import NonFiniteLossError

PROGRAM = "lipdet"
SPEC_HELP = "rendered, rendered:N, svhn:FOLDER, coco:FILE.json, or the folder of a pack"
DETECTOR_HELP = "name of packaged weights, a run folder, or a weights file"


class Parser(ArgumentParser):
    """A parser that states a mistake in one sentence, with a hint where one is due."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence on stderr and exit with status 2."""
        program = self.prog.replace("[options] ", "")
        fail(f"{' '.join(message.split())} (see `{program} --help`)", 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` default to those of the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _hint_at_key_value(words)
        _run(_parse(words))
    except InputError as error:
        fail(str(error), 2)
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more at exit.
        sys.stdout = None
        sys.exit(0)
    except OSError as error:
        # What is read is checked where it is read; what is left are places to write to.
        fail(f"{error.filename}: {error.strerror}; choose another place.", 2)
    except NonFiniteLossError as error:
        fail(str(error), 1)
    except KeyboardInterrupt:
        fail("Interrupted; finished work and checkpoints are kept.", 130)


def fail(sentence: str, status: int) -> NoReturn:
    """Print a sentence on stderr and exit."""
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    sys.exit(status)


def _hint_at_key_value(words: Sequence[str]) -> None:
    for word in words:
        match = re.fullmatch(r"([a-z][\w.-]*)=(.*)", word)
        if match and not Path(word).exists():
            key, value = match.groups()
            raise InputError(
                f"{word!r}: options start with two dashes here; write --{key} {value}."
            )


def _parse(words: Sequence[str]) -> Namespace:
    options = build_parser().parse_args(words)
    if options.verb == "train":
        # The preset, which YAML may name too, decides the defaults of everything else.
        options = build_parser(options.train.preset).parse_args(words)
    return options


def build_parser(preset_name: str = "naive") -> Parser:
    """The parser of all verbs, with the defaults of a preset for `train`."""
    parser = Parser(
        prog=PROGRAM,
        description="Object detectors whose detections are provably stable.",
        version=__version__,
    )
    commands = parser.add_subcommands(dest="verb", metavar="VERB")
    data = Parser(description="Make, fetch and inspect data.")
    commands.add_subcommand("data", data, help="render, prepare, download, inspect")
    _add_data_actions(data)
    commands.add_subcommand("train", _train_parser(preset_name), help="train a detector")
    commands.add_subcommand("eval", _eval_parser(), help="average precision on a data set")
    commands.add_subcommand("detect", _detect_parser(), help="find digits in pictures")
    commands.add_subcommand("lipschitz", _lipschitz_parser(), help="bound a detector's constants")
    commands.add_subcommand("demo", _demo_parser(), help="the whole road in a few minutes")
    return parser


def _run(options: Namespace) -> None:
    chosen = options[options.verb]
    if options.verb == "data":
        getattr(verbs, f"data_{chosen.action}")(**_plain(chosen[chosen.action]))
    elif options.verb == "train":
        values = _plain(chosen)
        names = [field.name for field in dataclasses.fields(TrainConfig)]
        settings = TrainConfig(**{name: values.pop(name) for name in names})
        verbs.run_train(**values, settings=settings)
    else:
        getattr(verbs, f"run_{options.verb}")(**_plain(chosen))


def _plain(options: Namespace) -> dict[str, Any]:
    return {key: value for key, value in options.as_dict().items() if key != "config"}


def _verb(summary: str, example: str) -> Parser:
    parser = Parser(description=f"{summary}\n\nexample: {example}")
    parser.add_argument("--config", action="config", help="YAML file with options of this verb")
    return parser


def _add_data_actions(data: Parser) -> None:
    actions = data.add_subcommands(dest="action", metavar="ACTION")

    render = _verb(
        "Render house numbers into a pack.",
        "lipdet data render --count 10000 --out packs/rendered",
    )
    render.add_function_arguments(verbs.data_render)
    actions.add_subcommand("render", render, help="render house numbers into a pack")

    prepare = _verb(
        "Cut annotated pictures into squares and pack them.",
        "lipdet data prepare svhn:SVHN/train --crop jitter --crops 8 --out packs/train",
    )
    prepare.add_argument("spec", help="svhn:FOLDER or coco:FILE.json")
    prepare.add_function_arguments(verbs.data_prepare, skip={"spec"})
    actions.add_subcommand("prepare", prepare, help="cut and pack annotated pictures")

    download = _verb(
        "Fetch the official SVHN archives and unpack them.",
        "lipdet data download train test --out SVHN",
    )
    download.add_argument("splits", nargs="+", choices=("train", "test", "extra"))
    download.add_function_arguments(verbs.data_download, skip={"splits"})
    actions.add_subcommand("download", download, help="fetch the official SVHN archives")

    info = _verb("Say what a data set holds.", "lipdet data info rendered:100")
    info.add_argument("spec", help=SPEC_HELP)
    info.add_function_arguments(verbs.data_info, skip={"spec"})
    actions.add_subcommand("info", info, help="say what a data set holds")


def _train_parser(preset_name: str) -> Parser:
    parser = _verb(
        "Train a detector; the run folder can be evaluated, used and resumed.",
        "lipdet train --preset naive --data svhn:SVHN/train rendered:10000 --weights 2 1 "
        "--out runs/first",
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="naive", help="what to train")
    parser.add_argument("--data", nargs="+", default=["rendered"], metavar="SPEC", help=SPEC_HELP)
    parser.add_argument(
        "--weights",
        nargs="+",
        type=float,
        default=[],
        metavar="SHARE",
        help="relative share of each SPEC in an epoch (default: by their number of pictures)",
    )
    parser.add_argument("--out", type=Path, required=True, help="the run folder")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the run folder's last checkpoint"
    )
    parser.add_class_arguments(TrainConfig)
    parser.set_defaults(as_plain(PRESETS[preset_name].train))
    return parser


def _eval_parser() -> Parser:
    parser = _verb(
        "Measure average precision on a data set.", "lipdet eval naive --data svhn:SVHN/test"
    )
    parser.add_argument("detector", help=DETECTOR_HELP)
    parser.add_argument("--data", required=True, metavar="SPEC", help=SPEC_HELP)
    parser.add_function_arguments(verbs.run_eval, skip={"detector", "data"})
    return parser


def _detect_parser() -> Parser:
    parser = _verb(
        "Find digits in pictures of any size.", "lipdet detect naive door.jpg --out found"
    )
    parser.add_argument("detector", help=DETECTOR_HELP)
    parser.add_argument("images", nargs="+", type=Path, help="picture files")
    parser.add_function_arguments(verbs.run_detect, skip={"detector", "images"})
    return parser


def _lipschitz_parser() -> Parser:
    parser = _verb(
        "Bound a detector's Lipschitz constants in [0, 1] pixel units, layer by layer.",
        "lipdet lipschitz naive --plot profile.png",
    )
    parser.add_argument("detector", help=DETECTOR_HELP)
    parser.add_function_arguments(verbs.run_lipschitz, skip={"detector"})
    return parser


def _demo_parser() -> Parser:
    parser = _verb(
        "Render, train, evaluate and detect, in a few minutes.", "lipdet demo --out demo"
    )
    parser.add_function_arguments(verbs.run_demo)
    return parser
