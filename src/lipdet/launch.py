"""Start the command again in several processes of this machine, as torchrun would.

Notable choices:
- The launcher of torchrun, but without its log and its table of exit codes: a mistake stays one
  sentence and keeps its exit status.
- The processes divide the threads that this one would have had.
- They meet at 127.0.0.1: the machine's own name need not resolve.
- After an interrupt they have an hour, not torchrun's half a minute, to end the validation at hand
  and save their state.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence

import torch
import torch.distributed as dist

from lipdet.errors import InputError


def launch(processes: int, words: Sequence[str]) -> int:
    """Run `lipdet WORDS` in several processes; they join each other by `distributed.join`.

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


def _status(codes: Sequence[int]) -> int:
    """Of all that failed: 1 is also how the others end, and a signal that killed is negative."""
    return next((code for code in codes if code > 1), 1)
