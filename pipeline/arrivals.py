"""Newcomers on their way into a run: the data files, the log so far, the signed enrolment.

Owns the steps of one newcomer, none of which holds up a turn: calls are begun, and looked at again between
turns. Does not own who may come (verification.membership) or where newcomers live (cluster).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import cast

from pipeline.crew import Allowed, Crew, file_names, read_file
from pipeline.ledger import Ledger
from pipeline.log_reader import Entry
from pipeline.parties import Answer, Begun, Members
from verification.errors import ProtocolError

LOOKS = 1_000  # at a call that is not answered, before it begins again
TRIES = 3  # of a newcomer whose process ends on the way, or whose machine is gone for a while


class Arrival:
    """One newcomer. `read` gives a data file's bytes by name."""

    def __init__(
        self, name: str, allowed: Allowed, members: Members, ledger: Ledger, read: Callable[[str], bytes]
    ) -> None:
        self.name = name
        self._allowed = allowed
        self._members = members
        self._ledger = ledger
        self._read = read
        self._tries = TRIES
        self._steps = self._way()
        self._begun: Begun | None = None
        self._looks = 0

    def advance(self, look_ms: int) -> Entry | None:
        """Go on for about `look_ms` milliseconds of waiting; the enrolment, once it is there.

        A newcomer that fails begins again at the next call. Raises one of the family when it cannot be had.
        """
        stop = time.monotonic() + look_ms / 1000
        while True:
            answer: Answer | None = None
            if self._begun:
                answer = self._begun(max(1, int((stop - time.monotonic()) * 1000)))
                self._looks += 1
                if not answer.ok and not answer.error and self._looks < LOOKS:
                    return None  # it is not done yet
                if not answer.ok and not answer.error:
                    self._start_again("no answer in time")
                    return None
                if not answer.ok:
                    self._start_again(answer.error or "")
                    return None
            self._looks = 0 if answer else self._looks
            try:
                self._begun = next(self._steps) if answer is None else self._steps.send(answer)
            except StopIteration as end:
                return cast("Entry", end.value)

    def _start_again(self, why: str) -> None:
        self._tries -= 1
        if not self._tries:
            raise ProtocolError(f"{self.name} could not join the run", got=why)
        self._steps, self._begun, self._looks = self._way(), None, 0

    def _way(self) -> Generator[Begun, Answer, Entry]:
        """Each step begins a call; it is sent the answer when that is a good one."""
        answer = yield self._begin("missing_files")
        for file in file_names(self.name, answer.value):  # one at a time: together they may fill the memory
            yield self._begin("store_file", file, read_file(self.name, file, self._read))
        read, enrolment = 0, None
        # It signs when it has read the log; what was logged since then it reads before its enrolment is.
        while enrolment is None or read < self._ledger.checkpoint.size:
            if read < self._ledger.checkpoint.size:
                entries = self._ledger.entries_from(read)
                read += len(entries)
                yield self._begin("catch_up", entries, self._ledger.head)
            else:
                answer = yield self._begin("enrol")
                enrolment = Crew.enrolment(self._ledger.state, self.name, self._allowed, answer.value)
        return enrolment

    def _begin(self, method: str, *arguments: object) -> Begun:
        (begun,) = self._members.begin(method, [(self.name, arguments)])
        return begun
