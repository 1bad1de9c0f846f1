"""One seed, played: a run from its first entry to its end, through whatever the seed has in store.

Owns the course of a story: turns, crashes of the coordinator and its taking up. Does not own what is
checked afterwards (invariants.py).
"""

from __future__ import annotations

import random
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import arrivals, muster
from pipeline.coordinator import Coordinator
from pipeline.identities import REVOCATIONS
from pipeline.vault import NEXT_KEY, REVOKED
from tests.simulator.assembly import Allowed, Site, chain_secret, create, fix_source, take_up
from tests.simulator.faults import COORDINATOR, LOG, Chance, Crash, Gate, release_locks
from tests.simulator.network import Network
from tests.simulator.people import Street
from tests.simulator.seats import Owners, Seats
from tests.simulator.setting import Setting
from tests.simulator.watch import Watch, ask_in_order
from tests.simulator.work import Workshop
from verification.durable import write_atomic
from verification.errors import BarnraiseError, ProtocolError
from verification.keys import PrivateKey
from verification.records import RoundClose, Settlement

MOST_CRASHES = 6
MOST_WAITS = 12
STEPS_OF_A_TURN = 160


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one."""
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="barnraise-sim-", dir=where))
    try:
        yield folder
    finally:
        release_locks(folder)
        shutil.rmtree(folder)


@dataclass
class Played:
    """A story that came to its end, and everything that was seen of it."""

    setting: Setting
    site: Site
    chance: Chance
    gate: Gate
    network: Network
    shop: Workshop
    watch: Watch
    owners: Owners
    finished: bool = False
    stopped: str = ""
    trouble: list[str] = field(default_factory=list)
    taken_up: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """How often each trouble came."""
        crashes = {f"fault: crash of {where}": count for where, count in self.gate.crashes.items()}
        return self.network.counts + self.watch.counts + Counter(crashes)


def play(setting: Setting, root: Path, tell: Callable[[str], None] | None = None) -> Played:
    """Play a seed's story under `root`. Whatever goes wrong that should not is in `trouble`."""
    site, chance, gate, shop = Site(root), Chance(setting.seed), Gate(), Workshop()
    with pytest.MonkeyPatch.context() as patch:
        fix_source(patch, setting.kept)
        chance.install(patch)
        gate.install(patch)
        ask_in_order(patch)
        watch = Watch(setting, root / "witnesses", gate)
        manifest = create(site, setting, PrivateKey.generate(), chain_secret(setting.seed), watch.enlisted)
        watch.calm = False
        street = Street(setting.seed, shop, site.folder.path, manifest, site.home)
        network = Network(setting, street, gate)
        owners = Owners(setting, network, site.home / "members")
        played = Played(setting, site, chance, gate, network, shop, watch, owners)
        director = _Director(played, tell or (lambda line: None))
        patch.setattr(muster, "time", SimpleNamespace(sleep=director.while_nobody_is_there))
        patch.setattr(arrivals, "time", SimpleNamespace(monotonic=lambda: network.now / 1000))
        director.run()
    return played


class _Director:
    """Lets the coordinator work, ends it now and then, and takes it up again."""

    def __init__(self, played: Played, tell: Callable[[str], None]) -> None:
        self.played, self.tell = played, tell
        self.dice = random.Random(f"director/{played.setting.seed}")
        self.waits = 0
        self.desertion = 0
        self.crashed = False
        self.keys = random.Random(f"keys/{played.setting.seed}")
        first = played.setting.first
        self.allowed = {person.name: Allowed(person.role, person.operator) for person in first}
        self.seats = Seats(played.setting, played.network)

    def run(self) -> None:
        played = self.played
        while not (played.finished or played.stopped or played.trouble):
            try:
                self._go_on()
            except Crash:
                played.taken_up += 1
                self.crashed = True
                self.tell("    the coordinator's process ends here, and is started again")
                if self.dice.random() < 0.2:
                    played.network.close()
                    self.tell("    and all the others' with it")
            except BarnraiseError as error:
                if isinstance(error, ProtocolError) and self._is_an_end(error):
                    played.stopped = str(error)
                elif isinstance(error, ProtocolError) and "witness" in str(error):
                    self.waits += 1  # somebody will call the witnesses, and take the run up again
                    self.tell(f"    the coordinator stops: {error}")
                    played.stopped = str(error) if self.waits > MOST_WAITS else ""
                else:
                    played.trouble.append(f"the coordinator stopped: {error!r} {traceback.format_exc()}")
            except Exception:
                played.trouble.append(f"the coordinator broke: {traceback.format_exc()}")
        played.gate.armed.clear()

    def _is_an_end(self, error: ProtocolError) -> bool:
        """Whether the run stops as it must: after void turns."""
        return "was void" in error.what

    def _arm(self, chance: float, steps: int) -> None:
        played = self.played
        for whose in (COORDINATOR, LOG):
            played.gate.armed.pop(whose, None)
        if self.dice.random() < chance:
            whose = self.dice.choice((COORDINATOR, LOG))
            played.gate.armed[whose] = self.dice.randrange(steps // (1 if whose == COORDINATOR else 4))

    def _go_on(self) -> None:
        played, setting = self.played, self.played.setting
        chance = setting.weather.coordinator_crash if played.taken_up < MOST_CRASHES else 0.0
        self._arm(chance / 4, 40)
        coordinator = take_up(
            played.site,
            setting,
            played.network,
            played.watch.enlisted,
            self._notice,
            self.allowed,
            self.seats.hiring,
        )
        if self.crashed and coordinator.state.waiting:
            played.network.counts["lag: taken up after a crash before a settlement"] += 1
        self.crashed = False
        while coordinator.state.rounds_done < setting.config["run"]["rounds"]:
            self._change_keys()
            self._arm(chance, STEPS_OF_A_TURN)
            state = coordinator.state
            played.network.turn = state.turn.open.turn if state.turn else state.turns
            self._change_minds(coordinator)
            self.desertion = 0
            close = coordinator.run_turn()
            played.network.healed = False
            self._show(close, coordinator)
            with played.gate.as_actor("owner"):
                played.owners.turn_off(coordinator.state.away)
        self._arm(chance / 2, 8)
        coordinator.settled = []
        coordinator.finish()
        self._show_settlements(coordinator)
        self._arm(0.0, 1)
        played.finished = True

    def _change_minds(self, coordinator: Coordinator) -> None:
        if coordinator.state.turns and coordinator.state.turn is None:
            with self.played.gate.as_actor("owner"):
                self.played.owners.change_their_minds(coordinator.state.turns, self.tell)

    def while_nobody_is_there(self, seconds: float) -> None:
        """Those without whom no turn can be are away; after a while their owners hear of it."""
        del seconds
        self.played.network.counts["membership: waits for somebody to return"] += 1
        self.desertion += 1
        if self.desertion == 2:
            with self.played.gate.as_actor("owner"):
                self.played.owners.call_all_back(self.played.network.turn)

    def _change_keys(self) -> None:
        """What owners and the organiser do beside the run, as `barnraise keys` does it."""
        played = self.played
        with played.gate.as_actor("owner"):
            for name in played.setting.names:
                private = played.site.home / "members" / name
                if not private.is_dir() or self.keys.random() >= played.setting.unrest:
                    continue
                what = self.keys.choice(("rotate", "rotate", "rotate", "revoke", "revoked by the organiser"))
                self.tell(f"    key of {name}: {what}")
                if what == "rotate" and not (private / NEXT_KEY).exists():
                    PrivateKey.generate().save(private / NEXT_KEY)
                elif what == "revoke":
                    write_atomic(private / REVOKED, b"", mode=0o600)
                elif what == "revoked by the organiser":
                    write_atomic(played.site.secrets / REVOCATIONS / name, b"", mode=0o600)

    def _notice(self, line: str) -> None:
        self.played.told.append(line)
        self.tell(f"    {line}")

    def _show_settlements(self, coordinator: Coordinator) -> None:
        for turn, record in coordinator.settled:
            self.tell(
                f"  turn {turn.open.turn} is settled; {len(record.removed)} contributions are taken out"
            )
            for item in record.removed:
                place = f"round {item.round}, attempt {item.attempt}, slot {item.slot}"
                self.tell(f"    {place} {item.member}: {item.reason}{', a fault' if item.fault else ''}")
            self._show_overruled(record)

    def _show_overruled(self, record: RoundClose | Settlement) -> None:
        for item in record.overruled:
            self.tell(f"  {item.auditor} is overruled on slot {item.slot} (look {item.look})")

    def _show(self, close: RoundClose, coordinator: Coordinator) -> None:
        turn = coordinator.last_turn
        assert turn is not None
        self._show_settlements(coordinator)
        for what, names in (("joined", coordinator.muster.joined), ("left", coordinator.muster.left)):
            if names:
                self.tell(f"before turn {turn.open.turn}, {what}: {', '.join(names)}")
        drawn = [item.slot for item in turn.draw.drawn] if turn.draw else []
        verdicts = [f"{v.auditor} {v.outcome}s {v.slot} (look {v.look})" for v in turn.verdicts.values()]
        verdicts += [f"{appeal.member} appeals" for appeal in turn.appeals.values()]
        kinds = {person.name: person.kind or "honest" for person in self.played.setting.people}
        self.tell(
            f"turn {turn.open.turn} (round {close.round}, attempt {close.attempt}): drawn {drawn}; "
            f"{', '.join(verdicts) or 'no verdict'}"
        )
        for item in close.accepted:
            self.tell(
                f"  slot {item.slot} {item.member} ({kinds[item.member]}): accepted, {item.tokens} tokens"
            )
        for line in close.rejected:
            fault = ", a fault" if line.fault else ""
            self.tell(f"  slot {line.slot} {line.member} ({kinds[line.member]}): {line.reason}{fault}")
        self._show_overruled(close)
        if close.quarantined:
            self.tell(f"  in quarantine: {', '.join(close.quarantined)}")
