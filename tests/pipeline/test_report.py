import itertools
import json
import random
import re
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.prepare import unigram_cross_entropy
from pipeline.config import parse_config
from pipeline.folder import RunFolder
from pipeline.ledger import read_entries
from pipeline.report import RunStory, open_log, read_story, write_report
from pipeline.report_audits import auditor_counts
from pipeline.report_page import page
from pipeline.report_plots import MOST_BARS, credits_chart, grid, short_number, spread, ticks, tokens_chart
from pipeline.roster import parse_drills
from pipeline.run import View, continue_run, create_run, member_folder
from verification.errors import BarnraiseError, UsageError
from verification.keys import PrivateKey
from verification.log import Log
from verification.looks import Asked
from verification.records import Draw, DrawnSlot, SecondDraw, SlotAuditors, Verdict

CONFIG: dict[str, dict[str, object]] = {
    "run": {"rounds": 3},
    "data": {"vocab_size": 300, "context": 16, "holdout_ppm": 200_000},
    "model": {
        "vocab_size": 300, "context": 16, "d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1,
        "d_ff": 32, "rope_theta": 10000.0, "norm_eps": 1e-5, "init_std": 0.02,
    },
    "train": {"steps": [3, 2, 2, 2], "batch": 2, "trace_every": 2},
    "audit": {"rate_ppm": 500_000, "probation_rounds": 1, "second_look_ppm": 500_000},
    "credit": {"vest_rounds": 1},
    "state": {"every": 2},
    "eval": {"every": 1, "windows": 4},
}  # fmt: skip


def write_texts(folder: Path) -> None:
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefghijklmnop", k=dice.randint(1, 6))) for _ in range(200)]
    folder.mkdir()
    for index in range(30):
        (folder / f"{index:02d}.txt").write_text(" ".join(dice.choices(words, k=300)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Path]:
    """A finished run of three rounds in which c02 keeps silent and c03 is lazy; and its private home."""
    place = tmp_path_factory.mktemp("report")
    folder, home = RunFolder(place / "run"), place / "home"
    write_texts(place / "texts")
    config = CONFIG | {"data": CONFIG["data"] | {"source": f"file:{place / 'texts'}"}}
    create_run(parse_config(config, "test"), folder, home, lambda _: None)
    drills = parse_drills(["lazy=1", "silent=1"], 4)
    continue_run(folder, home, View(lambda _: None, lambda *_: None), drills=drills)
    return folder, home


@pytest.fixture(scope="module")
def story(made: tuple[RunFolder, Path]) -> RunStory:
    return read_story(made[0])


def copied(folder: RunFolder, to: Path) -> RunFolder:
    shutil.copytree(folder.path, to)
    return RunFolder(to)


def reasons(story: RunStory) -> set[tuple[str, str]]:
    return {(work.entry.member, work.reason) for turn in story.turns for work in turn.work if work.reason}


class Tags(HTMLParser):
    """Every tag that opens, and whether all of them close in order."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


def svgs(text: str) -> Iterator[ET.Element]:
    for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        yield ET.fromstring(found)


def test_the_story_is_the_logs(made: tuple[RunFolder, Path], story: RunStory) -> None:
    assert story.finished
    assert story.rounds == 3
    assert story.tokens == sum(w.tokens for t in story.turns for w in t.work if w.reason is None)
    assert ("c03", "failed-audit") in reasons(story)
    assert ("c02", "unrevealed") in reasons(story)
    assert {member for member, _ in reasons(story)} == {"c02", "c03"}
    assert [round_ for round_, _, _ in story.validation] == [1, 2, 3]
    assert story.unigram == unigram_cross_entropy(story.dataset, made[0].data)
    assert {b.member.member for b in story.balances if b.quarantined} == {"c02", "c03"}


def test_credit_pieces_add_up(story: RunStory) -> None:
    earned = {b.member.member: b.earned for b in story.balances if b.member.role == "contributor"}
    assert sum(earned.values()) == story.tokens
    assert all(min(b.vested, b.unvested, b.forfeited) >= 0 for b in story.balances)
    assert sum(b.vested for b in story.balances) > 0


def test_the_weights_of_every_round_are_known(story: RunStory) -> None:
    digests = [story.weights(round_) for round_ in range(4)]
    assert digests[0] == story.manifest.initial.weights
    assert len(set(digests)) == 4
    with pytest.raises(UsageError, match="not closed"):
        story.weights(4)


def test_the_page_is_self_contained_and_well_formed(story: RunStory) -> None:
    text = page(story)
    tags = parsed(text)
    assert not [tag for tag, _ in tags.seen if tag in {"script", "img", "link", "iframe", "object", "base"}]
    links = [attributes["href"] for tag, attributes in tags.seen if tag == "a"]
    assert links
    assert all(link and re.match(r"#|evidence/", link) for link in links)
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert len(list(svgs(text))) == 6
    anchors = {attributes.get("id") for tag, attributes in tags.seen}
    assert {link[1:] for link in links if link and link.startswith("#")} <= anchors


def test_the_page_shows_every_part_of_the_log(story: RunStory) -> None:
    text = page(story)
    for turn in story.turns:
        assert turn.seeds[0] in text
        assert turn.seeds[1] in text
    for fact in (story.run_id, story.head.root.hex(), story.manifest.log_vkey, story.manifest.source):
        assert fact in text
    assert "witnesses" in text
    assert "barnraise verify" in text
    assert all(balance.member.key in text for balance in story.balances)


def test_the_grid_has_a_cell_for_everybody_in_every_turn(story: RunStory) -> None:
    root = ET.fromstring(grid(story))
    cells = [rect.attrib["class"].split()[-1] for rect in root.iter("rect")]
    assert len(cells) == 4 * len(story.turns)
    assert cells.count("fill-fault") == 1
    assert cells.count("fill-strike") == sum(reason == "unrevealed" for _, reason in _all_reasons(story))
    absent = sum(4 - len(turn.work) for turn in story.turns)
    assert cells.count("fill-absent") == absent > 0


def _all_reasons(story: RunStory) -> list[tuple[str, str]]:
    return [(w.entry.member, w.reason) for turn in story.turns for w in turn.work if w.reason]


def test_the_credit_bars_are_as_long_as_the_credit(story: RunStory) -> None:
    root = ET.fromstring(credits_chart(story.balances))
    lengths: dict[str, float] = {}
    for rect in root.iter("rect"):
        name = (rect[0].text or "").split(":")[0]
        lengths[name] = lengths.get(name, 0.0) + float(rect.attrib["width"])
    earned = {b.member.member: b.earned for b in story.balances if b.earned}
    assert lengths.keys() == earned.keys()
    most = max(earned, key=earned.__getitem__)
    for name, tokens in earned.items():
        assert lengths[name] / lengths[most] == pytest.approx(tokens / earned[most], abs=0.01)


def test_the_same_log_gives_the_same_page_whatever_lies_beside_it(
    made: tuple[RunFolder, Path], story: RunStory, tmp_path: Path
) -> None:
    folder = copied(made[0], tmp_path / "run")
    (folder.path / "metrics.jsonl").write_text(json.dumps({"round": 1, "loss": 0.0}))
    for part in ("checkpoints", "payloads", "state"):
        shutil.rmtree(folder.path / part)
    path = write_report(folder, read_story(folder))
    assert path == folder.path / "report.html"
    assert path.read_bytes() == page(story).encode()
    assert not list(folder.path.glob(".*.tmp"))


def test_every_prefix_of_the_log_gives_a_page(made: tuple[RunFolder, Path], tmp_path: Path) -> None:
    folder, home = made
    manifest = folder.parsed_manifest()
    key = PrivateKey.load(home / member_folder(manifest) / "coordinator" / "key")
    entries = list(Log.open(folder.log, manifest.origin, None, manifest.log_vkey).entries())
    cut = RunFolder(tmp_path / "cut")
    cut.path.mkdir()
    cut.manifest_file.write_bytes(folder.manifest())
    log = Log.create(cut.log, manifest.origin, key)
    statuses = []
    for entry in entries:
        log.append([entry])
        found = read_story(cut)
        assert found.unigram is None
        parsed(page(found))
        statuses.append(found.status)
    assert statuses[0] == "not finished, 0 of 3 rounds closed"
    assert statuses[-1] == "finished, 3 of 3 rounds"
    for phase in ("1 of 4 committed", "the audits are drawn", "audits are under way", "second looks"):
        assert any(phase in status for status in statuses), phase


def test_nothing_in_the_log_becomes_markup(story: RunStory) -> None:
    nasty = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>&"
    manifest = replace(
        story.manifest,
        name=nasty,
        versions={nasty: nasty},
        config=story.manifest.config | {"data": {"source": nasty}},
    )
    member = replace(story.balances[0].member, numerics_class=nasty)
    balances = (replace(story.balances[0], member=member), *story.balances[1:])
    first = story.turns[0]
    work = replace(
        first.work[0], entry=replace(first.work[0].entry, member=nasty), reason=nasty, evidence=nasty
    )
    turns = (replace(first, work=(work, *first.work[1:]), seeds=(nasty, nasty)), *story.turns[1:])
    text = page(replace(story, manifest=manifest, balances=balances, turns=turns, note=nasty, status=nasty))
    tags = parsed(text)
    assert not [tag for tag, _ in tags.seen if tag in {"script", "img"}]
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
    assert len(list(svgs(text))) == 6


def test_evidence_is_compared_with_the_log(made: tuple[RunFolder, Path], tmp_path: Path) -> None:
    folder = copied(made[0], tmp_path / "run")
    (work,) = [w for turn in read_story(folder).turns for w in turn.work if w.reason == "failed-audit"]
    assert work.evidence
    assert work.evidence_state == ""
    case = folder.path / work.evidence
    case.write_bytes(case.read_bytes() + b" ")
    assert "differs from the log" in page(read_story(folder))
    case.unlink()
    assert "<em>missing</em>" in page(read_story(folder))


def test_other_data_give_no_unigram_line(made: tuple[RunFolder, Path], tmp_path: Path) -> None:
    folder = copied(made[0], tmp_path / "run")
    shard = next(folder.data.glob("validation-*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    found = read_story(folder)
    assert found.unigram is None
    assert "there is no unigram line" in page(found)


def test_a_log_that_was_changed_gives_no_page(made: tuple[RunFolder, Path], tmp_path: Path) -> None:
    folder = copied(made[0], tmp_path / "run")
    bundle = next((folder.log / "tile" / "entries").rglob("[0-9]*.p/*"))
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(bytes(data))
    with pytest.raises(BarnraiseError):
        read_story(folder)


def test_a_long_run_is_binned(story: RunStory) -> None:
    turns = [replace(story.turns[index % 3], round=index + 1) for index in range(1000)]
    bars = list(ET.fromstring(tokens_chart(turns)).iter("rect"))
    assert 0 < len(bars) <= 2 * MOST_BARS
    spoken = sum(int(re.findall(r": ([0-9,]+) tokens accepted", bar[0].text or "0")[0].replace(",", ""))
                 for bar in bars if (bar[0].text or "").endswith("accepted"))  # fmt: skip
    assert spoken == sum(turn.tokens for turn in turns)


@given(
    st.floats(min_value=-1e6, max_value=1e6),
    st.floats(min_value=1e-3, max_value=1e9),
    st.integers(min_value=1, max_value=12),
)
def test_ticks_lie_in_the_range_evenly(low: float, extent: float, most: int) -> None:
    found = ticks(low, low + extent, most)
    assert len(found) <= most + 1
    slack = 1e-6 * (abs(low) + extent)
    assert all(low - slack <= value <= low + extent + slack for value in found)
    steps = [later - earlier for earlier, later in itertools.pairwise(found)]
    assert all(step == pytest.approx(steps[0], rel=1e-3, abs=slack) and step > 0 for step in steps)


@given(st.lists(st.floats(min_value=0, max_value=200), min_size=1, max_size=5))
def test_labels_keep_their_distance(heights: list[float]) -> None:
    found = spread([(at, "kind", "words") for at in heights], 16, 200)
    assert len(found) == len(heights)
    assert all(later[0] - earlier[0] >= 16 - 1e-9 for earlier, later in itertools.pairwise(found))
    assert found[-1][0] <= 200


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (999, "999"), (88_832, "88.8k"), (1.2e7, "12M")])
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


def test_auditors_are_counted_as_the_log_has_them(made: tuple[RunFolder, Path], story: RunStory) -> None:
    auditors = [b.member.member for b in story.balances if b.member.role == "auditor"]
    manifest, log = open_log(made[0])
    records = [record for record, _ in read_entries(log, manifest)]
    verdicts = Counter((record.auditor, record.outcome) for record in records if isinstance(record, Verdict))
    counts = auditor_counts(auditors, story.turns)
    assert [count.auditor for count in counts] == auditors
    for count in counts:
        assert count.looks == verdicts[count.auditor, "pass"] + verdicts[count.auditor, "fail"]
        assert count.failed == verdicts[count.auditor, "fail"]
        assert count.missed == 0
        assert f"<td>{count.auditor}</td><td>{count.first:,}</td><td>{count.looks:,}</td>" in page(story)
    orders = [item.auditors for r in records if isinstance(r, Draw | SecondDraw) for item in _items(r)]
    assert sum(count.first for count in counts) == sum(bool(order) for order in orders)


def _items(draw: Draw | SecondDraw) -> Sequence[SlotAuditors | DrawnSlot]:
    return draw.drawn if isinstance(draw, Draw) else draw.looks


def test_who_was_passed_over_is_missed(story: RunStory) -> None:
    audited = next(
        work for turn in story.turns for work in turn.work if work.reason is None and work.verdicts
    )
    name, other = audited.order[:2]
    turn = story.turns[0]

    def counted(**changes: Any) -> list[tuple[int, int, int]]:
        work = replace(audited, **changes)
        counts = auditor_counts((name, other), [replace(turn, work=(work,))])
        return [(count.first, count.looks, count.missed) for count in counts]

    by_other = replace(audited.verdicts[0], auditor=other, look=1)
    by_one, by_none = Asked(1, (name, other), other), Asked(1, (name, other), None)
    assert counted(asked=(by_one,), verdicts=(by_other,)) == [(1, 0, 1), (0, 1, 0)]
    assert counted(asked=(by_none,), verdicts=(), reason="unaudited") == [(1, 0, 1), (0, 0, 1)]
    assert counted(asked=(), verdicts=(), reason="unserved") == [(1, 0, 0), (0, 0, 0)]
