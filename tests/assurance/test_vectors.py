"""Others' vectors, counted: all come out as they say, and a wrong answer would be counted."""

from __future__ import annotations

import pytest

from assurance import vectors


def test_all_cases_come_out_as_they_say() -> None:
    figures = list(vectors.measure(full=True))
    assert [(f.value, f.tried) for f in figures] == [(98, 98), (97, 98), (151, 151), (6, 6)]
    assert all(figure.holds for figure in figures), [figure.line() for figure in figures]
    assert vectors.DUMMY_ROOTS in figures[1].target


def test_both_answers_occur() -> None:
    for name in ("merkle_inclusion.json", "merkle_consistency.json"):
        assert {case["wantErr"] for case in vectors.load(name)} == {True, False}
    assert {case["result"] for case in vectors.signature_cases()} == {"valid", "invalid"}


def test_a_case_that_comes_out_otherwise_is_counted() -> None:
    for name, check in (
        ("merkle_inclusion.json", vectors.inclusion_as_expected),
        ("merkle_consistency.json", vectors.consistency_as_expected),
    ):
        for case in vectors.load(name):
            if case["case"] != vectors.DUMMY_ROOTS:
                assert check(case)
                assert not check({**case, "wantErr": not case["wantErr"]})
    for case in vectors.signature_cases()[:20]:
        other = {"valid": "invalid", "invalid": "valid"}[case["result"]]
        assert vectors.signature_as_expected(case)
        assert not vectors.signature_as_expected({**case, "result": other})


def test_a_figure_misses_when_a_case_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "DUMMY_ROOTS", "another")
    monkeypatch.setattr(vectors, "NOTE_TEXT", "Another message.\n")
    figures = list(vectors.measure(full=False))
    assert [figure.holds for figure in figures] == [True, False, True, False]
    assert "signed-note: the signature" in figures[3].note


@pytest.mark.parametrize(
    ("size", "tiles"),
    [(1, {0: (0, 1)}), (255, {0: (0, 255)}), (256, {0: (1, 0), 1: (0, 1)}), (257, {0: (1, 1), 1: (0, 1)})],
)
def test_tiles_of_small_trees(size: int, tiles: dict[int, tuple[int, int]]) -> None:
    assert vectors.tiles_of(size) == tiles
