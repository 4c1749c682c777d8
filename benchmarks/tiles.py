"""What passing a large picture in tiles saves in memory, and costs in time.

    python -m benchmarks.tiles DETECTOR [--side 1000] [--most 2097152 524288 131072]

The weights of a detector with one map on a larger canvas; `--most` is `MOST_PIXELS` of
`lipdet.detector.forward`, so that the first of the default values is one pass at a side of 1000.

Notable choices:
- Processor time of one thread, the least of three passes; memory is how far the process rises
  meanwhile, outputs included.
- The largest difference of any output from the first pass is what rounding leaves.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch

from benchmarks.certify import megabytes
from lipdet.checkpoint import load_detector
from lipdet.detector import build_detector, forward
from lipdet.types import Canvas, RawOutput

PASSES = 3


def main() -> None:
    """Print a row for each number of pixels."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("detector")
    parser.add_argument("--side", type=int, default=1000)
    parser.add_argument("--most", type=int, nargs="+", default=[2**21, 2**19, 2**17])
    options = parser.parse_args()
    torch.set_num_threads(1)
    small = load_detector(options.detector).detector
    canvas = Canvas(options.side, options.side)
    detector = build_detector(replace(small.config, canvas=canvas)).eval()
    detector.load_state_dict(small.state_dict())
    image = torch.rand(1, 3, *canvas, generator=torch.Generator().manual_seed(0))
    print("| pixels that pass at a time | s | MB | difference |\n|---|---|---|---|")
    first: RawOutput | None = None
    for most in options.most:
        forward.MOST_PIXELS = most
        memory = megabytes(lambda: forward.forward(detector, image))
        seconds = []
        for _ in range(PASSES):
            started = time.process_time()
            raw = forward.forward(detector, image)
            seconds.append(time.process_time() - started)
        first = first or raw
        pairs = zip(first, raw, strict=True)
        difference = max(float((one - other).abs().max()) for one, other in pairs)
        print(f"| {most:,} | {min(seconds):.2f} | {memory:.0f} | {difference:.1e} |")


if __name__ == "__main__":
    main()
