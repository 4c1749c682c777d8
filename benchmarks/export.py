"""Size, speed, AP and certificates of exported detectors, next to eager torch.

    python benchmarks/export.py [DETECTOR ...] [--pictures N] [--runs N] [--threads N]

Notable choices:
- Latency is that of one picture on `--threads` threads. All forms take turns in a shuffled order,
  and the fastest run of each counts: what else the machine does only ever adds to a run.
- Files hold raw outputs only; AP is measured with lipdet's own decoding and suppression.
- The certificate of the 8-bit network is conditional: it takes the largest difference from torch
  seen on the pictures as a bound for every perturbed picture, which is an assumption.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lipdet.boxes import AP_SELECTION
from lipdet.certificate.verifier import verifier_of
from lipdet.checkpoint import load_detector, weights_file
from lipdet.detector.forward import Network
from lipdet.evaluate import attacked
from lipdet.evaluate.run import detect_pack
from lipdet.export.onnx_file import export_onnx
from lipdet.export.runtime import OnnxNetwork
from lipdet.export.verify import EPSILON, certified_objects
from lipdet.images.pack import Pack
from lipdet.images.spec import open_data
from lipdet.layers import fold
from lipdet.types import RawOutput

CALIBRATION = 200
# Certificates of more pictures take minutes.
CERTIFIED = 20


def pictures(pack: Pack, count: int) -> Tensor:
    """The first pictures of a pack, (B, 3, S, S) in [0, 1]."""
    return torch.from_numpy(pack.images[:count].copy()).permute(0, 3, 1, 2).float() / 255


def fastest(
    forms: dict[str, Callable[[Tensor], RawOutput]], image: Tensor, runs: int
) -> list[float]:
    """Milliseconds of the fastest run of each form."""
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(runs):
        for name in random.sample(list(forms), len(forms)):
            started = time.perf_counter()
            forms[name](image)
            best[name] = min(best[name], 1000 * (time.perf_counter() - started))
    return list(best.values())


@torch.inference_mode()
def certified(detector: Network, networks: list[Network], pack: Pack) -> list[str]:
    """Per network, the share of objects that its outputs certify at `EPSILON`."""
    images = pictures(pack, CERTIFIED)
    targets = [pack.target(index) for index in range(len(images))]
    verifier = verifier_of(detector, AP_SELECTION, images)
    exact: RawOutput = detector(images)
    if float(verifier.bounds.logits.min()) * EPSILON > float(
        exact.logits.max() - exact.logits.min()
    ):
        return ["none" for _ in networks]
    shares = []
    for network in networks:
        raw = network(images)
        error = max(float((a - b).abs().max()) for a, b in zip(raw, exact, strict=True))
        assumed = dataclasses.replace(verifier, rounding=max(verifier.rounding, error))
        found = certified_objects(assumed, raw, targets, EPSILON)
        shares.append(f"{100 * found.float().mean():.0f} %")
    return shares


def measure(name: str, count: int, runs: int, threads: int) -> None:
    """Print a table of one detector."""
    loaded = load_detector(name)
    detector = loaded.detector
    pack = open_data(f"rendered:{count}", "test", detector.framing)
    calibration = pictures(
        open_data(f"rendered:{CALIBRATION}", "train", detector.framing), CALIBRATION
    )
    images = pictures(pack, 100)
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        export_onnx(loaded, plain, images)
        about = export_onnx(loaded, small, images, calibration=calibration)["int8"]
        sizes = [
            weights_file(name).stat().st_size,
            None,
            plain.stat().st_size,
            small.stat().st_size,
        ]
        opened = [OnnxNetwork(path.read_bytes(), threads) for path in (plain, small)]
    forms = dict(
        zip(
            ("eager torch", "folded torch", "ONNX float32", "ONNX int8"),
            (detector, fold(detector), *opened),
            strict=True,
        )
    )
    with torch.inference_mode():
        times = fastest(forms, images[:1], runs)
    every = range(len(pack))
    found = [detect_pack(network, pack, every, AP_SELECTION) for network in forms.values()]
    aps = [f"{100 * attacked.measure(one, pack)['ap50']:.1f}" for one in found]
    shares = certified(detector, list(forms.values()), pack)
    print(
        f"\n{name}, AP50 on rendered:{count}, certified at ε = {EPSILON:g} on {CERTIFIED} pictures"
    )
    print("| form | file, MB | ms | times faster | AP50 | certified |\n|---|---|---|---|---|---|")
    for form, bytes_, ms, ap, share in zip(forms, sizes, times, aps, shares, strict=True):
        file = f"{bytes_ / 1e6:.2f}" if bytes_ else ""
        print(f"| {form} | {file} | {ms:.2f} | {times[0] / ms:.2f} | {ap} | {share} |")
    for output in RawOutput._fields:
        print(f"int8 {output}: {about[output]}")


def main() -> None:
    """Measure the detectors named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("detectors", nargs="*", default=["naive"])
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.detectors:
        measure(name, options.pictures, options.runs, options.threads)


if __name__ == "__main__":
    main()
