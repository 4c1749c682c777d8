"""Training speed of a preset: images per second, where the time goes, and the bare network.

    python benchmarks/training_speed.py naive certified [--steps 200]

Of each preset the whole loop (loading, augmentation, matching, loss, optimizer, averaging, logging)
is compared with forward and backward of the same network alone, on one fixed batch, in the same
process; and the time a picture takes with that of the first preset.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from lipdet.config import PRESETS
from lipdet.detector import build_detector
from lipdet.hardware import chosen_device, computes_in_bf16, keep_freed_memory
from lipdet.train import train
from lipdet.train.job import Job

WARM_UP = 2  # log entries of 20 steps, or bare steps, that are not counted


def loop(name: str, steps: int) -> list[dict[str, float]]:
    """The log entries of a training of so many steps."""
    chosen = PRESETS[name]
    pictures = 1280
    settings = replace(
        chosen.train, epochs=-(-steps * chosen.train.batch_size // pictures), validation_share=0.0
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(Job(name, chosen.detector, settings, (f"rendered:{pictures}",), ()), run)
        lines = (run / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][WARM_UP:]


def bare(name: str, steps: int) -> float:
    """Images per second of forward and backward alone."""
    device, batch = chosen_device(), PRESETS[name].train.batch_size
    detector = build_detector(PRESETS[name].detector).to(device, memory_format=torch.channels_last)
    images = torch.rand(batch, 3, 74, 74, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, computes_in_bf16(device)):
            raw = detector(images)
        (raw.logits.float().square().mean() + raw.offsets.float().square().mean()).backward()
        detector.zero_grad()
        seconds.append(time.perf_counter() - started)
    return batch / statistics.median(seconds[WARM_UP:])


def main() -> None:
    """Print the two speeds of each preset, their ratios and the loop's shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=["naive"])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    keep_freed_memory()
    first = 0.0
    for name in options.presets:
        entries = loop(name, options.steps)
        speed = statistics.median(entry["images_per_second"] for entry in entries)
        first = first or speed
        alone = bare(name, options.steps // 4)
        print(f"{name}: loop {speed:.0f} images/s; forward+backward alone {alone:.0f} images/s;")
        print(f"ratio loop/alone {speed / alone:.2f}")
        print(f"time for a picture, {options.presets[0]} = 1: {first / speed:.2f}")
        for part in ("load", "forward", "loss", "backward", "update"):
            print(f"  {part}: {statistics.median(entry[f'share_{part}'] for entry in entries):.1%}")


if __name__ == "__main__":
    main()
