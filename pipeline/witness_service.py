"""`barnraise witness`: a witness that listens, reads a mailbox, or cosigns one folder.

Owns the command, the witness's own identity in HOME/witness, and reading a folder to cosign it. Does not own
what a witness may sign (verification.witness), nor HTTP and mailboxes (witness_server).
"""

from __future__ import annotations

import base64
import contextlib
import json as jsonlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape

from pipeline.options import HOME
from pipeline.witness_server import parse_listen, serve_http, serve_mailbox
from verification.durable import write_atomic
from verification.encoding import parse_canonical
from verification.errors import FormatError, ProtocolError, StorageError, UsageError, printable
from verification.folder_lock import lock_folder
from verification.keys import PrivateKey
from verification.log import Log
from verification.notes import check_origin, note_origin, parse_vkey, witness_vkey
from verification.witness import MAX_REQUEST_BYTES, Witness
from verification.witness_store import WitnessStore


@dataclass(frozen=True)
class WitnessOptions:
    """Be a witness: cosign the heads of logs that only grow, and show links of a chain for their draws."""

    name: str | None = None
    """The name it signs with, such as witness.example.org; needed at the first start only."""
    listen: str | None = None
    """HOST:PORT to listen on for HTTP. Port 0 takes a free one."""
    mailbox: Path | None = None
    """A folder in which requests and answers lie as files."""
    once: bool = False
    """With --mailbox: answer what lies there and end."""
    cosign: Path | None = None
    """A run folder, or a log folder, to check and cosign once."""
    out: Path | None = None
    """With --cosign: the file for the cosigned checkpoint, instead of printing it."""
    show: bool = False
    """Show its verifier key and the line for a policy file."""
    log: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Verifier key of a log to cosign. May be repeated."""
    any_log: bool = False
    """Cosign any log that asks for a chain; the first key that comes for an origin stays."""
    home: Path = HOME
    """Where its key, chains and memory lie, in the folder witness."""
    json: bool = False
    """One JSON object a line instead of words."""


def command(options: WitnessOptions, console: Console) -> int:
    """`barnraise witness`: 0 when it ended as asked, 1 for a log that is not append-only."""
    modes = [
        options.listen is not None,
        options.mailbox is not None,
        options.cosign is not None,
        options.show,
    ]
    if sum(modes) != 1:
        raise UsageError(
            "a witness does one thing at a time",
            expected="one of --listen, --mailbox, --cosign, --show",
            got=sum(modes) or "none",
        )
    if options.any_log and options.log:
        raise UsageError("--any-log admits every log, --log only those named", hint="Give one of the two.")
    if options.out and not options.cosign:
        raise UsageError("--out goes with --cosign")
    if options.once and not options.mailbox:
        raise UsageError("--once goes with --mailbox")
    folder = options.home.expanduser() / "witness"
    key, name = own_identity(folder, options.name)
    if options.show:
        return _show(options, console, folder, witness_vkey(name, key.public), name)
    lock_folder(folder, wait_s=0)

    store = WitnessStore(folder)
    logs = None if options.any_log else options.log
    tell = _Teller(options.json, console)
    cosigned = tell.nothing if options.cosign is not None else tell.cosigned
    witness = Witness(key, name, store, lambda: int(time.time()), logs, tell.fork, cosigned)
    if options.cosign is not None:
        return _cosign(options, console, witness, store, options.cosign)
    if not (options.any_log or options.log or store.vkeys()):
        raise UsageError(
            "this witness would cosign nothing",
            hint="--log VKEY names a log (may be repeated); --any-log admits every log that asks.",
        )
    with _until_signalled() as stop:
        if options.listen is not None:
            host, port = parse_listen(options.listen)
            serve_http(
                witness, host, port, stop, lambda url: _started(options, console, witness.vkey, name, url)
            )
        elif options.mailbox is not None:
            _started(options, console, witness.vkey, name, options.mailbox.absolute().as_uri())
            serve_mailbox(witness, options.mailbox, stop, once=options.once, notice=tell.notice)
    if not options.json:
        _say(console, "the witness has ended; it remembers what it cosigned")
    return 0


class _Teller:
    """What a witness says while it works: a line a head, evidence whole. A closed output ends nothing."""

    def __init__(self, json: bool, console: Console) -> None:
        self._json = json
        self._console = console

    def nothing(self, origin: str, size: int) -> None:
        """One folder is cosigned, and the answer says so itself."""

    def cosigned(self, origin: str, size: int) -> None:
        """A larger head was cosigned."""
        self._line({"cosigned": origin, "size": size}, f"cosigned {origin} at {size} entries")

    def notice(self, line: str) -> None:
        """Something in a mailbox that could not be answered."""
        self._line({"notice": line}, printable(line))

    def fork(self, path: Path | None, text: str) -> None:
        """Evidence that a log is not append-only; `path` is None when it could not be kept."""
        kept = f"Kept as {path}" if path else "It could not be kept as a file, so keep this text"
        said = f"{text}\n{kept}: give it to everybody who trusts that log."
        if not self._json:
            with contextlib.suppress(OSError, ValueError):
                self._console.print("[red bold]A log that this witness cosigns is not what it was[/]")
        self._line({"fork": str(path)} if path else {"fork": None, "text": text}, said)

    def _line(self, value: Mapping[str, object], words: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._json:
                _print_json(value)
            else:
                _say(self._console, words)


def own_identity(folder: Path, name: str | None) -> tuple[PrivateKey, str]:
    """Key and name of the witness in `folder`, made at the first start.

    Raises UsageError when there is none and `name` is None, or when it has another name.
    """
    key_file, name_file = folder / "key", folder / "name"
    if not key_file.exists():
        if name is None:
            raise UsageError(
                f"there is no witness in {folder} yet",
                expected="--name at the first start",
                hint="A name such as witness.example.org says whose it is, and stays.",
            )
        check_origin(name)
        write_atomic(name_file, f"{name}\n".encode())
        PrivateKey.generate().save(key_file)
    try:
        known = name_file.read_text().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{name_file} cannot be read", got=str(error)) from None
    check_origin(known)
    if name not in (None, known):
        raise UsageError(
            f"the witness in {folder} has another name",
            expected=known,
            got=name,
            hint="Another witness needs another --home.",
        )
    return PrivateKey.load(key_file), known


def cosign_folder(witness: Witness, store: WitnessStore, folder: Path) -> str:
    """The checkpoint of a run or log folder with this witness's cosignature, made durable by the witness.

    Everything is recomputed from the tiles. Raises UsageError for a folder without a log or a log whose key
    the witness does not know from elsewhere, ProtocolError when the folder does not continue what it saw.
    """
    manifest = _manifest(folder)
    log_folder = folder / "log" if (folder / "log").is_dir() else folder
    try:
        text = (log_folder / "checkpoint").read_bytes()[:MAX_REQUEST_BYTES]
    except OSError as error:
        raise UsageError(
            f"{folder} holds no log", expected="a run folder, or a log folder", got=error.strerror
        ) from None
    origin = note_origin(text)
    log_vkey = witness.log_vkey(origin)
    if log_vkey is None:  # the folder's own word would be pinned for good
        claimed = manifest.get("log_vkey")
        raise UsageError(
            f"this witness does not know yet which key the log {origin[:128]!a} has",
            expected="--log VKEY",
            got=f"the folder claims {claimed[:300]!a}" if isinstance(claimed, str) else "no key",
            hint="Compare the key with what the organiser published elsewhere, then name it: --log VKEY.",
        )
    if manifest.get("log_vkey", log_vkey) != log_vkey:
        raise ProtocolError(
            f"the manifest in {folder} names another key than the one this witness knows for {origin}",
            expected=log_vkey,
            got=str(manifest["log_vkey"])[:300],
        )
    log = Log.open(
        log_folder, parse_vkey(log_vkey)[0], None, log_vkey, _witness_vkeys(manifest, witness.vkey)
    )
    if store.vkey(origin) is None:
        store.pin(origin, log_vkey)
    last = witness.newest(origin)
    old = last.checkpoint.size if last else 0
    if last and old > log.size:
        raise ProtocolError(
            f"the log in {folder} is behind a head that it signed and this witness cosigned:\n\n"
            f"{last.note}\nThe folder's head:\n\n{log.checkpoint}\n"
            "It is an old copy, or entries were taken back",
            expected=f"at least {old} entries",
            got=log.size,
        )
    proof = "".join(base64.b64encode(hashed).decode() + "\n" for hashed in log.consistency_proof(old))
    body = f"old {old}\n{proof}\n{log.checkpoint}".encode()
    status, _, answer = witness.handle("POST", "/add-checkpoint", body)
    if status == 200:
        return log.checkpoint + answer.decode()
    if last and status == 422:
        raise ProtocolError(
            f"the log in {folder} is a fork: its entries are not those of a head that it signed before and "
            f"this witness cosigned:\n\n{last.note}\nThe folder's head:\n\n{log.checkpoint}\n"
            f"Its first {old} entries have another root",
            expected=last.checkpoint.root.hex(),
            got=log.root_at(old).hex(),
            hint=f"Keep {folder}, and the evidence in {store.folder / 'forks'}.",
        )
    raise ProtocolError("the witness refuses", got=f"status {status}: {answer.decode().strip()}")


def _manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a run folder; empty for a log folder."""
    try:
        data = (folder / "manifest.json").read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{folder} cannot be read", got=error.strerror) from None
    value = parse_canonical(data)
    if not isinstance(value, dict):
        raise FormatError(f"{folder / 'manifest.json'} is no manifest")
    return value


def _witness_vkeys(manifest: dict[str, Any], own: str) -> tuple[str, ...]:
    """The witnesses whose lines may stand in the folder's checkpoint."""
    witnessing = manifest.get("witnessing")
    rows = witnessing.get("witnesses") if isinstance(witnessing, dict) else None
    if not isinstance(rows, list):
        return (own,)
    vkeys = [row.get("vkey") if isinstance(row, dict) else None for row in rows]
    return tuple(vkey for vkey in vkeys if isinstance(vkey, str))


def _cosign(
    options: WitnessOptions, console: Console, witness: Witness, store: WitnessStore, folder: Path
) -> int:
    note = cosign_folder(witness, store, folder)
    if options.out:
        write_atomic(options.out, note.encode())
    found = witness.newest(note_origin(note))
    if options.json:
        size, times = (found.checkpoint.size, found.times) if found else (0, (0,))
        _print_json({"ok": True, "size": size, "time": times[0], "vkey": witness.vkey, "checkpoint": note})
    elif options.out:
        _say(
            console,
            f"{options.out}: the head of {folder}, size {found.checkpoint.size if found else 0}, cosigned",
        )
        _say(console, "Next: give the file to whoever checks receipts of that log")
    else:
        print(note, end="")  # noqa: T201
    return 0


def _show(options: WitnessOptions, console: Console, folder: Path, vkey: str, name: str) -> int:
    store = WitnessStore(folder)
    line = f"witness {name} {vkey}"
    if options.json:
        forks = [str(path) for path in store.forks()]
        _print_json({"name": name, "vkey": vkey, "policy": line, "logs": list(store.vkeys()), "forks": forks})
        return 0
    _say(console, vkey)
    _say(
        console,
        f"{folder} holds its key and what it cosigned, {len(store.vkeys())} logs: it must not be lost",
    )
    for path in store.forks():
        console.print(f"[red]evidence[/] {escape(str(path))}", highlight=False, soft_wrap=True)
    _say(console, "Next: the line for a policy file, with its address at the end where coordinators need it:")
    _say(console, f"      {line}")
    return 0


def _started(options: WitnessOptions, console: Console, vkey: str, name: str, url: str) -> None:
    if options.json:
        _print_json({"url": url, "vkey": vkey})
        return
    _say(console, f"witness {name} answers at {url}")
    _say(console, "Next: the line for a run's policy file; Ctrl-C ends the witness")
    _say(console, f"      witness {name} {vkey} {url}")


@contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; off the main thread no signal arrives and it stays unset."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: stop.set())
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def _print_json(value: Mapping[str, object]) -> None:
    print(jsonlib.dumps(value), flush=True)  # noqa: T201


COMMANDS: dict[str, tuple[type[Any], Callable[[Any, Console], int]]] = {"witness": (WitnessOptions, command)}
