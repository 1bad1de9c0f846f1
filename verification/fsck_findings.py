"""What a level 1 check found: failures, the records it read, and the collector that gathers them.

Owns the shapes of the answer. Knows no rule of the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with what is being checked, how many are done and how many there are."""

Record = dict[str, Any]
"""The predicate of one log entry, its keys and types already checked."""

TurnSink = Callable[["Turn"], None]
"""Takes each turn when the log has told all of it."""

MOST_FAILURES = 10_000
"""So many are listed; a log may be as long as it likes, what is said of it may not."""
_LONGEST = 300


def shown(value: object) -> str:
    """`value` as one short printable line, None as none; hostile bytes cannot reach a terminal through it."""
    if value is None:
        return ""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:
        text = "an integer of thousands of digits"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text)} characters)"
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


@dataclass(frozen=True)
class Failure:
    """One thing that does not hold. All four are text for a person."""

    what: str
    where: str
    expected: str
    got: str


@dataclass(frozen=True)
class Turn:
    """The records of one attempt at one round, as far as the log goes.

    `commitments` and `reveals` are by slot, in log order; `verdicts` in log order. `first_entry` is the
    log index of the round-open. Keys and types of every record here are as in the protocol. Where audits lag,
    `settlement` is the turn's own, with the verdicts before it, and `removed` holds the slots that any
    settlement took out of this turn, and whether for a fault. `appeals` are by slot.
    """

    first_entry: int
    open: Record
    commitments: dict[int, Record]
    commit_close: Record | None
    reveals: dict[int, Record]
    reveal_close: Record | None
    draw: Record | None
    served: Record | None
    verdicts: tuple[Record, ...]
    second_draw: Record | None
    close: Record | None
    settlement: Record | None = None
    removed: Mapping[int, bool] = field(default_factory=dict)
    first_looks: Record | None = None
    appeals: Mapping[int, Record] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """What is missing and may be, by the manifest's retention: `payloads` of rounds up to `rounds`.

    `rounds` is that of the first checkpoint from which the aggregation can be replayed.
    """

    rounds: int
    payloads: int


@dataclass(frozen=True)
class Findings:
    """The answer of a level 1 check.

    The run holds at level 1 when `failures` is empty. `complete`: the log ends with a run-close.
    `anchored` names what from outside the folder ties the log to somebody, joined by `+`: `vkey`,
    `expect-head`, `witness-policy`, `receipt`, each of the last three with ` up to entry N` where the
    head in question is older than the log's; None where nothing does. `log_head` is `sha256:` and the
    root, `weights_digest` the array digest of the last closed round. What could not be read is empty
    text, 0 or an empty object. `turns` is empty where the caller took them as they came. `dropped` is None
    where no payload is missing.
    """

    failures: tuple[Failure, ...]
    complete: bool
    run_id: str
    log_size: int
    log_head: str
    log_vkey: str
    rounds: int
    weights_digest: str
    anchored: str | None
    manifest: Record
    enrolments: tuple[Record, ...]
    turns: tuple[Turn, ...]
    run_close: Record | None
    dropped: Dropped | None = None

    @property
    def ok(self) -> bool:
        """Whether everything that was looked at holds."""
        return not self.failures


@dataclass
class Report:
    """Gathers failures in the order in which they are found."""

    failures: list[Failure] = field(default_factory=list)

    def add(self, what: str, where: str, expected: object = "", got: object = "") -> None:
        """Note one failure; after many, only that there are more."""
        if len(self.failures) > MOST_FAILURES:
            return
        if len(self.failures) == MOST_FAILURES:
            what, where, expected, got = "there are more failures than are listed", "", "", ""
        self.failures.append(Failure(shown(what), shown(where), shown(expected), shown(got)))

    def equal(self, what: str, where: str, expected: object, got: object) -> bool:
        """Note a failure unless the two are equal, types included; return whether they are."""
        same = type(expected) is type(got) and expected == got
        if not same:
            self.add(what, where, expected, got)
        return same
