"""Keys that change in a running run: rotation, revocation, allow lists, and a kill in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.pool import LocalPool
from pipeline import identities
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder, member_folder
from pipeline.muster import Muster
from pipeline.tools import KeysOptions, keys
from tests.pipeline.crash_tools import Site, records
from tests.tiny import make_run, quiet, run_to_end, tiny_config
from verification.errors import BarnraiseError, ProtocolError, UsageError
from verification.keys import PrivateKey
from verification.records import KeyRevocation, KeyRotation, Record, RoundClose, RoundOpen
from verification.rounds import replay

AUDIT = {"rate_ppm": 0, "probation_rounds": 1, "second_look_ppm": 0}


class Run:
    """A run folder and its private home; `wish` is called after the first round is closed."""

    def __init__(self, root: Path, audit: dict[str, int] = AUDIT, **sections: Any) -> None:
        self.root = root
        self.folder = RunFolder(root / "run")
        self.home = root / "home"
        self.notices: list[str] = []
        make_run(root / "run", root / "home", tiny_config(audit=audit, **sections))

    def go(self, wish: Callable[[], object] = lambda: None) -> Coordinator:
        def seen(close: RoundClose) -> None:
            if close.round == 1:
                wish()

        return run_to_end(self.root / "run", self.home, seen=seen, tell=self.notices.append)

    def private(self, name: str) -> Path:
        return self.home / member_folder(self.folder.parsed_manifest()) / name

    def records(self) -> list[Record]:
        found = records(Site(self.root))
        manifest: Any = found[0]
        assert replay(manifest, found[1:]).finished
        return found


def of(kind: type[Any], found: list[Record]) -> list[Any]:
    return [record for record in found if isinstance(record, kind)]


def key_of(opens: list[RoundOpen], name: str) -> list[str | None]:
    """The key of a member in each open; None where it has no part."""
    found = [{e.member: e.key for e in (*o.roster, *o.auditors)} for o in opens]
    return [keys_.get(name) for keys_ in found]


# Rotation


@pytest.mark.parametrize("name", ["c01", "a00"])
def test_a_rotated_key_takes_over_when_the_log_has_it(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path)  # in which no auditor is asked for anything after the first round
    old: list[str] = []

    def wish() -> None:
        old.append(PrivateKey.load(run.private(name) / "key").public)
        old.append(identities.rotate(run.folder, run.home, name).public)
        assert (run.private(name) / "key.next").stat().st_mode & 0o777 == 0o600
        with pytest.raises(UsageError, match="already"):
            identities.rotate(run.folder, run.home, name)

    run.go(wish)
    found = run.records()
    before, after = old
    (rotation,) = of(KeyRotation, found)
    assert (rotation.member, rotation.key, rotation.new_key) == (name, before, after)
    assert key_of(of(RoundOpen, found), name) == [before, after, after]
    assert PrivateKey.load(run.private(name) / "key").public == after
    assert not (run.private(name) / "key.next").exists()
    assert all(len(close.accepted) == 4 for close in of(RoundClose, found))
    if name == "c01":
        entries = [open_.entry(1) for open_ in of(RoundOpen, found)]
        assert [entry.audit_ppm for entry in entries] == [1_000_000, 1_000_000, 0]
        zero = found[0].zero_state  # type: ignore[union-attr]
        assert [entry.start_state == zero for entry in entries] == [True, True, False]
    receipts = run.private("c01") / "receipts"
    assert len(list(receipts.glob("*.tlog-proof"))) == 3
    assert run.notices == []


class CutError(Exception):
    """Stands for a kill."""


def cut_once(patch: pytest.MonkeyPatch, where: type, method: str, when: Callable[[Any], bool]) -> None:
    """The first call of a method for which `when` holds ends the run instead."""
    real = getattr(where, method)
    left = [1]

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if left and when(self):
            left.clear()
            raise CutError
        return real(self, *args, **kwargs)

    patch.setattr(where, method, call)


@pytest.mark.parametrize("method", ["hold", "open", "collect_commitments", "collect_reveals"])
def test_a_run_killed_around_a_rotation_has_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run = Run(tmp_path)
    cut: type = Muster if method == "hold" else Coordinator

    def due(self: Any) -> bool:
        return (self._state if method == "hold" else self.state).rounds_done == 1

    cut_once(monkeypatch, cut, method, due)
    with pytest.raises(CutError):
        run.go(lambda: identities.rotate(run.folder, run.home, "c01"))
    # The old key stays until the member has seen the new one in an open.
    assert (run.private("c01") / "key.next").exists() == (method != "collect_reveals")
    run.go()
    found = run.records()
    assert len(of(KeyRotation, found)) == 1
    before, *after = key_of(of(RoundOpen, found), "c01")
    assert after == [PrivateKey.load(run.private("c01") / "key").public] * 2
    assert before != after[0]
    assert all(len(close.accepted) == 4 for close in of(RoundClose, found))
    assert run.notices == []


def test_a_wish_before_the_first_round_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    cut_once(monkeypatch, Coordinator, "run_turn", lambda self: not self.state.turns)
    with pytest.raises(CutError):
        run.go()
    identities.rotate(run.folder, run.home, "c02")
    identities.revoke(run.folder, run.home, "c03")
    run.go()
    found = run.records()
    assert [entry.member for entry in of(RoundOpen, found)[0].roster] == ["c00", "c01", "c02", "c03"]
    assert [entry.member for entry in of(RoundOpen, found)[1].roster] == ["c00", "c01", "c02"]
    assert len(of(KeyRotation, found)) == 1


@pytest.mark.parametrize("answer", [b"x", [b"x"], ["x"], [None], [b"{}"], 3, None, [[b"x"]]])
def test_what_is_no_change_of_a_key_is_told_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    run = Run(tmp_path, run={"rounds": 2})
    real = LocalPool._one

    def one(self: LocalPool, name: str, method: str, args: Any, deadline_ms: int) -> Any:
        if (name, method) == ("c01", "identity_changes"):
            from cluster.pool import Answer

            return Answer(value=answer)
        return real(self, name, method, args, deadline_ms)

    monkeypatch.setattr(LocalPool, "_one", one)
    run.go()
    assert of(KeyRotation, run.records()) == []
    assert sum("c01: a change of its key refused" in line for line in run.notices) == 1


def test_another_members_rotation_and_a_false_revocation_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.contributor import Contributor
    from verification.sealing import seal_record

    run = Run(tmp_path, run={"rounds": 2})
    real = Contributor.identity_changes

    def changes(self: Contributor, present_key: str, *rest: Any) -> list[bytes]:
        if self.name == "c01":
            victim = PrivateKey.load(run.private("c02") / "key")
            return [seal_record(KeyRotation.of(self.run, "c02", victim, PrivateKey.generate()), victim)]
        if self.name == "c03":
            false = KeyRevocation(1, self.run, "c03", self.key.public, "coordinator")
            return [seal_record(false, self.key)]
        return real(self, present_key, *rest)

    monkeypatch.setattr(Contributor, "identity_changes", changes)
    run.go()
    found = run.records()
    assert of(KeyRotation, found) == []
    assert of(KeyRevocation, found) == []
    assert [line.split(":")[0] for line in run.notices] == ["c01", "c03"]


# Revocation


@pytest.mark.parametrize("name", ["c01", "a00"])
@pytest.mark.parametrize("by", ["member", "coordinator"])
def test_a_revoked_member_takes_no_part_any_more(tmp_path: Path, name: str, by: str) -> None:
    run = Run(tmp_path)
    revoke = identities.revoke if by == "member" else identities.revoke_as_coordinator
    run.go(lambda: revoke(run.folder, run.home, name))
    found = run.records()
    (record,) = of(KeyRevocation, found)
    assert (record.member, record.by) == (name, by)
    before, *after = key_of(of(RoundOpen, found), name)
    assert before == record.key
    assert after == [None, None]
    assert of(RoundClose, found)[-1].quarantined == (name,)
    assert run.notices == []


def test_an_auditor_that_nobody_draws_any_more_revokes_the_key_it_took_over(tmp_path: Path) -> None:
    run = Run(tmp_path, run={"rounds": 4})
    wishes = iter((identities.rotate, None, identities.revoke))

    def seen(close: RoundClose) -> None:
        if wish := next(wishes, None):
            wish(run.folder, run.home, "a00")

    run_to_end(run.folder.path, run.home, seen=seen, tell=run.notices.append)
    found = run.records()
    (rotation,), (revocation,) = of(KeyRotation, found), of(KeyRevocation, found)
    assert (revocation.member, revocation.key, revocation.by) == ("a00", rotation.new_key, "member")
    assert key_of(of(RoundOpen, found), "a00") == [rotation.key, rotation.new_key, rotation.new_key, None]
    assert run.notices == []


def test_a_member_that_wants_both_is_revoked(tmp_path: Path) -> None:
    run = Run(tmp_path, run={"rounds": 2})

    def wish() -> None:
        identities.rotate(run.folder, run.home, "c01")
        identities.revoke(run.folder, run.home, "c01")
        identities.revoke_as_coordinator(run.folder, run.home, "c01")
        (run.private("coordinator") / "revoke" / "stranger").touch()

    run.go(wish)
    found = run.records()
    assert [record.by for record in of(KeyRevocation, found)] == ["coordinator"]
    assert of(KeyRotation, found) == []
    assert run.notices == []


# The command


def test_the_command_notes_the_wish_and_says_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, run={"rounds": 1})
    console = Console()
    with pytest.raises(UsageError, match="not here"):
        keys(KeysOptions("rotate", run.folder.path, "c01", home=run.home), console)
    run.go()
    assert keys(KeysOptions("rotate", run.folder.path, "c01", home=run.home), console) == 0
    new = PrivateKey.load(run.private("c01") / "key.next")
    assert new.public in capsys.readouterr().out
    assert keys(KeysOptions("revoke", run.folder.path, "c01", home=run.home), console) == 0
    assert (run.private("c01") / "revoke").exists()
    assert keys(KeysOptions("revoke", run.folder.path, "c02", True, run.home), console) == 0
    assert identities.pending_revocations(run.private("coordinator")) == ["c02"]
    for options in (
        KeysOptions("rotate", run.folder.path, None, home=run.home),
        KeysOptions("revoke", run.folder.path, "nobody", home=run.home),
        KeysOptions("revoke", run.folder.path, "nobody", True, run.home),
        KeysOptions("revoke", run.folder.path, "../coordinator", True, run.home),
        KeysOptions("revoke", run.folder.path, "c01", True, tmp_path / "elsewhere"),
    ):
        with pytest.raises(UsageError):
            keys(options, console)
    capsys.readouterr()
    options = KeysOptions("revoke", run.folder.path, "c02", home=run.home, json=True)
    assert keys(options, console) == 0
    assert '"member": "c02"' in capsys.readouterr().out


# Allow lists


def brought(home: Path, names: list[str]) -> dict[str, str]:
    """Key files that members bring, and their public halves."""
    found = {name: PrivateKey.generate() for name in names}
    for name, key in found.items():
        key.save(home / "keys" / name)
    return {name: key.public for name, key in found.items()}


NAMES = ["c00", "c01", "c02", "c03", "a00", "a01"]


def test_members_of_an_allow_list_enrol_with_the_keys_they_bring(tmp_path: Path) -> None:
    allow = brought(tmp_path / "home", NAMES)
    run = Run(tmp_path, run={"rounds": 1}, identity={"allow": allow})
    run.go()
    found = run.records()
    manifest: Any = found[0]
    assert manifest.config["identity"]["allow"] == allow
    (open_,) = of(RoundOpen, found)
    assert {name: key_of([open_], name)[0] for name in NAMES} == allow


def test_another_key_than_the_lists_or_none_does_not_enrol(tmp_path: Path) -> None:
    allow = brought(tmp_path / "home", NAMES)
    other = {**allow, "c02": PrivateKey.generate().public}
    run = Run(tmp_path, run={"rounds": 1}, identity={"allow": other})
    with pytest.raises(ProtocolError, match=r"c02 enrols with a key that identity\.allow"):
        run.go()
    (tmp_path / "home" / "keys" / "c03").unlink()
    again = Run(tmp_path / "again", run={"rounds": 1}, identity={"allow": allow})
    (tmp_path / "again" / "home").mkdir(exist_ok=True)
    with pytest.raises(BarnraiseError, match="c00 could not join"):
        again.go()


@pytest.mark.parametrize(
    ("allow", "match"),
    [
        ({"c00": "ed25519:00"}, "the key of c00"),
        ({"c00": PrivateKey.generate().public}, "exactly c00, c01, c02, c03, a00, a01"),
        (dict.fromkeys(NAMES, PrivateKey.generate().public), "the same key"),
        ({**{n: PrivateKey.generate().public for n in NAMES}, "x": PrivateKey.generate().public}, "exactly"),
        ({"c00": 3}, "identity.allow.c00"),
    ],
)
def test_an_allow_list_names_every_member_with_a_key_of_its_own(allow: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        tiny_config(identity={"allow": allow})
    assert tiny_config().identity.allow == {}
    quiet("")
