"""What a person reads when a run has ended.

Owns the words and numbers of the summary; all of them come from the log, the folder or the model. Does not
decide whether the run holds: `barnraise verify` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from data_prep.manifest import DatasetManifest
from data_prep.prepare import unigram_cross_entropy
from data_prep.tokenizer import load_tokenizer
from model.arrays import Arrays
from model.config import ModelConfig
from model.generate import generate
from pipeline.coordinator import Coordinator
from pipeline.folder import RunFolder
from verification.records import Record, RoundClose, Settlement
from verification.witnessing import witness_names

PROMPT = "def "
MICRO = 1e6


def show_summary(
    console: Console, folder: RunFolder, coordinator: Coordinator, drills: Mapping[str, str]
) -> None:
    """Print it."""
    ledger, state = coordinator.desk.ledger, coordinator.state
    records = ledger.records()
    closes = [record for record in records if isinstance(record, RoundClose)]
    losses = [(close.round, close.val_loss / MICRO) for close in closes if close.val_loss is not None]
    codec = coordinator.desk.aggregator.codec
    removed = sum(len(record.removed) for record in records if isinstance(record, Settlement))
    accepted = sum(len(close.accepted) for close in closes)
    dataset = DatasetManifest.from_json(ledger.manifest.dataset)
    unigram = unigram_cross_entropy(dataset, folder.data)
    sent, full = accepted * codec.payload_bytes, accepted * codec.length * 4
    lines = {
        "validation loss": _losses(losses),
        "unigram cross-entropy": f"{unigram:.3f} nats: what counting tokens alone would give",
        "accepted": f"{state.tokens:,} tokens in {state.rounds_done} rounds, "
        f"{accepted - removed} contributions" + (f"; {removed} were taken out again" if removed else ""),
        "sent": f"{sent / 1e6:.2f} MB of updates instead of {full / 1e6:.0f} MB"
        + (f" ({full / sent:.0f} times less)" if sent else ""),
        "log": f"{ledger.checkpoint.size} entries",
        "head": f"sha256:{ledger.checkpoint.root.hex()}",
    }
    kept = ledger.retention
    if kept.dropped:
        lines["dropped"] = (
            f"{kept.dropped} payloads of rounds 1 to {kept.floor}; a check begins at checkpoint {kept.floor}"
        )
    if names := witness_names(ledger.manifest):
        required = ledger.manifest.witnessing.required
        lines["witnesses"] = f"{', '.join(names)}; each draw had {required} or more of them"
    console.rule(f"[bold]{escape(str(folder.path))}[/] has ended", align="left")
    for name, text in lines.items():
        console.print(f"{name:<22} {text}", highlight=False, soft_wrap=True)
    show_rejections(console, records, drills)
    config = coordinator.desk.config.model
    weights = coordinator.desk.aggregator.arrays(coordinator.checkpoint)
    text = sample(folder, config, weights, PROMPT, 40, 0)
    console.print(Panel(escape(text), title="a continuation", title_align="left"))
    console.print("Next:")
    for command, what in (
        (f"barnraise verify {folder.path} --level 3 --sample 5", "check it all, recompute five"),
        (f"barnraise report {folder.path}", "a page with plots"),
        (f'barnraise generate {folder.path} "import "', "let the model write"),
    ):
        console.print(f"  [bold]{escape(command)}[/]  [dim]{what}[/]", highlight=False, soft_wrap=True)


def _losses(losses: list[tuple[int, float]]) -> str:
    if not losses:
        return "not measured"
    (first, start), (last, end) = losses[0], losses[-1]
    lower = f"{start:.3f} after round {first}, {start - end:.3f} lower"
    return f"[bold]{end:.3f}[/] nats after round {last}; {lower}"


def show_rejections(console: Console, records: list[Record], drills: Mapping[str, str]) -> None:
    """Who was caught doing what, auditors too, and what a fire drill had in it."""
    found: dict[str, list[tuple[int, str]]] = {}
    overruled: dict[str, list[int]] = {}
    quarantined: set[str] = set()
    for record in records:
        if isinstance(record, RoundClose):
            quarantined |= set(record.quarantined)
            for item in record.rejected:
                found.setdefault(item.member, []).append((record.round, item.reason))
        elif isinstance(record, Settlement):
            quarantined |= set(record.quarantined)
            for late in record.removed:
                found.setdefault(late.member, []).append((late.round, late.reason))
        if isinstance(record, RoundClose | Settlement):
            for line in record.overruled:
                overruled.setdefault(line.auditor, []).append(record.round)
    for member, cases in sorted(found.items()):
        kind = f" (drill: {drills[member]})" if member in drills else ""
        places = ", ".join(f"round {round_}: {reason}" for round_, reason in cases[:6])
        more = f" and {len(cases) - 6} more" if len(cases) > 6 else ""
        gone = "; in quarantine" if member in quarantined else ""
        console.print(f"[yellow]caught[/] [bold]{member}[/]{kind}: {places}{more}{gone}")
    for member, kind in drills.items():
        if member not in found:
            console.print(f"[red]not caught[/] [bold]{member}[/] (drill: {kind})")
    for auditor, rounds in sorted(overruled.items()):
        places = ", ".join(f"round {round_}" for round_ in rounds[:6])
        console.print(f"[yellow]overruled[/] [bold]{auditor}[/]: {places}; other auditors found otherwise")
    honest = [member for member in found if member not in drills]
    if drills:
        console.print(f"honest contributors rejected: {', '.join(honest) or 'none'}")
    elif not found:
        console.print("nobody was rejected")


def sample(
    folder: RunFolder, config: ModelConfig, weights: Arrays, prompt: str, tokens: int, seed: int
) -> str:
    """`prompt` and what the model makes of it."""
    tokenizer = load_tokenizer(Path(folder.data / "tokenizer.json"))
    ids = tokenizer.encode(prompt).ids
    following = generate(config, weights, ids, max_new_tokens=tokens, temperature=0.8, top_k=40, seed=seed)
    return prompt + tokenizer.decode(following)
