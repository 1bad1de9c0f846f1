"""The command line: one function a command, errors in words, exit codes 0, 1 and 2.

Owns dispatch and how errors are shown. Does not own what the commands do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from rich.console import Console

from model.numerics import THREADS, Profile, prepare
from pipeline.config import config_from_manifest, load_config
from pipeline.doctor import Cluster
from pipeline.folder import RunFolder
from pipeline.options import ResumeOptions, TrainOptions, override, parse_options
from verification.errors import BarnraiseError, UsageError

COMMANDS = {
    "train": "start a run",
    "resume": "go on with a run that was stopped",
    "verify": "check a run folder, offline",
    "report": "an HTML page about a run",
    "dashboard": "a workspace in wandb that shows runs",
    "top": "watch a run in the terminal",
    "export": "the model for transformers",
    "generate": "let a run's model continue a text",
    "data": "prepare a data set",
    "keys": "make, show, rotate or revoke a key",
    "witness": "watch logs, and cosign them",
    "receipt": "a member's proof of what a round gave it",
    "verify-receipt": "check such a proof, offline",
    "rerun": "make a decision against a contribution again, from its evidence",
    "plan": "audit rate, detection, deterrence, cost",
    "calibrate": "the tolerance between numerics classes, measured",
    "doctor": "what is wrong with this machine, or with a cluster",
}


# Where a command is that pipeline.tools does not have.
_MODULES = {
    "witness": "pipeline.witness_service",
    "receipt": "pipeline.receipts",
    "verify-receipt": "pipeline.receipts",
    "rerun": "pipeline.rerun",
    "calibrate": "pipeline.calibrate",
    "dashboard": "pipeline.dashboard",
    "top": "pipeline.top",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `barnraise`."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command; its exit code: 0 it holds, 1 it does not, 2 wrong use."""
    console = Console(stderr=False)
    if not arguments or arguments[0] in ("-h", "--help"):
        show_commands(console)
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    try:
        if name not in COMMANDS:
            raise UsageError(f"there is no command {name!r}", expected=", ".join(COMMANDS))
        return _dispatch(name, rest, console)
    except UsageError as error:
        print(f"barnraise {name}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except BarnraiseError as error:
        print(f"barnraise {name}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        more = "; `barnraise resume RUN` goes on" if name in ("train", "resume") else ""
        print(f"\nbarnraise {name}: stopped{more}.", file=sys.stderr)  # noqa: T201
        return 130


def show_commands(console: Console) -> None:
    """The commands, a line each."""
    console.print("[bold]barnraise[/] COMMAND …: machines that do not trust each other train one model\n")
    for name, what in COMMANDS.items():
        console.print(f"  [bold]{name:<14}[/] {what}", highlight=False)
    console.print("\n`barnraise COMMAND --help` explains one. Start with: barnraise train")


def _dispatch(name: str, rest: list[str], console: Console) -> int:
    # Each command imports what it needs, when it runs: levels 1 and 2 of verify work without torch.
    if name == "train":
        options, overrides = parse_options(TrainOptions, name, rest, rest=True)
        config = override(load_config(options.config), overrides)
        prepare(config.run.profile, THREADS)
        from pipeline import commands

        return commands.train(options, config, console)
    if name == "resume":
        options = parse_options(ResumeOptions, name, rest)
        prepare(profile_of(options.run), THREADS)
        from pipeline import commands

        return commands.resume(options, console)
    if name == "verify":
        from pipeline import verify

        return verify.command(parse_options(verify.VerifyOptions, name, rest), console)
    if name == "doctor":
        from pipeline import doctor

        options = parse_options(doctor.DoctorOptions, name, rest)
        return doctor.command(options, console, _cluster_checks() if options.cluster else None)
    module = _MODULES.get(name, "pipeline.tools")
    options_type, command = import_module(module).COMMANDS[name]
    code: int = command(parse_options(options_type, name, rest), console)
    return code


def _cluster_checks() -> Cluster:
    from pipeline import cluster_checks

    try:
        from cluster.doctor import survey
    except ModuleNotFoundError as error:
        raise UsageError(f"--cluster needs {error.name}", hint="pip install 'barnraise[train]'") from None

    return partial(cluster_checks.examine, survey)


def profile_of(folder: Path) -> Profile:
    """The numerics profile a run was made with; it must be known before torch is imported."""
    return config_from_manifest(RunFolder(folder).parsed_manifest().config).run.profile


if __name__ == "__main__":
    main()
