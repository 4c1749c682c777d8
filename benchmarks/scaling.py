"""What several processes gain and cost: processor time per picture, bytes sent, bytes kept.

    torchrun --nproc_per_node 1 benchmarks/scaling.py [DETECTOR]
    torchrun --nproc_per_node 2 benchmarks/scaling.py [DETECTOR]

Certifies rendered house numbers at ε = 0.1 with all processes, and takes a few steps of training.
What is sent in a step is counted at the calls of torch.distributed and must equal what the tensors
of the detector say; the script fails where it does not.

Notable choices:
- Processor time is added over the processes: unlike wall time it says the same on a busy machine.
- Pooled memory is the growth of the process's peak while AP is computed of many repeated pictures.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lipdet import distributed
from lipdet.checkpoint import load_detector
from lipdet.config import PRESETS
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.certified import certificate_pass, certified_results, chunk_to_tensors
from lipdet.evaluate.chunks import State, in_order
from lipdet.evaluate.run import clean_pass
from lipdet.images.pack import Pack, open_pack
from lipdet.images.spec import open_data
from lipdet.train import Trainer, set_up
from lipdet.train.job import Job

PICTURES, EPSILON = 128, 0.1
STEPS, BATCH = 2, 32
REPEATED = 50
TRAINED = ("naive", "certified")


def processor(step: Callable[[], object]) -> float:
    """Processor seconds of one call, added over all processes."""
    started = time.process_time()
    step()
    return added(time.process_time() - started)


def added(value: float) -> float:
    """The sum over all processes."""
    if distributed.size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def show(what: str, figure: str) -> None:
    """Print one line, in the first process."""
    if distributed.rank() == 0:
        print(f"{what:58} {figure}", flush=True)


@contextmanager
def counted() -> Iterator[list[int]]:
    """The bytes of every tensor that is added over the processes meanwhile."""
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counting(tensor: torch.Tensor, *others: Any) -> Any:
        sent.append(tensor.nbytes)
        return all_reduce(tensor, *others)

    dist.all_reduce = counting
    try:
        yield sent
    finally:
        dist.all_reduce = all_reduce


def bytes_of_step(detector: nn.Module) -> int:
    """What each process hands over in a step: gradients, three sums, one flag, batch statistics."""
    gradients = sum(parameter.nbytes for parameter in detector.parameters())
    channels = [
        module.num_features for module in detector.modules() if isinstance(module, nn.BatchNorm2d)
    ]
    # Mean and variance of each channel, forward and backward, in float32.
    return gradients + 3 * 4 + 8 + sum(4 * 4 * count for count in channels)


def training(name: str, pack: Pack) -> None:
    """Processor time and bytes of a step."""
    preset = PRESETS[name]
    settings = replace(preset.train, batch_size=BATCH, precision="float32", validation_share=0.0)
    job = Job(name, preset.detector, settings, (str(pack.folder),), ())
    trainer = Trainer(set_up(job), Path())
    trainer.step(0, 0)
    with counted() as sent:
        trainer.step(0, 1)
        distributed.any_of(False)
    if distributed.size() > 1:
        expected = bytes_of_step(trainer.state.detector)
        assert sum(sent) == expected, f"{sum(sent)} bytes were sent, not {expected}"
        show(f"{name}: sent by each process in a step", f"{expected:,} B in {len(sent)} calls")

    def steps() -> None:
        for index in range(STEPS):
            trainer.step(0, 2 + index)

    seconds = processor(steps) / STEPS / BATCH
    loading = processor(lambda: [trainer.load(0, index) for index in range(STEPS)]) / STEPS / BATCH
    show(f"{name}: training, processor", f"{1e3 * seconds:.2f} ms per picture of the batch")
    show(f"{name}: of that, loading", f"{1e3 * loading:.2f} ms per picture of the batch")


def evaluation(name: str, pack: Pack, state: Path) -> None:
    """Processor time of the shared and of the summing part, bytes sent and kept."""
    detector, epsilons = load_detector(name).detector, [EPSILON]
    kept = State.of(state, detector)
    clean, certificates = (
        clean_pass(detector, pack, kept),
        certificate_pass(detector, pack, epsilons, kept),
    )
    detecting = processor(clean.share) / len(pack)
    show("detecting, processor", f"{1e3 * detecting:.2f} ms per picture")
    first = processor(certificates.share)
    # Again, with what the first call has set up.
    own = certificates._chunks()[distributed.rank() :: distributed.size()]
    again = processor(lambda: [certificates.compute(chunk) for chunk in own])
    setting_up = (first - again) / distributed.size()
    show("constants and rounding, once per process, processor", f"{setting_up:.2f} s")
    show("certifying, processor", f"{1e3 * again / len(pack):.2f} ms per picture")
    with counted() as sent:
        distributed.wait()
    show("sent by each process to say that it is done", f"{sum(sent)} B")
    if distributed.rank() == 0:
        summing(detector, pack, kept)
    distributed.wait()


def summing(detector: Any, pack: Pack, state: State) -> None:
    """What the first process does alone, per picture."""
    for folder in ("clean", "certificates"):
        kept = sum(file.stat().st_size for file in state.folder.glob(f"{folder}/*/*"))
        show(f"files of {folder}", f"{kept / len(pack):.0f} B per picture")
    started = time.process_time()
    certified_results(detector, pack, [EPSILON], state)
    show("summing certificates, processor", f"{_per(started, len(pack)):.3f} ms per picture")
    chunks = certificate_pass(detector, pack, [EPSILON], state).results()
    held = sum(tensor.nbytes for chunk in chunks for tensor in chunk_to_tensors(chunk).values())
    show("certificates in memory", f"{held / len(pack):.0f} B per picture")
    found = in_order(clean_pass(detector, pack, state).results())
    count = sum(len(one["scores"]) for one in found)
    show("detections above 0.01", f"{count / len(pack):.2f} per picture")
    targets = [pack.target(index) for index in range(len(pack))] * REPEATED
    # Linux forgets the peak so far, which certifying left behind.
    Path("/proc/self/clear_refs").write_text("5")
    before, started = peak(), time.process_time()
    average_precision(targets, found * REPEATED, pack.class_names)
    grown = peak() - before
    show("AP, processor", f"{_per(started, len(targets)):.3f} ms per picture")
    show("AP, peak memory", f"{1024 * grown / len(targets):.0f} B per picture")
    started = time.process_time()
    open_pack(pack.folder)
    speed = pack.images.nbytes / (time.process_time() - started) / 1e6
    show("opening and hashing a pack", f"{speed:.0f} MB/s, {pack.images[0].nbytes} B per picture")


def peak() -> int:
    """The largest memory of this process so far, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _per(started: float, pictures: int) -> float:
    return 1e3 * (time.process_time() - started) / pictures


def main() -> None:
    """Print the table of this number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector", nargs="?", default="certified")
    name = parser.parse_args().detector
    distributed.join()
    show("processes", str(distributed.size()))
    show("starting and importing, once per process, processor", f"{time.process_time():.2f} s")
    framing = load_detector(name).framing
    pack = distributed.made_once(lambda: open_data(f"rendered:{PICTURES}", "test", framing))
    for preset in TRAINED:
        training(preset, pack)
    with tempfile.TemporaryDirectory() as own:
        evaluation(name, pack, Path(distributed.of_first(own)))
    distributed.leave()


if __name__ == "__main__":
    main()
