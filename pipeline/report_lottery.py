"""The report's part on the audit lottery: whom it drew, who audited, and whose word did not hold.

Owns that part's words and tables, and which turns of a long run it lists. Does not own the counts
(report_audits.py).
"""

from __future__ import annotations

from html import escape

from pipeline.report import ClosedTurn, RunStory, Work
from pipeline.report_audits import auditor_counts, calls
from pipeline.report_html import case, table, tall
from pipeline.report_plots import turn_name
from verification.disputes import first_difference, prevailing, side_of

# Of a longer run: the last turns, and those in which something did not pass.
MOST_TURNS = 60
MOST_LISTED = 200


def lottery(story: RunStory) -> str:
    """How audits are drawn, the draws of the listed turns, and the auditors' counts."""
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
    listed = listed_turns(story.turns)
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
        for turn in listed
    ]
    found = tall(("round", "drawn ← audited by, and the seeds of both looks"), rows)
    if left := len(story.turns) - len(listed):
        found += (
            f'<p class="caption">{left:,} more rounds are in the log: listed are the newest, and of the '
            "others the newest in which not every audit passed.</p>"
        )
    return words + found + _auditors(story)


def listed_turns(turns: tuple[ClosedTurn, ...]) -> list[ClosedTurn]:
    """Those that the table of draws has rows for, in order."""
    if len(turns) <= MOST_TURNS:
        return list(turns)
    newest = turns[-MOST_TURNS:]
    others = [turn for turn in turns[:-MOST_TURNS] if any(map(_odd, turn.work))]
    return [*others[-(MOST_LISTED - MOST_TURNS) :], *newest]


def _odd(work: Work) -> bool:
    failed = any(verdict.outcome == "fail" for verdict in work.verdicts)
    return bool(failed or work.overruled or any(asked.missed for asked in work.asked))


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
    return words + table(head, rows) + _overruled(story)


def _overruled(story: RunStory) -> str:
    """Whose verdicts others did not bear out, with the first segment in which they differ, and the case."""
    rows = [
        (
            escape(turn_name(turn).removeprefix("round ")),
            escape(line.auditor),
            escape(work.entry.member),
            _difference(work, line.look),
            case(work),
        )
        for turn in story.turns
        for work in turn.work
        for line in work.overruled
    ]
    if not rows:
        return ""
    head = ("round", "overruled", "on work of", "its verdict", "evidence")
    words = '<p class="caption">Verdicts that did not hold against those of others:</p>'
    return words + tall(head, rows)


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
