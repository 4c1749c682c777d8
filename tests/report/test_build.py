"""A report refuses what cannot be set side by side, with one sentence that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lipdet.checkpoint import load_detector
from lipdet.errors import InputError
from lipdet.images.pack import Pack
from lipdet.report.build import build_report
from lipdet.results import read_results
from tests.report.made_up import result


def test_results_are_read_from_one_or_several_per_file(tmp_path: Path) -> None:
    one, two = result("a", 0.5, full=False), result("b", 0.25, full=True)
    (tmp_path / "one.json").write_text(json.dumps(one))
    (tmp_path / "both.json").write_text(json.dumps([one, two]))
    assert read_results([tmp_path / "one.json", tmp_path / "both.json"]) == [one, one, two]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "is no json"),
        ("3", "holds no result"),
        ('{"weights": "naive"}', "lacks attacked, certified, clean, data, parameters"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=words):
        read_results([file])


def test_results_of_other_pictures_are_refused(house_numbers: Pack) -> None:
    naive = load_detector("naive")
    # The made-up result has the hash "abc".
    with pytest.raises(InputError, match="naive was measured on 12 pictures of made <up>"):
        build_report([naive], house_numbers, 0, None, [result("naive", 0.5, full=False)], [0], None)


def test_names_must_tell_detectors_apart(house_numbers: Pack) -> None:
    naive = load_detector("naive")
    with pytest.raises(InputError, match="once only"):
        build_report([naive, naive], house_numbers, 0, None, (), [0], None)
    with pytest.raises(InputError, match="results of other, which is none of the detectors: naive"):
        build_report([naive], house_numbers, 0, None, [result("other", 0.5, full=False)], [0], None)
    known = [result("naive", 0.5, full=False)] * 2
    with pytest.raises(InputError, match="several results of naive"):
        build_report([naive], house_numbers, 0, None, known, [0], None)
