"""Which stage may import which: the arrows of the design, read from the source files.

The oracle is the table of allowed directions below; a new stage has to be entered there.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lipdet

PACKAGE = Path(lipdet.__file__).parent

# Files at the top of the package are stages of one file. What a stage may import besides itself:
BASE = {"errors"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "files": BASE,
    "progress": set(),
    "hardware": BASE,
    "distributed": BASE,
    "versions": set(),
    "results": BASE | {"types"},
    "__init__": {"pretrained"},
    "config": BASE | {"types"},
    "norms": BASE,
    "layers": {"norms"},
    "lipschitz": BASE | {"layers", "norms", "progress"},
    "images": BASE | {"config", "files", "types", "progress", "results"},
    "boxes": {"types"},
    "detector": BASE | {"boxes", "config", "layers", "types"},
    "segmenter": BASE | {"config", "detector", "layers", "types"},
    "ultralytics_yolo": BASE | {"types"},
    "user_module": BASE | {"ultralytics_yolo"},
    "checkpoint": BASE
    | {"attack", "config", "detector", "files", "progress", "segmenter", "types"}
    | {"user_module"},
    "attack": BASE | {"boxes", "config", "detector", "progress", "segmenter", "types"},
    "certificate": BASE
    | {"boxes", "config", "detector", "layers", "lipschitz", "norms", "segmenter", "types"},
    "evaluate": BASE
    | {"attack", "boxes", "certificate", "checkpoint", "config", "detector", "images"}
    | {"distributed", "hardware", "progress", "results", "segmenter", "types", "versions"},
    "reading": BASE | {"boxes", "certificate", "detector", "images", "types"},
    "export": BASE
    | {"boxes", "certificate", "checkpoint", "config", "detector", "layers", "types", "versions"}
    | {"files", "norms", "segmenter"},
    "train": BASE
    | {"attack", "boxes", "checkpoint", "config", "detector", "evaluate", "images", "results"}
    | {"distributed", "files", "hardware", "progress", "segmenter", "types"}
    | {"versions"},
}
# These stand at the end of the way and may import all before them; nothing before imports them.
LAST = {"report", "demo", "reproduce", "app", "hub", "pretrained"}
COMMAND_LINE = {"commands", "cli", "__main__"}
IMPORTERS = {
    "report": LAST | COMMAND_LINE,
    "demo": COMMAND_LINE,
    "reproduce": COMMAND_LINE,
    "app": COMMAND_LINE,
    "hub": {"pretrained"},
    "pretrained": {"__init__"},
    "commands": {"cli"},
    "cli": {"__main__"},
    "__main__": set(),
}


def stage_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imported_modules(file: Path) -> Iterator[str]:
    """Dotted names of all imports of a file, wherever they stand in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; the test reads absolute ones"
            # `from lipdet import boxes` names a stage in its second half.
            own = node.module == "lipdet"
            yield from (f"lipdet.{a.name}" for a in node.names) if own else (str(node.module),)


def all_imports() -> dict[str, dict[str, set[str]]]:
    """Stage -> imported stage -> files that do it; and `torch` and others under their names."""
    found: dict[str, dict[str, set[str]]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        stage = stage_of(file.relative_to(PACKAGE).parts)
        arrows = found.setdefault(stage, {})
        for module in imported_modules(file):
            first, *rest = module.split(".")
            name = f"lipdet.{rest[0]}" if first == "lipdet" and rest else first
            arrows.setdefault(name, set()).add(str(file.relative_to(PACKAGE)))
    return found


IMPORTS = all_imports()
STAGES = sorted(IMPORTS)


def own_stages(stage: str) -> set[str]:
    names = {name.removeprefix("lipdet.") for name in IMPORTS[stage] if name.startswith("lipdet.")}
    # `from lipdet import __version__` names no stage.
    return names - {stage, "__version__"}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in IMPORTERS])
def test_a_stage_imports_only_what_stands_before_it(stage: str) -> None:
    assert stage in ALLOWED, f"enter the new stage {stage!r} into the table of allowed imports"
    forbidden = own_stages(stage) - ALLOWED[stage]
    files = {name: IMPORTS[stage][f"lipdet.{name}"] for name in forbidden}
    assert not forbidden, f"{stage} must not import {files}"


def test_layers_need_torch_alone() -> None:
    third_party = {name for name in IMPORTS["layers"] if not name.startswith("lipdet")}
    assert third_party - sys.stdlib_module_names == {"torch"}


@pytest.mark.parametrize("late", sorted(IMPORTERS))
def test_the_end_of_the_way_is_imported_by_nothing_before_it(late: str) -> None:
    assert {stage for stage in STAGES if late in own_stages(stage)} <= IMPORTERS[late]


def test_no_stages_import_each_other_in_a_circle() -> None:
    left = {stage: own_stages(stage) & set(STAGES) for stage in STAGES}
    while free := {stage for stage, needed in left.items() if not needed}:
        left = {stage: needed - free for stage, needed in left.items() if stage not in free}
    assert not left, f"these import each other: {left}"


def test_verbs_start_without_torchvision() -> None:
    """It takes half as long again as torch, and nothing of it is needed."""
    verbs = ("certify", "detect", "eval", "train")
    code = f"import sys, {', '.join(f'lipdet.commands.{verb}' for verb in verbs)}\n"
    code += "sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
