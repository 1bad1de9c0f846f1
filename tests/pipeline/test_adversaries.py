"""Every kind of adversary lies as it says, alone and in company, and gets nothing for it.

How often a cheat is found at an audit rate below 1 is in test_audit_rate.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.dataset import Dataset
from data_prep.manifest import DatasetManifest
from model.arrays import arrays_from_bytes
from model.hidden_state import state_specs
from pipeline.adversaries import ADVERSARIES, Adversary, adversary
from pipeline.aggregation import Contribution
from pipeline.config import Config
from pipeline.contributor import Contributor
from pipeline.member import Place
from pipeline.rerun import rerun
from pipeline.roster import Basis, first_members, parse_drills
from pipeline.verify import VerifyOptions, verify
from pipeline.work import Job, Work, do_work
from tests.pipeline.adversary_runs import Story, tell
from tests.tiny import tiny_config
from verification.encoding import blake3_digest
from verification.errors import FormatError, ProtocolError, UsageError
from verification.fsck_shapes import RERUN_FILES
from verification.records import (
    Commitment,
    RevealClose,
    RosterEntry,
    RoundOpen,
)
from verification.sealing import open_record

LIAR, HONEST = "c04", ("c00", "c01", "c02", "c03")
STEPS = [3, 2, 1, 2, 2]
ROUNDS = 4
STRIKES = 2  # the default of credit.strikes
ALL = ("trace", "payload", "next_state", "loss")


@dataclass(frozen=True)
class Rule:
    """What the protocol does to a kind: the reason, what an audit finds, and the first turn that can lie."""

    reason: str
    differs: tuple[str, ...] | None = None
    first_lie: int = 0

    @property
    def fault(self) -> bool:
        return self.reason == "failed-audit"

    @property
    def last_turn(self) -> int:
        """The turn at whose close it is quarantined."""
        return self.first_lie if self.fault else self.first_lie + STRIKES - 1


RULES = {
    "copycat": Rule("duplicate-payload", first_lie=1),
    "dodger": Rule("unserved"),
    "lazy": Rule("failed-audit", ALL),
    "nan": Rule("malformed-payload"),
    "random": Rule("failed-audit", ("payload",)),
    "scaled": Rule("failed-audit", ("payload",)),
    "silent": Rule("unrevealed"),
    "stale": Rule("duplicate-payload", first_lie=1),
    "state-smuggler": Rule("failed-audit", ("next_state",)),
    "wrong-data": Rule("failed-audit", ALL),
}
FAULTS = sorted(kind for kind, rule in RULES.items() if rule.fault)


def config(**sections: Any) -> Config:
    """Everything is audited; credit vests after two turns; every checkpoint is kept."""
    fields = {
        "run": {"rounds": ROUNDS},
        "train": {"steps": STEPS},
        "credit": {"vest_rounds": 2},
        "checkpoint": {"every": 1},
    }
    return tiny_config(**{**fields, **sections})


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Runs of four honest contributors and one of a kind, each made once; None for five honest ones."""
    made: dict[str | None, Story] = {}

    def story(kind: str | None) -> Story:
        if kind not in made:
            made[kind] = tell(tmp_path_factory.mktemp("story"), config(), {LIAR: kind} if kind else {})
        return made[kind]

    yield story
    for item in made.values():
        shutil.rmtree(item.folder.parent)


def test_the_rules_cover_every_kind() -> None:
    assert set(RULES) == set(ADVERSARIES)


@pytest.mark.parametrize("kind", sorted(RULES))
def test_a_lone_adversary_is_rejected_whenever_it_lies_and_honest_ones_never(stories: Any, kind: str) -> None:
    rule, story = RULES[kind], stories(kind)
    assert len(story.turns) == ROUNDS
    for number, turn in enumerate(story.turns):
        if number < rule.first_lie:
            assert turn.accepted == (*HONEST, LIAR)
            assert turn.rejected == {}
            assert {v.outcome for v in turn.verdicts} == {"pass"}  # recomputed: it was honest so far
        elif number <= rule.last_turn:
            assert turn.accepted == HONEST
            assert turn.rejected == {LIAR: rule.reason}
            assert [item.fault for item in turn.closed.rejected] == [rule.fault]
        else:
            assert set(turn.names.values()) == set(HONEST)  # quarantined: no longer in the roster
            assert turn.rejected == {}
        assert turn.closed.quarantined == ((LIAR,) if number >= rule.last_turn else ())
        assert not turn.closed.void


@pytest.mark.parametrize("kind", FAULTS)
def test_two_auditors_find_alike_what_an_adversary_changed(stories: Any, kind: str) -> None:
    turn = stories(kind).turns[0]
    against = [v for v in turn.verdicts if turn.names[v.slot] == LIAR]
    assert [v.look for v in against] == [1, 2]
    assert len({v.auditor for v in against}) == 2
    assert {v.differs for v in against} == {RULES[kind].differs}
    assert all(v.outcome == "pass" for v in turn.verdicts if turn.names[v.slot] != LIAR)


@pytest.mark.parametrize("kind", sorted(RULES))
def test_nothing_vests_that_was_not_earned_before_the_lie(stories: Any, kind: str) -> None:
    rule, story = RULES[kind], stories(kind)
    tokens = STEPS[4] * 2 * 16 * rule.first_lie  # steps, batch, context, honest turns
    balance = {item.member: item for item in story.turns[-1].closed.credits}
    liar = balance[LIAR]
    assert (liar.earned, liar.vested, liar.forfeited) == (tokens, 0, tokens)
    for name, steps in zip(HONEST, STEPS, strict=False):
        each = steps * 2 * 16
        # Two of four turns are old enough at the last close (vest_rounds is 2).
        assert (balance[name].earned, balance[name].vested, balance[name].forfeited) == (
            4 * each,
            2 * each,
            0,
        )


@pytest.mark.parametrize("kind", sorted(RULES))
def test_a_rejection_that_can_be_rerun_has_its_evidence(stories: Any, kind: str) -> None:
    rule, story = RULES[kind], stories(kind)
    folder = story.folder / "evidence" / f"r{rule.first_lie + 1:05d}-a0-s4"
    files = {reason: {"case.json", "payload", *more} for reason, more in RERUN_FILES.items()}
    files["failed-audit"] |= {"start_state", "verdict-1", "verdict-2"}
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert found == files.get(rule.reason, set())
    assert not found or rerun(folder).borne_out


def honest_alone(story: Story, first_lie: int) -> list[str]:
    """Weights after each round, recomputed from seed and assignments with nothing that a liar handed in."""
    desk, job = story.coordinator.desk, Job.of(story.manifest)
    data = Dataset(story.folder / "data", DatasetManifest.from_json(story.manifest.dataset))
    at = desk.aggregator.load(desk.folder.checkpoint(0), desk.folder.outer_file(0).read_bytes())
    forms = state_specs(job.specs, job.spec.mode)
    states = dict.fromkeys((*HONEST, LIAR), job.zero_state)
    digests = []
    for number, turn in enumerate(story.turns):
        work = []
        for entry in turn.open.roster:
            if entry.member in HONEST or number < first_lie:
                start = arrays_from_bytes(states[entry.member], forms)
                done = do_work(job, data, turn.open, entry, desk.aggregator.arrays(at), start)
                states[entry.member] = done.next_state
                work.append(Contribution(entry.slot, entry.steps * 2 * 16, done.payload))
        at = desk.aggregator.step(at, work, turn.open.outer_lr)
        digests.append(desk.aggregator.digests(at).weights)
    return digests


@pytest.mark.parametrize("kind", sorted(RULES))
def test_the_weights_are_those_of_honest_contributions_alone(stories: Any, kind: str) -> None:
    story = stories(kind)
    assert [turn.closed.weights for turn in story.turns] == honest_alone(story, RULES[kind].first_lie)


def test_whatever_the_lie_the_weights_come_out_the_same(stories: Any, tmp_path: Path) -> None:
    assert len({stories(kind).turns[-1].closed.weights for kind in FAULTS}) == 1
    four = tell(tmp_path, config(train={"steps": STEPS[:4]}), {})
    first = {stories(kind).turns[0].closed.weights for kind, rule in RULES.items() if rule.first_lie == 0}
    assert first == {four.turns[0].closed.weights}


@pytest.mark.parametrize("kind", sorted(RULES))
def test_the_run_folder_verifies(stories: Any, kind: str) -> None:
    answer = verify(VerifyOptions(stories(kind).folder, level=2), lambda *_: None)
    assert answer.failures == []
    assert (answer.ok, answer.complete, answer.rounds) == (True, True, ROUNDS)
    assert answer.weights_digest == stories(kind).turns[-1].closed.weights


@pytest.mark.slow
def test_all_kinds_at_once(tmp_path: Path) -> None:
    honest = [f"c{index:02d}" for index in range(6)]
    drills = parse_drills([f"{kind}=1" for kind in RULES], len(honest) + len(RULES))
    assert sorted(drills.values()) == sorted(RULES)
    assert not set(drills) & set(honest)
    steps = [3, 2, 2, 1, 2, 3, *[2] * len(RULES)]
    story = tell(tmp_path, config(train={"steps": steps}), drills)
    copycat = next(name for name, kind in drills.items() if kind == "copycat")
    accepted: set[str] = set()
    caught: int | None = None
    for number, turn in enumerate(story.turns):
        lying = {
            name: RULES[kind].reason
            for name, kind in drills.items()
            if RULES[kind].first_lie <= number <= RULES[kind].last_turn
        }
        # Chance chooses what it copies: accepted work is a duplicate, another liar's is false work.
        if caught is not None:
            lying.pop(copycat, None)
        elif copycat in lying:
            copied = turn.reveals[copycat].opening.payload
            if copied not in accepted:
                lying[copycat], caught = "failed-audit", number
        accepted |= {item.payload for item in turn.closed.accepted}
        assert turn.rejected == lying
        still_honest = [n for n, kind in drills.items() if number < RULES[kind].first_lie]
        assert turn.accepted == (*honest, *still_honest)
    assert story.turns[-1].closed.quarantined == tuple(sorted(drills))
    balance = {item.member: item for item in story.turns[-1].closed.credits}
    assert all(balance[name].vested == 0 for name in drills)
    assert all(balance[name].vested > 0 for name in honest)
    answer = verify(VerifyOptions(story.folder, level=3), lambda *_: None)
    assert (answer.failures, answer.recomputed) == ([], answer.population)


# What each kind hands in, beside what an honest contributor would.


@dataclass(frozen=True)
class Scene:
    """The second round of an honest run, as contributor c04 finds it."""

    story: Story
    open: RoundOpen
    checkpoint: bytes
    folder: Path

    def player(self, kind: str | None, public: Path | None = None) -> Contributor:
        """c04 with the hidden state of its first round, honest or not."""
        place = Place(self.folder / (kind or "honest"), self.story.members / "data")
        if not place.vault.exists():
            shutil.copytree(self.story.members / LIAR, place.vault)
            shutil.rmtree(place.vault / "turns")
        manifest = self.story.folder.joinpath("manifest.json").read_bytes()
        if kind is None:
            return Contributor(LIAR, f"op-{LIAR}", manifest, place)
        return adversary(kind)(LIAR, f"op-{LIAR}", manifest, place, public or self.story.folder)

    def work(self, player: Contributor) -> Work:
        entry = next(entry for entry in self.open.roster if entry.member == LIAR)
        return player.work(self.open, entry, self.checkpoint)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    story = tell(folder, config(run={"rounds": 2}), {})
    open_ = story.turns[1].open
    assert open_.entry(4).start_state != story.manifest.zero_state
    return Scene(story, open_, story.coordinator.desk.folder.checkpoint(1), folder / "vaults")


def test_lazy_does_half_and_claims_all(scene: Scene) -> None:
    player = scene.player(None)
    honest, lazy = scene.work(player), scene.work(scene.player("lazy"))
    forms = state_specs(player.job.specs, "local")
    states = [arrays_from_bytes(work.next_state, forms) for work in (honest, lazy)]
    assert [int(state["step"]) for state in states] == [4, 4]  # it claims two rounds of two steps
    # And has done the first of the second round's.
    entry = scene.open.entry(4)
    (first, _) = entry.positions[0]
    half = replace(entry, steps=1, positions=((first, first + 2),))
    start = player.job.state(player.vault.get("states", entry.start_state) or b"", entry.start_state)
    weights = player.job.weights(scene.checkpoint, scene.open.base.weights)
    done = do_work(player.job, player.data, scene.open, half, weights, start)
    true = arrays_from_bytes(done.next_state, forms)
    assert int(true["step"]) == 3
    assert all(np.array_equal(states[1][name], true[name]) for name in ("adam_m", "adam_v"))
    assert lazy.payload == done.payload != honest.payload
    assert len(lazy.claims.trace) == len(honest.claims.trace)
    assert lazy.claims.loss_first == honest.claims.loss_first == lazy.claims.loss_last


def test_random_is_noise_of_an_honest_norm(scene: Scene) -> None:
    player = scene.player("random")
    codec = player.job.codec
    true, noise = (codec.decode(scene.work(p).payload) for p in (scene.player(None), player))
    assert noise.norm() == true.norm() > 0
    a_P, b_P = true.dense(codec.length), noise.dense(codec.length)
    assert abs(float(a_P @ b_P)) < 0.2 * true.norm() ** 2


def test_scaled_is_the_true_direction_fifty_times_as_long(scene: Scene) -> None:
    player = scene.player("scaled")
    codec = player.job.codec
    true, scaled = (codec.decode(scene.work(p).payload) for p in (scene.player(None), player))
    assert np.array_equal(true.indices, scaled.indices)
    # A scale has four significant bits, so fifty times a scale is within a sixteenth of one that exists.
    ratios = scaled.values / true.values
    assert ratios.min() >= 50 * 15 / 16
    assert ratios.max() <= 50 * 17 / 16
    cosine = float(true.values @ scaled.values) / (true.norm() * scaled.norm())
    assert cosine > 0.999


def test_wrong_data_is_honest_work_on_windows_of_its_own(scene: Scene) -> None:
    honest, other = scene.work(scene.player(None)), scene.work(scene.player("wrong-data"))
    assert other.claims.loss_first != honest.claims.loss_first
    assert other.payload != honest.payload
    player = scene.player("wrong-data")
    entry, data = scene.open.entry(4), player.data
    first = data.train_windows - 5 * 4  # two steps of two windows, slot 4
    again = replace(entry, positions=((first, first + 4),))
    assert entry.positions != again.positions
    start = player.job.state(player.vault.get("states", entry.start_state) or b"", entry.start_state)
    weights = player.job.weights(scene.checkpoint, scene.open.base.weights)
    assert do_work(player.job, data, scene.open, again, weights, start) == other


def test_wrong_data_never_does_what_it_was_given(scene: Scene) -> None:
    player = scene.player("wrong-data")
    first = player.data.train_windows - 5 * 4
    given = replace(scene.open.entry(4), positions=((first, first + 1), (first + 1, first + 4)))
    honest = scene.player(None).work(scene.open, given, scene.checkpoint)
    assert player.work(scene.open, given, scene.checkpoint).claims != honest.claims


def test_nan_is_no_payload_at_all(scene: Scene) -> None:
    honest, nan = scene.work(scene.player(None)), scene.work(scene.player("nan"))
    assert len(nan.payload) == len(honest.payload)
    assert nan.claims.payload == blake3_digest(nan.payload)
    floats = np.frombuffer(nan.payload[: len(nan.payload) // 4 * 4], dtype="<f4")
    assert np.isnan(floats).all()
    with pytest.raises(FormatError):
        scene.player(None).job.codec.decode(nan.payload)


def test_state_smuggler_hands_in_an_honest_payload(scene: Scene) -> None:
    honest, smuggler = scene.work(scene.player(None)), scene.work(scene.player("state-smuggler"))
    assert smuggler.payload == honest.payload
    assert smuggler.claims.trace == honest.claims.trace
    forms = state_specs(scene.player(None).job.specs, "local")
    true, poisoned = (arrays_from_bytes(work.next_state, forms) for work in (honest, smuggler))
    changed = {name for name in true if not np.array_equal(true[name], poisoned[name])}
    assert changed == {"error_feedback"}
    # The claim is of the poisoned state, so that the next round could start from it.
    assert smuggler.claims.next_state == blake3_digest(smuggler.next_state)


def test_copycat_is_honest_until_there_is_something_to_copy(scene: Scene, tmp_path: Path) -> None:
    assert scene.work(scene.player("copycat", tmp_path)) == scene.work(scene.player(None))
    # That one is its own, and it does not copy itself.
    (tmp_path / "payloads").mkdir()
    own = scene.work(scene.player(None))
    (tmp_path / "payloads" / own.claims.payload.removeprefix("blake3:")).write_bytes(own.payload)
    assert scene.work(scene.player("copycat", tmp_path)) == own


def test_copycat_and_stale_hand_in_what_was_handed_in_before(stories: Any) -> None:
    first = {kind: stories(kind).turns[0].reveals for kind in ("copycat", "stale")}
    own = {kind: reveals[LIAR].opening.payload for kind, reveals in first.items()}
    others = {reveal.opening.payload for name, reveal in first["copycat"].items() if name != LIAR}
    second = {kind: stories(kind).turns[1].reveals[LIAR].opening for kind in first}
    assert second["copycat"].payload in others
    assert second["stale"].payload == own["stale"]
    assert stories("stale").turns[2].reveals[LIAR].opening.payload == own["stale"]


def test_silent_commits_and_does_not_reveal(stories: Any) -> None:
    silent = [c for c in stories("silent").coordinator.desk.ledger.records() if isinstance(c, Commitment)]
    assert [c.round for c in silent if c.member == LIAR] == [1, 2]
    assert all(LIAR not in turn.reveals for turn in stories("silent").turns)


def test_dodger_hands_in_noise_and_serves_nothing(scene: Scene) -> None:
    assert scene.work(scene.player("dodger")).payload == scene.work(scene.player("random")).payload
    with pytest.raises(ProtocolError, match="does not serve"):
        scene.player("dodger").serve_state(1)


# What one can do to another.


class FrontRunner(Adversary):
    """Computes another's work from what is public, as level 3 of verify does, and hands it in as its own."""

    victim = LIAR

    def work(self, open_: RoundOpen, entry: RosterEntry, checkpoint: bytes) -> Work:
        honest = self.honest(open_, entry, checkpoint)
        victim = next(other for other in open_.roster if other.member == self.victim)
        weights = self.job.weights(checkpoint, open_.base.weights)
        path = self.vault.folder / "victim"
        known = path.read_bytes() if path.exists() else self.job.zero_state
        start = self.job.state(known, victim.start_state)
        theirs = do_work(self.job, self.data, open_, victim, weights, start)
        path.write_bytes(theirs.next_state)
        return self.with_payload(honest, theirs.payload)


@pytest.mark.parametrize(("runner", "victim"), [("c00", LIAR), (LIAR, "c01")])
@pytest.mark.parametrize("rate_ppm", [0, 1_000_000])
def test_an_honest_contributor_loses_nothing_when_its_work_is_handed_in_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_ppm: int, runner: str, victim: str
) -> None:
    """Twins are drawn at any rate, and an audit tells whose work it is: before the victim or after it."""
    monkeypatch.setitem(ADVERSARIES, "front-runner", FrontRunner)
    monkeypatch.setattr(FrontRunner, "victim", victim)
    audit = {"rate_ppm": rate_ppm, "second_look_ppm": 0, "probation_rounds": 0}
    story = tell(tmp_path, config(audit=audit, run={"rounds": 3}), {runner: "front-runner"})
    first = story.turns[0]
    assert first.reveals[runner].opening.payload == first.reveals[victim].opening.payload
    assert first.rejected == {runner: "failed-audit"}
    assert [turn.rejected for turn in story.turns[1:]] == [{}, {}]
    assert all(victim in turn.accepted for turn in story.turns)
    assert story.turns[-1].closed.quarantined == (runner,)
    if rate_ppm == 0:
        assert [turn.drawn for turn in story.turns] == [{runner, victim}, set(), set()]
    answer = verify(VerifyOptions(story.folder, level=3), lambda *_: None)
    assert answer.failures == []


# Nobody but the liar knows.


@pytest.mark.parametrize("kind", sorted(RULES))
def test_until_the_lie_a_drill_is_an_honest_run_to_the_byte(stories: Any, kind: str) -> None:
    honest, drill = stories(None), stories(kind)
    for name in ("manifest.json", "data/tokenizer.json"):
        assert (drill.folder / name).read_bytes() == (honest.folder / name).read_bytes()
    pairs = zip(honest.log(), drill.log(), strict=False)
    index, (_, first) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    turn = RULES[kind].first_lie
    if kind == "silent":
        record = open_record(RevealClose, first, drill.manifest.coordinator)
        assert record.round == turn + 1
    else:
        commitment = open_record(Commitment, first, drill.turns[turn].entry(LIAR).key)
        assert (commitment.member, commitment.round) == (LIAR, turn + 1)
    assert index > 8  # the manifest and seven enrolments at least


@pytest.mark.parametrize("kind", sorted(RULES))
def test_nobody_is_asked_otherwise_because_of_a_drill(stories: Any, kind: str) -> None:
    honest, drill = stories(None), stories(kind)
    commits = [index for index, (method, _) in enumerate(drill.calls) if method == "commit"]
    lie = commits[RULES[kind].first_lie]
    assert drill.calls[: lie + 1] == honest.calls[: lie + 1]
    # After it the auditors get bytes of the log, the checkpoint and the state, the same eight as ever.
    shapes = {
        tuple(type(value) for value in arguments)
        for method, asked in drill.calls
        for arguments in asked.values()
        if method == "audit"
    }
    assert shapes == {(bytes, int, int, bytes, bytes, bytes, bytes, type(None))}


@pytest.mark.parametrize("kind", sorted(RULES))
def test_the_flag_lies_in_the_liars_own_folder_alone(stories: Any, kind: str) -> None:
    story = stories(kind)
    assert [path.relative_to(story.members) for path in story.home.rglob("drill")] == [Path(LIAR, "drill")]
    assert (story.members / LIAR / "drill").read_text() == kind
    assert not [path for path in story.folder.rglob("*") if path.name in ("drill", "mine", "old")]


def test_only_the_liars_own_specification_has_the_flag(tmp_path: Path) -> None:
    bases = [Basis(config(), b"{}", tmp_path, "runs/x", tmp_path, drills) for drills in ({}, {LIAR: "lazy"})]
    people = first_members(config()).items()
    plain, drill = ({name: basis.spec(name, role, "op") for name, role in people} for basis in bases)
    assert {name for name in plain if plain[name] != drill[name]} == {LIAR}
    assert {spec.adversary for spec in plain.values()} == {None}


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="no adversary is called 'evil'"):
        adversary("evil")
