"""YOLO detectors of the package ultralytics, behind torchvision's protocol.

The package (AGPL-3.0) is the user's to install; nothing of it is part of lipdet.
docs/your-own-detector.md has what a user sees.

Notable choices:
- Detections are those of its own validation: its NMS per class, with its thresholds.
- The network is in eval mode for losses too: its normalisation keeps its statistics, and its heads
  pass gradients to the picture that they cut off in training.
- A side that is no multiple of the stride is rounded up, as ultralytics does.
- A `.pt` file is a pickle. It is read with torch's `weights_only`, restricted to the classes that
  ultralytics lists; there is no way around that.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lipdet.errors import InputError
from lipdet.types import Canvas, Target

PREFIX = "ultralytics:"
# What `yolo val` counts: scores above, overlaps up to, and so many of a picture.
FLOOR, OVERLAP, MOST = 0.001, 0.7, 300
# The side of its pictures, where a file does not say.
SIDE = 640


def load_yolo(file: str) -> nn.Module:
    """Return a YOLO that follows torchvision's protocol, in eval mode.

    Args:
        file: weights (.pt) that ultralytics wrote, or a model (.yaml) of its own or the user's,
            whose weights are then random.

    Raises:
        InputError: ultralytics is not installed, the file is missing or none of its, or what is in
            it is no YOLO that detects boxes.
    """
    # It prints on the stream that our json goes to, and would install packages of its own accord.
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    # It replaces how all pictures are opened.
    opens = Image.open
    try:
        tasks = importlib.import_module("ultralytics.nn.tasks")
        heads = importlib.import_module("ultralytics.nn.modules.head")
        defaults = vars(importlib.import_module("ultralytics.utils").DEFAULT_CFG)
    except ImportError as error:
        raise InputError(
            f"{PREFIX}{file} needs a package that cannot be imported ({error}): pip install "
            "ultralytics (its licence is AGPL-3.0)."
        ) from None
    finally:
        Image.open = opens
    read = {".pt": _from_weights, ".yaml": _from_yaml}.get(Path(file).suffix)
    if read is None:
        raise InputError(f"{PREFIX}{file}: name a .pt or .yaml file of ultralytics.")
    model, trained = read(file, tasks)
    detects = type(model) is tasks.DetectionModel
    if not detects or type(model.model[-1]) not in (heads.Detect, heads.v10Detect):
        raise InputError(
            f"{PREFIX}{file} holds {type(model).__name__}, no YOLO that detects boxes."
        )
    # The weights of its losses.
    model.args = SimpleNamespace(**{**defaults, **trained})
    return Yolo(model.float(), trained.get("imgsz", SIDE)).eval()


class Yolo(nn.Module):
    """A `DetectionModel` of ultralytics as torchvision's detectors behave.

    Attributes:
        image_size: side of its pictures, or [height, width].
        network: the part from pixels to the maps of its heads, for audits.
        class_names: where the model has names and not numbers.
    """

    def __init__(self, model: Any, image_size: int | Sequence[int]) -> None:
        super().__init__()
        self.model = model
        stride = int(model.stride.max())
        self.image_size = (-(-torch.tensor(image_size) // stride) * stride).tolist()
        self.network = PixelsToMaps(model)
        # Older files have a list.
        named = model.names if isinstance(model.names, dict) else dict(enumerate(model.names))
        names = [named[label] for label in sorted(named)]
        numbers = [str(label) for label in range(len(names))]
        self.class_names = None if names == numbers else names
        nms = importlib.import_module("ultralytics.utils.nms")
        self._suppress = nms.non_max_suppression

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> list[dict[str, Tensor]] | dict[str, Tensor]:
        """Detect in images (3, H, W) in [0, 1], or return losses if there are targets."""
        batch = torch.stack(list(images))
        # Whatever mode whoever asks for losses has put it in.
        output = self.model.eval()(batch)
        if targets is not None:
            return self._losses(output, targets, batch)
        found = self._suppress(
            output,
            FLOOR,
            OVERLAP,
            multi_label=True,
            max_det=MOST,
            nc=self.model.model[-1].nc,
            end2end=self.model.end2end,
        )
        return [_detections(one, batch.shape[2:]) for one in found]

    def _losses(self, output: Any, targets: Sequence[Target], batch: Tensor) -> dict[str, Tensor]:
        height, width = batch.shape[2:]
        boxes = torch.cat([one["boxes"] for one in targets]).to(batch)
        corners, opposite = boxes[:, :2], boxes[:, 2:]
        middles = torch.cat([(corners + opposite) / 2, opposite - corners], 1)
        counts = torch.tensor([len(one["labels"]) for one in targets])
        wanted = {
            "batch_idx": torch.arange(len(targets)).repeat_interleave(counts).to(batch),
            "cls": torch.cat([one["labels"] for one in targets]).to(batch) - 1,
            "bboxes": middles / middles.new_tensor([width, height, width, height]),
        }
        (place, classes, distance), _ = self.model.init_criterion()(output, wanted)
        return {"classification": classes, "box_regression": place + distance}


def _detections(found: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
    """Return rows x1, y1, x2, y2, score, class as torchvision does.

    Boxes without area, which heads without NMS may put out, are left out.
    """
    boxes = found[:, :4].clamp(min=0).minimum(found.new_tensor(Canvas(*size).limits))
    there = (boxes[:, 2:] > boxes[:, :2]).all(1)
    scores, labels = found[there, 4], found[there, 5].long() + 1
    return {"boxes": boxes[there], "scores": scores, "labels": labels}


class PixelsToMaps(nn.Module):
    """Pixels (1, 3, H, W) to the maps of boxes and of classes that a YOLO's head ends with.

    Box decoding and NMS behind them have no constant.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layers = model.model[:-1]
        head: Any = model.model[-1]
        branch = head.one2one if model.end2end else head.one2many
        self.heads = nn.ModuleList([*branch["box_head"], *branch["cls_head"]])
        self._read_by_heads = head.f

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of all levels, boxes first."""
        x: Any = images
        kept: list[Any] = []
        for layer in list(self.layers):
            # -1 is the layer before.
            if isinstance(layer.f, int):
                x = x if layer.f == -1 else kept[layer.f]
            else:
                x = [x if index == -1 else kept[index] for index in layer.f]
            x = layer(x)
            kept.append(x)
        maps = [kept[index] for index in self._read_by_heads]
        return [head(one) for head, one in zip(self.heads, maps + maps, strict=True)]


def _from_weights(file: str, tasks: Any) -> tuple[Any, dict[str, Any]]:
    """Return the model of a weights file and how it was trained."""
    if not Path(file).is_file():
        raise InputError(f"{file} is no file; nothing is downloaded here.")
    try:
        stored, _ = tasks.torch_safe_load(file, safe_only=True)
    except AttributeError:  # It takes what is no dictionary for an object with a model.
        stored = {}
    except (OSError, TypeError, RuntimeError, ImportError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file} cannot be read without running code that it names, or by this version of "
            f"ultralytics ({reason})."
        ) from None
    model = stored.get("ema") or stored.get("model")
    if model is None or isinstance(model, dict):
        raise InputError(
            f"{file} stores no model, at most weights without one; give the .pt file that "
            "ultralytics wrote as it trained."
        )
    return model, dict(stored.get("train_args") or {})


def _from_yaml(file: str, tasks: Any) -> tuple[Any, dict[str, Any]]:
    """Return a model with random weights, the same ones each time."""
    if "://" in file:
        raise InputError(f"{file} is no file; nothing is downloaded here.")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            return tasks.DetectionModel(file, verbose=False), {}
        except Exception as error:  # Whatever a model file that makes no sense leads to.
            raise InputError(f"{file} describes no model of ultralytics ({error}).") from None
