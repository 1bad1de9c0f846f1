"""Where records of the right form meet rules, with values of any kind, for fuzz_targets.py.

Owns the state machine, the coordinator's intake and the reading of a log. Does not own the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from assurance.fuzz_targets import KEY, Parser, canon, records, sealed, statement, target
from verification import encoding, fsck_shapes, sealing
from verification.envelope import seal
from verification.errors import FormatError


def _typed(wanted: type[Any], data: bytes) -> Any:
    return sealing.parse_predicate(wanted, encoding.parse_canonical(data))


@target("record where the rules meet it", json=True)
def _rules(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A log's next record, as the state machine meets it, at every place of a run."""
    del folder
    from tests.verification import fake_disputes, fake_run, rich_run
    from verification.rounds import apply, begin

    state = begin(fake_run.started(witnesses=3, audit={"probation_rounds": 9}).manifest)  # as that begins
    states, played = [], rich_run.rich_run()
    for record in played:
        states.append(state)
        state = apply(state, record)
    state = fake_disputes.many()
    for record in fake_disputes.disputed(fake_disputes.BOTH_LIE, fake_disputes.STAMPED).records:
        played.append(record)
        states.append(state)
        state = apply(state, record)

    def replay(data: bytes) -> None:
        value = encoding.parse_canonical(data)
        if not isinstance(value, dict) or set(value) != {"at", "predicate"} or type(value["at"]) is not int:
            raise FormatError("not a case of this target")
        at = value["at"] % len(played)
        record: Any = sealing.parse_predicate(type(played[at]), value["predicate"])
        apply(states[at], record)

    return [replay], [canon({"at": at, "predicate": sealing.predicate(r)}) for at, r in enumerate(played)]


_COORDINATORS = (
    "round-open", "commit-close", "reveal-close", "draw", "served", "first-looks", "second-draw",
    "round-close", "run-close",
)  # fmt: skip


@target("envelope: log entries", json=True, wrap=sealed, share=0.1, why="a manifest is read before each")
def _entries(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """A log's last entry, as the writer's own reader meets it, rightly signed."""
    del folder
    from pipeline.log_reader import read_entries
    from verification.records import Manifest

    value = dict(next(r for kind, r in records() if kind == "manifest"))
    value["coordinator"] = KEY.public
    manifest = _typed(Manifest, canon(value))
    first = sealed(statement("manifest", value, ("dataset", value["dataset"]["root"])))

    def own(data: bytes) -> None:
        log: Any = SimpleNamespace(entries=lambda: iter([first, data]))
        list(read_entries(log, manifest))

    return [own], [statement(kind, r, ("run", r["run"])) for kind, r in records() if kind in _COORDINATORS]


def _member_record(name: str) -> Callable[[bytes], bytes]:
    """Seal JSON as the kind it names, by the member of the made-up run that would send it."""

    def wrap(data: bytes) -> bytes:
        from tests.verification.fake_run import key

        value = encoding.parse_canonical(data)
        if not isinstance(value, dict):
            raise FormatError("not an object")
        run = value.get("run")
        digest = encoding.digest_hex(run) if isinstance(run, str) else "0" * 64
        signer = "a0" if name == "verdict" else "c0"
        return seal(f"barnraise:{name}:v1", value, "run", digest, key(signer))

    return wrap


def _intake_target(name: str) -> None:
    @target(f"intake: {name}", json=True, wrap=_member_record(name), share=0.25, small=0.2)
    def _(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
        """What a member sends. What is taken must be of the form that the independent checker asks for."""
        del folder
        check, record = _intakes()[name]

        def read(data: bytes) -> None:
            taken = check(data)
            if taken is not None:
                fsck_shapes.RECORDS[name](sealing.predicate(taken), "what the intake took")

        return [read], [canon(sealing.predicate(record))]


@cache
def _intakes() -> dict[str, tuple[Callable[[bytes], Any], Any]]:
    """By kind: the check of the coordinator's intake, and a record that passes it."""
    from tests.verification import fake_disputes, fake_elastic, fake_run
    from verification import intake
    from verification.plans import plan_open
    from verification.records import Appeal, CommitClose, Draw, Served

    play = fake_run.Play(fake_run.started(audit={"rate_ppm": 1_000_000}))
    unstarted = fake_run.started()
    enrolled = fake_run.enrolments(unstarted.run)[0]
    play.add(plan_open(play.state))
    open_ = play.state.open_turn.open
    script = {entry.slot: fake_run.GOOD for entry in open_.roster}
    slot = next(entry.slot for entry in open_.roster if entry.member == "c0")
    commitment = fake_run.commitment(open_, open_.entry(slot))
    reveal = fake_run.reveal(open_, open_.entry(slot))
    play._commit(script)  # noqa: SLF001
    assert isinstance(play.records[-1], CommitClose)
    committed = play.state
    play._reveal(script)  # noqa: SLF001
    before: list[Any] = []

    def add(record: Any) -> None:
        fake_run.Play.add(play, record)
        if isinstance(record, (Draw, Served)):
            before.append(play.state)

    play.add = add  # type: ignore[method-assign]
    play._audit(script)  # noqa: SLF001
    failed, appeal = fake_disputes.at(Appeal, fake_disputes.BOTH_LIE)
    verdict = fake_run.verdict(before[1], slot, 1, "a0", "pass")
    turn = before[1].open_turn

    def judged(data: bytes) -> Any:
        answer = intake.RevealAnswer(data, b"payload", None)
        found, refusal = intake.judge_reveal(committed, slot, answer, payload_bytes=7, decode=lambda _: None)
        if found is None:
            raise FormatError(refusal.reason if refusal else "neither")
        return found

    def changed(data: bytes) -> Any:
        return intake.check_identity_change(committed, "c0", data)

    return {
        "enrol": (lambda data: intake.check_enrolment(unstarted, data), enrolled),
        "commitment": (lambda data: intake.check_commitment(open_, slot, data), commitment),
        "reveal": (judged, reveal),
        "verdict": (lambda data: intake.check_verdict(turn, slot, 1, "a0", data), verdict),
        "appeal": (lambda data: intake.check_appeal(failed.open_turn, 0, data), appeal),
        "key-rotation": (changed, fake_run.rotation(committed.run, "c0", "c0", "c0 next")),
        "key-revocation": (changed, fake_run.revocation(committed.run, "c0")),
        "leave": (changed, fake_elastic.leave(committed, "c0", "member")),
        "return": (changed, fake_elastic.back(committed, "c0")),
    }


for _name in (
    "enrol",
    "commitment",
    "reveal",
    "verdict",
    "appeal",
    "key-rotation",
    "key-revocation",
    "leave",
    "return",
):
    _intake_target(_name)


@target("intake: sketches", json=True)
def _sketches(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """What an auditor tells of steps before it is shown where they end."""
    del folder
    from verification import intake

    told = [[number - 3 for number in range(8)], [0] * 8, [10**7] * 8]
    return [lambda data: intake.check_told(data, 3)], [canon(told)]


@target("evidence case: verdicts", json=True, share=0.1, small=0.05, why="a case is written for each")
def _judged_case(folder: Path) -> tuple[Iterable[Parser], Iterable[bytes]]:
    """The verdicts and the appeal of a case, by whoever they name, as a rerun meets them."""
    from pipeline.evidence import CASE, read_evidence
    from tests.verification import fake_disputes
    from tests.verification.fake_run import key
    from verification.encoding import blake3_digest
    from verification.records import RoundClose

    disputes = fake_disputes
    state, _ = disputes.at(RoundClose, disputes.IN_VAIN, disputes.STAMPED)
    turn = state.open_turn
    place = {"attempt": 0, "round": turn.open.round, "run": state.run}

    def sound(slot: int, signer: str) -> dict[str, bytes]:
        records = {"open": (turn.open, "coordinator"), "draw": (turn.draw, "coordinator")}
        records["reveal"] = (turn.reveals[slot], signer)
        told = {name: sealing.seal_record(r, key(who)) for name, (r, who) in records.items() if r}
        return {"manifest": canon(sealing.predicate(state.manifest)), **told}

    def read(data: bytes) -> None:
        value = encoding.parse_canonical(data)
        if not isinstance(value, dict) or set(value) != {"reason", "slot", "verdicts"}:
            raise FormatError("not a case of this target")
        slot = 1 if value["slot"] == 1 else 0
        files = sound(slot, turn.open.entry(slot).member)
        for name, told in value["verdicts"].items() if isinstance(value["verdicts"], dict) else ():
            if isinstance(told, dict) and 0 < len(name) < 99 and "/" not in name and name.strip("."):
                who = told.get("auditor", told.get("member"))
                run = state.run.removeprefix("sha256:")
                signed = key(who if isinstance(who, str) else "a0")
                files[name] = seal(f"barnraise:{name.split('-')[0]}:v1", told, "run", run, signed)
        for old in folder.iterdir():
            old.unlink()
        listed = {name: blake3_digest(content) for name, content in files.items()}
        case = {**place, "files": listed, "member": "c0", "reason": value["reason"], "slot": slot}
        for name, content in {**files, CASE: canon(case)}.items():
            (folder / name).write_bytes(content)
        read_evidence(folder)

    seeds = []
    for slot in (0, 1):
        verdicts = {f"verdict-{look}": v for (of, look), v in turn.verdicts.items() if of == slot}
        appeals = {"appeal": turn.appeals[slot]} if slot in turn.appeals else {}
        told = {name: sealing.predicate(record) for name, record in {**verdicts, **appeals}.items()}
        seeds.append(canon({"reason": "failed-audit", "slot": slot, "verdicts": told}))
    return [read], seeds
