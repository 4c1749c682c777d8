"""A detector as a folder for the Hugging Face Hub: weights, their configuration, a model card.

Notable choices:
- `model.safetensors` is an ordinary weights file of lipdet and describes itself. `config.json` is a
  copy of that description for readers and search; nothing is loaded from it.
- Only these two files are ever fetched, so a repository cannot bring code or pickles along.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from lipdet.boxes import SigmoidScores
from lipdet.certificate import UnknownLipschitz, output_bounds
from lipdet.checkpoint import MODEL, PACKAGED, LoadedDetector, load_detector, save_detector
from lipdet.config import stored
from lipdet.errors import InputError
from lipdet.evaluate.chunks import weights_hash
from lipdet.files import write_complete, write_json
from lipdet.report.table import comparison_markdown
from lipdet.results import EvaluationResult, same_weights
from lipdet.user_module import names_module

CONFIG = "config.json"
CARD = "README.md"


def write_folder(
    loaded: LoadedDetector, folder: Path, results: Sequence[EvaluationResult] = ()
) -> None:
    """Write `model.safetensors`, `config.json` and the model card into a folder.

    Args:
        loaded: a detector.
        folder: made if need be; files of these names in it are replaced.
        results: json objects of `lipdet eval`, whose figures go into all three files; those that
            the weights file brings along stay if none are given.

    Raises:
        InputError: `folder` is a file, the detector is code of the user's, or a result is of
            other weights.
    """
    if names_module(loaded.name):
        raise InputError(
            f"{loaded.name} is built by your code, which a folder of weights cannot bring along: "
            "save the detector's state_dict() with safetensors beside that code."
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a detector needs a folder.")
    same_weights(loaded.name, weights_hash(loaded.detector), results)
    folder.mkdir(parents=True, exist_ok=True)
    if results:
        loaded = replace(loaded, info={**loaded.info, "figures": list(map(_figures, results))})
    config = loaded.detector.config
    save_detector(folder / MODEL, loaded.detector, config, loaded.info)
    write_json(folder / CONFIG, {**loaded.info, **stored(config)})
    write_complete(folder / CARD, model_card(loaded))


def is_repository(name: str) -> bool:
    """Return whether this can be the id of a repository, `owner/name`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith(".")


def fetch(repository: str, revision: str | None = None) -> Path:
    """Download a detector into the cache of `huggingface_hub` and return its folder.

    Raises:
        InputError: the library is missing, or the repository cannot be had.
    """
    hub = _library()
    try:
        folder = hub.snapshot_download(
            repository, revision=revision, allow_patterns=[MODEL, CONFIG]
        )
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{repository} is no folder here, and could not be fetched from the Hub ({reason})."
        ) from None
    return Path(folder)


def push(
    loaded: LoadedDetector,
    repository: str,
    results: Sequence[EvaluationResult] = (),
    private: bool | None = None,
) -> str:
    """Upload what `write_folder` writes as one commit; the repository is made if need be.

    Returns:
        The address of the commit.

    Raises:
        InputError: the library is missing, or the Hub refuses.
    """
    hub = _library()
    api = hub.HfApi()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(loaded, Path(folder), results)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="Upload with lipdet"
            )
        except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{repository} could not be uploaded ({reason}); `hf auth login` logs in."
            ) from None
    return str(commit.commit_url)


def model_card(loaded: LoadedDetector) -> str:
    """Write the card: what the detector sees, what its certificates speak of, figures, its use."""
    config = loaded.detector.config
    height, width = config.canvas
    parameters = sum(one.numel() for one in loaded.detector.parameters())
    rows = {
        "architecture": f"`{config.architecture}`, {parameters:,} parameters",
        "classes": ", ".join(config.class_names),
        "input": f"RGB, {height}×{width} pixels (height × width)",
        "pixel range": "[0, 1]; any normalisation is part of the network",
        "norm": f"L2, over all 3·{height}·{width} values",
        "ε": "in these units, at the network's input; resizing and 8-bit rounding count; "
        f"ε = 0.1 is {config.canvas.in_grey_levels(0.1)}, root mean square",
        "offsets": f"1 moves a centre by {loaded.detector.coding.center_variance:g} sides of a "
        f"default box, and a side by a factor of exp({loaded.detector.coding.size_variance:g})",
        "suppression": _suppression(loaded),
        **_bounds(loaded),
    }
    table = "".join(f"| {name} | {text} |\n" for name, text in rows.items())
    return (
        "---\nlibrary_name: lipdet\npipeline_tag: object-detection\ntags:\n- object-detection\n"
        "- adversarial-robustness\n- lipschitz\n- certification\n---\n\n"
        f"# A lipdet detector of {len(config.class_names)} classes\n\n"
        f"| | |\n|---|---|\n{table}\n"
        "## Use it\n\n```python\nfrom lipdet import Detector\n\n"
        'detector = Detector.from_pretrained("owner/name")  # this repository, or its folder\n'
        'print(detector.detect("photo.png"))\n'
        'print(detector.certify("photo.png"))  # with the largest ε that each detection survives\n'
        f"```\n\n## Figures\n\n{_figures_text(loaded.info)}{_packaged_card(loaded)}"
    )


def _suppression(loaded: LoadedDetector) -> str:
    """Return which boxes are shown side by side, and by what that was chosen."""
    detector = loaded.detector
    text = f"among boxes of a class from an IoU of {detector.nms_iou:g} on"
    if chosen := loaded.info.get("rules"):
        text += f", chosen on {chosen['pictures']} held-out pictures"
    scores, display = detector.decoder.scores, detector.display
    if isinstance(scores, SigmoidScores):
        text += f"; of a box, classes within a logit of {scores.class_margin:g} of its best count"
    return f"{text}; at most {display.top_k} with a score above {display.score_floor:g} are shown"


def _bounds(loaded: LoadedDetector) -> dict[str, str]:
    try:
        bounds = output_bounds(loaded.detector)
    except UnknownLipschitz as error:
        return {"certificates": f"none: {error}"}
    return {
        "Lipschitz bound of any logit": f"{bounds.logits.max().item():.4g}",
        "Lipschitz bound of any box offset": f"{bounds.offsets.max().item():.4g}",
    }


def _figures_text(info: Mapping[str, Any]) -> str:
    figures = info.get("figures") or []
    if not figures:
        best = info.get("rules", {}).get("clean_ap50", info.get("validation_ap50"))
        held_out = "" if best is None else f" On held-out pictures AP50 was {100 * best:.1f} %."
        return f"No results of `lipdet eval` were given when this was saved.{held_out}\n"
    data = "; ".join(
        sorted(
            {
                f"{one['data']['images']} pictures of {one['data']['name']} (hash "
                f"{one['data']['hash'][:12]})"
                for one in figures
            }
        )
    )
    return (
        f"AP50 in percent on {data}, by ε. Attacked is what the attack left; certified is a lower "
        f"bound of what any attack can leave.\n\n{comparison_markdown(figures)}"
    )


def _figures(result: EvaluationResult) -> dict[str, Any]:
    """Return a result of `lipdet eval` without what fills pages."""
    return {
        **{key: result[key] for key in ("weights", "parameters", "data", "versions")},
        "clean": {key: result["clean"][key] for key in ("ap50", "ap")},
        **{
            kind: [
                {key: value for key, value in entry.items() if not isinstance(value, dict | list)}
                for entry in result[kind]
            ]
            for kind in ("attacked", "certified")
        },
    }


def _packaged_card(loaded: LoadedDetector) -> str:
    """Return what the package says about weights of its own, if these are they."""
    weights, card = (PACKAGED / f"{loaded.name}.{kind}" for kind in ("safetensors", "md"))
    if not weights.is_file():
        return ""
    packaged = load_detector(str(weights)).detector
    same = weights_hash(packaged) == weights_hash(loaded.detector)
    return f"\n#{card.read_text(encoding='utf-8')}" if same else ""


def _library() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise InputError(
            "The Hub needs huggingface_hub; in the clone of lipdet: pip install -e '.[hub]'."
        ) from None
    return huggingface_hub
