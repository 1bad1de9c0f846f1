"""The report as one HTML page: no script, no network, light and dark.

Owns the page's words, order and style. Does not own the facts (report.py) or the plots (report_plots.py). The
page depends on nothing but the story, so the same log gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from pipeline.report import Balance, ClosedTurn, RunStory, Work
from pipeline.report_audits import auditor_counts, calls
from pipeline.report_plots import (
    bytes_chart,
    cell_class,
    credits_chart,
    grid,
    loss_chart,
    short_number,
    tokens_chart,
    turn_name,
)
from verification.beacon import described
from verification.disputes import first_difference, prevailing, side_of
from verification.witnessing import fork_takes

# No script can run and nothing can be fetched, whatever a member's name or a licence text holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# Longer tables scroll.
LONG = 12
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


def page(story: RunStory) -> str:
    """The whole page."""
    name = escape(story.manifest.name)
    style = resources.files("pipeline").joinpath("report.css").read_text(encoding="utf-8")
    sections = (
        _section("loss", "Loss", _loss(story)),
        _section("work", "Work and bytes", _work(story)),
        _section("grid", "Who did what", _grid(story)),
        _section("rejections", "Rejections", _rejections(story)),
        _section("credit", "Credit", _credit(story)),
        _section("lottery", "The audit lottery", _lottery(story)),
        _section("identity", "Identity", _identity(story)),
        _section("rests", "What this page rests on", _rests(story)),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{name}: a barnraise run</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{_header(story)}\n{_tiles(story)}\n{''.join(sections)}</main>\n</body>\n</html>\n"
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
        f"trained on {escape(_source(story))}"
    )
    kind = "done" if story.finished else "open"
    title = f'{escape(story.manifest.name)} <span class="pill {kind}">{escape(story.status)}</span>'
    return (
        f'<header>{barn}<div><h1>{title}</h1><p class="sub">{what}.</p></div></header>\n'
        '<p class="note">A view of the run’s log, with every signature checked. It proves nothing by itself: '
        '<a href="#rests">what it rests on</a>.</p>'
    )


def _source(story: RunStory) -> str:
    return str(story.manifest.config["data"]["source"])


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
        ("updates received", f"{_bytes(received)}", f"{ratio:.0f} times less than fp32"),
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


def _bytes(count: int) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count} B"


def _loss(story: RunStory) -> str:
    if story.unigram is None:
        reference = "The data are not beside the log as the manifest names them, so there is no unigram line."
    else:
        reference = (
            "The dashed line is the validation text’s cross-entropy under the training tokens’ frequencies: "
            "below it, a model has learned something from context."
        )
    return (
        f'<figure class="wide">{loss_chart(story)}</figure>\n<p class="caption">Nats a token. Training loss '
        "is what accepted contributors claimed for their last local step; whole audits recompute it. "
        f"Validation is the coordinator’s. {reference}</p>"
    )


def _work(story: RunStory) -> str:
    full = 4 * story.parameters
    return (
        f'<div class="two"><figure><figcaption>tokens a round {_key("accepted", "accepted")}'
        f"{_key('fault', 'not accepted')}</figcaption>{tokens_chart(story.turns)}</figure>"
        f"<figure><figcaption>bytes of updates a round</figcaption>"
        f"{bytes_chart(story.turns, story.payload_bytes)}</figure></div>"
        f'<p class="caption">An update is {story.payload_bytes:,} bytes, always; '
        f"as fp32 it would be {full:,}.</p>"
    )


def _key(kind: str, words: str) -> str:
    return f'<span class="key"><i class="{kind}"></i>{escape(words)}</span>'


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
        ("absent", "not in the roster: quarantined"),
    )
    keys = "".join(_key(kind, words) for kind, words in legend if kind in found)
    return f'<p class="keys">{keys}</p><div class="scroll">{grid(story)}</div>'


def _rejections(story: RunStory) -> str:
    rows = [
        _rejection(turn, work, work.reason)
        for turn in story.turns
        for work in turn.work
        if work.reason is not None
    ]
    if not rows:
        return '<p class="empty">Nothing was rejected.</p>'
    head = ("round", "contributor", "reason", "found by", "evidence")
    table = _table(head, rows)
    return table if len(rows) <= LONG else f'<div class="tall">{table}</div>'


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
        _case(work),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are already HTML."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _credit(story: RunStory) -> str:
    vest = story.manifest.config["credit"]["vest_rounds"]
    keys = _key("vested", "vested") + _key("unvested", "earned, not vested") + _key("forfeited", "forfeited")
    return (
        f'<p class="keys">{keys}</p><figure class="wide">{credits_chart(story.balances)}</figure>'
        f'<p class="caption">In tokens: accepted work for contributors, recomputed work for auditors. Credit '
        f"vests after {vest} rounds, and quarantine forfeits what has not vested. A record, not money.</p>"
    )


def _lottery(story: RunStory) -> str:
    audit = story.manifest.config["audit"]
    words = (
        f'<p class="caption">After the reveals are in the log, the log’s head and the next link of the '
        f"coordinator’s hash chain give a seed, which draws whom to audit and who is asked first. Rate "
        f"{audit['rate_ppm'] / 1e4:g} %, everybody in the first {audit['probation_rounds']} accepted rounds; "
        f"{audit['second_look_ppm'] / 1e4:g} % of passes are looked at twice, every failure is. "
        f"{_depth(audit['segments'], story.manifest.config['train']['trace_every'])} "
        f"<code>barnraise verify</code> repeats every draw.</p>"
    )
    if not story.turns:
        return words
    rows = [
        (
            escape(turn_name(turn).removeprefix("round ")),
            ("".join(_drawn(work) for work in turn.work if work.drawn) or '<span class="muted">nobody</span>')
            + "".join(
                f'<code class="seed">look {n} {escape(seed)}</code>'
                for n, seed in enumerate(turn.seeds, 1)
                if seed
            ),
        )
        for turn in story.turns
    ]
    table = _table(("round", "drawn ← audited by, and the seeds of both looks"), rows)
    return words + f'<div class="tall">{table}</div>' + _auditors(story)


def _depth(segments: int, steps: int) -> str:
    """How much of a contribution an audit looks into."""
    if segments == 0:
        return "An audit recomputes all of a contribution."
    return (
        f"An audit recomputes {segments} drawn segment{'' if segments == 1 else 's'} of up to {steps} local "
        f"step{'' if steps == 1 else 's'} and always what follows the last; of newcomers and suspects all."
    )


def _drawn(work: Work) -> str:
    """A drawn contributor with those that were asked, up to the one that answered."""
    asked = []
    for call in calls(work):
        if call.verdict is None:
            asked.append(f"{escape(call.auditor)}&nbsp;…")
        else:
            mark = "✓" if call.verdict.outcome == "pass" else "✗"
            asked.append(f'<span class="{call.verdict.outcome}">{escape(call.auditor)}&nbsp;{mark}</span>')
    by = ", ".join(asked) or f'<span class="muted">{escape(work.reason or "nobody")}</span>'
    return f'<span class="draw"><b>{escape(work.entry.member)}</b> ← {by}</span> '


def _auditors(story: RunStory) -> str:
    names = [b.member.member for b in story.balances if b.member.role == "auditor"]
    rows = [
        (
            escape(count.auditor),
            *(f"{n:,}" for n in (count.first, count.looks, count.failed, count.missed, count.compared)),
            f'<span class="fail">{count.overruled:,}</span>' if count.overruled else "0",
        )
        for count in auditor_counts(names, story.turns)
    ]
    if not rows:
        return ""
    words = (
        '<p class="caption">The draw orders the auditors; the first that answers judges. Whoever was asked '
        "and gave no verdict is <em>missed</em> in the log. Only the coordinator knows whether it asked: an "
        "auditor that often stands first and is often missed is away, or not wanted, or was refused since it "
        "passed by tolerance what it had not seen. Whom two others of its "
        "class contradict is <em>overruled</em> and in quarantine; what nobody else looked at cannot be.</p>"
    )
    head = ("auditor", "drawn first", "verdicts", "of these fail", "missed", "compared", "overruled")
    return words + _table(head, rows) + _overruled(story)


def _overruled(story: RunStory) -> str:
    """Whose verdicts others did not bear out, with the first segment in which they differ, and the case."""
    rows = [
        (
            escape(turn_name(turn).removeprefix("round ")),
            escape(line.auditor),
            escape(work.entry.member),
            _difference(work, line.look),
            _case(work),
        )
        for turn in story.turns
        for work in turn.work
        for line in work.overruled
    ]
    if not rows:
        return ""
    head = ("round", "overruled", "on work of", "its verdict", "evidence")
    words = '<p class="caption">Verdicts that did not hold against those of others:</p>'
    return words + _table(head, rows)


def _difference(work: Work, look: int) -> str:
    """What an overruled verdict said, and where it first differs from the one that holds."""
    said = next(verdict for verdict in work.verdicts if verdict.look == look)
    side = prevailing(work.verdicts)
    other = next(verdict for verdict in work.verdicts if side_of(verdict) == side and verdict != said)
    leaf, segments = first_difference(said, other), len(said.trace) - 1
    if leaf is None:
        alike = [name for name in ("payload", "next_state") if getattr(said, name) == getattr(other, name)]
        where = "in payload or state" if len(alike) < 2 else "in losses or deviations"
    else:
        where = "at the boundary" if leaf == segments else f"in segment {leaf}"
    mark = "✓" if said.outcome == "pass" else "✗"
    return (
        f'<span class="{said.outcome}">{mark} {said.outcome}</span>'
        f"<small>look {look}; differs {'first ' if leaf is not None else ''}{where}</small>"
    )


def _case(work: Work) -> str:
    if not work.evidence:
        return '<span class="muted">the log itself</span>'
    state = f" <em>{escape(work.evidence_state)}</em>" if work.evidence_state else ""
    return f'<a href="{escape(work.evidence)}"><code>{escape(work.evidence)}</code></a>{state}'


def _identity(story: RunStory) -> str:
    manifest, dataset = story.manifest, story.dataset
    licence = ", ".join(dataset.licence.values())
    rows = [
        ("run id", _code(story.run_id)),
        ("log head", _code(f"{story.head.size}:{story.head.root.hex()}")),
        ("log key", _code(manifest.log_vkey)),
        ("coordinator", _code(manifest.coordinator)),
        ("data", f"{escape(_source(story))}, licence {escape(licence)}, {_code(dataset.root)}"),
        ("windows", f"{dataset.train_windows:,} to train on, {dataset.validation_windows:,} to validate on"),
        *([("beacon", escape(described(manifest.beacon)))] if manifest.beacon else []),
        ("codec", _code(manifest.codec)),
        ("aggregation", _code(manifest.aggregation)),
        ("profile", escape(str(manifest.config["run"]["profile"]))),
        ("made with", escape(", ".join(f"{name} {version}" for name, version in manifest.versions.items()))),
        ("source", _code(manifest.source)),
        ("initial weights", _code(manifest.initial.weights)),
        (f"after round {story.rounds}", _code(story.weights(story.rounds))),
    ]
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in rows)
    members = _table(
        ("member", "role", "operator", "numerics class", "key"),
        [_member(balance) for balance in story.balances],
    )
    return (
        f"<dl>{facts}</dl>\n<details><summary>members and keys</summary>{members}</details>\n"
        f"<details><summary>the signed checkpoint</summary><pre>{escape(story.note)}</pre></details>"
    )


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _member(balance: Balance) -> Sequence[str]:
    member = balance.member
    gone = " <em>quarantined</em>" if balance.quarantined else ""
    return (
        escape(member.member) + gone,
        escape(member.role),
        escape(member.operator),
        _code(member.numerics_class),
        _code(member.key),
    )


def _bound_by(story: RunStory) -> str:
    witnessing = story.manifest.witnessing
    if not witnessing.witnesses:
        return (
            "There are no witnesses. The lottery therefore binds the contributors, who cannot foresee it, "
            "and not the coordinator, which knows its own hash chain and could have tried different logs "
            "before it signed one."
        )
    required, count = witnessing.required, len(witnessing.witnesses)
    return (
        f"{required} of {count} witnesses had to cosign the log before each draw, which takes a number from "
        "every one of them. The lottery therefore binds the contributors and the coordinator, unless "
        f"{fork_takes(required, count)} of them are in league with it."
    )


def _rests(story: RunStory) -> str:
    head = f"{story.head.size}:{story.head.root.hex()}"
    points = (
        (
            "This page is a view. When it was made, the log’s tree and every signature were checked, and "
            "that draws, outcomes and credit follow from the records. Not that every reveal opens its "
            "commitment, no aggregation and no training; and anybody could have edited the page since."
        ),
        (
            "<code>barnraise verify</code> is the proof. Level 1 checks the log and repeats every draw, "
            "level 2 adds up the updates to every checkpoint, bit for bit, level 3 recomputes the work of "
            "contributors."
        ),
        (
            "A log that agrees with itself could still be one of two. Compare the log key and the head above "
            "with what you were given by somebody else than the organiser, or with what you saw earlier."
        ),
        _bound_by(story),
        "Operators are names that the coordinator let in. No log can show that two of them are two people.",
        "Milliseconds and the choice of members are the coordinator’s word.",
    )
    lines = "".join(f"<li>{point}</li>" for point in points)
    command = (
        f"barnraise verify RUN --level 3 --sample 5 --vkey '{story.manifest.log_vkey}' --expect-head {head}"
    )
    return (
        f"<ul>{lines}</ul>\n<pre>{escape(command)}</pre>\n"
        '<p class="caption">The key and the head in this command are this page’s own: put those in their '
        "place that you have from elsewhere.</p>"
    )
