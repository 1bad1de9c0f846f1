"""What leaves the run folder while a run goes on, and what a crash left in it.

Owns when files go: after the log has what lets them go, and so again after a crash. Does not own which
(verification/retention.py) or where they lie (folder.py).
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from verification.durable import storage_error


class Shelf:
    """Files of one run; `tell` takes a line for people when payloads went."""

    def __init__(self, folder: RunFolder, ledger: Ledger, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._ledger = ledger
        self._tell = tell
        self._floor = -1  # nothing was looked at yet
        self._said = ledger.retention.dropped
        self._loose: set[int] = set()  # rounds whose checkpoints are there but not for the schedule

    def clean_up(self) -> None:
        """Remove what a crash left and the log does not account for. Raises StorageError."""
        folder, state = self._folder, self._ledger.state
        try:
            folder.remove_temporaries()
            for turn in [*([state.turn] if state.turn else []), *(waiting.turn for waiting in state.waiting)]:
                refused = turn.reveal_close.refused if turn.reveal_close else ()
                known = {refusal.slot for refusal in refused}
                # What somebody failed before the crash, logged or not: it need not be asked for again.
                known |= set(turn.served.served) if turn.served else set()
                folder.keep_evidence(turn.open, known)
        except OSError as error:
            raise storage_error(folder.path, error) from error
        self.tidy()

    def tidy(self) -> None:
        """Between two turns, remove what may go. Folders are listed only where there is more of it."""
        folder, state, kept = self._folder, self._ledger.state, self._ledger.retention
        last, needed = state.rounds_done, state.bases_in_use
        try:
            if kept.floor != self._floor:
                folder.keep_only("payloads", kept.payloads)
                folder.keep_only("state", kept.states)
                folder.keep_checkpoints(last, kept.every, needed, floor=kept.floor, sparse=kept.sparse)
                self._loose = {round_ for round_ in needed if not kept.is_scheduled(round_)}
                self._floor = kept.floor
                if kept.dropped > self._said:
                    self._said = kept.dropped
                    self._tell(
                        f"payloads of rounds 1 to {kept.floor} were dropped, {kept.dropped} in all: "
                        f"the run keeps those of the last {kept.rounds} rounds or more"
                    )
            gone = {round_ for round_ in self._loose if round_ != last and round_ not in needed}
            for round_ in sorted(gone):
                folder.drop_checkpoint(round_)
            self._loose -= gone
            if not kept.is_scheduled(last):
                self._loose.add(last)
        except OSError as error:
            raise storage_error(folder.path, error) from error
