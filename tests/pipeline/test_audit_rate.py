"""At an audit rate of 0.25 a persistent cheat is found as often as the binomial says.

All levels of significance, seeds and numbers of trials were fixed before the first run, and chance is held
fixed, so these tests give the same answer every time. A caught cheat is quarantined, so what is compared is
the turn of the first detection, which is geometric.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.verify import VerifyOptions, verify
from tests.pipeline.adversary_runs import Story, tell
from tests.tiny import tiny_config
from verification.lottery import Auditor, Candidate, draw_audits, draw_seed
from verification.notes import Checkpoint

RATE_PPM = 250_000
RATE = 0.25
ALPHA = 0.01
CHI2_10 = 23.209  # the 0.99 quantile of chi-squared with 10 degrees of freedom
AUDITORS = (Auditor("a0", "op-a0", "x"), Auditor("a1", "op-a1", "x"))
CHEATS, HONEST = 8, ("c00", "c01")
LIARS = tuple(f"c{index:02d}" for index in range(2, 2 + CHEATS))
ROUNDS = 10


def link(seed: int, number: int) -> str:
    return hashlib.sha256(f"{seed}/link/{number}".encode()).hexdigest()


def head(seed: int, turn: int) -> Checkpoint:
    root = hashlib.sha256(f"{seed}/head/{turn}".encode()).digest()
    return Checkpoint(origin="barnraise/test", size=100 * (turn + 1), root=root)


def first_audits(seed: int, slots: int, turns: int) -> list[int]:
    """Of a roster of `slots`, the turn, from 1, in which each is drawn first; turns + 1 for never."""
    roster = [Candidate(slot, f"op-{slot}", "x", RATE_PPM) for slot in range(slots)]
    first: dict[int, int] = {}
    run = "sha256:" + hashlib.sha256(f"run/{seed}".encode()).hexdigest()
    for turn in range(turns):
        chosen = draw_seed(
            run=run,
            round_number=turn + 1,
            attempt=0,
            turn=turn,
            look=1,
            head=head(seed, turn),
            link=link(seed, turn),
        )
        for item in draw_audits(chosen, roster, AUDITORS):
            first.setdefault(item.slot, turn + 1)
        roster = [entry for entry in roster if entry.slot not in first]
        if not roster:
            break
    return [first.get(slot, turns + 1) for slot in range(slots)]


def chi_squared(times: Sequence[int], rate: float, bins: int) -> float:
    """Of times of first detection against the geometric distribution; the last bin is "later than bins"."""
    statistic = 0.0
    for turn in range(1, bins + 2):
        seen = sum(time == turn if turn <= bins else time > bins for time in times)
        chance = rate * (1 - rate) ** (turn - 1) if turn <= bins else (1 - rate) ** bins
        expected = chance * len(times)
        statistic += (seen - expected) ** 2 / expected
    return statistic


def test_the_lottery_finds_a_persistent_cheat_in_geometric_time() -> None:
    times = [time for seed in range(150) for time in first_audits(seed, slots=20, turns=11)]
    assert len(times) == 3000
    assert chi_squared(times, RATE, 10) < CHI2_10
    # The test can fail: it tells 0.25 from the rates beside it.
    assert chi_squared(times, 0.22, 10) > CHI2_10
    assert chi_squared(times, 0.28, 10) > CHI2_10


def binomial_p(successes: int, trials: int, chance: float) -> float:
    """Two-sided exact p-value: all results at most as likely as the one seen."""
    masses = [math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(trials + 1)]
    return sum(mass for mass in masses if mass <= masses[successes] * (1 + 1e-9))


def run_config(rounds: int) -> Config:
    return tiny_config(
        run={"rounds": rounds},
        train={"steps": [1, 1, *[2] * CHEATS], "batch": 1},
        audit={"rate_ppm": RATE_PPM, "probation_rounds": 0},
        eval={"every": 100, "windows": 1},
        state={"every": 100},
        checkpoint={"every": 100},
    )


def detections(story: Story) -> dict[str, int]:
    """The turn, from 1, of each liar's first rejection; a lie must be rejected just when it is drawn."""
    found: dict[str, int] = {}
    for number, turn in enumerate(story.turns, 1):
        lying = set(LIARS) - set(found)
        assert set(turn.names.values()) == {*HONEST, *lying}
        assert {entry.audit_ppm for entry in turn.open.roster} == {RATE_PPM}
        caught = lying & turn.drawn
        assert turn.rejected == dict.fromkeys(sorted(caught), "failed-audit")
        assert set(turn.accepted) == {*HONEST, *(lying - caught)}
        found.update(dict.fromkeys(caught, number))
    return found


@pytest.mark.slow
def test_runs_find_persistent_cheats_as_often_as_the_binomial_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Real runs, but with draws that depend on the injected chain alone and on no digest of weights, so that
    # another processor or another line of source does not change which sample this is.
    def by_link_alone(**fields: Any) -> str:
        return draw_seed(**{**fields, "run": "sha256:" + "0" * 64, "head": head(0, 0)})

    monkeypatch.setattr("verification.plans.draw_seed", by_link_alone)
    times: list[int] = []
    for seed in range(4):
        story = tell(tmp_path / str(seed), run_config(ROUNDS), dict.fromkeys(LIARS, "lazy"), seed=seed)
        found = detections(story)
        times += [found.get(name, ROUNDS + 1) for name in LIARS]
    assert len(times) == 4 * CHEATS
    looks = (1, 2, 4)
    for turns in looks:  # Bonferroni over the three
        caught = sum(time <= turns for time in times)
        assert binomial_p(caught, len(times), 1 - (1 - RATE) ** turns) > ALPHA / len(looks)


def test_under_the_runs_own_heads_a_lie_is_rejected_just_when_it_is_drawn(tmp_path: Path) -> None:
    story = tell(tmp_path, run_config(4), dict.fromkeys(LIARS, "lazy"))
    found = detections(story)
    last = story.turns[-1].closed
    assert last.quarantined == tuple(sorted(found))
    balance = {item.member: item for item in last.credits}
    for name, turn in found.items():
        # Two steps of one window of 16 for each turn that went through; of those the latest had not vested.
        earned = 2 * 16 * (turn - 1)
        assert (balance[name].earned, balance[name].forfeited) == (earned, min(earned, 2 * 16))
        assert balance[name].vested == earned - balance[name].forfeited
    assert verify(VerifyOptions(story.folder, level=2), lambda *_: None).failures == []
