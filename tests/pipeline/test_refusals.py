"""A coordinator that refuses sound work as malformed is named at level 2."""

from __future__ import annotations

from pathlib import Path

import pytest

import pipeline.coordinator
from pipeline.verify import VerifyOptions, verify
from tests.tiny import make_run, run_to_end, tiny_run
from verification.intake import RevealAnswer, judge_reveal
from verification.records import Refusal, Reveal
from verification.state import RunState


def failures(run: Path) -> list[tuple[str, str]]:
    answer = verify(VerifyOptions(run, level=2), lambda what, done, total: None)
    return [(failure["what"], failure["where"]) for failure in answer.failures]


def test_a_sound_payload_that_is_called_malformed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lie(
        state: RunState, slot: int, answer: RevealAnswer | None, **options: object
    ) -> tuple[Reveal | None, Refusal | None]:
        reveal, refusal = judge_reveal(state, slot, answer, **options)  # type: ignore[arg-type]
        if slot == 0 and refusal is None:
            return reveal, Refusal(0, "malformed-payload")
        return reveal, refusal

    make_run(tmp_path / "run", tmp_path / "home")
    monkeypatch.setattr(pipeline.coordinator, "judge_reveal", lie)
    run_to_end(tmp_path / "run", tmp_path / "home")
    found = failures(tmp_path / "run")
    assert found
    assert {what for what, _ in found} == {"a sound payload was refused as malformed"}
    assert found[0][1] == "evidence/r00001-a0-s0/payload"


def test_a_payload_that_is_malformed_is_not(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", tmp_path / "home", drills={"c03": "nan"})
    assert failures(tmp_path / "run") == []
