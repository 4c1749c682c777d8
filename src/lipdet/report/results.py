"""Read results of `lipdet eval` back, and the figures in them by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipdet.errors import InputError

Result = dict[str, Any]
NEEDED = {"weights", "parameters", "data", "seed", "versions", "clean", "attacked", "certified"}


def read_results(files: Sequence[Path]) -> list[Result]:
    """Return all results in json files: of `lipdet eval --json`, or lists of such results.

    Raises:
        InputError: a file is missing, or is no result.
    """
    return [result for file in files for result in _read(file)]


def _read(file: Path) -> list[Result]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise InputError(f"{file} is no json; give what `lipdet eval --json` wrote.") from None
    results = content if isinstance(content, list) else [content]
    for result in results:
        if not isinstance(result, dict) or (missing := NEEDED - set(result)):
            what = (
                f"it lacks {', '.join(sorted(missing))}"
                if isinstance(result, dict)
                else "no object"
            )
            raise InputError(f"{file} holds no result of `lipdet eval` ({what}).")
    return results


def same_data(data: Result, results: Sequence[Result]) -> None:
    """Refuse to set results side by side that were measured on other pictures than these.

    Raises:
        InputError: their data differ.
    """
    for result in results:
        if result["data"]["hash"] != data["hash"]:
            raise InputError(
                f"{result['weights']} was measured on {_described(result['data'])}, not on "
                f"{_described(data)}; measure it again, or give the same --data and --limit."
            )


def attacked(result: Result) -> dict[float, Result]:
    """By radius the attack with the lowest AP50 in the L2 norm, the one certificates speak of."""
    entries: dict[float, Result] = {}
    for entry in result["attacked"]:
        known = entries.get(entry["epsilon"])
        if entry.get("norm", "l2") == "l2" and (known is None or entry["ap50"] < known["ap50"]):
            entries[entry["epsilon"]] = entry
    return entries


def certified(result: Result) -> dict[float, Result]:
    """Return the certificates by radius."""
    return {entry["epsilon"]: entry for entry in result["certified"]}


def radii(results: Sequence[Result]) -> list[float]:
    """Return all radii at which anything was measured, rising."""
    return sorted({epsilon for one in results for epsilon in (*attacked(one), *certified(one))})


def _described(data: Result) -> str:
    return f"{data['images']} pictures of {data['name']} (hash {data['hash'][:12]}…)"
