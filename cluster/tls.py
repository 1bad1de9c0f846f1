"""Certificates for a cluster whose traffic others on the network could read: `python -m cluster.tls`.

Owns a certificate authority of one's own, one certificate a machine, and the variables that Ray reads.
Does not import Ray, copy anything to a machine or start anything (docs/cluster.md says how). Every machine
both serves and calls, so a certificate is good for both sides; Ray accepts only what this authority signed.
Source: RFC 5280 for the extensions; Ray's guide to TLS for the variables' names.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from verification.durable import read_secret, write_atomic, write_secret
from verification.errors import BarnraiseError, FormatError, UsageError

AUTHORITY_DAYS = 5 * 365
HOST_DAYS = 365
CLOCK_SKEW = timedelta(hours=1)
MACHINES_FOLDER = "~/.barnraise/tls"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_MAX_KEY_BYTES = 4096

# Sourced on every machine before `ray start`, and in the shell of whoever talks to the cluster.
ENVIRONMENT = """\
export RAY_USE_TLS=1
export RAY_TLS_CA_CERT="$HOME/.barnraise/tls/ca.crt"
export RAY_TLS_SERVER_CERT="$HOME/.barnraise/tls/host.crt"
export RAY_TLS_SERVER_KEY="$HOME/.barnraise/tls/host.key"
"""


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        """PEM of the certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """PEM of the key, PKCS #8, not encrypted: Ray has no way to ask for a password."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def make_authority(now: datetime) -> Issued:
    """A new authority that may sign machines' certificates and nothing below them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("barnraise cluster")
    builder = (
        _builder(name, name, key, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return Issued(builder.sign(key, hashes.SHA256()), key)


def make_host(names: Sequence[str], authority: Issued, now: datetime) -> Issued:
    """A certificate for the machine that is reached under `names` (host names and addresses) and on loopback.

    Raises UsageError for a name that is neither.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = [_alternative(name) for name in dict.fromkeys((*names, *LOOPBACK))]
    builder = (
        _builder(_name(names[0]), authority.certificate.subject, key, now, HOST_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
    )
    return Issued(builder.sign(authority.key, hashes.SHA256()), key)


def write_certificates(out: Path, machines: Sequence[Sequence[str]], now: datetime) -> list[Path]:
    """Make OUT/MACHINE/{ca.crt,host.crt,host.key,env} for each machine; its folders, in order.

    The authority in `out` is used again when there is one, so machines can be added later. A machine's first
    name names its folder. Raises UsageError for wrong names, for a machine that has its folder already, and
    for an authority that has expired or lies open to others; nothing is written then.
    """
    folders = [out / names[0] for names in machines]
    for names, folder in zip(machines, folders, strict=True):
        for name in names:
            _alternative(name)
        if folder.exists() or folders.count(folder) > 1:
            raise UsageError(
                f"{folder} is there already", hint="Each machine once; remove an old folder to renew it."
            )
    authority = _authority(out, now)
    for names, folder in zip(machines, folders, strict=True):
        issued = make_host(names, authority, now)
        write_secret(folder / "host.key", issued.key_pem())
        folder.chmod(0o700)
        write_atomic(folder / "host.crt", issued.certificate_pem())
        write_atomic(folder / "ca.crt", authority.certificate_pem())
        write_atomic(folder / "env", ENVIRONMENT.encode())
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Prints where each machine's folder goes and what to export."""
    parser = argparse.ArgumentParser(prog="python -m cluster.tls", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder to make them in; keep OUT/ca.key to yourself"
    )
    parser.add_argument(
        "--hosts",
        nargs="+",
        required=True,
        metavar="NAME[,ADDRESS...]",
        help="one machine each: its name, then every address that others reach it at",
    )
    options = parser.parse_args(arguments)
    now = datetime.now(UTC)
    try:
        folders = write_certificates(options.out, [machine.split(",") for machine in options.hosts], now)
    except BarnraiseError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, UsageError) else 1
    last = (now + timedelta(days=HOST_DAYS)).date()
    sys.stdout.write(
        f"# Good until {last}. Each folder belongs on its machine as {MACHINES_FOLDER}, mode 0700:\n"
    )
    for folder in folders:
        sys.stdout.write(
            f"#   rsync -a --mkpath --chmod=D700,F600 {folder}/ {folder.name}:{MACHINES_FOLDER[2:]}/\n"
        )
    sys.stdout.write(
        "# In the shell that starts Ray or talks to it (the file `env` of the folder):\n" + ENVIRONMENT
    )
    return 0


def _authority(out: Path, now: datetime) -> Issued:
    key_path, certificate_path = out / "ca.key", out / "ca.crt"
    if not key_path.exists():
        made = make_authority(now)
        write_secret(key_path, made.key_pem())
        out.chmod(0o700)
        write_atomic(certificate_path, made.certificate_pem())
        return made
    try:
        key = serialization.load_pem_private_key(read_secret(key_path, _MAX_KEY_BYTES), password=None)
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    except (OSError, ValueError) as error:
        raise FormatError(f"the authority in {out} cannot be read", got=type(error).__name__) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise FormatError(f"{key_path} is not the key of {certificate_path}")
    if certificate.not_valid_after_utc < now + timedelta(days=HOST_DAYS):
        raise UsageError(
            f"the authority in {out} expires before a new certificate would",
            got=certificate.not_valid_after_utc.date(),
            hint="Make all certificates anew in another folder.",
        )
    return Issued(certificate, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if len(name) > 253 or not _NAME.fullmatch(name):
            raise UsageError(
                "a machine's name is neither a host name nor an address",
                expected="such as node1,192.168.1.11",
                got=repr(name),
            ) from None
        return x509.DNSName(name)


if __name__ == "__main__":
    sys.exit(main())
