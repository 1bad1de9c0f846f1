"""`barnraise verify --weights`: which checkpoint of a log an exported model is.

Owns how the files of a transformers folder are tied to a run: the numbers, names and shapes of
model.safetensors by the weights digest, config.json and tokenizer.json by what the manifest says of them.
Whoever made the folder is not trusted. Does not check the log: what is read of it is under the head that
level 1 has just checked. No torch.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_prep.manifest import TOKENIZER_FILE
from model.arrays import Arrays, ArraySpec, arrays_digest
from model.export import llama_config
from pipeline.config import config_from_manifest
from pipeline.folder import RunFolder
from verification.encoding import blake3_digest
from verification.envelope import open_envelope
from verification.errors import BarnraiseError, FormatError, StorageError, UsageError, printable
from verification.fsck import Failure, Findings
from verification.log import Log
from verification.records import Manifest
from verification.sealing import parse_predicate

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# What a header of a model that one machine can train may take; the format itself allows 100 MB.
MOST_HEADER_BYTES = 1 << 24
MOST_JSON_BYTES = 1 << 24
# What transformers writes into config.json when it saves a model again, and that changes no number.
HARMLESS = frozenset({"_name_or_path", "transformers_version", "use_cache"})
DTYPES = ("dtype", "torch_dtype")  # transformers may turn the numbers into this when it loads them
ADAPTER = "adapter_config.json"  # which it loads of itself
_CLOSE, _SETTLEMENT = "barnraise:round-close:v1", "barnraise:settlement:v1"


@dataclass(frozen=True)
class Tied:
    """What an exported model is: the round after which the log names its digest, None for no round.

    `settled`: nothing of it waits for an audit. `files` are those that were compared, `other` the rest.
    """

    round: int | None
    digest: str
    settled: bool
    files: tuple[str, ...]
    other: tuple[str, ...]


def check_weights(exported: Path, run: Path, findings: Findings, failures: list[Failure]) -> Tied | None:
    """Tie `exported`, a folder or its model.safetensors, to a run that level 1 has found to hold.

    What does not hold is appended to `failures`; then, and where level 1 already failed, there may be no
    answer. Raises UsageError when there is nothing of that name.
    """
    file = exported / WEIGHTS_FILE if exported.is_dir() else exported
    if not os.path.lexists(file):
        raise UsageError(
            f"{file} is not there",
            expected="a folder that `barnraise export` made, or its model.safetensors",
            hint="--weights names the folder.",
        )
    if findings.failures:
        return None
    try:
        return _tied(file, run, findings, failures)
    except BarnraiseError as error:
        failures.append(Failure(error.what, str(file), str(error.expected or ""), str(error.got or "")))
        return None


def show_weights(tied: Tied, exported: Path | None, console: Console) -> None:
    """What `verify` says of a model that is of the run."""
    where = "the initial weights" if tied.round == 0 else f"the weights after round {tied.round}"
    early = "" if tied.settled else "; audits of what it holds were still due"
    lines = [f"model    {exported} is {where}{early}", f"         compared: {', '.join(tied.files)}"]
    if tied.other:
        more = f" and {len(tied.other) - 8} more" if len(tied.other) > 8 else ""
        lines.append(f"         not compared: {', '.join(tied.other[:8])}{more}")
    for line in lines:
        console.print(f"      {line}", highlight=False, markup=False, soft_wrap=True)


def _tied(file: Path, run: Path, findings: Findings, failures: list[Failure]) -> Tied:
    manifest = parse_predicate(Manifest, findings.manifest)
    specs = [ArraySpec(name, shape) for name, shape in manifest.arrays]
    digest = arrays_digest(read_weights(file, specs))
    named = _named_weights(run, manifest, findings)
    round_or_none = next((round_ for round_, one in named.now.items() if one == digest), None)
    if round_or_none is None and digest in named.replaced:
        what = f"a settlement took contributions out of these weights of round {named.replaced[digest]}"
        failures.append(Failure(what, str(file), "weights as they stand", digest))
    elif round_or_none is None:
        failures.append(
            Failure(
                "no checkpoint in the log has these weights",
                str(file),
                f"the weights after one of rounds 0 to {findings.rounds}",
                digest,
            )
        )
    settled = round_or_none in named.settled
    files = [file.name]
    for path, wrong in _beside(file.parent, manifest):
        files.append(path.name)
        failures += [wrong] if wrong else []
    other = tuple(printable(name) for name in _names(file.parent) if name not in files)
    return Tied(round_or_none, digest, settled, tuple(sorted(files)), other)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise StorageError(f"{folder} cannot be read", got=error.strerror or str(error)) from None


@dataclass
class _Named:
    """Which weights the log names, by round: as they stand, and those that settlements replaced."""

    now: dict[int, str]
    settled: set[int]
    replaced: dict[str, int] = field(default_factory=dict)

    def put(self, round_: int, digest: str) -> None:
        before = self.now.get(round_, digest)
        self.now[round_] = digest
        if before != digest:
            self.replaced[before] = round_

    def outdate(self, first: int, last: int) -> None:
        """Rounds in between whose checkpoints were changed and not named again."""
        for round_ in range(first, last):
            if round_ in self.now and round_ not in self.settled:
                self.replaced[self.now.pop(round_)] = round_


def _named_weights(run: Path, manifest: Manifest, findings: Findings) -> _Named:
    """What the entries say that level 1 has checked."""
    log = Log.open(RunFolder(run).log, manifest.origin, None, manifest.log_vkey, manifest.witness_vkeys)
    # A run that goes on may have grown since: only what was checked counts.
    if log.size < findings.log_size or f"sha256:{log.root_at(findings.log_size).hex()}" != findings.log_head:
        raise StorageError("the log is not the one that was just checked", expected=findings.log_head)
    at_once = not manifest.config["audit"]["lag"]
    named, attempts, last = _Named({0: manifest.initial.weights}, {0}), dict[int, int](), 0
    for index in range(findings.log_size):
        sealed = open_envelope(log.entry(index))
        if sealed.predicate_type == _CLOSE:
            close = sealed.peek()
            if not close["void"]:
                last = close["round"]
                attempts[last] = close["attempt"]
                named.put(last, close["weights"])
                named.settled |= {last} if at_once else set()
        elif sealed.predicate_type == _SETTLEMENT:
            record = sealed.peek()
            round_ = record["round"]
            if record["removed"]:
                named.outdate(round_ + 1, last)
            named.put(last, record["weights"])
            if attempts.get(round_) == record["attempt"]:  # a void turn has no weights of its own
                named.put(round_, record["settled"]["weights"])
                named.settled.add(round_)
    return named


def read_weights(file: Path, specs: Sequence[ArraySpec]) -> Arrays:
    """The arrays `specs` of a safetensors file in any layout the format allows, f32 only.

    The length follows from `specs` and the header and is compared before anything is read. Raises FormatError
    for anything else in the file, StorageError when it cannot be read.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise FormatError("the weights are no regular file", got=printable(str(file)))
        with file.open("rb") as stream:
            length = os.fstat(stream.fileno()).st_size
            head = int.from_bytes(stream.read(8), "little")
            if length < 8 or not 2 <= head <= min(MOST_HEADER_BYTES, length - 8):
                raise FormatError(
                    "this is no safetensors file",
                    expected=f"a header of 2 to {min(MOST_HEADER_BYTES, max(length - 8, 2))} bytes",
                    got=f"{head} bytes said, {length} in all",
                )
            places = _places(stream.read(head), specs)
            size = sum(4 * spec.size for spec in specs)
            if length != 8 + head + size:
                raise FormatError(
                    "the safetensors file has the wrong length",
                    expected=f"{8 + head + size} bytes",
                    got=f"{length} bytes",
                )
            data = stream.read(size)
    except OSError as error:
        raise StorageError(f"{file} cannot be read", got=error.strerror or str(error)) from None
    if len(data) != size:
        raise StorageError(f"{file} became shorter while it was read")
    view = memoryview(data)
    return {
        spec.name: np.frombuffer(view[slice(*places[spec.name])], dtype="<f4").reshape(spec.shape)
        for spec in specs
    }


def _places(header: bytes, specs: Sequence[ArraySpec]) -> dict[str, tuple[int, int]]:
    """Where in the data each array lies: side by side, all of them, none twice. Raises FormatError."""
    value = _parsed(header, "the safetensors header")
    if not isinstance(value, dict):
        raise FormatError("the safetensors header is no object", got=type(value).__name__)
    value.pop("__metadata__", None)
    names = [spec.name for spec in specs]
    if set(value) != set(names):
        raise FormatError(
            "the file holds other arrays than the run's model has",
            expected=_listed(names),
            got=_listed(list(value)),
        )
    places: dict[str, tuple[int, int]] = {}
    for spec in specs:
        item = value[spec.name]
        wanted = {"dtype": "F32", "shape": list(spec.shape)}
        said = {key: item.get(key) for key in wanted} if isinstance(item, dict) else item
        if not _same(said, wanted) or not isinstance(item, dict):
            raise FormatError(f"array {spec.name} differs", expected=wanted, got=_short(said))
        offsets = item.get("data_offsets")
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(at) is int for at in offsets)):
            raise FormatError(f"array {spec.name} lies nowhere", expected="two offsets", got=_short(offsets))
        places[spec.name] = (offsets[0], offsets[1])
    end = 0
    for start, stop, spec in sorted((*places[spec.name], spec) for spec in specs):
        if start != end or stop - start != 4 * math.prod(spec.shape):
            raise FormatError(
                f"array {spec.name} lies in the wrong place",
                expected=[end, end + 4 * spec.size],
                got=_short([start, stop]),
            )
        end = stop
    return places


def _beside(folder: Path, manifest: Manifest) -> Iterator[tuple[Path, Failure | None]]:
    """The files beside the weights that decide what the numbers mean, each with what is wrong with it."""
    yield from _adapter(folder)
    config = folder / CONFIG_FILE
    if os.path.lexists(config):
        wanted = json.loads(json.dumps(llama_config(config_from_manifest(manifest.config).model)))
        found = _parsed(_read(config), CONFIG_FILE)
        yield config, _other_config(config, found, wanted)
    tokenizer = folder / TOKENIZER_FILE
    if os.path.lexists(tokenizer):
        expected, got = manifest.dataset["tokenizer"], blake3_digest(_read(tokenizer))
        what = "the tokenizer is not that of the run"
        yield tokenizer, None if got == expected else Failure(what, str(tokenizer), expected, got)


def _adapter(folder: Path) -> Iterator[tuple[Path, Failure | None]]:
    path = folder / ADAPTER
    if os.path.lexists(path):
        what = "the folder has an adapter, which changes the model"
        yield path, Failure(what, str(path), "no such file", path.name)


def _other_config(path: Path, found: Any, wanted: Mapping[str, Any]) -> Failure | None:
    what = "config.json describes another model than the run's"
    if not isinstance(found, dict):
        return Failure(what, str(path), "an object", type(found).__name__)
    for key in DTYPES:
        if found.get(key, "float32") not in ("float32", None):
            return Failure(what, str(path), f"{key} = float32", _short(found[key]))
    kept = {key: value for key, value in found.items() if key not in HARMLESS}
    for key in sorted({*kept, *wanted} - HARMLESS - {*DTYPES}):
        if not _same(kept.get(key), wanted.get(key)):
            expected = f"{key} = {_short(wanted[key])}" if key in wanted else f"no {_short(key)}"
            return Failure(what, str(path), expected, _short(kept.get(key)))
    return None


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON in which true is not 1, and 1.0 is 1."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FormatError(f"{path.name} is no regular file")
        with path.open("rb") as stream:
            data = stream.read(MOST_JSON_BYTES + 1)
    except OSError as error:
        raise StorageError(f"{path} cannot be read", got=error.strerror or str(error)) from None
    if len(data) > MOST_JSON_BYTES:
        raise FormatError(f"{path.name} is too long", expected=f"at most {MOST_JSON_BYTES} bytes")
    return data


def _parsed(data: bytes, what: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not JSON", got=_short(str(error))) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise FormatError("an object names a key twice", got=_listed([key for key, _ in pairs]))
    return value


def _short(value: object) -> str:
    text = printable(str(value)[:200])
    return text if len(text) <= 120 else text[:120] + "…"


def _listed(names: Sequence[str]) -> str:
    return _short(f"{len(names)}: {', '.join(sorted(names)[:8])}")
