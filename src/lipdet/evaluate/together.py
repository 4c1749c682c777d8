"""Evaluate with all processes of a run: they fill the state, and the first sums up what is there.

Notable choices:
- The sum is what one process would make of the same state; so the json is the same.
- The processes exchange nothing but files and the word that they are done.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lipdet import distributed
from lipdet.attack.foreign import ForeignDetector
from lipdet.checkpoint import AnyDetector, LoadedDetector
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign, attack_passes
from lipdet.evaluate.certified import certificate_pass
from lipdet.evaluate.chunks import State, code
from lipdet.evaluate.run import clean_pass, evaluate, in_classes_of
from lipdet.images.pack import Pack
from lipdet.results import EvaluationResult


def evaluate_together(
    loaded: AnyDetector,
    pack: Pack,
    seed: int,
    campaign: Campaign | None = None,
    certify: Sequence[float] = (),
    state: Path | None = None,
) -> EvaluationResult | None:
    """Evaluate with however many processes there are; see `evaluate` for the arguments.

    Here, `state` is a folder.

    Returns:
        The result in the first process, None in the others.

    Raises:
        InputError: as `evaluate`; the processes have different data or weights; or there are
            several machines and no state that they share.
    """
    if distributed.size() == 1:
        kept = State.of(state, loaded.detector)
        return evaluate(loaded, pack, seed, campaign, certify, kept)
    if isinstance(loaded, ForeignDetector):
        raise InputError(
            f"{loaded.name} is no lipdet.detector.SSD, and is evaluated by one process: leave "
            "out --processes, or torchrun."
        )
    started = time.monotonic()
    pack = in_classes_of(loaded, pack)
    distributed.check_same("The pictures", pack.hash)
    distributed.check_same("The versions", code())
    with _shared(state) as folder:
        kept = State.of(folder, loaded.detector)
        assert kept is not None, "of an SSD and with a folder"
        distributed.check_same("The weights", kept.detector)
        _fill(loaded, pack, campaign, certify, kept)
        distributed.wait()
        if distributed.rank():
            return None
        result = evaluate(loaded, pack, seed, campaign, certify, kept)
    return {**result, "seconds": round(time.monotonic() - started, 3)}


def _fill(
    loaded: LoadedDetector,
    pack: Pack,
    campaign: Campaign | None,
    certify: Sequence[float],
    state: State,
) -> None:
    """Compute this process's chunks of everything."""
    if certify:
        certificate_pass(loaded.detector, pack, certify, state).share()
    else:
        clean_pass(loaded.detector, pack, state).share()
    if campaign:
        for one in attack_passes(loaded.detector, pack, campaign, state):
            one.share()


@contextmanager
def _shared(state: Path | None) -> Iterator[Path]:
    """Yield the folder that all processes write to; a passing one if none is given."""
    if state is not None:
        yield state
        return
    if not distributed.on_one_machine():
        raise InputError("Several machines need --state with a folder that all of them share.")
    folder = Path(distributed.of_first(tempfile.mkdtemp() if distributed.rank() == 0 else ""))
    try:
        yield folder
    finally:
        if distributed.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
