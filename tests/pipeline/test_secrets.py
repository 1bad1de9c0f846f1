"""No secret lies in the run folder or in anything that is said; private files are their owner's alone."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.run import member_folder
from pipeline.vault import Vault
from tests.tiny import make_run, quiet, run_to_end, tiny_config
from verification.encoding import parse_canonical
from verification.envelope import open_envelope
from verification.errors import BarnraiseError, UsageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.lottery import HashChain
from verification.records import Manifest, Reveal
from verification.sealing import parse_predicate

MEMBERS = ("c00", "c01", "c02", "c03", "a00", "a01")


class Finished:
    """A tiny run with a drill that ended, its secrets, and everything it said."""

    def __init__(self, root: Path) -> None:
        self.run, self.home = root / "run", root / "home"
        make_run(self.run, self.home, tiny_config())
        self.said: list[str] = []
        self.coordinator = run_to_end(
            self.run, self.home, drills={"c03": "silent", "c02": "random"}, tell=self.said.append
        )
        data = (self.run / "manifest.json").read_bytes()
        self.manifest = parse_predicate(Manifest, parse_canonical(data))
        self.private = self.home / member_folder(self.manifest)

    def salts(self) -> set[str]:
        """Salts of reveals that members hold and never sent."""
        held: dict[str, str] = {}
        for name in MEMBERS[:4]:
            vault = Vault(self.private / name)
            entry = vault.committed(vault.last_turn())
            assert entry
            reveal = parse_predicate(Reveal, open_envelope(entry.reveal).peek())
            held[name] = reveal.salt
        return {held["c03"]}

    def secrets(self) -> dict[str, bytes]:
        """Every secret of 32 bytes by name."""
        found: dict[str, bytes] = {}
        for name in (*MEMBERS, "coordinator"):
            text = (self.private / name / "key").read_text().split("\n")[1]
            assert (
                PrivateKey.from_seed(bytes.fromhex(text)).public
                == PrivateKey.load(self.private / name / "key").public
            )
            found[f"key of {name}"] = bytes.fromhex(text)
        chain = HashChain.load(self.private / "coordinator" / "chain")
        found["chain"] = bytes.fromhex((self.private / "coordinator" / "chain").read_text().split("\n")[1])
        shown = 2 * self.coordinator.state.turns
        for number in range(shown + 1, chain.length + 1):
            found[f"link {number}"] = bytes.fromhex(chain.link(number))
        for salt in self.salts():
            found["salt"] = bytes.fromhex(salt)
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("secrets"))


def forms(secret: bytes) -> list[bytes]:
    """Raw, hex in both cases, and base64 of raw and hex at each of three offsets."""
    found = [secret, secret.hex().encode(), secret.hex().upper().encode()]
    for plain in (secret, secret.hex().encode()):
        for offset in range(3):
            coded = base64.b64encode(b"\0" * offset + plain)
            # The characters at both ends depend on the neighbours.
            found.append(coded[4 if offset else 0 : len(coded) // 4 * 4 - 4])
    return found


def everything(finished: Finished) -> Iterator[tuple[str, bytes]]:
    """Every file of the run folder, and what lies coded inside some of them."""
    for path in finished.run.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
    log = Log.open(finished.run / "log", finished.manifest.origin, None, finished.manifest.log_vkey)
    for index, entry in enumerate(log.entries()):
        envelope = json.loads(entry)
        yield f"log entry {index}", base64.b64decode(envelope["payload"])
    table = pq.read_table(finished.run / "contributions.parquet")
    yield "contributions", json.dumps(table.to_pylist()).encode()


def test_no_secret_lies_in_the_run_folder(finished: Finished) -> None:
    secrets = finished.secrets()
    assert len(secrets) > 20
    searched = list(everything(finished))
    assert len(searched) > 50
    for name, secret in secrets.items():
        for form in forms(secret):
            for where, data in searched:
                assert form not in data, f"{name} lies in {where}"


def test_the_search_would_find_them(finished: Finished) -> None:
    """What is public by now is found where it belongs, in each coding."""
    chain = HashChain.load(finished.private / "coordinator" / "chain")
    shown = bytes.fromhex(chain.link(1))
    places = [where for where, data in everything(finished) if any(form in data for form in forms(shown))]
    assert any("entries" in where for where in places)
    assert any(where.startswith("log entry") for where in places)
    for coded in (shown, b"x" + shown, b"xy" + shown + b"z"):
        assert any(form in base64.b64encode(coded) for form in forms(shown))


def test_nothing_secret_is_said(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    assert any("does not reveal" in line for line in finished.said)
    said = "\n".join(finished.said) + "".join(capsys.readouterr())
    key = PrivateKey.load(finished.private / "coordinator" / "key")
    chain = HashChain.load(finished.private / "coordinator" / "chain")
    vault = Vault(finished.private / "c03")
    said += repr(key) + repr(chain) + repr(vault) + repr(vault.committed(vault.last_turn()))
    said += repr(finished.coordinator) + repr(finished.coordinator.desk) + repr(finished.coordinator.state)
    for secret in finished.secrets().values():
        for form in forms(secret):
            assert form.decode("latin-1") not in said


def test_errors_about_secret_files_do_not_quote_them(finished: Finished, tmp_path: Path) -> None:
    def broken(name: str, load: Any) -> str:
        text = (finished.private / "coordinator" / name).read_text()
        path = tmp_path / name
        path.write_text(text.replace("barnraise", "barnrais"))
        path.chmod(0o600)
        with pytest.raises(BarnraiseError) as caught:
            load(path)
        assert text.split("\n")[1] not in str(caught.value) + repr(caught.value)
        path.write_text(text)
        path.chmod(0o644)
        with pytest.raises(UsageError, match="others") as caught:
            load(path)
        assert text.split("\n")[1] not in str(caught.value)
        return text

    assert broken("key", PrivateKey.load)
    assert broken("chain", HashChain.load)


def test_private_files_are_their_owners_alone(finished: Finished) -> None:
    checked = 0
    for name in (*MEMBERS, "coordinator"):
        folder = finished.private / name
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
        for path in folder.rglob("*"):
            if path.is_dir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
            elif path.name not in ("mine", "old"):  # notes of adversaries about what is public
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
                checked += 1
    assert checked > 15


@pytest.mark.parametrize("name", ["key", "chain"])
def test_a_run_does_not_go_on_with_secrets_that_others_could_read(tmp_path: Path, name: str) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    make_run(run, home, tiny_config(run={"rounds": 1}))
    manifest = parse_predicate(Manifest, parse_canonical((run / "manifest.json").read_bytes()))
    (home / member_folder(manifest) / "coordinator" / name).chmod(0o604)
    with pytest.raises(UsageError, match="others"):
        run_to_end(run, home, tell=quiet)
