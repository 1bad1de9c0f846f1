"""Hostile bytes for every parser, a few thousand each; and that no size is believed before it is checked."""

from __future__ import annotations

import itertools
import json
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assurance import fuzz_mutations, fuzzing
from assurance.fuzz_mutations import JsonSeed, deep, inputs
from assurance.fuzz_targets import KEY, ORIGIN, TARGETS, VKEY, Target, canon, make
from assurance.fuzz_targets_files import level2_manifest
from assurance.fuzzing import Judge, figures, fuzz, has_atheris, in_child
from data_prep.manifest import DATASET_FILE, read_manifest
from pipeline.folder import RunFolder
from pipeline.ledger import Journal
from pipeline.records_table import read_contributions
from pipeline.replay_aggregation import replay_checkpoints
from pipeline.vault import Vault
from verification import encoding, envelope, fsck_json
from verification.errors import BarnraiseError, FormatError
from verification.fsck import check_run
from verification.fsck_findings import Report
from verification.fsck_log import read_log
from verification.keys import PrivateKey
from verification.log import Log
from verification.lottery import HashChain

INPUTS = 2_000
DRAWN = 100  # of these, by hypothesis

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def hostile(draw: st.DrawFn, target: Target) -> bytes:
    """Any bytes, any JSON, or a sound input with a piece replaced."""
    way = draw(st.integers(0, 2))
    if way == 0:
        return draw(st.binary(max_size=200))
    if way == 1:
        return json.dumps(
            draw(json_values), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode("utf-8", "surrogatepass")
    seed = draw(st.sampled_from(target.seeds))
    data = target.wrap(seed) if target.wrap and draw(st.booleans()) else seed
    start = draw(st.integers(0, len(data)))
    stop = draw(st.integers(start, min(len(data), start + 40)))
    return data[:start] + draw(st.binary(max_size=20)) + data[stop:]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is such a disk: most targets write a file for each input."""
    with fuzzing.scratch_folder() as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_bytes_are_taken_or_refused_in_words(name: str, scratch: Path) -> None:
    if name == "tokenizer":
        pytest.importorskip("tokenizers")
    if name.startswith("beacon answer") and find_spec("py_ecc") is None:  # importing it changes a limit
        pytest.skip("py_ecc is not installed")
    if name.startswith("told to a member"):
        pytest.importorskip("torch")
    share = TARGETS[name].small
    target = make(name, scratch)
    outcome = fuzz(target, round((INPUTS - DRAWN) * share), 1)
    assert outcome.wrong == []
    assert outcome.taken > 0 or share < 0.5  # mutations are near what is sound
    judge = Judge(target)

    @settings(
        max_examples=max(1, round(DRAWN * share)),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile(target))
    def one(data: bytes) -> None:
        judge.check(data)
        assert judge.outcome.wrong == []

    with fuzzing.alarm():
        one()
    assert judge.outcome.tried > 0


def test_the_same_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    target = make("record: enrol", tmp_path)
    first, again, other = (
        list(itertools.islice(inputs(target, random.Random(seed)), 60)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len(set(first)) > 40


@pytest.mark.parametrize(
    ("kind", "parsers"),
    [
        ("raised", [lambda data: data.decode("ascii")]),
        ("slow", [lambda data: time.sleep(9)]),
        ("memory", [lambda data: bytearray(64 << 20)]),
        ("disagree", [len, lambda data: canon(1.5)]),
    ],
)
def test_what_does_not_hold_is_found_out(
    monkeypatch: pytest.MonkeyPatch, kind: str, parsers: list[Callable[[bytes], object]]
) -> None:
    monkeypatch.setattr(fuzzing, "SLOWEST_S", 0.5)
    judge = Judge(Target("planted", tuple(parsers), (b"",), agree=True))
    with fuzzing.alarm():
        judge.check(b"\xff", traced=True)
    assert set(judge.outcome.counts) == {kind}
    assert not next(f for f in figures([judge.outcome]) if f.what == fuzzing.KINDS[kind]).holds


def test_words_that_cannot_be_shown_are_found_out() -> None:
    def huge(data: bytes) -> None:
        raise FormatError("a number", got=10**5000)

    def long(data: bytes) -> None:
        raise FormatError("x" * 30_000)

    judge = Judge(Target("planted", (huge, long), (b"",)))
    with fuzzing.alarm():
        judge.check(b"")
    assert judge.outcome.counts == {"message": 2}


def test_sound_inputs_that_are_refused_are_found_out() -> None:
    assert fuzz(Target("planted", (encoding.parse_canonical,), (b" ",)), 0, 1).counts == {"seed": 1}


@pytest.mark.slow
def test_children_report_what_came_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = TARGETS["canonical JSON"]
    monkeypatch.setattr(fuzzing, "TARGETS", {"base64": maker, "canonical JSON": replace(maker, why="slow")})
    monkeypatch.setattr(fuzzing, "FULL", 600)
    monkeypatch.setattr(fuzzing, "GUIDED", 500)
    outcomes = list(fuzzing.in_full_all())
    guided = 500 * has_atheris()
    assert sorted(outcome.name for outcome in outcomes) == ["base64", "canonical JSON"]
    assert all((o.wrong, o.tried, o.guided) == ([], 600 + guided, guided) for o in outcomes)
    lines = capsys.readouterr().err.splitlines()
    assert [line[:4] for line in lines] == ["[1/2", "[2/2"]
    fewest = next(f for f in figures(outcomes) if f.what.startswith("fewest"))
    assert (fewest.holds, fewest.value) == (True, 600 + guided)
    assert f"canonical JSON {600 + guided:,} (slow)" in fewest.note


def test_a_child_that_dies_is_found_out() -> None:
    outcome = in_child("no such target", 10, 1, guided=False)
    assert set(outcome.counts) == {"raised"}
    assert "KeyError" in outcome.wrong[0]


def test_every_parser_gets_the_whole_amount() -> None:
    shares: dict[str, float] = {}
    for name, maker in TARGETS.items():
        parser = name.split(":")[0]
        shares[parser] = shares.get(parser, 0) + maker.share
        assert maker.small <= maker.share
    assert [parser for parser, share in shares.items() if share < 1] == []


def test_the_dice_of_one_input_do_not_change_those_of_another() -> None:
    """Parts that are put into JSON are copies: a later change of one must not reach the table of parts."""
    seed = JsonSeed(canon({"a": [1, {"b": 2}], "c": {"d": "e"}}))
    before = repr(fuzz_mutations._ODD)
    dice = random.Random(1)
    for _ in range(3000):
        seed.mutated(dice)
    assert repr(fuzz_mutations._ODD) == before


# --- size before allocation ---

TWO_GIB = 2 << 30
ENOUGH = 20 << 20


def refused(call: Callable[[], object]) -> None:
    """The call raises one of the family, and holds little memory on the way."""
    tracemalloc.start()
    try:
        with pytest.raises(BarnraiseError):
            call()
        assert tracemalloc.get_traced_memory()[1] < ENOUGH
    finally:
        tracemalloc.stop()


def sparse(path: Path) -> Path:
    """A file of 2 GiB of zeros that takes no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o600)
    with path.open("r+b") as file:
        file.truncate(TWO_GIB)
    return path


@pytest.mark.parametrize("name", ["checkpoint", "tile/entries/000.p/3", "tile/0/000.p/3"])
def test_a_huge_file_in_the_log(tmp_path: Path, name: str) -> None:
    log = tmp_path / "log"
    Log.create(log, ORIGIN, KEY).append([b"a", b"b", b"c"])
    sparse(log / name)

    def independent() -> None:
        report = Report()
        read_log(log, report)
        if report.failures:
            raise FormatError("named")

    refused(lambda: Log.open(log, ORIGIN, None, VKEY))
    refused(lambda: Log.open(log, ORIGIN, KEY, VKEY))
    refused(independent)


def test_a_huge_manifest_of_a_run(tmp_path: Path) -> None:
    sparse(tmp_path / "manifest.json")

    def level1() -> None:
        if check_run(tmp_path).failures:
            raise FormatError("named")

    refused(level1)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("key", PrivateKey.load),
        ("chain", HashChain.load),
        ("journal", lambda path: Journal(path).finish(None)),  # type: ignore[arg-type]
        (DATASET_FILE, lambda path: read_manifest(path.parent)),
        ("contributions.parquet", lambda path: read_contributions(path, 1000)),
    ],
)
def test_a_huge_file_elsewhere(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    path = sparse(tmp_path / name)
    refused(lambda: read(path))


def test_a_huge_turn_of_a_member(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    sparse(tmp_path / "turns" / "3.json")
    refused(lambda: vault.committed(3))


def test_huge_checkpoints_at_level_2(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for path in (folder.weights_file(0), folder.outer_file(0)):
        sparse(path)
    findings: Any = SimpleNamespace(manifest=level2_manifest(), turns=(), complete=True, dropped=None)
    failures: list[Any] = []
    tracemalloc.start()
    try:
        list(replay_checkpoints(folder, findings, failures.append, lambda *_: None))
        assert tracemalloc.get_traced_memory()[1] < ENOUGH
    finally:
        tracemalloc.stop()
    assert [failure.what for failure in failures] == ["a checkpoint file is damaged"] * 2


@pytest.mark.parametrize("parse", [encoding.parse_canonical, fsck_json.parse_canonical])
@pytest.mark.parametrize(
    "data",
    [
        deep(100_000),
        deep(100_000, objects=True),
        deep(34),
        b"1" * 1_000_000,
        b"-" + b"9" * 1_000_000,
        b"9007199254740992",
        b'{"a":1,"a":1}',
        b"1.0",
        b"1e5",
        b"NaN",
        b"Infinity",
        b"[1]]",
        b"[1]\n",
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
    ],
    ids=lambda data: data[:12].decode(errors="replace"),
)
def test_json_that_no_parser_takes(parse: Callable[[bytes], object], data: bytes) -> None:
    refused(lambda: parse(data))


def test_length_comes_before_parsing() -> None:
    with pytest.raises(FormatError, match="JSON is too long"):
        encoding.parse_canonical(b"[" * ((1 << 20) + 1))
    with pytest.raises(FormatError, match="an envelope is too long"):
        envelope.open_envelope(b"[" * (envelope.MAX_ENVELOPE_BYTES + 1))
