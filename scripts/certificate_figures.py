"""The pictures of docs/certificates.md, from rendered numbers only.

    python scripts/certificate_figures.py certified certified-margin-1 certified-small

The first detector's certificates are drawn on two pictures, and what they fail at is shown; all
detectors are compared by what they certify at rising ε. It takes a few minutes.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from PIL import Image

from lipdet.boxes.coding import pairwise_iou
from lipdet.certificate.geometry.box_range import BoxRange
from lipdet.certificate.geometry.iou_bounds import min_iou_fixed
from lipdet.certificate.verifier import verifier_of
from lipdet.checkpoint import LoadedDetector, load_detector
from lipdet.evaluate.certified import certified_results
from lipdet.images.crop import Region
from lipdet.images.pack import Pack
from lipdet.images.spec import open_data
from lipdet.reading import certified, look
from lipdet.reading.marks import contact_sheet, draw_certificates
from lipdet.report.figures import plot_reasons
from lipdet.report.style import Drawing, colour, marker, new_figure, save_drawing, styled

SHOWN = (0.1, 0.25)
EPSILONS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


def certificates(loaded: LoadedDetector, pack: Pack, chosen: Sequence[int]) -> Image.Image:
    """Some pictures with what is certified in them."""
    detector, names = loaded.detector, pack.class_names
    verifier = verifier_of(detector, detector.display)
    drawn = []
    for index in chosen:
        image = Image.fromarray(pack.images[index])
        square = Region(0, 0, *image.size)
        [found] = certified(look(detector, names, image, [square]), verifier)
        drawn.append(draw_certificates(image, found.detections))
    return contact_sheet(drawn, len(drawn))


@styled
def plot_worst_box() -> Drawing:
    """One uncertain box, its 16 vertices, and the one that overlaps the object least."""
    truth = torch.tensor([[20.0, 12, 40, 52]], dtype=torch.float64)
    middle = torch.tensor([31.0, 33, 21, 41], dtype=torch.float64)
    reach = torch.tensor([3.0, 4, 3.5, 6], dtype=torch.float64)
    ends = torch.stack([middle - reach, middle + reach])
    vertices = _corners(
        torch.stack(
            [ends[list(choice), range(4)] for choice in itertools.product((0, 1), repeat=4)]
        )
    )
    overlaps = pairwise_iou(vertices, truth)[:, 0]
    worst = int(overlaps.argmin())
    bound = float(min_iou_fixed(BoxRange(ends[:1], ends[1:]), truth))
    clean = float(pairwise_iou(_corners(middle[None]), truth))
    figure, axes = new_figure(height=3.0)
    for vertex in vertices:
        _rectangle(axes, vertex, edgecolor="#999999", linewidth=0.7)
    _rectangle(axes, truth[0], facecolor=colour(2), alpha=0.25, label="object")
    _rectangle(
        axes, _corners(middle[None])[0], edgecolor=colour(0), linewidth=2,
        label=f"box as detected, IoU {clean:.2f}",
    )  # fmt: skip
    _rectangle(
        axes, vertices[worst], edgecolor=colour(1), linewidth=2, linestyle="--",
        label=f"worst box, IoU {bound:.2f}",
    )  # fmt: skip
    axes.set(xlim=(14, 49), ylim=(62, 4), aspect="equal", xlabel="pixels", ylabel="pixels")
    axes.grid(False)
    axes.plot([], [], color="#999999", linewidth=0.7, label="other vertices")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Drawing(
        "worst-box",
        figure,
        "",
        f"A box whose centre and sides are uncertain: as detected it has IoU {clean:.2f} with the "
        f"object, at its worst vertex {bound:.2f}.",
    )


def _corners(boxes: torch.Tensor) -> torch.Tensor:
    """Centres and sides (N, 4) to xyxy."""
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


def _rectangle(axes: Axes, box: torch.Tensor, **look: Any) -> None:
    left, top, right, bottom = box.tolist()
    if "facecolor" not in look:
        look["fill"] = False
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **look))


@styled
def plot_recall(results: Sequence[dict[str, Any]]) -> Drawing:
    """Certified recall of detectors at rising ε, and that of the weaker promise."""
    figure, axes = new_figure(height=3.2)
    for index, result in enumerate(results):
        epsilons = [entry["epsilon"] for entry in result["certified"]]
        for key, line in (("recall", "-"), ("vanish_recall", ":")):
            shares = [entry[key] for entry in result["certified"]]
            axes.plot(
                epsilons, shares, line, color=colour(index), marker=marker(index),
                markersize=4 if line == "-" else 0,
                label=result["weights"] if line == "-" else None,
            )  # fmt: skip
    axes.plot([], [], ":", color="#222222", label="a box of any class stays")
    axes.set(xlabel="ε (L2)", ylabel="certified recall", ylim=(0, 1), xlim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend()
    told = (
        f"{result['weights']}: "
        + ", ".join(
            f"{100 * entry['recall']:.0f} ({100 * entry['vanish_recall']:.0f}) at "
            f"{entry['epsilon']:g}"
            for entry in result["certified"]
        )
        for result in results
    )
    alternative = "Certified recall in percent, of any class in brackets, " + "; ".join(told) + "."
    return Drawing("certified-recall", figure, "", alternative)


def main() -> None:
    """Write all four, and print what can be read off them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detectors", nargs="+")
    parser.add_argument("--data", default="rendered:200")
    parser.add_argument("--pictures", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    loaded = [load_detector(name) for name in options.detectors]
    pack = open_data(options.data, "test", loaded[0].framing)
    sheet = certificates(loaded[0], pack, options.pictures)
    sheet.save(options.out / "certified-boxes.png", optimize=True)
    results: list[dict[str, Any]] = [
        {
            "weights": one.name,
            "data": pack.describe(),
            "certified": certified_results(one.detector, pack, EPSILONS)[1],
        }
        for one in loaded
    ]
    first = [entry for entry in results[0]["certified"] if entry["epsilon"] in SHOWN]
    reasons = plot_reasons({**results[0], "certified": first})
    assert reasons is not None
    for drawing in (
        plot_worst_box(),
        plot_recall(results),
        reasons._replace(name="certificate-fails"),
    ):
        for file in save_drawing(drawing, options.out):
            if file.suffix == ".svg":
                file.unlink()
        print(f"{drawing.name}: {drawing.alternative}")


if __name__ == "__main__":
    main()
