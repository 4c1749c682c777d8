"""Every number in a figure of the page, drawn or told, is the one in the page's json.

Notable choices:
- Made-up results in which no two numbers are equal, so that a figure of the wrong detector, radius
  or field is found out.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from lipdet.report.page import write_page
from tests.report.made_up import inspection, result

# Without "$" and "<", which are the business of other tests.
NAMES = ("naive", "other")


class Figures:
    """The figures of a page.

    Attributes:
        told: alternative text by the name of a drawing; of tiles in a list under "tile".
        drawn: texts in the drawing, alike.
    """

    def __init__(self, text: str) -> None:
        self.told: dict[str, list[str]] = {}
        self.drawn: dict[str, list[list[str]]] = {}
        for svg in re.findall(r"<svg role.*?</svg>", text, flags=re.DOTALL):
            tree = ElementTree.fromstring(svg.replace("xlink:", ""))
            found = re.search(r'id="([\w-]+?)-figure_1"', svg)
            name = found[1] if found else "tile"
            self.told.setdefault(name, []).append(tree.findtext("title") or "")
            texts = ["".join(one.itertext()).strip() for one in tree.iter("text")]
            self.drawn.setdefault(name, []).append(texts)


def unequal_results() -> list[dict[str, Any]]:
    results = [
        result(name, clean, full=True) for name, clean in zip(NAMES, (0.9, 0.8), strict=True)
    ]
    numbers = itertools.count(101)
    for one in results:
        for entry in (*one["attacked"], *one["certified"]):
            entry["ap50"] = next(numbers) / 1000  # 10.1 percent, 10.2 …
        for entry in one["attacked"]:
            entry["consistency"] = {key: next(numbers) for key in entry["consistency"]}
        for entry in one["certified"]:
            entry["failed"] = {key: next(numbers) for key in entry["failed"]}
        one["data"]["objects"] = 10_000 + next(numbers)
    return results


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page(
        file, unequal_results(), [inspection(name, bounded=True) for name in NAMES], "figures"
    )
    return Figures(file.read_text(encoding="utf-8"))


def shares(text: str) -> dict[tuple[str, float], str]:
    """AP50 by kind and radius, from the sentence about one detector."""
    found = re.findall(r"(attacked|certified) at ([\d.]+): ([\d.]+)(?=[,.])", text)
    return {(kind, float(epsilon)): share for kind, epsilon, share in found}


@pytest.mark.parametrize("name", ["curves", "frontier"])
def test_ap_of_curves_and_frontier(figures: Figures, name: str) -> None:
    [text] = figures.told[name]
    assert len(set(re.findall(r"[\d.]+(?=[,.])", text))) >= 2 * 5  # 2 detectors of 5 shares
    for one in unequal_results():
        [sentence] = re.findall(rf"{one['weights']}: clean ([\d.]+), (.+?\.)(?= |$)", text)
        # The oracle is the json, as docs/report.md says it is shown: percent with one digit.
        assert sentence[0] == f"{100 * one['clean']['ap50']:.1f}"
        assert shares(sentence[1]) == {
            (kind, entry["epsilon"]): f"{100 * entry['ap50']:.1f}"
            for kind in ("attacked", "certified")
            for entry in one[kind]
        }


def test_radii_beside_the_markers_of_the_frontier(figures: Figures) -> None:
    [texts] = figures.drawn["frontier"]
    # Of each detector two shares of attacks lie side by side and two of certificates: by
    # construction closer than a label is high, so each detector has one label of both radii.
    assert texts.count("0.1, 0.25") == len(NAMES)


def test_counts_of_consistency(figures: Figures) -> None:
    [text] = figures.told["consistency"]
    found = re.findall(
        r"(\w+), ε ([\d.]+): of (\d+) shown, (\d+) kept, (\d+) another class, (\d+) vanished, "
        r"(\d+) appeared",
        text,
    )
    keys = ("shown", "kept", "changed", "vanished", "appeared")
    assert found == [
        (
            one["weights"],
            f"{entry['epsilon']:g}",
            *(str(entry["consistency"][key]) for key in keys),
        )
        for one in unequal_results()
        for entry in one["attacked"]
    ]


def test_counts_of_reasons(figures: Figures) -> None:
    for place, one in enumerate(unequal_results(), start=1):
        [text] = figures.told[f"reasons-{place}"]
        objects = one["data"]["objects"]
        parts = text.removeprefix(f"Of {objects} objects, ").removesuffix(".").split("; ")
        for part, entry in zip(parts, one["certified"], strict=True):
            radius, counts = part.split(": ")
            assert radius == f"ε = {entry['epsilon']:g}"
            told = {word: int(count) for word, count in (one.split() for one in counts.split(", "))}
            # All objects, less those that fail somewhere.
            certified = objects - sum(entry["failed"].values())
            assert told == {"certified": certified, **entry["failed"]}


def test_bound_at_the_end_of_a_profile(figures: Figures) -> None:
    # By hand from ROWS: two layers to the logits of the only head, 2.0 times 1.0.
    ends = "; ".join(f"{name}: 2 after 2 layers" for name in NAMES)
    assert figures.told["lipschitz"] == [f"Certified bound at the end: {ends}."]


def test_sizes_in_an_architecture(figures: Figures) -> None:
    architecture = json.loads(json.dumps(inspection(NAMES[0], bounded=True).as_dict()))[
        "architecture"
    ]
    [texts] = figures.drawn["architecture-1"]
    numbers = [int(one) for text in texts for one in re.findall(r"\d+", text)]
    expected = [architecture["image_size"], 3]
    for stage in architecture["stages"]:
        expected += [stage["cells"], stage["channels"]]
        # One time is not written.
        expected += [count for count in stage["layers"].values() if count > 1]
        expected += [int(one) for kind in stage["layers"] for one in re.findall(r"\d+(?!d)", kind)]
    expected += [head["boxes"] for head in architecture["heads"]]
    assert sorted(numbers) == sorted(expected)


def test_radii_on_pictures(figures: Figures) -> None:
    [made, _] = [inspection(name, bounded=True).as_dict() for name in NAMES]
    [scene] = made["pictures"]
    told, drawn = figures.told["tile"], figures.drawn["tile"]
    assert len(told) == len(drawn) == 2 * len(NAMES)
    for clean, attacked in ((0, 1), (2, 3)):
        radii = [one["radius"] for one in scene["clean"] if one["radius"]]
        assert re.findall(r"certified up to ([\d.]+)\.", told[clean]) == [
            f"{radius:.3f}" for radius in radii
        ]
        # Once in the outline and once in the colour of a text would be two; it is one.
        assert [text for text in drawn[clean] if re.search(r"\d\.\d", text)] == [
            f"{one['label']} {one['radius']:.2f}" for one in scene["clean"] if one["radius"]
        ]
        assert f"ε {scene['epsilon']:g}" in told[attacked]
        assert "certified up to" not in told[attacked]
