"""Signed notes: a log's checkpoints, witnesses' cosignatures and the verifier keys of both, as text.

Owns the C2SP signed-note, tlog-checkpoint and tlog-cosignature formats, Ed25519 only: the one strict form of
a run folder (docs/protocol.md, section 3), and `open_note` for what strangers send, where signatures of
unknown keys are ignored. Does not own the tree behind a checkpoint or how many cosignatures are enough.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from verification.encoding import MAX_INTEGER, parse_base64
from verification.errors import FormatError, SignatureError
from verification.keys import SIGNATURE_BYTES, PrivateKey, check_public_key, public_bytes, verify
from verification.merkle import HASH_BYTES

MAX_NOTE_BYTES = 1 << 19
MAX_SIGNATURES = 128
MAX_LINE_BYTES = 256
_ED25519 = b"\x01"
_COSIGNATURE = b"\x04"
_ID_BYTES = 4
_TIME_BYTES = 8
_MAX_STAMP = 2**63 - 1
_ORIGIN = re.compile(r"[!-*,-~]{1,128}\Z")
_NOTE = re.compile(r"([^\n]+)\n([0-9]{1,16})\n([^\n]+)\n\n— ([^ \n]+) ([^ \n]+)\n\Z")
_VKEY = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)\Z")
_LINE = re.compile(r"— ([^ +\n]+) ([^ \n]+)\Z")
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,15})\Z")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's head: its name, its number of entries and the 32 bytes of its root hash."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        check_origin(self.origin)
        if not 0 <= self.size <= MAX_INTEGER:
            raise FormatError("a checkpoint's size is out of range", expected="0 to 2^53 - 1", got=self.size)
        if len(self.root) != HASH_BYTES:
            raise FormatError("a root hash has the wrong length", expected=HASH_BYTES, got=len(self.root))

    def text(self) -> str:
        """What is signed: origin, decimal size and base64 root, one a line."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def check_origin(origin: str) -> None:
    """Raise FormatError unless `origin` can name a log: 1 to 128 visible ASCII characters without `+`."""
    if not _ORIGIN.match(origin):
        raise FormatError(
            "not a log's origin", expected="1 to 128 visible ASCII characters, no +", got=repr(origin)[:140]
        )


def vkey(origin: str, public_key: str) -> str:
    """The verifier key of a log. Raises FormatError or SignatureError for an unusable part."""
    return _vkey(origin, public_key, _ED25519)


def parse_vkey(text: str) -> tuple[str, str]:
    """Origin and public key of a log's verifier key. Raises FormatError or SignatureError."""
    return _parse_vkey(text, _ED25519)


def witness_vkey(name: str, public_key: str) -> str:
    """The verifier key of a witness (signature type 4). Raises FormatError or SignatureError."""
    return _vkey(name, public_key, _COSIGNATURE)


def parse_witness_vkey(text: str) -> tuple[str, str]:
    """Name and public key of a witness's verifier key. Raises FormatError or SignatureError."""
    return _parse_vkey(text, _COSIGNATURE)


def sign_checkpoint(checkpoint: Checkpoint, key: PrivateKey) -> str:
    """The signed note of a checkpoint; the same text every time."""
    text = checkpoint.text()
    signature = _key_id(checkpoint.origin, key.public, _ED25519) + key.sign(text.encode())
    return f"{text}\n{_line(checkpoint.origin, signature)}"


def parse_checkpoint(text: str, log_vkey: str) -> Checkpoint:
    """The checkpoint of a note with exactly one signature, by `log_vkey`, which must hold.

    Raises FormatError for any text that `sign_checkpoint` would not write, SignatureError when another
    key or another log signed it.
    """
    origin, public_key = parse_vkey(log_vkey)
    found = _NOTE.match(text)
    if not found:
        raise FormatError(
            "not a signed checkpoint",
            expected="origin, size, root, an empty line, one signature line",
            got=repr(text)[:80],
        )
    checkpoint = Checkpoint(found[1], int(found[2]), parse_base64(found[3], HASH_BYTES))
    if str(checkpoint.size) != found[2]:
        raise FormatError("a checkpoint's size is not canonical", expected=checkpoint.size, got=found[2])
    if checkpoint.origin != origin or found[4] != origin:
        raise SignatureError(
            "a checkpoint is of another log",
            expected=origin,
            got=f"{found[1][:128]} signed by {found[4][:128]}",
        )
    signature = parse_base64(found[5], _ID_BYTES + SIGNATURE_BYTES)
    if signature[:_ID_BYTES] != _key_id(origin, public_key, _ED25519):
        raise SignatureError("a checkpoint is signed by another key", expected=log_vkey)
    verify(public_key, checkpoint.text().encode(), signature[_ID_BYTES:])
    return checkpoint


def cosign(checkpoint: Checkpoint, name: str, key: PrivateKey, time: int) -> str:
    """A witness's signature line over a checkpoint at `time`, in seconds since 1970, with its newline.

    Raises FormatError for a name or a time that a cosignature cannot have.
    """
    return cosign_text(checkpoint.text(), name, key, time)


def cosign_text(text: str, name: str, key: PrivateKey, time: int) -> str:
    """`cosign` over a checkpoint's whole text, for logs that add extension lines to the three."""
    check_origin(name)
    if not 1 <= time <= MAX_INTEGER:
        raise FormatError("a cosignature's time is out of range", expected="1 to 2^53 - 1", got=time)
    signature = struct.pack(">Q", time) + key.sign(_stamped(text, time))
    return _line(name, _key_id(name, key.public, _COSIGNATURE) + signature)


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A checkpoint and who cosigned it: verifier keys, and the time of each in seconds since 1970."""

    checkpoint: Checkpoint
    cosigners: tuple[str, ...]
    times: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The cosigners' names, in the same order."""
        return tuple(parse_witness_vkey(text)[0] for text in self.cosigners)


def plain_note(text: str) -> str:
    """The first five lines of a cosigned note, which are the note with the log's signature alone."""
    return "".join(_lines(text)[:5])


def parse_cosigned(text: str, log_vkey: str, witness_vkeys: Sequence[str]) -> Cosigned:
    """The one form of a run folder: the log's signature, then cosignatures in the order of `witness_vkeys`.

    Every line must be of one of these witnesses, at most one each, and must hold; there may be none.
    Raises FormatError for any other text, SignatureError when a signature does not hold.
    """
    plain = plain_note(text)
    checkpoint = parse_checkpoint(plain, log_vkey)
    known = [parse_witness_vkey(witness) for witness in witness_vkeys]
    cosigners: list[str] = []
    times: list[int] = []
    position = 0
    for line in _lines(text)[5:]:
        found = _LINE.match(line.removesuffix("\n")) if line.endswith("\n") else None
        if not found:
            raise FormatError(
                "not a cosignature", expected="— NAME BASE64 and a newline", got=repr(line)[:80]
            )
        raw = parse_base64(found[2], _ID_BYTES + _TIME_BYTES + SIGNATURE_BYTES)
        while position < len(known) and (found[1], raw[:_ID_BYTES]) != (
            known[position][0],
            _key_id(*known[position], _COSIGNATURE),
        ):
            position += 1
        if position == len(known):
            raise FormatError(
                "a cosignature is of no witness that may stand here",
                expected="the run's witnesses, in their order, each at most once",
                got=ascii(found[1])[:140],
            )
        times.append(_check_cosignature(raw, known[position][1], checkpoint.text(), MAX_INTEGER))
        cosigners.append(witness_vkeys[position])
        position += 1
    return Cosigned(checkpoint, tuple(cosigners), tuple(times))


@dataclass(frozen=True, slots=True)
class OpenNote:
    """A stranger's checkpoint. `text` is what was signed, `line` the log's signature line with its newline.

    `extensions` are the lines of `text` after the third, which no witness makes a statement about.
    """

    checkpoint: Checkpoint
    extensions: tuple[str, ...]
    text: str
    line: str
    log_vkey: str
    cosigners: tuple[str, ...]
    times: tuple[int, ...]

    @property
    def note(self) -> str:
        """The note with the log's signature alone."""
        return f"{self.text}\n{self.line}"


def note_origin(data: str | bytes) -> str:
    """The first line of a note, unverified: which log it claims to be of. Raises FormatError."""
    return _split_note(data)[0].split("\n", 1)[0]


def open_note(data: str | bytes, log_vkeys: tuple[str, ...], witness_vkeys: Sequence[str] = ()) -> OpenNote:
    """A checkpoint as C2SP signed notes allow it: one of `log_vkeys` signed, and the known lines hold.

    Lines of unknown keys are ignored, but there are at most 128 lines and 512 KiB. Lines whose name and id
    are those of a known key must hold, or the whole note is refused. A key that signs twice counts once.
    Raises FormatError for what is no note, SignatureError when no log signed or a known line does not hold.
    """
    text, lines = _split_note(data)
    checkpoint, extensions = _parse_body(text)
    logs = {}
    for log_vkey in log_vkeys:
        origin, public_key = parse_vkey(log_vkey)
        if origin == checkpoint.origin:
            logs[origin, _key_id(origin, public_key, _ED25519)] = (log_vkey, public_key)
    witnesses = {}
    for witness in witness_vkeys:
        name, public_key = parse_witness_vkey(witness)
        witnesses[name, _key_id(name, public_key, _COSIGNATURE)] = (witness, public_key)
    signed: tuple[str, str] | None = None
    times: dict[str, int] = {}
    for name, raw in lines:
        identity = (name, raw[:_ID_BYTES])
        if identity in logs:
            log_vkey, public_key = logs[identity]
            verify(public_key, text.encode(), raw[_ID_BYTES:])
            signed = signed or (log_vkey, _line(name, raw))
        elif identity in witnesses:
            witness, public_key = witnesses[identity]
            times.setdefault(witness, _check_cosignature(raw, public_key, text, _MAX_STAMP))
    if signed is None:
        raise SignatureError(
            "no known key of the log signed a checkpoint",
            expected=" or ".join(log_vkeys) or "a log's key",
            got=", ".join(ascii(name) for name, _ in lines)[:200],
        )
    return OpenNote(checkpoint, extensions, text, signed[1], signed[0], tuple(times), tuple(times.values()))


def _split_note(data: str | bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The text that was signed, and name and raw bytes of each signature line."""
    if len(data) > MAX_NOTE_BYTES:
        raise FormatError("a note is too long", expected=f"at most {MAX_NOTE_BYTES} bytes", got=len(data))
    try:
        note = data.decode() if isinstance(data, bytes) else data.encode().decode()
    except UnicodeError:
        raise FormatError("a note is not UTF-8") from None
    if found := _CONTROL.search(note):
        raise FormatError(
            "a note holds a control character", expected="none but newlines", got=repr(found[0])
        )
    text, _, signatures = note.rpartition("\n\n")
    if not text or not signatures.endswith("\n"):
        raise FormatError(
            "not a signed note", expected="a text, an empty line, signature lines", got=repr(note)[:80]
        )
    lines = signatures[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise FormatError(
            "a note has too many signatures", expected=f"at most {MAX_SIGNATURES}", got=len(lines)
        )
    parsed = []
    for line in lines:
        found = _LINE.match(line)
        if not found or any(character.isspace() for character in found[1]):
            raise FormatError("not a signature line", expected="— NAME BASE64", got=repr(line)[:80])
        raw = parse_base64(found[2])
        if len(raw) <= _ID_BYTES:
            raise FormatError("a signature is too short", expected="a key id and more", got=len(raw))
        parsed.append((found[1], raw))
    return text + "\n", parsed


def _parse_body(text: str) -> tuple[Checkpoint, tuple[str, ...]]:
    """Three lines or more, none of them empty."""
    lines = text[:-1].split("\n")
    if len(lines) < 3 or not all(lines) or not _DECIMAL.match(lines[1]):
        raise FormatError(
            "not a checkpoint", expected="origin, decimal size and root, a line each", got=repr(text)[:80]
        )
    return Checkpoint(lines[0], int(lines[1]), parse_base64(lines[2], HASH_BYTES)), tuple(lines[3:])


def _lines(text: str) -> list[str]:
    """The lines of a text with their newlines; no other character ends a line."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _stamped(text: str, time: int) -> bytes:
    """What a witness signs (C2SP tlog-cosignature, Ed25519 signed message)."""
    return f"cosignature/v1\ntime {time}\n{text}".encode()


def _check_cosignature(raw: bytes, public_key: str, text: str, latest: int) -> int:
    """The time of a cosignature that holds; `raw` is key id, time and signature."""
    if len(raw) != _ID_BYTES + _TIME_BYTES + SIGNATURE_BYTES:
        raise SignatureError("a cosignature has the wrong length", expected="76 bytes", got=len(raw))
    time = int.from_bytes(raw[_ID_BYTES : _ID_BYTES + _TIME_BYTES], "big")
    if not 1 <= time <= latest:
        raise FormatError("a cosignature's time is out of range", expected=f"1 to {latest}", got=time)
    verify(public_key, _stamped(text, time), raw[_ID_BYTES + _TIME_BYTES :])
    return time


def _vkey(name: str, public_key: str, kind: bytes) -> str:
    check_origin(name)
    check_public_key(public_key)
    typed = base64.b64encode(kind + public_bytes(public_key)).decode()
    return f"{name}+{_key_id(name, public_key, kind).hex()}+{typed}"


def _parse_vkey(text: str, kind: bytes) -> tuple[str, str]:
    found = _VKEY.match(text)
    if not found:
        raise FormatError("not a verifier key", expected="NAME+HEX+BASE64", got=repr(text)[:200])
    typed = parse_base64(found[3], 33)
    if typed[:1] != kind:
        raise FormatError(
            "a verifier key is of another type",
            expected="1, a log's Ed25519 key" if kind == _ED25519 else "4, a witness's Ed25519 key",
            got=typed[0],
        )
    public_key = f"ed25519:{typed[1:].hex()}"
    if (again := _vkey(found[1], public_key, kind)) != text:
        raise FormatError("a verifier key's id is not its own", expected=again, got=text)
    return found[1], public_key


def _line(name: str, signature: bytes) -> str:
    return f"— {name} {base64.b64encode(signature).decode()}\n"


def _key_id(name: str, public_key: str, kind: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + kind + public_bytes(public_key)).digest()[:_ID_BYTES]
