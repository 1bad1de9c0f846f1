"""A member's own folder: what it promised survives, nobody else may read it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.vault import Committed, Vault
from verification.encoding import blake3_digest
from verification.errors import StorageError, UsageError

ENTRY = Committed(b"open", b"commitment", b"a reveal with a salt", blake3_digest(b"p"), blake3_digest(b"s"))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "v")


def test_a_committed_turn_survives(vault: Vault) -> None:
    assert vault.last_turn() == -1
    assert vault.committed(3) is None
    vault.commit(3, ENTRY)
    again = Vault(vault.folder)
    assert again.committed(3) == ENTRY
    assert again.last_turn() == 3


def test_turns_are_ordered_as_numbers_and_forgotten_by_them(vault: Vault) -> None:
    for turn in (2, 9, 10):
        vault.commit(turn, ENTRY)
    assert vault.last_turn() == 10
    vault.forget_turns_before(10)
    assert [vault.committed(turn) is not None for turn in (2, 9, 10)] == [False, False, True]


def test_bytes_are_kept_by_content_and_forgotten_by_digest(vault: Vault) -> None:
    kept, gone = vault.put("states", b"kept"), vault.put("states", b"gone")
    assert vault.put("states", b"kept") == kept == blake3_digest(b"kept")
    vault.keep("states", [kept])
    assert vault.get("states", kept) == b"kept"
    assert vault.get("states", gone) is None
    assert vault.get("payloads", kept) is None


@given(data=st.binary(max_size=200))
def test_any_bytes_come_back(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    vault = Vault(tmp_path_factory.getbasetemp() / "any")
    assert vault.get("payloads", vault.put("payloads", data)) == data


def test_damage_is_said(vault: Vault) -> None:
    digest = vault.put("states", b"right")
    path = next((vault.folder / "states").iterdir())
    path.write_bytes(b"wrong")
    with pytest.raises(StorageError, match="was damaged"):
        vault.get("states", digest)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"open": 3}', "\xff"])
def test_a_damaged_turn_is_said_without_quoting_it(vault: Vault, text: str) -> None:
    vault.commit(0, ENTRY)
    (vault.folder / "turns" / "0.json").write_text(text, encoding="latin-1")
    with pytest.raises(StorageError, match="was damaged") as caught:
        vault.committed(0)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_everything_is_its_owners_alone(vault: Vault) -> None:
    vault.key()
    vault.put("states", b"s")
    vault.put("payloads", b"p")
    vault.commit(0, ENTRY)
    for path in vault.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE(vault.folder.stat().st_mode) == 0o700


def test_a_folder_that_others_could_enter_is_closed(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir(mode=0o755)
    Vault(tmp_path / "v")
    assert stat.S_IMODE((tmp_path / "v").stat().st_mode) == 0o700


def test_the_key_is_made_once_and_refused_when_others_could_read_it(vault: Vault) -> None:
    public = vault.key().public
    assert Vault(vault.folder).key().public == public
    (vault.folder / "key").chmod(0o640)
    with pytest.raises(UsageError, match="others"):
        vault.key()


def test_what_a_crash_left_half_written_goes(vault: Vault) -> None:
    stale = vault.folder / "turns" / ".5.json.tmp"
    stale.write_text("half")
    again = Vault(vault.folder)
    assert not stale.exists()
    assert again.last_turn() == -1


def test_a_committed_turn_does_not_show_itself() -> None:
    assert "salt" not in repr(ENTRY)
