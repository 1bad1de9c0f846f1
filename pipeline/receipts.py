"""`barnraise receipt` and `barnraise verify-receipt`: what a member takes away from a round.

Owns both commands: finding the round-close of a member in a run folder, and telling what a receipt shows and
what it does not. Does not own the format or any check: those are verification.tlog_proof. The second command
needs no run folder, no network and none of the training packages.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape

from verification.durable import write_atomic
from verification.encoding import Json, parse_canonical
from verification.envelope import open_envelope
from verification.errors import BarnraiseError, FormatError, UsageError
from verification.log import Log
from verification.notes import parse_vkey, parse_witness_vkey
from verification.policy import Policy, load_policy, shown
from verification.tlog_proof import (
    CLOSE,
    MAX_PROOF_BYTES,
    Receipt,
    check_receipt,
    check_receipt_by_policy,
    write_receipt,
)

NOT_SHOWN = (
    "that the work was right: `barnraise verify RUN --level 3` recomputes it",
    "that the log has nothing else to say of this member: this is one round",
)


@dataclass(frozen=True)
class ReceiptOptions:
    """A member's receipt for a round, as a file that anybody can check without the run folder."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    member: str
    """The member, a contributor of that round."""
    round: int | None = None
    """The round; the last closed one with the member in it when left out."""
    out: Path | None = None
    """The file to write; MEMBER-ROUND.tlog-proof when left out."""
    json: bool = False
    """One JSON object instead of words."""


@dataclass(frozen=True)
class VerifyReceiptOptions:
    """Check a receipt, offline, against a policy or the log's key from somewhere you trust."""

    receipt: tyro.conf.Positional[Path]
    """The receipt, a .tlog-proof file."""
    policy: Path | None = None
    """A C2SP tlog-policy file: the logs and witnesses you trust, and how many must have cosigned."""
    vkey: str | None = None
    """The log's verifier key. Alone it shows what the log says, not that it says so to everybody."""
    json: bool = False
    """One JSON object instead of words."""


def receipt(options: ReceiptOptions, console: Console) -> int:
    """`barnraise receipt`."""
    manifest = read_manifest(options.run)
    log_vkey = _text(manifest, "log_vkey")
    witness_vkeys = manifest_witnesses(manifest)
    log = Log.open(options.run / "log", _text(manifest, "origin"), None, log_vkey, witness_vkeys)
    index = find_close(log, options.member, options.round)
    note = log.cosigned
    text = write_receipt(log.entry(index), options.member, index, log.inclusion_proof(index), note)
    found = check_receipt(text, log_vkey, witness_vkeys)
    out = options.out or Path(f"{options.member}-{found.round:05d}.tlog-proof")
    write_atomic(out, text.encode())
    if options.json:
        _print_json(asdict_receipt(found) | {"out": str(out)})
        return 0
    _say(console, f"{out}: {_settled(found)}")
    _say(console, f"cosigned by {len(found.cosigners)} of {len(witness_vkeys)} witnesses of the run")
    _say(console, f"Next: barnraise verify-receipt {out} --vkey '{log_vkey}'")
    if witness_vkeys:
        _say(console, "      or, better, --policy FILE with the witnesses that you trust")
    return 0


def verify_receipt(options: VerifyReceiptOptions, console: Console) -> int:
    """`barnraise verify-receipt`: 0 when it holds, 1 when it does not."""
    if options.policy is None and options.vkey is None:
        raise UsageError(
            "nothing says whom to trust",
            expected="--policy FILE or --vkey KEY, from somewhere else than the receipt",
            hint="The organiser of the run publishes the log's key; a policy adds the witnesses you trust.",
        )
    data = _read(options.receipt)
    policy = load_policy(options.policy) if options.policy else None
    try:
        if policy is not None:
            found = check_receipt_by_policy(data, policy, options.vkey)
        else:
            parse_vkey(options.vkey or "")
            found = check_receipt(data, options.vkey or "")
    except UsageError:
        raise
    except BarnraiseError as error:
        if options.json:
            fields = {"what": error.what, "expected": _shorten(error.expected), "got": _shorten(error.got)}
            _print_json({"ok": False, "error": fields})
        else:
            console.print("[red bold]does not hold[/]", highlight=False)
            _say(console, f"      {error}")
        return 1
    if options.json:
        known = len(policy.witnesses) if policy else 0
        _print_json({"ok": True, **asdict_receipt(found), "witnesses_known": known})
    else:
        _show(found, policy, console)
        _say(
            console, f"Next: barnraise verify RUN --receipt {options.receipt}   with a copy of the run folder"
        )
    return 0


def read_manifest(run: Path) -> dict[str, Json]:
    """manifest.json of a run folder. Raises UsageError when there is none, FormatError for other content."""
    try:
        data = (run / "manifest.json").read_bytes()
    except OSError as error:
        raise UsageError(
            f"{run} is not a run folder",
            expected="a folder with manifest.json",
            got=error.strerror,
            hint="`barnraise train` makes one.",
        ) from None
    value = parse_canonical(data)
    if not isinstance(value, dict):
        raise FormatError(f"{run / 'manifest.json'} is no manifest")
    return value


def manifest_witnesses(manifest: Mapping[str, Json]) -> tuple[str, ...]:
    """Verifier keys of the witnesses of a run; none in a manifest without them."""
    witnessing = manifest.get("witnessing")
    rows = witnessing.get("witnesses") if isinstance(witnessing, dict) else []
    listed = rows if isinstance(rows, list) else [rows] if rows else []
    vkeys = [row.get("vkey") if isinstance(row, dict) else None for row in listed]
    if not all(isinstance(vkey, str) for vkey in vkeys):
        raise FormatError("the manifest's witnesses have no verifier keys")
    return tuple(vkey for vkey in vkeys if isinstance(vkey, str))


def find_close(log: Log, member: str, round_: int | None) -> int:
    """Index of the last round-close (of that round) in which a contributor is settled. Raises UsageError."""
    rounds: set[int] = set()
    members: set[str] = set()
    for index in range(log.size - 1, -1, -1):
        sealed = open_envelope(log.entry(index))
        if sealed.predicate_type != CLOSE:
            continue
        close = sealed.peek()  # what is found is checked as a receipt before it is written
        try:
            settled = {_text(row, "member") for row in [*close["accepted"], *close["rejected"]]}
            turn = int(close["round"])
        except (AttributeError, KeyError, TypeError, ValueError, FormatError):
            raise FormatError(f"entry {index} of the log is no round-close") from None
        members |= settled
        if member in settled:
            rounds.add(turn)
            if round_ in (None, turn):
                return index
    if rounds:
        raise UsageError(
            f"{member} is not in round {round_}",
            expected=f"one of {', '.join(map(str, sorted(rounds)))}",
            hint="Without --round it is the last.",
        )
    raise UsageError(
        f"no closed round settles a contributor {member!a}",
        expected=", ".join(sorted(members)[:20]) or "a run with a closed round",
        hint="Auditors have no receipts of their own; contributors that were in quarantine have none either.",
    )


def asdict_receipt(found: Receipt) -> dict[str, object]:
    """A receipt as JSON values; roots in hex, cosigners with their times."""
    value = asdict(found)
    value["checkpoint"] = {"origin": found.checkpoint.origin, "size": found.checkpoint.size}
    value["checkpoint"]["root"] = found.checkpoint.root.hex()
    value["cosigners"] = [
        {"vkey": vkey, "time": time} for vkey, time in zip(found.cosigners, found.times, strict=True)
    ]
    del value["times"]
    return value


def _show(found: Receipt, policy: Policy | None, console: Console) -> None:
    """A receipt that holds, in words."""
    console.print(f"[green bold]holds[/] {escape(_settled(found))}", highlight=False, soft_wrap=True)
    _say(console, f"      run      {found.run}")
    _say(
        console,
        f"      credit   {found.earned} tokens earned, {found.vested} vested, {found.forfeited} forfeited"
        f"{', in quarantine' if found.quarantined else ''}",
    )
    head = found.checkpoint
    _say(console, f"      entry    {found.index} of the log {head.origin}, size {head.size}")
    _say(console, f"      root     {head.root.hex()}")
    _say(console, f"      signed   {found.log_vkey}")
    _say(console, f"      weights  {found.weights} after the round")
    if policy is None:
        _say(console, "      cosigned by nobody that you named: --vkey alone knows no witnesses")
    else:
        total = len(policy.witnesses)
        _say(console, f"      cosigned by {len(found.cosigners)} of {total} witnesses of the policy")
        names = {witness.vkey: shown(witness.name) for witness in policy.witnesses}
        for vkey, time in zip(found.cosigners, found.times, strict=True):
            _say(console, f"               {names[vkey]} ({parse_witness_vkey(vkey)[0]}) at {_when(time)}")
    _say(console, "shown      that the coordinator logged this, under a head that it signed")
    if found.cosigners:
        _say(console, "shown      that those witnesses saw this head as part of one log that only grew")
    else:
        _say(console, "not shown  that others see the same log: that takes witnesses, and --policy")
    for text in NOT_SHOWN:
        _say(console, f"not shown  {text}")


def _settled(found: Receipt) -> str:
    turn = f"round {found.round}" + (f" attempt {found.attempt}" if found.attempt else "")
    if found.accepted:
        return f"{found.member} was accepted in {turn} with {found.tokens} tokens, weight {found.weight}"
    fault = ", a fault that two auditors agreed on" if found.fault else ""
    return f"{found.member} was rejected in {turn}: {found.reason}{fault}"


def _when(time: int) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{time} s since 1970"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PROOF_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the receipt {path} cannot be read", got=error.strerror) from None


def _text(value: Mapping[str, Json], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise FormatError(f"the manifest has no {key}", got=repr(found)[:80])
    return found


def _shorten(value: object) -> str:
    return "" if value is None else str(value)[:400]


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def _print_json(value: Mapping[str, object]) -> None:
    print(jsonlib.dumps(value))  # noqa: T201


COMMANDS: dict[str, tuple[type[Any], Callable[[Any, Console], int]]] = {
    "receipt": (ReceiptOptions, receipt),
    "verify-receipt": (VerifyReceiptOptions, verify_receipt),
}
