"""One run in several processes: who does what, and how all end together.

torchrun or `launch` starts the processes, and ends all of them when one is lost. A process
that neither started has no process group: every function here does nothing or returns what it was
given.

Notable choices:
- Gradients are added by one plain all_reduce after backward, not by DistributedDataParallel: the
  loss is a sum over the whole batch divided by the positives of the whole batch, which is no mean
  of the processes' own losses.
- What decides (settings, state, when to stop) comes from process 0, so that all do the same.
- Objects and flags travel through gloo, gradients on GPUs through nccl.
- A process waits for the others as long as they live: shares of work may be uneven.
- `launch` takes the launcher of torchrun, but without its log and its table of exit codes: a
  mistake stays one sentence and keeps its exit status. The processes divide the threads that this
  one would have had, and meet at 127.0.0.1: the machine's own name need not resolve. After an
  interrupt they have an hour, not half a minute, to end the validation and save their state.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from lipdet.errors import InputError

Value = TypeVar("Value")

PATIENCE = timedelta(days=7)
# What the launcher serves to all processes, a dist.Store; it survives the loss of any of them.
_store: Any = None
# Words of gloo and nccl for another process that is gone; other errors are our own.
_GONE = ("onnection", "roken pipe", "remote process", "imeout")


class LostProcessError(BaseException):
    """Another process of the run has ended, or the launcher ends this one.

    No `Exception`: a signal raises it wherever the program is, and where users' code is tried,
    every `Exception` is taken for a fault of that code.
    """

    def __init__(self) -> None:
        super().__init__(
            "A process of this run was lost or told to stop; finished work is kept. Start the same "
            "command again to go on (train: with --resume, eval: with the same --state)."
        )


def launch(processes: int, words: Sequence[str]) -> int:
    """Run `lipdet WORDS` in several processes; they join each other by `join`.

    Args:
        processes: how many.
        words: command line without the program.

    Returns:
        0, or the exit status of what failed, or of an interrupt.

    Raises:
        InputError: this PyTorch was built without torch.distributed.
    """
    if not dist.is_available():
        raise InputError("This PyTorch has no torch.distributed: leave out --processes.")
    # Slow to import, and not there in every PyTorch.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "3600"  # seconds
    # `-m` would import from the working directory first, which the command `lipdet` does not.
    os.environ["PYTHONSAFEPATH"] = "1"
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="lipdet-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "lipdet", *words)
        except ChildFailedError as error:
            return _status([failure.exitcode for failure in error.failures.values()])
        except SignalException as error:
            return 128 + error.sigval.value
    return 0


def launched() -> bool:
    """Return whether this process is one of those that torchrun, or `launch`, started."""
    return dist.is_available() and dist.is_torchelastic_launched()


def join() -> None:
    """Join the processes that the launcher started, if it did and there are several."""
    global _store
    if not launched():
        return
    _store, number, processes = next(rendezvous("env://"))
    if processes == 1:
        _store = None
        return
    backend = "gloo"
    if torch.cuda.is_available():
        _check_one_gpu_each()
        torch.cuda.set_device(_local_rank())
        backend = "cpu:gloo,cuda:nccl"
    signal.signal(signal.SIGTERM, _told_to_stop)
    with _together():
        dist.init_process_group(
            backend, store=_store, rank=number, world_size=processes, timeout=PATIENCE
        )


def leave() -> None:
    """End the work with the other processes, in order."""
    if size() > 1:
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process; the first, 0, alone writes results."""
    return dist.get_rank() if _grouped() else 0


def size() -> int:
    """Return how many processes work on this run."""
    return dist.get_world_size() if _grouped() else 1


def on_one_machine() -> bool:
    """Return whether all processes see the same temporary files."""
    return size() == int(os.environ.get("LOCAL_WORLD_SIZE", size()))


def own_part(count: int) -> slice:
    """Return this process's part of `count` things, as large as that of any other.

    Raises:
        InputError: they cannot be shared evenly.
    """
    part, left = divmod(count, size())
    if left:
        raise InputError(
            f"A batch of {count} pictures cannot be shared evenly by {size()} processes; choose a "
            f"--batch_size that is a multiple of {size()}."
        )
    return slice(rank() * part, (rank() + 1) * part)


def wait() -> None:
    """Wait until all processes are here."""
    any_of(False)


def any_of(flag: bool) -> bool:
    """Return whether any process says so."""
    if size() == 1:
        return flag
    said = torch.tensor(int(flag))
    with _together():
        dist.all_reduce(said, dist.ReduceOp.MAX)
    return bool(said)


def of_first(value: Value) -> Value:
    """Return the value that process 0 gives."""
    if size() == 1:
        return value
    box = [value if rank() == 0 else None]
    with _together():
        dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def check_same(what: str, value: Any) -> None:
    """Refuse to work on different things together.

    Raises:
        InputError: `value` is not the same everywhere; raised in every process.
    """
    if size() == 1:
        return
    values: list[Any] = [None] * size()
    with _together():
        dist.all_gather_object(values, value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise InputError(
                f"{what} of process {number} ({other}) differ from those of process 0 "
                f"({values[0]}); give every machine the same files."
            )


def made_once(make: Callable[[], Value]) -> Value:
    """Return what every process makes, but the first of each machine before the others.

    For what is kept in a cache on the disk: the others find it there.
    """
    if _local_rank() == 0:
        made = make()
        wait()
        return made
    wait()
    return make()


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each of some tensors of the same kind by its sum over the processes, at once."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _together():
        dist.all_reduce(flat)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


def may_speak() -> bool:
    """Return whether a failure of this process is the first of the run, which the user reads."""
    if _store is None:
        return True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends what is about to end
    try:
        return bool(_store.add("lipdet/failed", 1) == 1)
    except RuntimeError:
        return True  # the launcher itself is gone


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0)) if _grouped() or _store else 0


def _check_one_gpu_each() -> None:
    processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if processes > gpus:
        raise InputError(
            f"{processes} processes were started where there are {gpus} GPUs; start "
            f"{gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES= ."
        )


def _told_to_stop(*_: object) -> None:
    raise LostProcessError


@contextmanager
def _together() -> Iterator[None]:
    """Turn what the backends raise when another process has ended into one error."""
    try:
        yield
    except RuntimeError as error:
        if any(word in str(error) for word in _GONE):
            raise LostProcessError from error
        raise


def _status(codes: Sequence[int]) -> int:
    """Return the status of all that failed: 1 is also how the others end, a signal is negative."""
    return next((code for code in codes if code > 1), 1)
