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

from data_prep.prepare import unigram_cross_entropy
from pipeline.config import parse_config
from pipeline.folder import RunFolder
from pipeline.log_reader import read_entries
from pipeline.report import Change, RunStory, answer, open_log, read_story, write_report
from pipeline.report_audits import auditor_counts
from pipeline.report_lottery import MOST_LISTED, listed_turns
from pipeline.report_metrics import Metrics, parse_line
from pipeline.report_page import page
from pipeline.report_plots import (
    MOST_BARS,
    MOST_COLUMNS,
    credits_chart,
    grid,
    loss_chart,
    tokens_chart,
)
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

# The barn, losses over tokens and bytes for two widths, tokens, bytes, the grid, credits.
SVGS = 9
TIMES = {"open": 0.25, "commit": 2.0, "reveal": 0.5, "draw": 0.125, "audit": 1.0, "close": 0.125}


def times(story: RunStory, **changes: Any) -> Metrics:
    """What a coordinator may have said of the run's turns."""
    lines = [
        {"round": t.round, "round_tokens": t.tokens, "seconds": 5.0, "phases": TIMES, "late": ["c01"]}
        | {"work_ms": {"c00": 1500, "c01": 900}, "attempt": t.attempt}
        | changes
        for t in story.turns
    ]
    found = [parse_line(json.dumps(line).encode()) for line in lines]
    return Metrics(tuple(turn for turn in found if turn), 2)


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
    assert len(list(svgs(text))) == SVGS
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
    (folder.path / "notes.txt").write_text("mine")
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
    assert len(list(svgs(text))) == SVGS


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


def long_story(story: RunStory, rounds: int, contributors: int) -> RunStory:
    """A run of any size, put together from what a small one holds."""
    first = story.turns[0]
    accepted = next(w for w in first.work if w.reason is None)
    failed = next(w for t in story.turns for w in t.work if w.reason == "failed-audit")
    turns = []
    for round_ in range(1, rounds + 1):
        work = tuple(
            replace(
                failed if (slot, round_) == (3, 17) else accepted,
                entry=replace(accepted.entry, slot=slot, member=f"c{slot:02d}"),
            )
            for slot in range(contributors)
        )
        turns.append(replace(first, round=round_, work=work, total=round_ * 1000, train_loss=5.0))
    one = story.balances[0]
    balances = tuple(
        replace(one, member=replace(one.member, member=f"c{slot:02d}")) for slot in range(contributors)
    )
    return replace(story, turns=tuple(turns), balances=balances)


def test_a_long_run_with_many_members_stays_a_small_page(story: RunStory) -> None:
    long = long_story(story, 1000, 44)
    text = page(long, times(long))
    parsed(text)
    assert len(text.encode()) < 2_000_000
    # What went wrong once in forty-four thousand contributions is still to be seen, and in words.
    assert "c03, rounds 11 to 20: 1 failed-audit" in text
    assert text.count("c03</td>") >= 1
    assert "A column is 10 rounds" in text


def test_a_coarse_grid_has_at_most_so_many_columns(story: RunStory) -> None:
    root = ET.fromstring(grid(long_story(story, 250, 4)))
    ticks_shown = [text.text for text in root.iter("text") if text.attrib["class"] == "tick"]
    boxes = sum(path.attrib["d"].count("M") for path in root.iter("path"))
    assert boxes == 4 * -(-250 // 3)
    assert boxes <= 4 * MOST_COLUMNS
    assert int(ticks_shown[-1] or 0) <= 250


def test_rounds_in_which_something_failed_are_listed_first(story: RunStory) -> None:
    long = long_story(story, 500, 4)
    rounds = [turn.round for turn in listed_turns(long.turns)]
    assert 17 in rounds
    assert rounds == sorted(rounds)
    assert rounds[-1] == 500
    assert len(rounds) < MOST_LISTED
    assert f"{500 - len(rounds)} more rounds are in the log" in page(long)


def test_losses_stand_over_the_bytes_that_were_sent(story: RunStory) -> None:
    root = ET.fromstring(loss_chart(story, "bytes"))
    assert "bytes of updates received" in {text.text for text in root.iter("text")}
    (line,) = [p for p in root.iter("polyline") if p.attrib["class"] == "line val"]
    x = [float(point.split(",")[0]) for point in line.attrib["points"].split()]
    sent = list(itertools.accumulate(turn.payloads * story.payload_bytes for turn in story.turns))
    assert [(at - 46) / (x[-1] - 46) for at in x] == pytest.approx([n / sent[-1] for n in sent], abs=1e-3)
    assert answer(Path("x"), story)["bytes"] == sent[-1]


def test_every_link_of_the_chain_is_on_the_page(story: RunStory) -> None:
    text = page(story)
    chain = text[text.index('id="chain"') : text.index('id="identity"')]
    for digest in (
        story.dataset.root,
        story.dataset.tokenizer,
        story.manifest.source,
        story.run_id,
        *(story.weights(round_) for round_ in range(4)),
        f"{story.head.size}:{story.head.root.hex()}",
    ):
        assert digest in chain


def test_the_entry_of_a_close_is_where_the_page_says(made: tuple[RunFolder, Path], story: RunStory) -> None:
    manifest, log = open_log(made[0])
    records = [record for record, _ in read_entries(log, manifest)]
    assert [records[turn.entry].kind for turn in story.turns] == ["round-close"] * len(story.turns)
    assert [getattr(records[t.entry], "weights", None) for t in story.turns] == [
        t.weights for t in story.turns
    ]


def test_where_time_went_is_said_to_be_the_coordinators_word(story: RunStory) -> None:
    text = page(story, times(story))
    part = text[text.index('<section id="time"') : text.index('<section id="grid"')]
    assert "The coordinator’s word." in part
    assert "nothing of this part is in the log" in part
    assert "2 lines of it could not be read" in part
    # 4 of 5 seconds are some phase's; the rest is named too.
    for share in ("5.0 %", "40.0 %", "10.0 %", "2.5 %", "20.0 %"):
        assert share in part
    assert "1.5\u00a0s" in part
    assert '<span class="fail">3</span>' in part
    assert len(list(svgs(text))) == SVGS + 2


@pytest.mark.parametrize("nothing", [None, Metrics((), 0), Metrics((), 7)])
def test_without_times_there_is_no_such_part(story: RunStory, nothing: Metrics | None) -> None:
    assert 'id="time"' not in page(story, nothing)
    assert page(story, nothing) == page(story)


def test_machines_are_shown_with_those_that_are_down(story: RunStory) -> None:
    nodes = {
        "barn-1": {"alive": True, "members": ["c00"], "memory_bytes": 2_000_000_000, "cpu_percent": 51},
        "<b>barn-2": {"alive": False, "members": []},
    }
    text = page(story, times(story, nodes=nodes))
    parsed(text)
    assert "barn-1" in text
    assert "2 GB" in text
    assert '<span class="fail">down</span> at round 3' in text
    assert "<b>barn-2" not in text


def test_who_came_and_went_is_on_the_page(story: RunStory) -> None:
    changes = (
        Change(2, "c01", "contributor", "left", "coordinator"),
        Change(3, "c01", "contributor", "came back", "member"),
    )
    text = page(replace(story, changes=changes))
    assert "Coming and going" not in page(story)
    part = text[text.index("Coming and going") :]
    assert part.index("left") < part.index("came back")
    assert part.count("the coordinator’s word</small>") == 1


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
