"""The model card of an exported checkpoint: where it comes from, and how to check that.

Owns the card's words; everything in it is from the log or the manifest. Does not own the export
(model/export.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.report import RunStory

_FRONT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- barnraise
---

"""


_AUDITED = (
    "An audit that is not by tolerance recomputes what was drawn of a contribution, and compares it bit for "
    "bit. A failure counts when auditors of two operators found the same. What was not drawn was accepted "
    "as it came."
)


def model_card(story: RunStory, run: Path, round_: int) -> str:
    """Markdown with the front matter that model hubs read, for the checkpoint after `round_`."""
    manifest, dataset = story.manifest, story.dataset
    turns = [turn for turn in story.turns if turn.round <= round_ and not turn.void]
    head = f"{story.head.size}:{story.head.root.hex()}"
    anchors = f"--vkey '{manifest.log_vkey}' --expect-head {head}"
    facts = [
        ("run id", _code(story.run_id)),
        ("log head (size:root)", _code(head)),
        ("log verifier key", _code(manifest.log_vkey)),
        ("weights digest", _code(story.weights(round_))),
        ("checkpoint", f"after round {round_} of {manifest.config['run']['rounds']}"),
        ("parameters", f"{story.parameters:,}"),
        ("accepted tokens", f"{turns[-1].total if turns else 0:,}"),
        ("validation loss", _loss(story, round_)),
        ("dataset root", _code(dataset.root)),
        ("data", f"{_code(str(manifest.config['data']['source']))}, tokenizer {_code(dataset.tokenizer)}"),
        ("licence of the data", ", ".join(map(_code, dataset.licence.values()))),
    ]
    sections = [
        f"# {_plain(manifest.name)}",
        (
            "A small base model that many machines trained together with barnraise, none of them trusted for "
            "its word. The run’s log says who did which part."
        ),
        _table(("", ""), facts),
        "## Who contributed",
        _contributors(story, round_),
        "## How it was audited",
        _table(("", ""), _audits(story, round_)),
        _AUDITED,
        "## How to check it",
        (
            "In this folder, with a copy of the run folder as RUN, and the key and the head from somebody "
            "else than the giver of this:"
        ),
        _block(f"barnraise verify RUN --weights . {anchors}"),
        (
            f"It says that the numbers, names and shapes in `model.safetensors` are the weights that the log "
            f"names after round {round_}, and that `config.json` and `tokenizer.json` are the run’s; before "
            "that it repeats every draw, and adds up the updates to every checkpoint. With `--level 3 "
            "--sample 5` it also trains five contributions again. The folder was exported from "
            f"{_code(str(run))}."
        ),
        f"{_lottery(story)} The licence of the data is not a licence of these weights; the log names none.",
        "## Use",
        _block(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            'model = AutoModelForCausalLM.from_pretrained(".")\n'
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            "python",
        ),
    ]
    return _FRONT + "\n\n".join(sections) + "\n"


def _loss(story: RunStory, round_: int) -> str:
    validation = [(r, nats) for r, _, nats in story.validation if r <= round_]
    if not validation:
        return "not measured"
    last, nats = validation[-1]
    unigram = "" if story.unigram is None else f" (unigram cross-entropy {story.unigram:.4f})"
    return f"{nats:.4f} nats a token after round {last}{unigram}"


def _audits(story: RunStory, round_: int) -> list[tuple[str, str]]:
    """How much of the work up to a round was audited, what came of it, and how much rests on tolerance."""
    work = [item for turn in story.turns if turn.round <= round_ for item in turn.work]
    kept = [item for item in work if item.reason is None]
    audited = [item for item in work if item.verdicts]
    verdicts = [verdict for item in work for verdict in item.verdicts]
    failed = sum(item.reason == "failed-audit" for item in work)
    by_tolerance = sum(any(verdict.deviations for verdict in item.verdicts) for item in audited)
    auditors = {line.auditor for item in work for line in item.overruled}
    audit = story.manifest.config["audit"]
    classes = " and ".join(_code(name) for pair in audit["tolerance"] for name in pair["classes"])
    return [
        ("contributions accepted", f"{len(kept):,} of {len(work):,}"),
        ("audited", f"{len(audited):,}, by {len(verdicts):,} verdicts"),
        ("accepted without an audit", f"{sum(not item.verdicts for item in kept):,}"),
        ("failed, confirmed by a second auditor", f"{failed:,}"),
        ("auditors overruled", f"{len(auditors):,}"),
        ("audited by tolerance, not to the bit", f"{by_tolerance:,}"),
        ("tolerance between", classes or "no classes: every audit is to the bit"),
        ("audit rate after probation", f"{audit['rate_ppm'] / 1e4:g} %"),
        ("work that counts before its audits", f"{audit['lag']} rounds" if audit["lag"] else "none"),
    ]


def _lottery(story: RunStory) -> str:
    required, all_ = story.manifest.witnessing.required, len(story.manifest.witnessing.witnesses)
    if not all_:
        return "There are no witnesses: the audit lottery binds the contributors and not the coordinator."
    return f"Each audit lottery had the cosignatures of at least {required} of the run’s {all_} witnesses."


def _contributors(story: RunStory, round_: int) -> str:
    tokens: dict[str, int] = {member.member: 0 for member in story.contributors}
    operators = {member.member: member.operator for member in story.contributors}
    for turn in story.turns:
        for work in turn.work:
            if turn.round <= round_ and work.reason is None:
                tokens[work.entry.member] += work.tokens
    gone = {balance.member.member for balance in story.balances if balance.quarantined}
    rows = [
        (_code(name), _code(operators[name]), f"{count:,}", "quarantined" if name in gone else "")
        for name, count in tokens.items()
    ]
    return _table(("contributor", "operator", "accepted tokens", ""), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text from the manifest on one line, without anything that Markdown or HTML would act on."""
    line = " ".join(text.split())
    return "".join("\\" + c if c in r"\`*_{}[]<>()#+-!|&~" else c for c in line)


def _code(text: str) -> str:
    """The same as a code span, which ends at a backtick and, in a table, at a bar."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "/") + "`"


def _block(text: str, language: str = "sh") -> str:
    return f"```{language}\n{text}\n```"
