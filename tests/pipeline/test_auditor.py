"""An auditor judges only pieces that belong together, and says the same every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.auditor import Auditor
from pipeline.member import Place
from tests.pipeline.tiny_world import World, world
from verification.encoding import canonical_json, sha256_digest
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.keys import PrivateKey
from verification.records import Reveal, RoundOpen, Verdict
from verification.sealing import open_record, predicate, seal_record


class Case:
    """Everything that an audit of c0's first contribution needs."""

    def __init__(self, here: World) -> None:
        self.here = here
        self.open = here.open()
        mine = here.c0.commit(here.sealed(self.open), here.checkpoint)
        self.reveal, self.payload = here.revealed(self.open, mine)
        self.record = open_record(Reveal, self.reveal, here.c0.key.public)
        self.state = here.c0.serve_state(0)

    def audit(self, **other: Any) -> bytes:
        open_: RoundOpen = other.get("open", self.open)
        key: PrivateKey | None = other.get("key")
        return self.here.a0.audit(
            self.here.sealed(open_, key),
            other.get("slot", 0),
            other.get("look", 1),
            self.here.drawn(self.open, other.get("segments", [0, 1])),
            other.get("reveal", self.reveal),
            other.get("checkpoint", self.here.checkpoint),
            other.get("state", self.state),
            other.get("trace"),
        )

    def told(self, **changes: Any) -> bytes:
        """c0's reveal with other claims, signed by c0."""
        opening = replace(self.record.opening, **changes)
        return seal_record(replace(self.record, opening=opening), self.here.c0.key)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(world(tmp_path_factory.mktemp("auditor")))


def verdict_of(case: Case, data: bytes) -> Verdict:
    return open_record(Verdict, data, case.here.a0.key.public)


def test_honest_work_passes_and_the_verdict_is_the_same_bytes_every_time(case: Case) -> None:
    first = case.audit()
    assert case.audit() == first
    verdict = verdict_of(case, first)
    assert (verdict.outcome, verdict.differs, verdict.auditor, verdict.look) == ("pass", (), "a0", 1)
    assert verdict.payload == case.record.opening.payload
    assert verdict_of(case, case.audit(look=2)).look == 2


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"payload": "blake3:" + "0" * 64}, ("payload",)),
        ({"next_state": "blake3:" + "0" * 64}, ("next_state",)),
        ({"trace_root": "sha256:" + "0" * 64}, ("trace",)),
        ({"loss_first": 1}, ("loss",)),
        ({"loss_last": 1, "trace_root": "sha256:" + "0" * 64}, ("trace", "loss")),
    ],
)
def test_each_lie_fails_and_is_named(case: Case, changes: dict[str, Any], differs: tuple[str, ...]) -> None:
    verdict = verdict_of(case, case.audit(reveal=case.told(**changes)))
    assert (verdict.outcome, verdict.differs) == ("fail", differs)
    assert verdict.payload == case.record.opening.payload


@pytest.mark.parametrize("leaves", [0, 1, 2, 4, 9, 2**53 - 1])
def test_a_trace_of_another_length_than_the_works_gets_no_verdict(case: Case, leaves: int) -> None:
    """Intake refuses such a reveal before anybody is drawn."""
    assert case.record.opening.trace_leaves == 3
    with pytest.raises(ProtocolError, match="too long or short"):
        case.audit(reveal=case.told(trace_leaves=leaves))


def test_pieces_of_another_place_get_no_verdict(case: Case) -> None:
    other = PrivateKey.from_seed(b"\x05" * 32)
    with pytest.raises(SignatureError):
        case.audit(key=other)
    with pytest.raises(ProtocolError, match="another run"):
        case.audit(open=replace(case.open, run=sha256_digest(b"another")))
    with pytest.raises(SignatureError):
        case.audit(slot=1)  # c0's reveal, judged as c1's
    with pytest.raises(BarnraiseError, match="not in the roster"):
        case.audit(slot=9)
    for change in ({"round": 2}, {"attempt": 1}):
        with pytest.raises(ProtocolError, match="does not belong"):
            case.audit(open=replace(case.open, **change))
    foreign = replace(case.record, run=sha256_digest(b"another"))
    with pytest.raises(ProtocolError, match="does not belong"):
        case.audit(reveal=seal_record(foreign, case.here.c0.key))
    with pytest.raises(ProtocolError, match="base checkpoint"):
        case.audit(open=replace(case.open, base=replace(case.open.base, weights="blake3:" + "0" * 64)))
    with pytest.raises(FormatError, match="wrong length"):
        case.audit(state=case.state + b"\0")
    with pytest.raises(ProtocolError, match="hidden state"):
        case.audit(state=case.state[:-1] + bytes([case.state[-1] ^ 1]))
    for garbage in (b"", b"x" * 100):
        with pytest.raises(BarnraiseError):
            case.audit(checkpoint=garbage)
        with pytest.raises(BarnraiseError):
            case.audit(reveal=garbage)


def test_an_open_with_another_key_of_this_auditor_gets_no_verdict(case: Case) -> None:
    """As when a request of before a rotation comes once more, after it."""
    other = PrivateKey.generate().public
    auditors = tuple(replace(a, key=other) if a.member == "a0" else a for a in case.open.auditors)
    assert auditors != case.open.auditors
    for changed in (auditors, ()):
        with pytest.raises(ProtocolError, match="with its present key"):
            case.audit(open=replace(case.open, auditors=changed))


def test_other_source_than_the_manifests_is_refused(case: Case, tmp_path: Path) -> None:
    manifest = replace(case.here.manifest, source=sha256_digest(b"other source"))
    with pytest.raises(ProtocolError, match="a0 runs other source"):
        Auditor("a0", "op-a0", canonical_json(predicate(manifest)), Place(tmp_path, tmp_path))
