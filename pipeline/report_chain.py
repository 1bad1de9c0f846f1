"""The report's parts on what a run is: its chain of digests, its members and keys, and how to check it.

Owns these parts' words. Does not check anything itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipeline.report import Balance, RunStory
from pipeline.report_html import caption, code, table, tall
from verification.beacon import described
from verification.witnessing import fork_takes


def chain(story: RunStory) -> str:
    """From the data to the newest weights, each digest with what ties it to the one before."""
    manifest, dataset = story.manifest, story.dataset
    licence = ", ".join(dataset.licence.values())
    done = [turn for turn in story.turns if not turn.void]
    checkpoints = [(str(turn.round), str(turn.entry), code(turn.weights)) for turn in done]
    data = (
        f"{escape(source(story))}, licence {escape(licence)}: over the digests of every shard "
        f"({dataset.train_windows:,} windows to train on, {dataset.validation_windows:,} to validate on) "
        "and the tokenizer"
    )
    manifested = (
        "SHA-256 of <code>manifest.json</code>, entry 0 of the log: it holds the data, the source, the "
        "configuration, the keys, and every record of the run names it"
    )
    links = [
        ("data", dataset.root, data),
        ("tokenizer", dataset.tokenizer, "<code>data/tokenizer.json</code>; stands in the data’s root"),
        ("source code", manifest.source, "the packages that made the run; stands in the manifest"),
        ("run id", story.run_id, manifested),
        (
            "initial weights",
            manifest.initial.weights,
            "in the manifest; they follow from the seed, and level 3 makes them again",
        ),
    ]
    if done:
        words = (
            "each is in the entry that closes its round; level 2 adds up the accepted updates from one "
            "to the next, bit for bit"
        )
        links.append((f"weights after round {story.rounds}", story.weights(story.rounds), words))
    links.append(
        (
            "log head",
            f"{story.head.size}:{story.head.root.hex()}",
            "size and root of the tree over all entries, signed by the log’s key",
        )
    )
    items = "".join(
        f"<li><b>{escape(name)}</b> {code(digest)}<small>{words}</small></li>"
        for name, digest, words in links
    )
    every = (
        f"<details><summary>the weights after each of {len(done):,} rounds</summary>"
        f"{tall(('round', 'log entry', 'weights'), checkpoints)}</details>\n"
        if done
        else ""
    )
    return (
        f'<ol class="chain">{items}</ol>\n{every}'
        f"<details><summary>the signed checkpoint</summary><pre>{escape(story.note)}</pre></details>"
    )


def source(story: RunStory) -> str:
    """Where the text is from, as the manifest names it."""
    return str(story.manifest.config["data"]["source"])


def identity(story: RunStory) -> str:
    """The keys and rules of the run, and its members."""
    manifest = story.manifest
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    rows = [
        ("log key", code(manifest.log_vkey)),
        ("coordinator", code(manifest.coordinator)),
        *([("beacon", escape(described(manifest.beacon)))] if manifest.beacon else []),
        ("codec", code(manifest.codec)),
        ("aggregation", code(manifest.aggregation)),
        ("profile", escape(str(manifest.config["run"]["profile"]))),
        ("made with", escape(versions)),
    ]
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in rows)
    members = table(
        ("member", "role", "operator", "numerics class", "key"),
        [_member(balance) for balance in story.balances],
    )
    return (
        f"<dl>{facts}</dl>\n{_changes(story)}"
        f"<details><summary>members and keys ({len(story.balances)})</summary>{members}</details>"
    )


def _changes(story: RunStory) -> str:
    """Who joined, left, came back or changed its key after the first round."""
    if not story.changes:
        return ""
    rows = [
        (
            str(change.round),
            escape(change.member),
            escape(change.role),
            escape(change.what)
            + ("<small>the coordinator’s word</small>" if change.by == "coordinator" else ""),
        )
        for change in story.changes
    ]
    words = "Who came and went, and whose key changed, after the first round; each is an entry of the log:"
    return f"<h3>Coming and going</h3>{caption(words)}{tall(('before round', 'member', 'role', ''), rows)}"


def _member(balance: Balance) -> Sequence[str]:
    member = balance.member
    gone = " <em>quarantined</em>" if balance.quarantined else ""
    return (
        escape(member.member) + gone,
        escape(member.role),
        escape(member.operator),
        code(member.numerics_class),
        code(member.key),
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


def rests(story: RunStory) -> str:
    """The commands that check the run, and what this page can and cannot show."""
    head = f"{story.head.size}:{story.head.root.hex()}"
    anchors = f"--vkey '{story.manifest.log_vkey}' --expect-head {head}"
    commands = (
        "# the log, every draw, and every checkpoint added up again\n"
        f"barnraise verify RUN {anchors}\n"
        "# and the training of five contributions, drawn at random\n"
        f"barnraise verify RUN --level 3 --sample 5 {anchors}\n"
        "# that a model somebody gave you is of this run, and of which round\n"
        "barnraise verify RUN --weights MODEL"
    )
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
    return (
        f"<pre>{escape(commands)}</pre>\n"
        + caption(
            "RUN is a copy of the run folder. The key and the head in these commands are this page’s own: "
            "put those in their place that you have from elsewhere."
        )
        + f"\n<ul>{lines}</ul>"
    )
