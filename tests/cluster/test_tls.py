"""Certificates for a cluster: whom they name, who accepts whom, who may read the keys, what is printed."""

from __future__ import annotations

import ipaddress
import shlex
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from cluster import tls
from verification.errors import BarnraiseError, FormatError, UsageError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def names_of(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def today() -> datetime:
    return datetime.now(UTC)


def shake_hands(server: Path, client: Path, name: str) -> None:
    """A handshake in memory as gRPC does it: both sides show a certificate. Raises ssl.SSLError."""
    sides = []
    for folder, purpose in ((server, ssl.PROTOCOL_TLS_SERVER), (client, ssl.PROTOCOL_TLS_CLIENT)):
        context = ssl.SSLContext(purpose)
        context.load_cert_chain(folder / "host.crt", folder / "host.key")
        context.load_verify_locations(folder / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        sides.append(context)
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    talk = [
        sides[0].wrap_bio(one, other, server_side=True),
        sides[1].wrap_bio(other, one, server_hostname=name),
    ]
    for _ in range(4):
        for side in talk:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert all(side.version() for side in talk)
    assert all(side.getpeercert() for side in talk)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return tls.write_certificates(tmp_path / "out", [["big", "10.0.0.1"], ["small", "10.0.0.2"]], today())


@pytest.mark.parametrize("name", ["small", "10.0.0.2", "localhost", "127.0.0.1", "::1"])
def test_machines_accept_each_other_under_every_name(folders: list[Path], name: str) -> None:
    shake_hands(folders[1], folders[0], name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(folders[1], folders[0], "10.0.0.3")


def test_who_has_another_authority_is_refused_on_either_side(folders: list[Path], tmp_path: Path) -> None:
    [stranger] = tls.write_certificates(tmp_path / "other", [["small", "10.0.0.2"]], today())
    for server, client in ((stranger, folders[0]), (folders[1], stranger)):
        with pytest.raises(ssl.SSLError):
            shake_hands(server, client, "small")


def test_a_machine_cannot_sign_for_another(tmp_path: Path) -> None:
    authority = tls.make_authority(today())
    machine = tls.make_host(["big"], authority, today())
    forged = tls.make_host(["small"], machine, today())
    folder = tmp_path / "forged"
    folder.mkdir()
    (folder / "host.key").write_bytes(forged.key_pem())
    (folder / "host.crt").write_bytes(forged.certificate_pem() + machine.certificate_pem())
    (folder / "ca.crt").write_bytes(authority.certificate_pem())
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(folder, folder, "small")


def test_only_the_owner_can_read_a_key(folders: list[Path]) -> None:
    keys = [folder / "host.key" for folder in folders] + [folders[0].parent / "ca.key"]
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert {path.parent.stat().st_mode & 0o777 for path in keys} == {0o700}
    assert len({path.read_bytes() for path in keys}) == 3
    assert not [path for folder in folders for path in folder.iterdir() if path.name == "ca.key"]


def test_what_a_certificate_says() -> None:
    authority = tls.make_authority(NOW)
    machine = tls.make_host(["big.example", "10.0.0.1", "big.example"], authority, NOW)
    assert names_of(machine.certificate) == {"big.example", "10.0.0.1", "localhost", "127.0.0.1", "::1"}
    assert machine.certificate.not_valid_before_utc == NOW - timedelta(hours=1)
    assert machine.certificate.not_valid_after_utc == NOW + timedelta(days=365)
    assert authority.certificate.not_valid_after_utc == NOW + timedelta(days=5 * 365)
    machine.certificate.verify_directly_issued_by(authority.certificate)
    for issued, signs in ((authority, True), (machine, False)):
        found = issued.certificate.extensions
        assert found.get_extension_for_class(x509.BasicConstraints).value.ca is signs
        assert found.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is signs


def test_a_machine_that_comes_later_is_signed_by_the_same_authority(folders: list[Path]) -> None:
    out = folders[0].parent
    before = (out / "ca.crt").read_bytes()
    [late] = tls.write_certificates(out, [["late", "10.0.0.9"]], today())
    assert (out / "ca.crt").read_bytes() == before == (late / "ca.crt").read_bytes()
    shake_hands(late, folders[0], "late")


def test_nothing_is_overwritten_or_made_by_halves(folders: list[Path]) -> None:
    out = folders[0].parent
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for machines in ([["new"], ["big"]], [["new"], ["new", "10.0.0.7"]], [["new"], ["a b"]]):
        with pytest.raises(UsageError):
            tls.write_certificates(out, machines, today())
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_authority_that_cannot_serve_is_refused(folders: list[Path]) -> None:
    out = folders[0].parent
    with pytest.raises(UsageError, match="expires before"):
        tls.write_certificates(out, [["late"]], today() + timedelta(days=4 * 365 + 1))
    (out / "ca.key").chmod(0o640)
    with pytest.raises(UsageError, match="others than its owner"):
        tls.write_certificates(out, [["late"]], today())
    (out / "ca.key").write_bytes((folders[0] / "host.key").read_bytes())
    (out / "ca.key").chmod(0o600)
    with pytest.raises(FormatError, match="not the key of"):
        tls.write_certificates(out, [["late"]], today())
    (out / "ca.key").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="cannot be read"):
        tls.write_certificates(out, [["late"]], today())
    assert not (out / "late").exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "-a", "a-", "a..b", "a" * 64, "10.0.0.1/8", "*.a", "a\n", "é"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="neither a host name nor an address"):
        tls.make_host(["good", name], tls.make_authority(NOW), NOW)


AUTHORITY = tls.make_authority(NOW)


@given(
    st.lists(st.one_of(st.ip_addresses().map(str), st.text(min_size=1, max_size=20)), min_size=1, max_size=4)
)
def test_any_names_give_a_certificate_for_just_them_or_the_one_error(names: list[str]) -> None:
    try:
        machine = tls.make_host(names, AUTHORITY, NOW)
    except BarnraiseError:
        return
    expected = {_plain(name) for name in (*names, *tls.LOOPBACK)}
    assert names_of(machine.certificate) == expected


def _plain(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def test_the_command_prints_what_to_copy_and_to_export(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "cluster.tls",
        "--out",
        str(out),
        "--hosts",
        "big,10.0.0.1",
        "small,10.0.0.2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shown = [line for line in done.stdout.splitlines() if line.startswith("#   ")]
    assert [shlex.split(line[4:])[-2:] for line in shown] == [
        [f"{out}/big/", "big:.barnraise/tls/"],
        [f"{out}/small/", "small:.barnraise/tls/"],
    ]
    assert done.stdout.endswith(tls.ENVIRONMENT)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_the_printed_variables_name_the_files_of_a_machine(folders: list[Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".barnraise").mkdir(parents=True)
    folders[0].rename(home / ".barnraise" / "tls")
    done = subprocess.run(
        ["bash", "-c", ". ~/.barnraise/tls/env; env"],
        env={"HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("RAY_"))
    assert said.pop("RAY_USE_TLS") == "1"
    assert {name: Path(path).name for name, path in said.items() if Path(path).is_file()} == {
        "RAY_TLS_CA_CERT": "ca.crt",
        "RAY_TLS_SERVER_CERT": "host.crt",
        "RAY_TLS_SERVER_KEY": "host.key",
    }


def test_it_needs_no_ray() -> None:
    code = "import sys, cluster.tls; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
