"""What can be typed after `barnraise train` and `barnraise resume`.

Owns options and the dotted overrides of the configuration. Imports nothing heavy: the numerics profile must
be known before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipeline.config import Config

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


def override(config: Config, arguments: list[str]) -> Config:
    """The configuration with dotted options applied. Ends the program with code 2 on an unknown one."""
    if not arguments:
        return config
    return tyro.cli(Config, default=config, args=arguments, prog="barnraise train")
