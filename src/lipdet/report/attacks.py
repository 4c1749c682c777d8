"""What attacks did, as tables and figures."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from rich.table import Table
from torch import Tensor

from lipdet.report.overlay import contact_sheet, draw_detections
from lipdet.report.table import percent
from lipdet.results import EvaluationResult
from lipdet.types import Detections

CAPTION = 24


def attacked_table(result: EvaluationResult) -> Table:
    """AP and recall under each attack of one result of `lipdet eval`."""
    table = Table(title=f"{result['weights']} under attack, percent")
    for column in ("ε", "attack", "objective", "steps", "restarts", "AP50", "AP", "recall"):
        table.add_column(column, justify="left" if column in ("attack", "objective") else "right")
    for entry in result["attacked"]:
        figures = [percent(entry[name]) for name in ("ap50", "ap", "recall")]
        table.add_row(
            f"{entry['epsilon']:g}",
            f"{entry['attack']} ({entry['norm']})",
            entry.get("objective", "all, the lowest"),
            str(entry["steps"]),
            str(entry["restarts"]),
            *figures,
        )
    return table


def attack_panel(
    clean: Tensor,
    attacked: Tensor,
    found: tuple[Detections, Detections],
    class_names: Sequence[str],
) -> Image.Image:
    """Clean picture, attacked picture and their difference side by side, with captions.

    Args:
        clean: (3, S, S) in [0, 1].
        attacked: (3, S, S) in [0, 1].
        found: detections on each.
        class_names: names in the order of the labels.
    """
    difference = attacked - clean
    gain = 0.5 / max(float(difference.abs().max()), 1e-9)
    # Down to one digit, for the caption.
    gain = float(f"{gain:.0e}") if gain < 1e6 else 1.0
    panels = [
        (draw_detections(to_picture(clean), found[0], class_names), "clean"),
        (draw_detections(to_picture(attacked), found[1], class_names), "attacked"),
        (
            draw_detections(to_picture(0.5 + gain * difference), _none(found[0]), class_names),
            f"difference x {gain:g}, L2 {float(difference.norm()):.3f}",
        ),
    ]
    return contact_sheet([_captioned(picture, text) for picture, text in panels], columns=3)


def to_picture(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] as an 8-bit RGB picture; what lies outside is clipped."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def _none(like: Detections) -> Detections:
    return Detections(boxes=like["boxes"][:0], labels=like["labels"][:0], scores=like["scores"][:0])


def _captioned(picture: Image.Image, text: str) -> Image.Image:
    canvas = Image.new("RGB", (picture.width, picture.height + CAPTION), "white")
    canvas.paste(picture, (0, CAPTION))
    ImageDraw.Draw(canvas).text((2, 2), text, "black", ImageFont.load_default(CAPTION - 8))
    return canvas
