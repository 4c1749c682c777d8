"""Detectors with torchvision's protocol (SSD, SSDlite, RetinaNet, Faster R-CNN, …), of any make.

docs/your-own-detector.md has the protocol in full.

Notable choices:
- Labels of the module count from 1, as torchvision's do; everything here counts from 0.
- `demote`, `mislabel`, `vanish` and `fabricate` look at the detections that the model returns as it
  is evaluated; scores must have a gradient, and where boxes have one, `demote` moves them, too.
- Attacks on losses are left out where a module has none, unless one was asked for.
- The losses exist in training mode only. The modules are then in training mode, except layers,
  which would behave differently on the same image: normalisation, dropout, random resizing.
- Images pass one by one, so that no image depends on its companions, and as copies, which the model
  may change.
- Faster R-CNN samples proposals at random in training; the sampling is seeded alike for every call.
- The model's own resizing is part of the model: epsilon counts in the pixels that are given to it.
- A tiny box in the corner looks like shares of the picture. So boxes are refused as shares while no
  larger one has been seen in any picture, and never afterwards.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lipdet.attack.gradient import attack_batch
from lipdet.attack.loop import Objective, OnStep
from lipdet.attack.objectives import GONE, ON_PREDICTIONS, PredictionObjective, Predictions
from lipdet.attack.settings import AttackSettings
from lipdet.boxes import AP_SELECTION, DISPLAY_SELECTION, Selection
from lipdet.config import DIGIT_CROP
from lipdet.detector.forward import frozen
from lipdet.detector.matching import pad_targets
from lipdet.errors import InputError
from lipdet.progress import console
from lipdet.types import Canvas, Detections, Framing, Target, ignored_of

# Words in the names of torchvision's losses; `multibox` is the sum of all.
LOSSES = {
    "multibox": ("",),
    "classification": ("classif", "objectness"),
    "localisation": ("regression", "box_reg"),
}
# Shares of a picture, overhang included, lie within so many pixels of its corner.
LARGEST_SHARE = 2
# A score in float32 this close to 0 or 1 has no gradient left.
SATURATED = 1e-7


@dataclass(eq=False)
class ForeignDetector:
    """A detector that lipdet did not build: detects and is attacked, image by image.

    Nothing is certified: no theorem here speaks of box decoding that lipdet does not do itself.

    Attributes:
        name: as the user gave it.
        module: in eval mode.
        framing: how pictures get onto its canvas.
        class_names: in the order of its labels; None if it does not say.
        in_pixels: whether a box was returned that cannot be a share of a picture.
    """

    name: str
    module: nn.Module
    framing: Framing
    class_names: tuple[str, ...] | None
    in_pixels: bool = False
    at_once = 1
    display = DISPLAY_SELECTION

    @classmethod
    def of(cls, name: str, module: nn.Module) -> ForeignDetector:
        """Take a module with what it says about itself.

        Raises:
            InputError: its `image_size` is no size, or its `class_names` are no names.
        """
        size = getattr(module, "image_size", DIGIT_CROP)
        try:
            sides = tuple(size) if isinstance(size, Iterable) else (size, size)
            canvas = Canvas(*map(operator.index, sides))
        except TypeError:
            canvas = Canvas(0, 0)
        if min(canvas) < 1:
            raise InputError(
                f"The image_size of {name} must be a whole number, or height and width, of 1 or "
                f"more, not {size!r}."
            )
        names = getattr(module, "class_names", None)
        if names is not None:
            listed = isinstance(names, Sequence) and not isinstance(names, str)
            if not (listed and all(isinstance(one, str) for one in names)):
                raise InputError(
                    f"The class_names of {name} must be a list of strings, not {names!r}."
                )
            names = tuple(names)
        return cls(name, module, Framing(canvas, whole=None), names)

    @property
    def detector(self) -> ForeignDetector:
        """Itself, which is attacked and detects in place of an `SSD`."""
        return self

    @property
    def device(self) -> torch.device:
        """Return the device it computes on."""
        parameter = next(self.module.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def detect(self, images: Tensor, selection: Selection) -> list[Detections]:
        """Detect on images (B, 3, H, W) in [0, 1], best first; return to the CPU.

        For AP all that the module returns counts; of that, other selections take a part.

        Raises:
            InputError: the module does not follow the protocol.
        """
        with frozen(self.module), torch.no_grad():
            found = [self._checked(self._found(image)) for image in images.to(self.device)]
        self._check_unit(found, images.shape[2:])
        return found if selection == AP_SELECTION else [_part(one, selection) for one in found]

    def can_raise(self, objective: str) -> bool:
        """Return whether there is what an objective reads: detections, or losses of the module."""
        return objective in ON_PREDICTIONS or self._has_losses

    @cached_property
    def _has_losses(self) -> bool:
        """Try its losses, of a grey picture with one object; say so if it has none."""
        image = torch.full((1, 3, *self.framing.canvas), 0.5, device=self.device)
        corners = torch.tensor([0.25, 0.25, 0.75, 0.75]) * torch.tensor(self.framing.canvas.limits)
        target = Target(boxes=corners[None], labels=torch.tensor([0]))
        try:
            with self.raising("multibox") as objective_of:
                value = objective_of([target])(image.requires_grad_(), torch.tensor([0]))
                torch.autograd.grad(value.sum(), image)
        except Exception as error:  # Whatever code that is not ours does where it has no losses.
            known = isinstance(error, InputError)
            reason = error if known else self._no_losses(f"it fails ({error})")
            console.log(str(reason), markup=False)
            return False
        return True

    @contextmanager
    def raising(self, objective: str) -> Iterator[Callable[[Sequence[Target]], Objective]]:
        """Freeze the module in the mode that an objective needs; give what is raised of an image.

        Raises:
            InputError: the objective reads raw outputs, or follows scores, and these have no
                gradient.
        """
        on_predictions = ON_PREDICTIONS.get(objective)
        if not on_predictions and objective not in LOSSES:
            raise InputError(
                f"{objective} reads the raw outputs of lipdet's own detectors; of {self.name} "
                f"raise one of {', '.join([*ON_PREDICTIONS, *LOSSES])}."
            )

        def of(targets: Sequence[Target]) -> Objective:
            [one] = targets
            boxes, labels = one["boxes"].to(self.device), one["labels"].to(self.device)
            target = Target(boxes=boxes, labels=labels + 1, ignored=ignored_of(one))
            if on_predictions:
                return lambda batch, _: self._value(batch, target, on_predictions)
            return lambda batch, _: self._loss(batch, target, LOSSES[objective])

        mode = frozen if on_predictions else _computing_losses
        with mode(self.module):
            yield of

    def _found(self, image: Tensor) -> Detections:
        """Return what the module finds in an image (3, H, W), with its labels and gradients.

        Raises:
            InputError: it is not made as the protocol says.
        """
        try:
            answer = self.module([image.clone()])
        except RuntimeError as error:
            kinds = {one.dtype for one in self.module.parameters() if one.is_floating_point()}
            if kinds <= {torch.float32} or "type" not in str(error):
                raise
            raise InputError(
                f"{self.name} has weights in {', '.join(sorted(map(str, kinds)))} and fails with "
                f"pictures in float32 ({error}); return module.float()."
            ) from error
        if not (isinstance(answer, list | tuple) and len(answer) == 1):
            raise InputError(
                f"In eval mode {self.name} must return a list with a dictionary for each picture, "
                f"not {_kind(answer)} for one picture."
            )
        [found] = answer
        keys = ("boxes", "labels", "scores")
        if not (
            isinstance(found, dict) and all(isinstance(found.get(key), Tensor) for key in keys)
        ):
            raise InputError(
                f"In eval mode {self.name} must return, per picture, a dictionary with the tensors "
                f"boxes, labels and scores, not {_kind(found)}."
            )
        boxes, labels, scores = (found[key] for key in keys)
        shapes = [tuple(one.shape) for one in (boxes, labels, scores)]
        count = len(labels) if labels.ndim else 0
        if shapes != [(count, 4), (count,), (count,)]:
            raise InputError(
                f"{self.name} returned boxes, labels and scores of the shapes "
                f"{', '.join(map(str, shapes))}; of N detections, none included, they are (N, 4), "
                "(N,) and (N,)."
            )
        whole = labels.long()
        if (odd := labels[labels != whole]).numel():
            raise InputError(f"{self.name} returned the label {odd[0]:g}, no whole number.")
        return Detections(boxes=boxes.float(), labels=whole, scores=scores.double())

    def _checked(self, found: Detections) -> Detections:
        """Return detections best first, on the CPU, with labels from 0.

        Raises:
            InputError: values that the protocol excludes.
        """
        boxes, labels, scores = (found[key].cpu() for key in ("boxes", "labels", "scores"))
        if len(labels) and labels.min() < 1:
            raise InputError(f"{self.name} returned the label {labels.min()}; they count from 1.")
        classes = None if self.class_names is None else len(self.class_names)
        if len(labels) and classes is not None and labels.max() > classes:
            raise InputError(
                f"{self.name} returned labels from {labels.min()} to {labels.max()}; with {classes}"
                " classes they must lie between 1 and that number."
            )
        if not ((scores >= 0) & (scores <= 1)).all():
            raise InputError(f"{self.name} returned scores that are not in [0, 1]; return shares.")
        if not (boxes.isfinite().all() and (boxes[:, 2:] >= boxes[:, :2]).all()):
            raise InputError(
                f"{self.name} returned boxes that are infinite or turned round; return x1, y1, x2, "
                "y2 with x1 ≤ x2 and y1 ≤ y2."
            )
        order = scores.argsort(descending=True, stable=True)
        return Detections(boxes=boxes[order], labels=labels[order] - 1, scores=scores[order])

    def _check_unit(self, found: Sequence[Detections], size: Sequence[int]) -> None:
        """Refuse boxes that are shares of pictures of a size (H, W), as far as has been seen.

        Raises:
            InputError: none was ever seen beyond the first pixels.
        """
        boxes = [one["boxes"] for one in found if len(one["boxes"])]
        largest = max((float(one.abs().max()) for one in boxes), default=0.0)
        self.in_pixels |= largest >= LARGEST_SHARE
        if not self.in_pixels and largest > 0 and max(size) > LARGEST_SHARE:
            raise InputError(
                f"{self.name} returned boxes within the first {LARGEST_SHARE} pixels alone; return "
                "x1, y1, x2, y2 in pixels of the picture, not shares of it."
            )

    def _value(self, image: Tensor, target: Target, objective: PredictionObjective) -> Tensor:
        """Return the value (1,) of an objective of what is detected in one image (1, 3, H, W)."""
        found = self._found(image[0])
        if torch.is_grad_enabled() and len(found["scores"]) and not found["scores"].requires_grad:
            raise InputError(
                f"The scores of {self.name} cannot be differentiated by the picture; an attack that"
                " follows them would do nothing. Let them, or choose the objective multibox."
            )
        predictions = _predictions(found, target)
        # Where nothing is detected, nothing depends on the image.
        return objective(predictions, pad_targets([target]).to(image.device)) + 0 * image.sum()

    def _loss(self, image: Tensor, target: Target, words: Sequence[str]) -> Tensor:
        """Sum (1,) the losses of one image (1, 3, H, W) whose names contain one of the words.

        Raises:
            InputError: the module has none that can be differentiated by the image.
        """
        objects = {"boxes": target["boxes"], "labels": target["labels"]}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            try:
                losses = self.module([image[0].clone()], [objects])
            except (LookupError, TypeError, ValueError) as error:
                raise self._no_losses(
                    f"it fails with pictures and their boxes and labels ({error})"
                ) from error
        named = losses.items() if isinstance(losses, dict) else ()
        chosen = [loss for name, loss in named if any(word in name for word in words)]
        if not chosen or not all(isinstance(loss, Tensor) for loss in chosen):
            names = f" with {' or '.join(words)} in their names" if any(words) else ""
            raise self._no_losses(
                f"it must return a dictionary of tensors{names}, not {_kind(losses)}"
            )
        total = torch.stack(chosen).sum().view(1)
        if torch.is_grad_enabled() and not total.requires_grad:
            raise self._no_losses("its losses cannot be differentiated by the picture")
        return total

    def _no_losses(self, reason: str) -> InputError:
        return InputError(
            f"{self.name} has no losses to raise: in training mode {reason}; choose one of the "
            f"objectives {', '.join(ON_PREDICTIONS)}."
        )


def attack_torchvision(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[Target],
    settings: AttackSettings,
    indices: Sequence[int] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Attack a detector of `torchvision.models.detection` as `lipdet.attack.attack_batch` does.

    It returns detections in eval mode, and a dictionary of losses in training mode. Targets have
    its own labels (torchvision counts from 1).

    Raises:
        InputError: the objective follows scores, and these have no gradient; or the model does not
            follow the protocol.
    """
    numbered = [
        Target(boxes=one["boxes"], labels=one["labels"] - 1, ignored=ignored_of(one))
        for one in targets
    ]
    detector = ForeignDetector.of(type(model).__name__, model)
    return attack_batch(detector, images, numbered, settings, indices, on_step)


def _kind(answer: object) -> str:
    """Return in words what a module returned."""
    if isinstance(answer, dict):
        return str({key: type(one).__name__ for key, one in answer.items()})
    length = f" of {len(answer)}" if isinstance(answer, list | tuple) else ""
    return f"a {type(answer).__name__}{length}"


def _part(found: Detections, selection: Selection) -> Detections:
    """Return the best of what is above the floor: the first rows."""
    above = int((found["scores"] > selection.score_floor).sum())
    rows = slice(min(above, selection.top_k))
    return Detections(
        boxes=found["boxes"][rows], labels=found["labels"][rows], scores=found["scores"][rows]
    )


def _predictions(found: Detections, target: Target) -> Predictions:
    """Return detections of one image as boxes with log-odds: a class that is not detected is gone.

    On every object stands one box with nothing in it, for what is no longer detected there.
    """
    boxes = torch.cat([found["boxes"], target["boxes"].to(found["boxes"])])
    labels = torch.cat([found["labels"], target["labels"].to(found["labels"])])
    log_odds = found["scores"].double().logit(SATURATED)
    classes = 1 + int(labels.max()) if len(labels) else 1
    table = log_odds.new_full((len(boxes), classes), GONE)
    rows = torch.arange(len(log_odds), device=boxes.device)
    table = table.index_put((rows, found["labels"]), log_odds)
    return Predictions(boxes[None], table[None])


@contextmanager
def _computing_losses(model: nn.Module) -> Iterator[None]:
    """Let a model compute losses of what it computes in eval mode; it is as before afterwards.

    In training mode are the parts that put layers together, not the layers: these would normalise
    by the picture's own statistics, drop, or resize at random.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with frozen(model):
        for module in model.modules():
            module.training = module is model or not _is_layer(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module is a layer of torch's or torchvision's, or made of one."""
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
        return True
    package, *_ = type(module).__module__.split(".")
    made_of_parts = any(True for _ in module.children())
    return package == "torch" or (package == "torchvision" and not made_of_parts)
