"""What can be typed after `barnraise train` and `barnraise resume`.

Owns options and the dotted overrides of the configuration, and how a wrong one is told. Imports nothing
heavy: the numerics profile must be known before torch is imported.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipeline.config import Config, parse_config
from verification.errors import UsageError

HOME = Path("~/.barnraise")


@dataclass(frozen=True)
class TrainOptions:
    """Start a run. Any field of the configuration can be given as a dotted option, e.g. --run.rounds 10."""

    config: Path = Path("configs/demo.toml")
    """The configuration, TOML."""
    folder: Annotated[Path, tyro.conf.arg(name="run", aliases=["--folder"])] = Path("runs/demo")
    """The run folder to make."""
    adversary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A fire drill: KIND=COUNT of the contributors cheat. May be repeated."""
    witness_policy: Path | None = None
    """Witnesses that cosign the log, and how many must: a C2SP tlog-policy file with their addresses."""
    beacon: str | None = None
    """A public randomness beacon that the draws wait for, with witnesses: the base URL of drand's API."""
    pool: Literal["ray", "local"] = "ray"
    """Where members live: Ray actors, or all in this process."""
    address: str | None = None
    """A Ray cluster to join, e.g. auto; without it one is started on this machine."""
    home: Path = HOME
    """Where keys and other secrets lie."""
    dry_run: bool = False
    """Check everything, show the plan, and start nothing."""
    json: bool = False
    """JSON lines instead of bars."""


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a run that was stopped or killed, from where its log ends."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    pool: Literal["ray", "local"] = "ray"
    """Where members live: Ray actors, or all in this process."""
    address: str | None = None
    """A Ray cluster to join, e.g. auto; without it one is started on this machine."""
    home: Path = HOME
    """Where keys and other secrets lie."""
    json: bool = False
    """JSON lines instead of bars."""


def parse_options(kind: Callable[..., Any], command: str, arguments: list[str], *, rest: bool = False) -> Any:
    """Options of a command; with `rest`, (options, what was not understood).

    Raises UsageError for wrong ones. `--help` prints and ends the program.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if rest:
                return tyro.cli(kind, args=arguments, prog=f"barnraise {command}", return_unknown_args=True)
            return tyro.cli(kind, args=arguments, prog=f"barnraise {command}")
    except SystemExit as end:
        if not end.code:
            raise
        hint = f"`barnraise {command} --help` lists the options."
        raise UsageError(_plain(said.getvalue()) or "the options are not understood", hint=hint) from None


def _plain(box: str) -> str:
    """The words of a framed error message, on one line and without its advice.

    The frame is drawn with box characters or, where the output is not UTF-8, as a title over a rule.
    """
    lines = [line.strip(" │") for line in box.splitlines()]
    rules = [i for i, line in enumerate(lines) if line and not line.strip("-─╰╯")]
    start = 1 if box.startswith("╭") else (rules.pop(0) + 1 if rules else 0)
    body = lines[start : rules[0] if rules else None]
    sentence = " ".join(" ".join(body).split()).rstrip(" .")
    return sentence[:1].lower() + sentence[1:]


def override(config: Config, arguments: list[str]) -> Config:
    """The configuration with dotted options applied, `--SECTION.FIELD VALUE…`, values as TOML has them.

    Raises UsageError for an unknown field or a value that does not fit.
    """
    values = config.model_dump(mode="json")
    fields = _fields(values)
    position = 0
    while position < len(arguments):
        name, equals, text = arguments[position].partition("=")
        position += 1
        given = [text] if equals else []
        while not equals and position < len(arguments) and not arguments[position].startswith("--"):
            given.append(arguments[position])
            position += 1
        field = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or field not in fields:
            near = difflib.get_close_matches(field, fields, 1)
            hint = f"Did you mean --{near[0]}?" if near else "Fields are named as in configs/demo.toml."
            raise UsageError(f"there is no option {name}", hint=hint)
        section, last = fields[field]
        section[last] = _value(section[last], given, name)
    return parse_config(values, "the command line")


def _fields(values: dict[str, Any], prefix: str = "") -> dict[str, tuple[dict[str, Any], str]]:
    """Dotted names of all fields, with the section that each lies in and its key there."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _fields(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = (values, key)
    return found


def _value(before: Any, given: list[str], name: str) -> Any:
    if isinstance(before, list) and not (given and given[0].startswith("[")):
        return [_literal(text) for text in given]
    if len(given) != 1:
        raise UsageError(f"{name} takes one value", got=" ".join(given) or "none")
    return given[0] if isinstance(before, str) else _literal(given[0])


def _literal(text: str) -> Any:
    try:
        values = tomllib.loads(f"v = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return values["v"] if set(values) == {"v"} else text
