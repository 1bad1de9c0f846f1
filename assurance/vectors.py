"""The test vectors of others, run through verification.merkle, verification.keys and verification.notes.

Owns the counts. The cases lie in tests/vectors, whose README says whose they are; the few of the C2SP
specifications stand here. CI runs the same cases one by one in tests/verification.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from assurance.figures import Figure, main
from verification.errors import BarnraiseError
from verification.keys import PrivateKey, verify
from verification.log import Log
from verification.merkle import verify_consistency, verify_inclusion
from verification.notes import Checkpoint, parse_vkey, vkey

FOLDER = Path(__file__).parents[1] / "tests" / "vectors"
# Its roots have 12 bytes and are no hashes; the vector calls the proof valid, here it is refused.
DUMMY_ROOTS = "additional/sizes-are-equal-one-and-proof-is-empty"
_COMMAND = "python -m assurance.vectors"

Case = dict[str, Any]

# https://c2sp.org/signed-note, "Verifier keys", example
NOTE_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE_TEXT = "This is an example message.\n"
NOTE_SIGNATURE = (
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
)
# https://c2sp.org/tlog-checkpoint, first example
CHECKPOINT = (
    "example.com/behind-the-sofa",
    20852163,
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=",
)
# https://c2sp.org/tlog-tiles, "Partial tiles": by level, how many full tiles and the width of the partial
TILES_SIZE = 70_000
TILES = {0: (273, 112), 1: (1, 17), 2: (0, 1)}


def load(name: str) -> Any:
    """A file of tests/vectors, parsed."""
    return json.loads((FOLDER / name).read_text())


def _hashes(texts: list[str] | None) -> list[bytes]:
    return [base64.b64decode(text) for text in texts or []]


def _accepts(check: Callable[..., None], *arguments: object) -> bool:
    """Whether a check holds. Only errors of the family are refusals; any other goes on up."""
    try:
        check(*arguments)
    except BarnraiseError:
        return False
    return True


def inclusion_as_expected(case: Case) -> bool:
    """Whether verify_inclusion says of a case of merkle_inclusion.json what the case says."""
    leaf, root = _hashes([case["leafHash"] or "", case["root"] or ""])
    accepted = _accepts(
        verify_inclusion, case["leafIdx"], case["treeSize"], leaf, _hashes(case["proof"]), root
    )
    return accepted is not case["wantErr"]


def consistency_as_expected(case: Case) -> bool:
    """Whether verify_consistency says of a case of merkle_consistency.json what the case says."""
    old, new = _hashes([case["root1"] or "", case["root2"] or ""])
    accepted = _accepts(verify_consistency, case["size1"], case["size2"], _hashes(case["proof"]), old, new)
    return accepted is not case["wantErr"]


def signature_as_expected(case: Case) -> bool:
    """Whether verify says of a case of wycheproof_ed25519.json, with its key as `pk`, what the case says."""
    message, signature = bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
    return _accepts(verify, f"ed25519:{case['pk']}", message, signature) is (case["result"] == "valid")


def signature_cases() -> list[Case]:
    """All cases of wycheproof_ed25519.json, each with its group's key."""
    groups = load("wycheproof_ed25519.json")["testGroups"]
    return [{**case, "pk": group["publicKey"]["pk"]} for group in groups for case in group["tests"]]


def format_cases() -> dict[str, bool]:
    """The examples of the C2SP specifications, by name, and whether this project's code agrees."""
    origin, public = parse_vkey(NOTE_VKEY)
    signed = base64.b64decode(NOTE_SIGNATURE)
    changed = NOTE_TEXT.replace("an", "no").encode()
    name, size, root = CHECKPOINT
    text = Checkpoint(name, size, base64.b64decode(root)).text()
    return {
        "signed-note: the verifier key": origin == "example.com/foo" and vkey(origin, public) == NOTE_VKEY,
        "signed-note: the key id": signed[:4].hex() == NOTE_VKEY.split("+")[1],
        "signed-note: the signature": _accepts(verify, public, NOTE_TEXT.encode(), signed[4:]),
        "signed-note: another text": not _accepts(verify, public, changed, signed[4:]),
        "tlog-checkpoint: the text": text == f"{name}\n{size}\n{root}\n",
        "tlog-tiles: the tiles of a tree": tiles_of(TILES_SIZE) == TILES,
    }


def tiles_of(size: int) -> dict[int, tuple[int, int]]:
    """Full tiles and the width of the partial one (0: none), by level, of a log of that many entries."""
    with tempfile.TemporaryDirectory(prefix="barnraise-tiles-") as name:
        log = Log.create(Path(name) / "log", "example.com/tiles", PrivateKey.from_seed(bytes(32)))
        log.append([b"%d" % index for index in range(size)])
        found: dict[int, tuple[int, int]] = {}
        for level in (Path(name) / "log" / "tile").iterdir():
            if level.name == "entries":
                continue
            files = [path for path in level.rglob("*") if path.is_file()]
            partial = [int(path.name) for path in files if path.parent.suffix == ".p"]
            found[int(level.name)] = (len(files) - len(partial), sum(partial))
    return found


def _figure(what: str, results: dict[str, bool], note: str, exceptions: tuple[str, ...] = ()) -> Figure:
    """The exceptions must be exactly the cases that come out otherwise."""
    wrong = tuple(name for name, good in results.items() if not good)
    expected = len(results) - len(exceptions)
    return Figure(
        what,
        len(results) - len(wrong),
        f"{expected}" + (f", all but {', '.join(exceptions)}" if exceptions else ""),
        wrong == exceptions and bool(results),
        _COMMAND,
        tried=len(results),
        note=note + (f"; otherwise: {', '.join(wrong)}" if wrong != exceptions else ""),
    )


def measure(*, full: bool) -> Iterator[Figure]:
    """Cases of others that come out as they say."""
    del full  # all of it takes two seconds
    yield _figure(
        "RFC 6962 inclusion proofs",
        {case["case"]: inclusion_as_expected(case) for case in load("merkle_inclusion.json")},
        "transparency-dev/merkle",
    )
    yield _figure(
        "RFC 6962 consistency proofs",
        {case["case"]: consistency_as_expected(case) for case in load("merkle_consistency.json")},
        "transparency-dev/merkle; the exception is called valid there, but its roots have 12 bytes",
        (DUMMY_ROOTS,),
    )
    yield _figure(
        "Ed25519 signatures",
        {str(case["tcId"]): signature_as_expected(case) for case in signature_cases()},
        "C2SP/wycheproof",
    )
    yield _figure("examples of the C2SP specifications", format_cases(), "signed-note, checkpoint, tiles")


if __name__ == "__main__":
    main(measure)
