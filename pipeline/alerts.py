"""What of a run a person should be told at once: faults, stalls, divergence, machines that are gone.

Owns the rules, as a pure fold: rows of turns in, alerts out. The same rows give the same alerts, whether they
came in one process or over several. Does not own how an alert is shown (monitor.py) or sent (wandb_view.py).
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Kind = Literal["fault", "overruled", "cut", "void", "stall", "slow", "diverged", "machine"]

# Kinds after which a run is likely to have been spoilt or stopped; the others are warnings.
SEVERE: frozenset[Kind] = frozenset({"stall", "diverged"})

STALLED_TURNS = 3
SLOW_FACTOR = 4.0
# Below this many seconds over the median nobody waits for anything.
SLOW_EXTRA_S = 5.0
MEDIAN_OF = 32
MEDIAN_FROM = 8
# Rounds differ by a few tenths of a nat; e times the perplexity is no such difference.
DIVERGED_NATS = 1.0


@dataclass(frozen=True)
class Alert:
    """One thing to be told, in a sentence without a full stop."""

    kind: Kind
    text: str


class Watch:
    """Follows a run turn by turn. A state that lasts is told once, when it begins, and again after it ended.

    `earlier` rows are followed and not told; what among them is no row is passed over.
    """

    def __init__(self, earlier: Iterable[Mapping[str, Any]] = ()) -> None:
        self._quarantined: set[str] = set()
        self._gone: set[str] = set()
        self._void = 0
        self._slow = False
        self._seconds: deque[float] = deque(maxlen=MEDIAN_OF)
        self._best: dict[str, float] = {}
        self._high: set[str] = set()
        for row in earlier:
            # A file may hold what only looks like a row.
            with contextlib.suppress(AttributeError, KeyError, OverflowError, TypeError, ValueError):
                self.see(row)

    def see(self, row: Mapping[str, Any]) -> list[Alert]:
        """What is to be told of a turn. `row` is `monitor.turn_row`'s; fields that it lacks tell nothing."""
        return [*self._faults(row), *self._pace(row), *self._losses(row), *self._machines(row)]

    def _faults(self, row: Mapping[str, Any]) -> Iterable[Alert]:
        now, where = set(row.get("quarantined", ())), f"round {row.get('round')}"
        told: set[str] = set()
        for item in row.get("rejected", ()):
            who, reason = item["contributor"], item["reason"]
            if reason == "failed-audit" or who in now - self._quarantined:
                gone = "; it is in quarantine" if who in now else ""
                yield Alert("fault", f"{where}: {who} rejected, {reason}{gone}")
                told.add(who)
        cut = [f"{i['contributor']} (round {i['round']}, {i['reason']})" for i in row.get("removed", ())]
        if cut:
            yield Alert("cut", f"{where}: work was taken out again: {', '.join(cut)}")
        for item in row.get("overruled", ()):
            yield Alert(
                "overruled",
                f"{where}: {item['auditor']} overruled by other auditors on work of round {item['round']}",
            )
        named = told | {item["contributor"] for item in row.get("removed", ())}
        named |= {item["auditor"] for item in row.get("overruled", ())}
        for who in sorted(now - self._quarantined - named):
            yield Alert("fault", f"{where}: {who} is in quarantine")
        self._quarantined |= now

    def _pace(self, row: Mapping[str, Any]) -> Iterable[Alert]:
        where = f"round {row.get('round')}"
        if not row.get("accepted", True):
            self._void += 1
            if self._void == 1:
                yield Alert("void", f"{where}: nothing was accepted; the turn is void and comes again")
            if self._void == STALLED_TURNS:
                yield Alert("stall", f"{where}: nothing was accepted for {STALLED_TURNS} turns in a row")
        else:
            self._void = 0
        seconds = row.get("seconds")
        if seconds is None or not math.isfinite(seconds):
            return
        usual = median(self._seconds) if len(self._seconds) >= MEDIAN_FROM else math.inf
        slow = seconds > SLOW_FACTOR * usual and seconds > usual + SLOW_EXTRA_S
        if slow and not self._slow:
            phases = row.get("phases") or {}
            longest = max(phases, key=lambda name: phases[name], default=None)
            most = f", most of it in its {longest} phase" if longest else ""
            yield Alert("slow", f"{where} took {seconds:.0f} s; {usual:.0f} s is usual{most}")
        self._slow = slow
        self._seconds.append(seconds)

    def _losses(self, row: Mapping[str, Any]) -> Iterable[Alert]:
        for field, name in (("loss", "training loss"), ("val_loss", "validation loss")):
            loss = row.get(field)
            if loss is None:
                continue
            best = self._best.get(field, math.inf)
            high = not math.isfinite(loss) or loss > best + DIVERGED_NATS
            if high and field not in self._high:
                self._high.add(field)
                than = f"; the best was {best:.3f}" if math.isfinite(best) else ""
                yield Alert("diverged", f"round {row.get('round')}: the {name} is {loss:.3f} nats{than}")
            if not high:
                self._high.discard(field)
                self._best[field] = min(best, loss)

    def _machines(self, row: Mapping[str, Any]) -> Iterable[Alert]:
        nodes: Mapping[str, Mapping[str, Any]] = row.get("nodes") or {}
        gone = {name for name, node in nodes.items() if not node.get("alive", True)}
        for name in sorted(gone - self._gone):
            members = ", ".join(nodes[name].get("members") or ()) or "no member"
            yield Alert("machine", f"round {row.get('round')}: {name} is gone, and with it {members}")
        self._gone = (self._gone - set(nodes)) | gone
