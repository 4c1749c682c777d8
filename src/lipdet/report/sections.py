"""The parts of a page, each from the report's json: results, detectors, how it was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, Literal

from lipdet.certificate.diagnosis import REASONS
from lipdet.report.architecture import PREFIX
from lipdet.report.certificate import MEANING
from lipdet.report.figures import FATES
from lipdet.report.markup import (
    Cell,
    Document,
    Drawings,
    Section,
    details,
    figure,
    figures,
    number,
    paragraph,
    table,
)
from lipdet.report.scenes import LEGEND, Scene, tile_of
from lipdet.report.table import GREY_LEVELS, constant, finding, percent
from lipdet.results import (
    AttackedPixels,
    AttackedResult,
    EvaluationResult,
    Figures,
    attacked,
    certified,
    input_size,
    radii,
    radius_told,
)
from lipdet.types import Canvas

Kind = Literal["attacked", "certified"]
COUNT = "{:,}".format
# Of a reading, in words.
READ = {"right": "read right", "certified": "read right, and stays", "steady": "stays"}
# What was measured at each radius.
OF: dict[Kind, Callable[[EvaluationResult], Mapping[float, Figures]]] = {
    "attacked": attacked,
    "certified": certified,
}


def answer(document: Document) -> str:
    """Say first what a reader wants to know: one sentence for each radius, the largest first."""
    results = document["results"]
    lines = [finding(results, epsilon) for epsilon in reversed(radii(results))]
    if not lines:
        clean = (f"{one['weights']} {percent(one['clean']['ap50'])}" for one in results)
        lines = [f"No perturbation was looked at. AP50 on clean pictures: {'; '.join(clean)}."]
    attacks = [
        (entry.get("objective", "several objectives"), entry)
        for result in results
        for entry in attacked(result).values()
    ]
    return answered(lines, _pictures(results), "AP in percent.", attacks)


def answered(
    lines: Iterable[str],
    pictures: str,
    unit: str,
    attacks: Iterable[tuple[str, AttackedResult | AttackedPixels]],
) -> str:
    """Return sentences that come first on a page, and below them what their words mean.

    Args:
        lines: the sentences.
        pictures: one that says which were looked at.
        unit: one that says what numbers are.
        attacks: entries of results, each after what was raised.
    """
    words = {
        f"{entry['attack']} on {raised} (steps: {entry['steps']}, starts: {entry['restarts']})"
        for raised, entry in attacks
    }
    return f'<div class="answer">{"".join(map(paragraph, lines))}</div>' + paragraph(
        f"{pictures} ε is the L2 length of the change of a picture, whose values lie in [0, 1], at "
        f"the size at which the network sees it. {GREY_LEVELS} {unit} Attacked: what is left under "
        f"{' and '.join(sorted(words)) or 'attacks'}; stronger attacks may leave less. Proven, or "
        "certified: no attack whatever of that size leaves less."
    )


def headline(document: Document) -> Section:
    """Return all detectors side by side."""
    results = document["results"]
    places = range(len(results))
    rows: list[list[Cell | str]] = [
        [f"{words}, clean", *(number(document, f"results/{i}/clean/{key}") for i in places)]
        for key, words in (("ap50", "AP50"), ("ap", "AP"))
    ]
    for epsilon in radii(results):
        paths: dict[Kind, list[str]] = {
            kind: [_entry_path(document, i, kind, of(results[i]).get(epsilon)) for i in places]
            for kind, of in OF.items()
        }
        for kind in OF:
            for key, words in (("ap50", "AP50"), ("ap", "AP")):
                cells = [number(document, f"{path}/{key}") for path in paths[kind]]
                rows.append([f"{words}, {kind}, {_radius(epsilon)}", *cells])
        either = [
            paths["attacked" if epsilon in attacked(results[i]) else "certified"][i] for i in places
        ]
        levels = (number(document, f"{path}/grey_levels", "{:.2g}".format) for path in either)
        rows.append([f"{_radius(epsilon)} in grey levels", *levels])
    for words, path, form in (
        ("input, pixels", "results/{}/data/canvas", lambda sides: str(Canvas(*sides))),
        ("parameters", "results/{}/parameters", COUNT),
        ("images/s on this machine", "detectors/{}/speed/images_per_second", "{:,.0f}".format),
        ("Lipschitz bound of a logit", "detectors/{}/lipschitz/largest_logit", constant),
        ("Lipschitz bound of a box offset", "detectors/{}/lipschitz/largest_offset", constant),
    ):
        rows.append([words, *(number(document, path.format(i), form) for i in places)])
    head = ["", *(result["weights"] for result in results)]
    body = table("AP in percent; attacked and certified at each radius ε", head, rows)
    return Section("detectors", "Detectors side by side", body)


def curves(drawings: Drawings) -> Section:
    """Show AP against the radius, and what robustness costs."""
    body = figures(drawings, "curves", "frontier")
    if not body:
        body = paragraph("Nothing was measured at any radius; give --epsilon.")
    return Section("curves", "AP against the radius", body)


def gallery(document: Document, scenes: Sequence[Sequence[Scene]]) -> Section:
    """Return the same pictures through the eyes of each detector, clean and attacked."""
    if not any(scenes):
        return same_pictures("", [])
    text = (
        f"Clean, and attacked at {radius_told(document['results'], scenes[0][0].epsilon)}, each "
        "detector with its own gradients. "
        f"{LEGEND} The number beside a label is the largest ε up to which it is certified."
    )
    rows = []
    for same_picture in zip(*scenes, strict=True):
        first = same_picture[0]
        tiles = [tile_of(scene, attacked) for scene in same_picture for attacked in (False, True)]
        rows.append((f"Picture {first.picture + 1}: {' '.join(first.truth) or 'no object'}", tiles))
    return same_pictures(paragraph(text), rows)


def same_pictures(intro: str, rows: Iterable[tuple[str, Sequence[str]]]) -> Section:
    """Return tiles below the heading of their picture, or what to give where nothing is shown."""
    body = intro or paragraph("No picture was attacked; give --epsilon.")
    for heading, tiles in rows:
        body += f'<h3>{escape(heading)}</h3><div class="gallery">{"".join(tiles)}</div>'
    return Section("pictures", "The same pictures, clean and attacked", body)


def consistency(document: Document, drawings: Drawings) -> Section:
    """Return what becomes of detections under attack."""
    keys = ("shown", *(key for key, _, _ in FATES))
    rows: list[list[Cell | str]] = [
        [name, *(number(document, f"{path}/consistency/{key}", COUNT) for key in keys)]
        for name, path in _entries(document, "attacked")
    ]
    heading = "What becomes of detections under attack"
    if not rows:
        return Section("consistency", heading, paragraph("No detector was attacked."))
    head = ["", "shown, clean", *(words for _, words, _ in FATES)]
    caption = "Number of detections, compared with those of the same detector on clean pictures"
    body = figures(drawings, "consistency") + table(caption, head, rows)
    return Section("consistency", heading, body)


def failures(document: Document, drawings: Drawings) -> Section:
    """Say why certificates fail."""
    heading = "Why certificates fail"
    entries = _entries(document, "certified")
    if not entries:
        return Section("failures", heading, paragraph("Nothing was certified in these results."))
    rows: list[list[Cell | str]] = [
        [
            name,
            *(
                number(document, f"{path}/{key}")
                for key in ("recall", "precision", "vanish_recall")
            ),
            *(number(document, f"{path}/failed/{key}", COUNT) for key in REASONS),
        ]
        for name, path in entries
    ]
    head = ["", "recall", "precision", "recall, any class", *(MEANING[key] for key in REASONS)]
    caption = (
        "Certified recall and precision in percent, and the number of objects whose certificate "
        "fails first at each condition"
    )
    shown = (name for name in drawings if name.startswith("reasons-"))
    body = figures(drawings, *shown) + table(caption, head, rows)
    return Section("failures", heading, body)


def readings(document: Document) -> Section:
    """Say of how many pictures what is read and counted stays, whatever changes by up to ε."""
    heading = "What is read and counted"
    entries = _entries(document, "certified")
    if not entries:
        return Section("readings", heading, paragraph("Nothing was certified in these results."))
    spelt = any(
        "reading" in entry for result in document["results"] for entry in certified(result).values()
    )
    read = READ if spelt else {}
    names = list(document["results"][0]["clean"]["per_class"])
    rows: list[list[Cell | str]] = [
        [
            name,
            *(number(document, f"{path}/reading/{one}") for one in read),
            *(number(document, f"{path}/counts/{key(one)}/exact") for one in names),
        ]
        for name, path in entries
    ]
    head = ["", *read.values(), *(f"number of {name} stays" for name in names)]
    caption = "Percent of the pictures" + ("; labels are read from left to right" if spelt else "")
    return Section("readings", heading, table(caption, head, rows))


def classes(document: Document) -> Section:
    """Return AP50 of each class: clean, and certified where it was."""
    columns: list[tuple[str, str]] = []
    for i, result in enumerate(document["results"]):
        columns.append((f"{result['weights']}: clean", f"results/{i}/clean/per_class"))
        columns += [
            (
                f"{result['weights']}: certified, {_radius(epsilon)}",
                f"{_entry_path(document, i, 'certified', entry)}/per_class",
            )
            for epsilon, entry in sorted(certified(result).items())
            if "per_class" in entry
        ]
    names = list(document["results"][0]["clean"]["per_class"])
    rows: list[list[Cell | str]] = [
        [name, *(number(document, f"{path}/{key(name)}/ap50") for _, path in columns)]
        for name in names
    ]
    head = ["class", *(words for words, _ in columns)]
    return Section("classes", "By class", table("AP50 in percent", head, rows))


def lipschitz(document: Mapping[str, Any], drawings: Drawings) -> Section:
    """Return constants, layer by layer."""
    body = figures(drawings, "lipschitz")
    for i, detector in enumerate(document["detectors"]):
        if isinstance(detector["lipschitz"], str):
            body += paragraph(f"{detector['weights']}: no bound. {detector['lipschitz']}")
            continue
        rows: list[list[Cell | str]] = [
            [
                layer["name"],
                layer["kind"],
                *(
                    number(document, f"detectors/{i}/lipschitz/layers/{j}/{key}", constant)
                    for key in ("constant", "cumulative", "observed")
                ),
            ]
            for j, layer in enumerate(detector["lipschitz"]["layers"])
        ]
        head = ["layer", "kind", "bound alone", "bound so far", "observed ≥"]
        body += details(
            f"Layers of {detector['weights']}", table("From the image in [0, 1], L2", head, rows)
        )
    return Section("lipschitz", "Lipschitz constants, layer by layer", body)


def architectures(drawings: Drawings) -> Section:
    """Show what the detectors are made of and, folded away, the presets not among them."""
    shown, presets = (
        "".join(
            f'<div class="wide">{figure(drawing)}</div>'
            for name, drawing in drawings.items()
            if name.startswith(prefix)
        )
        for prefix in ("architecture-", PREFIX)
    )
    body = shown + (presets and details("The other presets of lipdet", presets))
    return Section("architecture", "Architecture", body)


def provenance(document: Mapping[str, Any]) -> Section:
    """Return all that is needed to repeat this."""
    body = ""
    for result, detector in zip(document["results"], document["detectors"], strict=True):
        facts = {
            "data": result["data"],
            "seed": result["seed"],
            "seconds": result.get("seconds"),
            "attacks": [
                {key: value for key, value in entry.items() if not isinstance(value, dict)}
                for entry in result["attacked"]
            ],
            "versions": result["versions"],
            "speed": detector["speed"],
            "file": detector["file"],
        }
        text = escape(json.dumps(facts, indent=1, ensure_ascii=False))
        body += details(result["weights"], f"<pre>{text}</pre>")
    note = paragraph(
        "Data with hash, seeds, settings of attacks, versions, and what each weights file says "
        "about its training. The json of this page is part of its source."
    )
    return Section("provenance", "How this was measured", note + body)


def _pictures(results: Sequence[EvaluationResult]) -> str:
    """Say which pictures were looked at; of one data set if detectors differ in their framing."""
    told = [
        f"{data['images']:,} pictures of {data['name']} with {data['objects']:,} objects"
        f", {size} pixels"
        for data, size in ((result["data"], input_size(result)) for result in results)
    ]
    different = list(dict.fromkeys(told))
    if len(different) == 1:
        return f"{told[0]}."
    return (
        f"{'; '.join(different)}: each detector sees the data in its own framing, so that its AP "
        "is of its own task, and the same ε another change."
    )


def _radius(epsilon: float) -> str:
    # Without a break between sign and number.
    return f"ε\u00a0{epsilon:g}"


def key(name: str) -> str:
    """Return a name as a key of a path in the json."""
    return name.replace("~", "~0").replace("/", "~1")


def _entry_path(document: Document, index: int, kind: Kind, entry: object) -> str:
    entries = document["results"][index][kind]
    place = next((i for i, other in enumerate(entries) if other is entry), len(entries))
    return f"results/{index}/{kind}/{place}"


def _entries(document: Document, kind: Kind) -> list[tuple[str, str]]:
    """Return name and path of each radius of each detector."""
    return [
        (f"{result['weights']}, {_radius(epsilon)}", _entry_path(document, i, kind, entry))
        for i, result in enumerate(document["results"])
        for epsilon, entry in sorted(OF[kind](result).items())
    ]
