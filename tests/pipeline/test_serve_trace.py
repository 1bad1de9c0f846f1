"""A contributor opens what is asked, the same bytes whatever it has kept; an auditor takes no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import contributor
from pipeline.contributor import Contributor
from pipeline.member import Place
from pipeline.trace import read_trace
from tests.pipeline.segment_world import STEPS, segment_world
from tests.pipeline.tiny_world import World, world
from verification.encoding import canonical_json, sha256_digest
from verification.errors import BarnraiseError, FormatError, ProtocolError, SignatureError
from verification.judge import Audit
from verification.records import Draw, Reveal, Verdict
from verification.sealing import open_record, predicate, seal_record
from verification.segments import looked_into, opened_leaves

COUNT = 4
WHOLE = list(range(COUNT))


@dataclass
class Played:
    """A commitment of c0's and what it revealed."""

    here: World
    reveal: bytes
    record: Reveal

    @classmethod
    def of(cls, here: World) -> Played:
        open_ = here.open()
        mine = here.c0.commit(here.sealed(open_), here.checkpoint)
        reveal, _ = here.revealed(open_, mine)
        return cls(here, reveal, open_record(Reveal, reveal, here.c0.key.public))

    def again(self) -> Contributor:
        """c0 as it is after a restart."""
        data = canonical_json(predicate(self.here.manifest))
        return Contributor("c0", "op-c0", data, Place(self.here.root / "c0", self.here.folder.data))

    def served(self, segments: list[int], by: Contributor | None = None) -> bytes:
        return (by or self.here.c0).serve_trace(0, self.draw(segments), self.here.checkpoint)

    def draw(self, segments: Sequence[int], **changes: Any) -> bytes:
        return self.here.drawn(self.here.open(), segments, **changes)

    def audit(self, segments: Any, trace: Any, **told: Any) -> Verdict:
        here = self.here
        opening = replace(self.record.opening, **told)
        reveal = seal_record(replace(self.record, opening=opening), here.c0.key) if told else self.reveal
        state = here.c0.serve_state(0)
        envelope = here.a0.audit(
            here.sealed(here.open()), 0, 1, self.draw(segments), reveal, here.checkpoint, state, trace
        )
        return open_record(Verdict, envelope, here.a0.key.public)


@pytest.fixture(scope="module", params=["local", "gradient"])
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    found = Played.of(segment_world(tmp_path_factory.mktemp("serve"), request.param))
    assert found.here.open().entry(0).steps == STEPS
    return found


@settings(max_examples=8, deadline=None)
@given(st.sets(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT - 1))
def test_any_segments_pass_and_the_verdict_is_the_same_bytes_every_time(
    played: Played, chosen: set[int]
) -> None:
    segments = sorted(chosen)
    trace = played.served(segments)
    verdict = played.audit(segments, trace)
    assert (verdict.outcome, verdict.differs) == ("pass", ())
    assert played.audit(segments, trace) == verdict
    stated = {place for place, leaf in enumerate(verdict.trace) if ":" in leaf}
    assert stated == looked_into(segments, COUNT)
    whole = played.audit(WHOLE, None)
    assert all(verdict.trace[place] == whole.trace[place] for place in stated)
    assert (verdict.payload, verdict.next_state) == (whole.payload, whole.next_state)


def test_a_contributor_that_was_restarted_works_again_and_opens_the_same_bytes(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[str] = []
    compute = Contributor.compute

    def counted(self: Contributor, *args: Any) -> Any:
        worked.append(self.name)
        return compute(self, *args)

    monkeypatch.setattr(Contributor, "compute", counted)
    first = played.served([1, 3])
    assert worked == []
    again = played.again()
    assert played.served([1, 3], again) == first
    assert worked == ["c0"]
    # Now it has them all.
    assert played.served([2], again) == played.served([2])
    assert worked == ["c0"]


@pytest.mark.parametrize("budget", [0, 1, 150_000])
def test_a_contributor_with_little_memory_opens_the_same_bytes(
    played: Played, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(contributor, "KEPT_BYTES", budget)
    poor = played.again()
    for segments in ([3], [0, 2], [1], [0]):
        assert played.served(segments, poor) == played.served(segments)
        point = next(iter(poor._points.values()))
        # No more than fits, the one that it ends in, and the two at most that were asked for.
        assert len(poor._points) <= 2 + -(-budget // (len(point.weights) + len(point.state)))


def test_only_the_last_turns_points_are_kept(tmp_path: Path) -> None:
    here = segment_world(tmp_path)
    for turn in range(3):
        open_ = here.open(turn=turn, round=turn + 1)
        here.c0.commit(here.sealed(open_), here.checkpoint)
        assert len(here.c0._points) == COUNT
        assert here.c0.serve_trace(turn, here.drawn(open_, [0]), here.checkpoint)
    with pytest.raises(ProtocolError, match="committed to nothing in turn 1"):
        here.c0.serve_trace(1, here.drawn(open_, [0]), here.checkpoint)


REFUSED: dict[str, Callable[[Played], bytes]] = {
    "a segment too many": lambda p: p.draw([1, COUNT]),
    "a segment that no work has": lambda p: p.draw([99]),
    "no segments": lambda p: p.draw([]),
    "another slot's": lambda p: p.here.drawn(p.here.open(), [1], slot=1),
    "nobody's": lambda p: p.draw([1], drawn=()),
    "another round's": lambda p: p.draw([1], round=2),
    "another attempt's": lambda p: p.draw([1], attempt=1),
    "another run's": lambda p: p.draw([1], run="sha256:" + "1" * 64),
    "signed by a member": lambda p: seal_record(
        open_record(Draw, p.draw([1]), p.here.key.public), p.here.c0.key
    ),
    "a bit of it changed": lambda p: p.draw([1]).replace(b'"payload":"ey', b'"payload":"ez'),
    "an open": lambda p: p.here.sealed(p.here.open()),
    "nothing": lambda _: b"",
    "a list of leaves": lambda _: b"[0,1]",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_draw_of_the_coordinators_looks_into_is_refused_without_doing_it(
    played: Played, what: str
) -> None:
    again = played.again()
    for member in (played.here.c0, again):
        with pytest.raises(BarnraiseError):
            member.serve_trace(0, REFUSED[what](played), played.here.checkpoint)
    assert again._points == {}
    assert played.served([0, 2]) == played.served([0, 2], played.again())


@settings(max_examples=8, deadline=None)
@given(st.sets(st.integers(0, COUNT - 1), min_size=1))
def test_exactly_the_leaves_that_the_draw_looks_into_are_opened(played: Played, chosen: set[int]) -> None:
    """Each leaf's length is in the trace: one more or less does not read as the trace of this audit."""
    here, segments = played.here, sorted(chosen)
    audit = Audit(tuple(segments), here.open().entry(0).numerics_class)
    trace = read_trace(here.c0.job, played.record.opening, STEPS, audit, played.served(segments))
    assert tuple(trace.leaves) == opened_leaves(segments, COUNT)


def test_a_turn_or_a_checkpoint_of_another_is_refused(played: Played) -> None:
    again = played.again()
    with pytest.raises(ProtocolError, match="committed to nothing in turn 1"):
        again.serve_trace(1, played.draw([0]), played.here.checkpoint)
    damaged = played.here.checkpoint[:-1] + bytes([played.here.checkpoint[-1] ^ 1])
    for checkpoint in (damaged, b"", played.here.checkpoint[:100]):
        with pytest.raises(BarnraiseError):
            again.serve_trace(0, played.draw([0]), checkpoint)
    assert played.served([1], again) == played.served([1])


def test_where_no_segments_are_drawn_nothing_is_kept(tmp_path: Path) -> None:
    here = world(tmp_path)
    here.c0.commit(here.sealed(here.open()), here.checkpoint)
    assert here.c0._points == {}
    with pytest.raises(ProtocolError, match="opens no traces"):
        here.c0.serve_trace(0, here.drawn(here.open(), [1]), here.checkpoint)


# --- the auditor ---


def test_a_lie_is_a_fail_that_says_what_differs(played: Played) -> None:
    trace = played.served([1])
    zero = "blake3:" + "0" * 64
    assert played.audit([1], trace, next_state=zero).differs == ("next_state",)
    assert played.audit([1], trace, payload=zero).differs == ("payload",)
    assert played.audit([1], trace, loss_last=1).differs == ("loss",)
    assert played.audit([1], trace, loss_first=1).differs == ()
    first = played.audit([0], played.served([0]), loss_first=1)
    assert (first.outcome, first.differs) == ("fail", ("loss",))


@pytest.mark.parametrize("segments", [[], [COUNT], [-1, 0], [1, 0], [2, 2]])
def test_segments_that_no_draw_names_get_no_verdict(played: Played, segments: Any) -> None:
    with pytest.raises(ProtocolError, match="segments that are none"):
        played.audit(segments, played.served([1]))


def test_a_draw_of_another_turn_or_by_nobody_gets_no_verdict(played: Played) -> None:
    here = played.here
    own = here.sealed(here.open()), 0, 1
    rest = played.reveal, here.checkpoint, here.c0.serve_state(0), played.served([1])
    changes: list[dict[str, Any]] = [{"round": 2}, {"attempt": 1}, {"run": sha256_digest(b"another")}]
    for change in changes:
        with pytest.raises(ProtocolError, match="a draw is of another turn"):
            here.a0.audit(*own, played.draw([1], **change), *rest)
    forged = seal_record(open_record(Draw, played.draw([1]), here.key.public), here.c0.key)
    with pytest.raises(SignatureError):
        here.a0.audit(*own, forged, *rest)
    with pytest.raises(ProtocolError, match="segments that are none"):
        here.a0.audit(*own, here.drawn(here.open(), [1], slot=1), *rest)


def test_a_trace_comes_exactly_with_a_draw_of_some_segments(played: Played) -> None:
    with pytest.raises(ProtocolError, match="exactly when not all segments"):
        played.audit([1], None)
    with pytest.raises(ProtocolError, match="exactly when not all segments"):
        played.audit(WHOLE, played.served([1]))
    with pytest.raises(FormatError, match="wrong length"):
        played.audit(WHOLE[:-1], b"")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:-1],
        lambda data: data + data,
        lambda data: b"\0" * len(data),
        lambda data: data[:23] + bytes(32) + data[55:],
    ],
)
def test_another_trace_than_the_one_committed_to_gets_no_verdict(
    played: Played, change: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(BarnraiseError):
        played.audit([1], change(played.served([1])))
    with pytest.raises(ProtocolError, match="not of the trace"):
        played.audit([1], played.served([1]), trace_root="sha256:" + "0" * 64)


@pytest.mark.parametrize("leaves", [0, 1, COUNT, COUNT + 2, 2**32 + 5, 2**53 - 1])
def test_an_opening_of_another_length_gets_no_verdict(played: Played, leaves: int) -> None:
    with pytest.raises(ProtocolError, match="too long or short"):
        played.audit([1], played.served([1]), trace_leaves=leaves)


def test_bytes_of_any_kind_will_do(played: Played) -> None:
    data = played.served([1])
    assert played.audit([1], memoryview(bytearray(data))) == played.audit([1], data)
    assert played.audit((1,), data) == played.audit([1], data)
