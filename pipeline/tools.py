"""The commands around a run: report, export, generate, data, keys; with plan the table of them.

Owns their options, what they print and what to type next. Does not own what they call. Importing this module
does not import torch: each command imports what it needs, after the run's numerics profile is set up.
"""

from __future__ import annotations

import gc
import json as jsonlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from data_prep.config import DataConfig
from data_prep.manifest import TOKENIZER_FILE, DatasetManifest, file_digest
from model.arrays import Arrays, ArraySpec, arrays_digest, arrays_from_safetensors
from model.numerics import THREADS, prepare
from pipeline import identities, plan, plan_options
from pipeline.config import config_from_manifest, describe
from pipeline.folder import RunFolder
from pipeline.model_card import model_card
from pipeline.options import HOME
from pipeline.report import RunStory, answer, read_story, write_report
from pipeline.report_metrics import read_metrics
from verification.errors import StorageError, UsageError
from verification.keys import PrivateKey


@dataclass(frozen=True)
class ReportOptions:
    """An HTML page about a run, made from its log: RUN/report.html."""

    run: tyro.conf.Positional[Path]
    """The run folder, of a run that goes on or has ended."""
    json: bool = False
    """One JSON object instead of words."""


@dataclass(frozen=True)
class ExportOptions:
    """A checkpoint as a folder that the transformers library loads, with its provenance in the model card."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    out: Path
    """The folder to make."""
    round: int | None = None
    """The round after which; the last closed one when left out, 0 for the initial weights."""
    json: bool = False
    """One JSON object instead of words."""


@dataclass(frozen=True)
class GenerateOptions:
    """Let a run's model continue a text."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    prompt: tyro.conf.Positional[str]
    """The text to go on from."""
    tokens: int = 100
    """How many tokens to add."""
    temperature: float = 0.8
    """0 takes the likeliest token each time."""
    top_k: int = 40
    """Sample from the so many likeliest tokens; 0 from all."""
    seed: int = 0
    """The same seed gives the same text on the same machine."""
    json: bool = False
    """One JSON object instead of the text alone."""


# Fields of the data that the model's table repeats.
_SHARED = ("vocab_size", "context")
_DATA = {name: field.default for name, field in DataConfig.model_fields.items()}


@dataclass(frozen=True)
class DataOptions:
    """Prepare a data set: documents held out, a tokenizer trained, windows packed, digests written."""

    source: tyro.conf.Positional[str]
    """python-stdlib, file:PATH or hub:[OWNER/]NAME[:CONFIG][@REVISION]."""
    out: Path
    """The folder to make."""
    split: str = _DATA["split"]
    """The split of a Hub data set to read."""
    text_field: str = _DATA["text_field"]
    """The column or key that holds the text in .jsonl, .parquet and Hub data."""
    licence: str = _DATA["licence"]
    """The licence of the documents; an SPDX expression is best."""
    vocab_size: int = _DATA["vocab_size"]
    """Tokens in the vocabulary: the end of a document, 256 bytes, and merges."""
    tokenizer: str = _DATA["tokenizer"]
    """A tokenizer.json to use instead of training one."""
    context: int = _DATA["context"]
    """Tokens the model predicts in a window; a window holds one more."""
    holdout_ppm: int = _DATA["holdout_ppm"]
    """Share of the documents held out for validation, in millionths."""
    holdout_key: str = _DATA["holdout_key"]
    """Keys the choice of the documents held out."""
    max_bytes: int = _DATA["max_bytes"]
    """Stop before the distinct documents take more bytes than this; 0 reads everything."""
    json: bool = False
    """One JSON object instead of words."""


@dataclass(frozen=True)
class KeysOptions:
    """Make an Ed25519 key file that only its owner may read, show one, or change a member's key in a run."""

    action: tyro.conf.Positional[Literal["new", "show", "rotate", "revoke", "leave", "return"]]
    """new makes a file, show reads it; rotate gives MEMBER of a run another key, revoke takes it away;
    leave lets it take no part from the next round on, return takes that back."""
    path: tyro.conf.Positional[Path]
    """The key file; for the others the run folder or, where there is none, the member's private folder."""
    member: tyro.conf.Positional[str | None] = None
    """Whom it is about, where PATH is the run folder."""
    as_coordinator: bool = False
    """Revoke in the name of the run's coordinator, whose private folder is here, not of the member."""
    home: Path = HOME
    """Where keys and other secrets lie."""
    json: bool = False
    """One JSON object instead of words."""


def report(options: ReportOptions, console: Console) -> int:
    """`barnraise report`."""
    folder = RunFolder(options.run)
    # Reading a log makes many short-lived objects and no cycles.
    gc.set_threshold(50_000, 20, 20)
    waiting = nullcontext() if options.json or not console.is_terminal else console.status("reading the log")
    with waiting:
        story = read_story(folder)
    metrics = read_metrics(folder.path / "metrics.jsonl")
    path = write_report(folder, story, metrics)
    if options.json:
        _print_json(answer(path, story, metrics))
        return 0
    _say(console, f"{path.absolute()}: {story.status}")
    if metrics and metrics.bad_lines:
        _say(console, f"{metrics.bad_lines} lines of metrics.jsonl could not be read and were left out")
    _next(console, f"open it in a browser; barnraise verify {options.run} --level 3 --sample 5 is the proof")
    return 0


def export(options: ExportOptions, console: Console) -> int:
    """`barnraise export`."""
    from model.export import export_llama  # noqa: PLC0415

    folder = RunFolder(options.run)
    story = read_story(folder)
    round_ = story.rounds if options.round is None else options.round
    weights = checked_weights(folder, story, round_)
    tokenizer = checked_tokenizer(folder, story).read_bytes()
    config = config_from_manifest(story.manifest.config).model
    export_llama(config, weights, options.out, tokenizer, model_card(story, options.run, round_))
    digest = story.weights(round_)
    if options.json:
        found = {"out": str(options.out), "round": round_, "run_id": story.run_id, "weights_digest": digest}
        _print_json(found | {"log_head": "sha256:" + story.head.root.hex(), "log_size": story.head.size})
        return 0
    _say(console, f"{options.out}: the weights after round {round_}, as the log names them")
    _say(console, f"weights {digest}")
    _next(console, f"barnraise verify {options.run} --weights {options.out}   says of which round they are")
    load = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{options.out}')"
    _say(console, f'      python -c "{load}"')
    return 0


def generate(options: GenerateOptions, console: Console) -> int:
    """`barnraise generate`."""
    folder = RunFolder(options.run)
    story = read_story(folder)
    weights = checked_weights(folder, story, story.rounds)
    tokenizer_file = checked_tokenizer(folder, story)
    config = config_from_manifest(story.manifest.config)
    with _needs_train("generate"):
        prepare(config.run.profile, THREADS)
        from data_prep.tokenizer import load_tokenizer  # noqa: PLC0415
        from model.generate import generate as continue_ids  # noqa: PLC0415 - imports torch

        tokenizer = load_tokenizer(tokenizer_file)
    ids = continue_ids(
        config.model,
        weights,
        tokenizer.encode(options.prompt).ids,
        max_new_tokens=options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
    )
    text = tokenizer.decode(ids)
    if options.json:
        found = {"prompt": options.prompt, "text": text, "tokens": len(ids)}
        _print_json(found | {"round": story.rounds, "run_id": story.run_id, "seed": options.seed})
        return 0
    console.print(f"[dim]{escape(options.prompt)}[/]{escape(text)}", highlight=False, soft_wrap=True)
    _next(console, f"another --seed, or barnraise export {options.run} --out DIR")
    return 0


def checked_weights(folder: RunFolder, story: RunStory, round_: int) -> Arrays:
    """The weights after a round, compared with the digest in the log.

    Raises UsageError when the round is not closed or its checkpoint was not kept, FormatError or StorageError
    when the file is not the checkpoint that the log names.
    """
    expected = story.weights(round_)
    path = folder.weights_file(round_)
    if not path.exists():
        kept = sorted(int(found.stem[6:]) for found in path.parent.glob("round-*.safetensors"))
        raise UsageError(
            f"the checkpoint of round {round_} was not kept",
            expected=f"one of {', '.join(map(str, kept)) or 'none'}",
            hint=f"--round chooses; checkpoint.every was {story.manifest.config['checkpoint']['every']}.",
        )
    specs = [ArraySpec(name, shape) for name, shape in story.manifest.arrays]
    weights = arrays_from_safetensors(folder.checkpoint(round_), specs)
    if (found := arrays_digest(weights)) != expected:
        raise StorageError(
            f"{path} is not the checkpoint that the log names",
            expected=expected,
            got=found,
            hint=f"Restore it from a copy; `barnraise verify {folder.path}` says what else differs.",
        )
    return weights


def checked_tokenizer(folder: RunFolder, story: RunStory) -> Path:
    """The path of the tokenizer, compared with the manifest. Raises StorageError when it is another."""
    path = folder.data / TOKENIZER_FILE
    if (found := file_digest(path)) != story.dataset.tokenizer:
        raise StorageError(
            f"{path} is not the tokenizer of the run", expected=story.dataset.tokenizer, got=found
        )
    return path


def data(options: DataOptions, console: Console) -> int:
    """`barnraise data`."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    try:
        config = DataConfig(**{name: value for name, value in values.items() if name in _DATA})
    except ValidationError as error:
        raise UsageError(describe(error)) from None
    with _needs_train("prepare data"):
        from data_prep.prepare import prepare as prepare_data  # noqa: PLC0415
        from data_prep.prepare import unigram_cross_entropy  # noqa: PLC0415

        tell = None if options.json else lambda text: _say(console, text)
        manifest = prepare_data(config, options.out, tell)
        unigram = unigram_cross_entropy(manifest, options.out)
    if options.json:
        _print_json(_data_answer(options, manifest, unigram))
        return 0
    _say(console, f"unigram cross-entropy {unigram:.4f} nats: what counting tokens alone would give")
    _say(console, f"root {manifest.root}")
    _say(
        console,
        f"{options.out}: {', '.join(entry.file for entry in (*manifest.train, *manifest.validation))}",
    )
    changed = [name for name in _DATA if name != "source" and getattr(options, name) != _DATA[name]]
    words = [
        f"--data.{name.replace('_', '-')} {shlex.quote(str(getattr(options, name)))}" for name in changed
    ]
    words += [f"--model.{n.replace('_', '-')} {getattr(options, n)}" for n in _SHARED if n in changed]
    _next(console, f"barnraise train --data.source {' '.join([shlex.quote(options.source), *words])}")
    _say(console, "      makes the same data in its run folder; the root will be the same")
    return 0


def _data_answer(options: DataOptions, manifest: DatasetManifest, unigram: float) -> Mapping[str, object]:
    return {
        "out": str(options.out),
        "root": manifest.root,
        "train_windows": manifest.train_windows,
        "validation_windows": manifest.validation_windows,
        "context": manifest.context,
        "vocab_size": manifest.vocab_size,
        "unigram": unigram,
        "source": dict(manifest.source),
        "licence": dict(manifest.licence),
    }


def keys(options: KeysOptions, console: Console) -> int:
    """`barnraise keys`."""
    if options.action not in ("new", "show"):
        return _change_key(options, console)
    path = options.path.expanduser()
    if options.action == "new":
        key = PrivateKey.generate()
        key.save(path)
    else:
        key = PrivateKey.load(path)
    if options.json:
        _print_json({"path": str(path), "key": key.public})
        return 0
    _say(console, key.public)
    if options.action == "new":
        _say(console, f"{path} holds the secret half, mode 0600: keep it, and give others the line above")
        _next(console, f"barnraise keys show {path}")
    else:
        _next(console, "give others this line, never the file")
    return 0


def _change_key(options: KeysOptions, console: Console) -> int:
    member, folder, home = options.member, RunFolder(options.path), options.home.expanduser()
    name = member or options.path.resolve().name
    done = {"member": name, "action": options.action}
    if options.action == "rotate":
        done["key"] = identities.rotate(folder, home, member).public
    elif options.action == "leave":
        identities.leave(folder, home, member)
    elif options.action == "return":
        identities.come_back(folder, home, member)
    elif options.as_coordinator:
        if member is None:
            raise UsageError("the coordinator revokes a member's key: name it after the run folder")
        identities.revoke_as_coordinator(folder, home, member)
    else:
        identities.revoke(folder, home, member)
    if options.json:
        _print_json(done)
        return 0
    if options.action == "rotate":
        _say(console, done["key"])
    _say(console, f"{name} {_WHAT_FOLLOWS[options.action]}")
    _next(console, "the run takes it up before its next round; `barnraise resume RUN` where it has stopped")
    return 0


_WHAT_FOLLOWS = {
    "rotate": "goes on with this key when the log has it, from zero state and on probation",
    "revoke": "is in quarantine for the rest of the run when the log has it",
    "leave": "takes no part when the log has it, and keeps its credit; `barnraise keys return` takes it back",
    "return": "takes part again when the log has it, as it was",
}


@contextmanager
def _needs_train(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"to {what} takes packages that are not here",
            got=f"no module {error.name}",
            hint="pip install 'barnraise[train]'",
        ) from None


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def _next(console: Console, text: str) -> None:
    _say(console, f"Next: {text}")


def _print_json(value: Mapping[str, object]) -> None:
    print(jsonlib.dumps(value))  # noqa: T201


COMMANDS: dict[str, tuple[type[Any], Callable[[Any, Console], int]]] = {
    "report": (ReportOptions, report),
    "export": (ExportOptions, export),
    "generate": (GenerateOptions, generate),
    "data": (DataOptions, data),
    "keys": (KeysOptions, keys),
    "plan": (plan_options.PlanOptions, plan.command),
}
