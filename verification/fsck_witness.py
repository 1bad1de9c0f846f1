"""Witnesses in a log: the manifest's list, cosigned heads, the links they show (protocol, sections 3 and 6).

Owns those checks. The bytes of keys and cosignatures are `fsck_cosign`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from verification.errors import FormatError
from verification.fsck_cosign import Cosignature, WitnessKey, parse_cosigned, parse_witness_key
from verification.fsck_draws import Chain, Witness
from verification.fsck_findings import Record, Report
from verification.fsck_formats import Checkpoint, proof_holds
from verification.fsck_turn import Entry, Head, Run, TurnState, check_head, place


def read_witnesses(manifest: Record, report: Report) -> dict[str, Witness]:
    """The manifest's witnesses by name. Raises of the error family where one has no key to go by."""
    where = "log entry 0, manifest"
    listed, required = manifest["witnessing"]["witnesses"], manifest["witnessing"]["required"]
    found: dict[str, Witness] = {}
    keys: set[str] = {manifest["coordinator"]}
    for line in listed:
        key, chain = parse_witness_key(line["vkey"]), line["chain"]
        if key.name in found:
            raise FormatError("two witnesses have one name", expected="unique names", got=key.name)
        if key.key in keys:
            what = f"the key of the witness {key.name} is another's too"
            report.add(what, where, "a key that is neither the coordinator's nor another witness's", key.key)
        if chain["length"] < manifest["draw_chain"]["length"]:
            least = f"at least {manifest['draw_chain']['length']}"
            report.add(f"the chain of the witness {key.name} is too short", where, least, chain["length"])
        signed = {**chain, "log_vkey": manifest["log_vkey"], "witness": line["vkey"]}
        if not proof_holds(key.public, line["proof"], "barnraise/witness-chain/v1", signed):
            what = f"the proof of the chain of the witness {key.name} does not hold"
            report.add(what, where, f"a signature by {key.key}", line["proof"])
        keys.add(key.key)
        found[key.name] = Witness(key, Chain(bytes.fromhex(chain["end"][7:]), chain["length"]))
    if not min(1, len(listed)) <= required <= len(listed):
        what = "the number of witnesses that are required does not fit their list"
        report.add(what, where, f"from {min(1, len(listed))} to {len(listed)}", required)
    return found


def check_cosignatures(
    witnesses: Mapping[str, Witness],
    head: Checkpoint,
    lines: tuple[Cosignature, ...],
    *,
    what: str,
    where: str,
    report: Report,
) -> list[WitnessKey]:
    """Every line is of a witness of the manifest, in its order, once, and holds; the keys of those."""
    names = [line.name for line in lines]
    order = [name for name in witnesses if name in names]
    report.equal(
        f"the cosignatures on {what} are not in the manifest's order, each once", where, order, names
    )
    good: list[WitnessKey] = []
    for line in lines:
        witness = witnesses.get(line.name)
        if witness is None:
            report.add(
                f"{line.name} cosigned {what} and is no witness of the manifest", where, order, line.name
            )
        elif not line.holds(witness.key, head):
            report.add(
                f"the cosignature of {line.name} on {what} does not hold", where, str(witness.key), line.name
            )
        elif witness.key not in good:
            good.append(witness.key)
    return good


def check_cosigned_head(run: Run, number: int, entry: Entry, root: bytes) -> tuple[set[str], list[int]]:
    """A draw's head; the names of the manifest's witnesses that cosigned it, named in the open or not.

    With them the times of all cosignatures on it, in seconds since 1970.
    """
    where, report = place(entry), run.report
    try:
        head, lines = parse_cosigned(entry.record["head"])
    except FormatError as error:
        report.add(f"head {number} is no checkpoint: {error.what}", where, error.expected, error.got)
        return set(), []
    fits = check_head(run, number, entry, head, entry.index, root)
    what = f"head {number}"
    keys = check_cosignatures(run.witnesses, head, lines, what=what, where=where, report=report)
    names = {key.name for key in keys}
    if len(names) < run.settings.required:
        text = f"head {number} is cosigned by fewer witnesses than are required"
        report.add(text, where, f"at least {run.settings.required} of {list(run.witnesses)}", sorted(names))
    if fits:
        run.on_head(Head(head.size, head.root, tuple(keys)))
    return names, [line.time for line in lines]


def check_links(
    run: Run, turn: TurnState, entry: Entry, number: int, root: bytes, cosigners: Collection[str]
) -> None:
    """The witnesses' links of a draw: whose, of which number, each proven for exactly this head."""
    report, where, lines = run.report, place(entry), entry.record["links"]
    named = [line["witness"] for line in lines]
    what = f"the links of {entry.kind} in {turn.name} are not those of the witnesses it names"
    report.equal(what, where, turn.open["witnesses"], named)
    for line in lines:
        witness = run.witnesses.get(line["witness"])
        if witness is not None:
            _check_link(run, entry, witness, line, number, root, line["witness"] in cosigners)


def _check_link(
    run: Run, entry: Entry, witness: Witness, line: Record, number: int, root: bytes, cosigned: bool
) -> None:
    report, where, name, link = run.report, place(entry), witness.key.name, line["link"]
    if (link is None) != (line["proof"] is None):
        report.add(
            f"{name} has a link without its proof in the {entry.kind}, or a proof alone", where, "both"
        )
        return
    if link is None:
        return
    if not cosigned:
        report.add(f"{name} has a link in the {entry.kind} though it did not cosign the head", where, "null")
    if not witness.chain.holds(number, link):
        what = f"the link of {name} in the {entry.kind} is not link {number} of its chain"
        report.add(what, where, f"what hashes to link {witness.chain.number}", link)
    signed = {
        "link": link,
        "log_vkey": run.manifest["log_vkey"],
        "number": number,
        "root": root.hex(),
        "size": entry.index,
        "witness": str(witness.key),
    }
    if not proof_holds(witness.key.public, line["proof"], "barnraise/witness-link/v1", signed):
        what = f"the proof of {name}'s link in the {entry.kind} does not hold for this head"
        report.add(what, where, f"a signature by {witness.key.key}", line["proof"])
