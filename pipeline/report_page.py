"""The report as one HTML page: no script, no network, light and dark.

Owns the page's words, order and style, except those of parts with a file of their own. Does not own the facts
(report.py) or the plots (report_plots.py). The page depends on the story and, in one part that says so, on
metrics.jsonl and on nothing else: the same two give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib import resources

from pipeline.report import ClosedTurn, RunStory, Work
from pipeline.report_chain import chain, identity, rests, source
from pipeline.report_html import caption, case, key, size, tall
from pipeline.report_lottery import lottery
from pipeline.report_metrics import Metrics
from pipeline.report_plots import (
    MOST_CELLS,
    MOST_COLUMNS,
    bytes_chart,
    cell_class,
    credits_chart,
    grid,
    loss_chart,
    short_number,
    tokens_chart,
    turn_name,
)
from pipeline.report_time import where_time_went

# No script can run and nothing can be fetched, whatever a member's name or a licence text holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# Of more rejections the newest are listed, and all are counted.
MOST_REJECTIONS = 200
WORDS = {
    "late": "no commitment before the deadline",
    "unrevealed": "committed, and then revealed nothing",
    "opening-mismatch": "what was revealed is not what was committed to",
    "malformed-payload": "the update's bytes are not what the codec allows",
    "duplicate-payload": "the update is a copy of an earlier one",
    "unserved": "the start state that an audit or a snapshot needs was not served",
    "no-eligible-auditor": "drawn, and nobody could audit it: other operator, same numerics class",
    "unaudited": "drawn, and no auditor answered",
    "unconfirmed": "one audit failed and no second auditor answered",
    "disputed": "the auditors disagree, and no side prevailed",
    "failed-audit": "two auditors of different operators found the same other result",
}


def page(story: RunStory, metrics: Metrics | None = None) -> str:
    """The whole page."""
    name = escape(story.manifest.name)
    style = resources.files("pipeline").joinpath("report.css").read_text(encoding="utf-8")
    parts = (
        ("loss", "Loss", _loss(story)),
        ("work", "Work and bytes", _work(story)),
        ("time", "Where time went", where_time_went(metrics)),
        ("grid", "Who did what", _grid(story)),
        ("rejections", "Rejections", _rejections(story)),
        ("credit", "Credit", _credit(story)),
        ("lottery", "Audits", lottery(story)),
        ("chain", "Provenance", chain(story)),
        ("identity", "Members and keys", identity(story)),
        ("rests", "How to check it", rests(story)),
    )
    shown = [(anchor, title, content) for anchor, title, content in parts if content is not None]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in shown)
    sections = "".join(_section(*part) for part in shown)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{name}: a barnraise run</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{_header(story)}\n{_tiles(story)}\n<nav>{links}</nav>\n{sections}</main>\n</body>\n</html>\n"
    )


def _section(anchor: str, title: str, content: str) -> str:
    return f'<section id="{anchor}">\n<h2>{title}</h2>\n{content}\n</section>\n'


def _header(story: RunStory) -> str:
    barn = (
        '<svg class="barn" viewBox="0 0 48 44" aria-hidden="true"><path class="roof" d="M2 19 L24 2 L46 19"/>'
        '<path class="wall" d="M8 17 V42 H40 V17"/><path class="door" d="M18 42 V27 H30 V42 M18 27 L30 42 '
        'M30 27 L18 42"/></svg>'
    )
    contributors = len(story.contributors)
    auditors = len(story.balances) - contributors
    what = (
        f"{contributors} contributors and {auditors} auditors, {short_number(story.parameters)} parameters, "
        f"trained on {escape(source(story))}"
    )
    kind = "done" if story.finished else "open"
    title = f'{escape(story.manifest.name)} <span class="pill {kind}">{escape(story.status)}</span>'
    return (
        f'<header>{barn}<div><h1>{title}</h1><p class="sub">{what}.</p></div></header>\n'
        '<p class="note">A view of the run’s log, with every signature checked. It proves nothing by itself: '
        '<a href="#rests">what it rests on</a>.</p>'
    )


def _tiles(story: RunStory) -> str:
    work = [item for turn in story.turns for item in turn.work]
    accepted = [item for item in work if item.reason is None]
    audited = sum(bool(item.verdicts) for item in work)
    faults = sum(item.reason == "failed-audit" for item in work)
    received = sum(turn.payloads for turn in story.turns) * story.payload_bytes
    ratio = 4 * story.parameters / story.payload_bytes
    tiles = [
        ("accepted tokens", short_number(story.tokens), f"in {story.rounds} rounds"),
        ("contributions", f"{len(accepted)}", f"accepted of {len(work)}"),
        ("audited", f"{audited}", f"{faults} confirmed fault{'' if faults == 1 else 's'}"),
        ("updates received", f"{size(received)}", f"{ratio:.0f} times less than fp32"),
    ]
    if story.validation:
        (_, _, first), (last_round, _, last) = story.validation[0], story.validation[-1]
        under = "" if story.unigram is None else f", unigram {story.unigram:.2f}"
        tiles.insert(
            0, ("validation loss", f"{last:.3f}", f"nats after round {last_round}; from {first:.2f}{under}")
        )
    cells = "".join(
        f'<div class="tile"><span>{escape(what)}</span><b>{escape(value)}</b>'
        f"<small>{escape(more)}</small></div>"
        for what, value, more in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _loss(story: RunStory) -> str:
    if story.unigram is None:
        reference = "The data are not beside the log as the manifest names them, so there is no unigram line."
    else:
        reference = (
            "The dashed line is the validation text’s cross-entropy under the training tokens’ frequencies: "
            "below it, a model has learned something from context."
        )
    ratio = 4 * story.parameters / story.payload_bytes
    return (
        f"{_both_widths(story, 'tokens')}\n"
        '<p class="caption">Nats a token. Training loss '
        "is what accepted contributors claimed for their last local step; whole audits recompute it. "
        f"Validation is the coordinator’s. {reference}</p>"
        f"<h3>The same against bytes</h3>{_both_widths(story, 'bytes')}"
        + caption(
            f"Bytes of updates that contributors sent: as fp32 they would be {ratio:.0f} times as many. What "
            "goes the other way, weights and start states, is not counted."
        )
    )


def _both_widths(story: RunStory, over: str) -> str:
    """The plot of the losses for a screen, and for a phone, of which the page's style shows one."""
    names = key("train", "training") + key("val", "validation")
    if story.unigram is not None:
        names += key("unigram", f"unigram {story.unigram:.3f}")
    return (
        f'<figure class="broad">{loss_chart(story, over)}</figure>'
        f'<figure class="narrow"><figcaption>{names}</figcaption>'
        f"{loss_chart(story, over, narrow=True)}</figure>"
    )


def _work(story: RunStory) -> str:
    full = 4 * story.parameters
    return (
        f'<div class="two"><figure><figcaption>tokens a round {key("accepted", "accepted")}'
        f"{key('fault', 'not accepted')}</figcaption>{tokens_chart(story.turns)}</figure>"
        f"<figure><figcaption>bytes of updates a round</figcaption>"
        f"{bytes_chart(story.turns, story.payload_bytes)}</figure></div>"
        f'<p class="caption">An update is {story.payload_bytes:,} bytes, always; '
        f"as fp32 it would be {full:,}.</p>"
    )


def _grid(story: RunStory) -> str:
    found = {cell_class(work) for turn in story.turns for work in turn.work}
    if any(len(turn.work) < len(story.contributors) for turn in story.turns):
        found.add("absent")
    legend = (
        ("accepted", "accepted, not drawn"),
        ("audited", "accepted and audited, a dot an auditor"),
        ("fault", "× audit failed, confirmed"),
        ("strike", "! a strike: not revealed, not served, copied or malformed"),
        ("lost", "– lost without fault"),
        ("absent", "not in the roster: in quarantine, away, or not there yet"),
    )
    keys = "".join(key(kind, words) for kind, words in legend if kind in found)
    words = ""
    if len(story.turns) > MOST_COLUMNS or len(story.turns) * len(story.contributors) > MOST_CELLS:
        each = -(-len(story.turns) // MOST_COLUMNS)
        words = caption(f"A column is {each} rounds, and a cell shows the worst of them." if each > 1 else "")
    return f'<p class="keys">{keys}</p><div class="scroll" tabindex="0">{grid(story)}</div>{words}'


def _rejections(story: RunStory) -> str:
    found = [
        (turn, work, work.reason) for turn in story.turns for work in turn.work if work.reason is not None
    ]
    if not found:
        return '<p class="empty">Nothing was rejected.</p>'
    head = ("round", "contributor", "reason", "found by", "evidence")
    words = ""
    if len(found) > MOST_REJECTIONS:
        counts = Counter(reason for _, _, reason in found).most_common()
        named = ", ".join(f"{count:,} {escape(reason)}" for reason, count in counts)
        words = caption(
            f"{len(found):,} in all ({named}); here the newest {MOST_REJECTIONS}, in "
            "<code>contributions.parquet</code> all."
        )
    return words + tall(head, [_rejection(*item) for item in found[-MOST_REJECTIONS:]])


def _rejection(turn: ClosedTurn, work: Work, reason: str) -> Sequence[str]:
    failed = [verdict.auditor for verdict in work.verdicts if verdict.outcome == "fail"]
    return (
        escape(turn_name(turn).removeprefix("round ")),
        escape(work.entry.member),
        (
            f'<span class="chip {cell_class(work)}">{escape(reason)}</span>'
            f"<small>{escape(WORDS.get(reason, ''))}</small>"
        ),
        escape(", ".join(failed)) or '<span class="muted">coordinator</span>',
        case(work),
    )


def _credit(story: RunStory) -> str:
    vest = story.manifest.config["credit"]["vest_rounds"]
    keys = key("vested", "vested") + key("unvested", "earned, not vested") + key("forfeited", "forfeited")
    return (
        f'<p class="keys">{keys}</p><figure class="wide">{credits_chart(story.balances)}</figure>'
        f'<p class="caption">In tokens: accepted work for contributors, recomputed work for auditors. Credit '
        f"vests after {vest} rounds, and quarantine forfeits what has not vested. A record, not money.</p>"
    )
