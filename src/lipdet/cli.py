"""The command `lipdet VERB …`: typed options, one clear sentence for every mistake.

Exit status: 0 done, 1 a training that diverged or a process that was lost, 2 bad input,
130 interrupted, 143 terminated (state kept).
"""

from __future__ import annotations

import argparse
import io
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from jsonargparse import Namespace

from lipdet import __version__, distributed
from lipdet.commands.options import COMMON, PROGRAM, Parser, fail
from lipdet.config import PRESETS
from lipdet.errors import InputError, NonFiniteLossError
from lipdet.progress import quietly

# What several processes can do together.
SHARED = ("train", "eval")
# What knows segmenters, too (`commands.segment`).
OF_SEGMENTERS = ("eval", "detect", "certify", "attack")
# Each with a line of help; `verb_module` has its `parser` and its `run`.
VERBS = {
    "data": "render, prepare, download, inspect",
    "train": "train a detector",
    "eval": "average precision on a data set",
    "detect": "find objects in pictures",
    "lipschitz": "bound a detector's constants",
    "attack": "change pictures so that the detector errs",
    "certify": "say how much perturbation detections survive",
    "check-attack": "whether an attack is strong enough",
    "export": "write a detector for other programs",
    "report": "one page about detectors, side by side",
    "demo": "what attacks leave and what is proven, in a few minutes",
    "reproduce": "the comparison of all detectors in one command",
    "app": "a web page to play with",
}


def verb_module(name: str) -> ModuleType:
    """Import what a verb consists of: others cost seconds that it does not need."""
    return import_module(f"lipdet.commands.{name.replace('-', '_')}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` default to those of the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A pipe may be in an encoding without ε: a question mark is better than no result.
        sys.stdout.reconfigure(errors="replace")
    try:
        distributed.join()
        _hint_at_key_value(words)
        with _unwound_by_sigterm():
            _run(_parse(words), words)
        distributed.leave()
    except InputError as error:
        fail(str(error), 2)
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more at exit.
        sys.stdout = None
        sys.exit(0)
    except OSError as error:
        # What is read is checked where it is read; what is left are places to write to.
        place = error.filename or "A file that was to be written"
        fail(f"{place}: {error.strerror}; choose another place.", 2)
    except (NonFiniteLossError, distributed.LostProcessError) as error:
        fail(str(error), 1)
    except KeyboardInterrupt as error:
        status = 143 if signal.SIGTERM in error.args else 130
        fail("Interrupted; finished work and checkpoints are kept.", status)


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end us as Ctrl-C does, so that temporary folders do not stay behind."""
    in_charge = threading.current_thread() is threading.main_thread()
    if not in_charge or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _hint_at_key_value(words: Sequence[str]) -> None:
    for word in words:
        match = re.fullmatch(r"([a-z][\w.-]*)=(.*)", word)
        if match and not Path(word).exists():
            key, value = match.groups()
            raise InputError(
                f"{word!r}: options start with two dashes here; write --{key} {value}."
            )


def _parse(words: Sequence[str]) -> Namespace:
    # Help and --print_config are answered at once, by defaults that are those of the preset.
    verb = next((word for word in words if not word.startswith("-")), "")
    options = build_parser(_preset_in(words), [verb]).parse_args(words)
    if options.verb == "train":
        # The preset, which YAML may name too, decides the defaults of everything else.
        options = build_parser(options.train.preset, [verb]).parse_args(words)
    return options


def _preset_in(words: Sequence[str]) -> str:
    """Return the preset that the command line names itself, or through its last YAML file."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scan.add_argument("--preset", choices=tuple(PRESETS))
    scan.add_argument("--config", type=Path)
    try:
        named, _ = scan.parse_known_args(words)
        if named.preset is None and named.config is not None:
            named.preset = yaml.safe_load(named.config.read_text()).get("preset")
    except (argparse.ArgumentError, AttributeError, OSError, UnicodeError, yaml.YAMLError):
        return "naive"  # What is wrong is said when all options are read.
    return named.preset if named.preset in PRESETS else "naive"


class _PrintCompletion(argparse.Action):
    """Prints the script of a shell, of all verbs with their options."""

    def __call__(self, parser: Any, namespace: Any, shell: Any, option: str | None = None) -> None:
        print(build_parser().get_completion_script(f"shtab-{shell}"))
        sys.exit()


def build_parser(preset_name: str = "naive", wanted: Collection[str] = tuple(VERBS)) -> Parser:
    """Return the parser of all verbs.

    Args:
        preset_name: whose defaults `train` has.
        wanted: verbs whose options are needed; the others have none.
    """
    parser = Parser(
        prog=PROGRAM,
        description="Object detectors whose detections are provably stable.",
        version=__version__,
    )
    parser.add_argument(
        "--print_completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "fish"),
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="print what a shell needs to complete verbs and options (see README.md)",
    )
    commands = parser.add_subcommands(dest="verb", metavar="VERB")
    for name, summary in VERBS.items():
        options = verb_options(name, preset_name) if name in wanted else Parser()
        commands.add_subcommand(name, options, help=summary)
        if name == "data" and name in wanted:
            verb_module(name).add_actions(options)
    return parser


def verb_options(name: str, preset_name: str = "naive") -> Parser:
    """Return the parser of one verb, without its actions."""
    module = verb_module(name)
    options: Parser = module.parser(preset_name) if name == "train" else module.parser()
    return options


def _run(options: Namespace, words: Sequence[str]) -> None:
    if distributed.size() > 1 and options.verb not in SHARED:
        raise InputError(
            f"{options.verb} is the work of one process: only {' and '.join(SHARED)} are for "
            "several."
        )
    chosen = options[options.verb].as_dict()
    # Of a verb with actions, the options of the chosen one.
    common = chosen.get(chosen.get("action"), chosen)
    arguments = {key: value for key, value in chosen.items() if key not in COMMON}
    _start_processes(common.get("processes", 1), words)
    json_on_stdout = common.get("json") == Path("-")
    leads = distributed.rank() == 0
    quiet = common["quiet"] or not leads
    with quietly(keep_output=json_on_stdout and leads) if quiet else nullcontext():
        _run_of(options.verb, arguments.get("detector"))(**arguments)


def _run_of(verb: str, network: object) -> Callable[..., None]:
    """Return what a verb does with the detector or segmenter that its options name."""
    if verb in OF_SEGMENTERS:
        from lipdet.checkpoint import is_segmenter  # needs torch, which --help does not

        if isinstance(network, str) and is_segmenter(network):
            of_segmenters: dict[str, Callable[..., None]] = verb_module("segment").VERBS
            return of_segmenters[verb]
    run: Callable[..., None] = verb_module(verb).run
    return run


def _start_processes(count: int, words: Sequence[str]) -> None:
    """Leave the work to as many processes as `--processes` asks for, and end as they do."""
    if count > 1 and not distributed.launched():
        sys.exit(distributed.launch(count, words))
    if count not in (1, distributed.size()):
        raise InputError(
            f"--processes {count} contradicts the {distributed.size()} that torchrun started; "
            "leave it out."
        )
