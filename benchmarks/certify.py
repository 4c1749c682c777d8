"""What certifying costs beside plain detection, and how it grows with the number of candidates.

    python benchmarks/certify.py DETECTOR [--data rendered:64] [--epsilon 0.1] [--plot FILE]
    torchrun --nproc_per_node 2 benchmarks/certify.py DETECTOR --wall

Plain detection is forward pass, decoding and NMS; certifying is all that `lipdet eval --certify`
computes of a batch at one ε on top: certified AP and recall at ten IoU thresholds, what stays of
the objects that are not certified, and which condition fails. The second table replaces the
detector's outputs by random ones with a given number of candidates per image.

Notable choices:
- Processor time, not wall time: another process on the machine must not count. On a free machine
  `--wall` shows what several threads gain, which is more for detection than for certifying.
- Several processes, like those of `lipdet eval --processes`, each have a batch and do the same at
  the same time. What counts is until the last is done, over the pictures of all.
- The median of several rounds, in which detection and certificate take turns.
- Memory is how far the process rises above what it holds before, while one batch is certified. The
  kernel forgets the peak (`/proc/self/clear_refs`) and the allocator returns what is free before
  each count, so that nothing is left of the count before; Linux with glibc only.
- Exponents are slopes of least-squares lines through logarithms: 1 is linear.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lipdet import distributed
from lipdet.boxes import AP_SELECTION, select_detections
from lipdet.boxes.scores import logit
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import load_detector
from lipdet.detector.forward import BATCH_SIZE, raw_output
from lipdet.evaluate.certified import certify_batch
from lipdet.hardware import keep_freed_memory
from lipdet.images.spec import open_data
from lipdet.layers import fold
from lipdet.types import RawOutput, Target

CANDIDATES = (100, 200, 500, 1000, 2000)
ROUNDS = 5


def seconds(step: Callable[[], object], clock: Callable[[], float]) -> float:
    """Time of one call, of the slowest of all processes."""
    distributed.wait()
    started = clock()
    step()
    return slowest(clock() - started)


def slowest(value: float) -> float:
    """The largest over all processes."""
    if distributed.size() == 1:
        return value
    largest = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def with_candidates(raw: RawOutput, verifier: Verifier, count: int, epsilon: float) -> RawOutput:
    """Outputs in which `count` pairs of each image exceed the floor at ε, chosen at random."""
    scores = verifier.decoder.scores
    floor = logit(verifier.selection.score_floor) / getattr(scores, "temperature", 1.0)
    lowest = float((floor - epsilon * verifier.bounds.logits).min())
    logits = torch.full_like(raw.logits, lowest - 0.5)
    for image in logits:
        chosen = torch.randperm(image.numel())[:count]
        image.view(-1)[chosen] = floor + torch.rand(count) * 0.1
    return RawOutput(logits, raw.offsets)


def megabytes(step: Callable[[], object]) -> float:
    """How far one call raises the memory of the process."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """Kilobytes, of an entry of the process's own status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def exponent(counts: Sequence[int], values: Sequence[float]) -> float:
    """The power of the count that the values follow."""
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def plot(
    counts: Sequence[int], times: Sequence[float], memory: Sequence[float], file: Path
) -> None:
    """Milliseconds and megabytes per image against candidates per image."""
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {"certifying, ms per image": times, "memory, MB per image": memory}
    for axes, (label, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        axes.loglog(counts, values, marker="o")
        linear = [values[-1] * count / counts[-1] for count in counts]
        axes.loglog(counts, linear, color="grey", linestyle=":", label="linear")
        axes.set_xlabel("candidates per image")
        axes.set_ylabel(label)
        axes.set_title(f"exponent {exponent(counts, values):.2f}", fontsize="medium")
        axes.grid(which="both", alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=150)


def show(line: str) -> None:
    """Print one line, in the first process."""
    if distributed.rank() == 0:
        print(line, flush=True)


def print_cost(
    detect: Callable[[], object],
    raw: RawOutput,
    verifier: Verifier,
    targets: Sequence[Target],
    epsilons: Sequence[float],
    clock: Callable[[], float],
) -> None:
    """The table of certifying beside detection at each ε."""
    scale = 1000 / (len(targets) * distributed.size())
    show("| ε | candidates | detection, ms | certifying, ms | ratio |")
    show("|---|---|---|---|---|")
    for epsilon in epsilons:
        count = len(verifier.candidates(raw, epsilon).group)
        step = functools.partial(certify_batch, verifier, raw, targets, epsilon)
        step()
        pairs = [(seconds(detect, clock), seconds(step, clock)) for _ in range(ROUNDS)]
        plain, own = (statistics.median(column) for column in zip(*pairs, strict=True))
        show(
            f"| {epsilon:g} | {count / len(targets):.0f} | {scale * plain:.2f} "
            f"| {scale * own:.2f} | {own / plain:.2f} |"
        )


def print_growth(
    raw: RawOutput,
    verifier: Verifier,
    targets: Sequence[Target],
    clock: Callable[[], float],
    file: Path | None,
) -> None:
    """The table of time and memory against the number of candidates, and its plot."""
    print("\n| candidates | certifying, ms | memory, MB |")
    print("|---|---|---|")
    times, memory = [], []
    for count in CANDIDATES:
        changed = with_candidates(raw, verifier, count, 0.05)
        step = functools.partial(certify_batch, verifier, changed, targets, 0.05)
        memory.append(megabytes(step) / len(targets))
        middle = statistics.median(seconds(step, clock) for _ in range(ROUNDS))
        times.append(1000 * middle / len(targets))
        print(f"| {count} | {times[-1]:.2f} | {memory[-1]:.2f} |")
    powers = (exponent(CANDIDATES, values) for values in (times, memory))
    print("exponents: time {:.2f}, memory {:.2f}; per image".format(*powers))
    if file:
        plot(CANDIDATES, times, memory, file)


def main() -> None:
    """Print both tables; several processes print the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector")
    parser.add_argument("--data", default=f"rendered:{BATCH_SIZE}")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.05, 0.1, 0.25])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--wall", action="store_true", help="wall time, on a free machine")
    options = parser.parse_args()
    distributed.join()
    keep_freed_memory()  # as evaluation does
    clock = time.perf_counter if options.wall else time.process_time
    torch.manual_seed(0)
    detector = load_detector(options.detector).detector
    pack = distributed.made_once(lambda: open_data(options.data, "test", detector.framing, 0)).head(
        BATCH_SIZE
    )
    images = pack.pixels(range(len(pack)))
    targets = [pack.target(index) for index in range(len(pack))]
    verifier = verifier_of(detector, AP_SELECTION, images)
    network = fold(detector).eval().to(memory_format=torch.channels_last)
    raw = raw_output(detector, images)

    def detect() -> None:
        with torch.inference_mode():
            select_detections(network(images), detector.decoder, AP_SELECTION)

    show(
        f"processes: {distributed.size()}, each with a batch of {len(pack)} and threads: "
        f"{torch.get_num_threads()}; {'wall' if options.wall else 'processor'} time per image"
    )
    print_cost(detect, raw, verifier, targets, options.epsilon, clock)
    if distributed.size() == 1:
        print_growth(raw, verifier, targets, clock, options.plot)
    distributed.leave()


if __name__ == "__main__":
    main()
