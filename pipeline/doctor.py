"""`barnraise doctor`: what is right or wrong with this machine, in words.

Owns the checks and their limits. Reads the machine and changes nothing. Does not look at a cluster itself
(cluster_checks.py does): this machine only.
"""

from __future__ import annotations

import json as jsonlib
import os
import platform
import re
import shutil
import stat
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from model.numerics import THREADS, Profile, numerics_class, prepare
from pipeline.options import HOME
from verification.errors import BarnraiseError, UsageError

GIB = 1 << 30
# The demonstration: nine processes of about 0.3 GiB, and what Ray itself takes.
LEAST_MEMORY, GOOD_MEMORY = 1 * GIB, 4 * GIB
LEAST_DISK, GOOD_DISK = GIB // 4, 2 * GIB
PYTHON = (3, 11)
SECRETS = frozenset({"key", "chain"})


@dataclass(frozen=True)
class DoctorOptions:
    """What is right or wrong with this machine. Exit code 1 when something would stop a run."""

    numerics: bool = False
    """Also name the numerics class and compute the probe digest: machines that agree in both share bits."""
    profile: Profile = "exact"
    """The numerics profile to try, as in run.profile."""
    folder: Path = Path("runs")
    """Where run folders will lie."""
    home: Path = HOME
    """Where keys and other secrets lie."""
    cluster: bool = False
    """Also look at every node of a Ray cluster."""
    address: str | None = None
    """The cluster to look at with --cluster; left out, the one that this machine is in."""
    json: bool = False
    """One JSON object instead of words."""


@dataclass(frozen=True)
class Check:
    """One finding. `wrong` would stop a run or give a secret away, `warning` would not.

    `node` is the machine of a cluster that it is about; empty when it is this one, or no single one.
    """

    name: str
    status: Literal["ok", "warning", "wrong"]
    text: str
    hint: str = ""
    node: str = ""


# The checks of a cluster; cli.py knows where they are.
Cluster = Callable[[DoctorOptions], Sequence[Check]]


def command(options: DoctorOptions, console: Console, cluster: Cluster | None = None) -> int:
    """Print the checks; 1 when something is wrong. Raises UsageError for options that do not go together."""
    if options.address is not None and not options.cluster:
        raise UsageError("--address says which cluster", hint="Add --cluster to look at it.")
    checks = examine(options)
    if cluster:
        checks += cluster(options)
    numerics: dict[str, str] = {}
    if options.numerics:
        try:
            prepare(options.profile, THREADS)
            from pipeline.probe import probe_digest  # noqa: PLC0415 - imports torch, which must be prepared first

            numerics = {
                "numerics_class": numerics_class(options.profile, THREADS),
                "probe_digest": probe_digest(),
            }
        except (BarnraiseError, ImportError) as error:
            checks.append(Check("numerics", "wrong", f"the probe could not be computed: {error}"))
    ok = all(check.status != "wrong" for check in checks)
    if options.json:
        print(jsonlib.dumps({"ok": ok, "checks": [_plain(check) for check in checks], **numerics}))  # noqa: T201
    else:
        _show(console, checks, numerics, ok=ok)
    return 0 if ok else 1


def _plain(check: Check) -> dict[str, str]:
    return {name: value for name, value in asdict(check).items() if name != "node" or value}


def _show(console: Console, checks: Sequence[Check], numerics: dict[str, str], *, ok: bool) -> None:
    colour = {"ok": "green", "warning": "yellow", "wrong": "red"}
    for check in checks:
        mark = f"[{colour[check.status]}]{check.status:<7}[/]"
        hint = f" [dim]{escape(check.hint)}[/]" if check.hint else ""
        where = f"{escape(check.node)}: " if check.node else ""
        text = f"{mark} {check.name:<10} {where}{escape(check.text)}.{hint}"
        console.print(text, highlight=False, soft_wrap=True)
    for name, value in numerics.items():
        console.print(f"        {name} {value}", highlight=False, soft_wrap=True, markup=False)
    following = "barnraise train" if ok else "mend what is wrong, then barnraise doctor again"
    console.print(f"Next: {following}", highlight=False)


def examine(options: DoctorOptions) -> list[Check]:
    """Every check, in the order in which a run would meet them."""
    return [
        python_check(sys.version_info[:2]),
        packages_check(list(requirements())),
        processor_check(options.profile),
        cores_check(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ),
        memory_check(free_memory()),
        disk_check(options.folder),
        home_check(options.home.expanduser()),
    ]


def python_check(version: tuple[int, ...]) -> Check:
    """Whether this Python is new enough."""
    found = "Python " + ".".join(map(str, version))
    if version >= PYTHON:
        return Check("python", "ok", found)
    return Check("python", "wrong", f"{found} is too old", "Use Python 3.11 or newer.")


def requirements() -> Iterator[str]:
    """The requirement lines of barnraise with its extra `train`, from its metadata or from pyproject.toml."""
    try:
        lines = metadata.requires("barnraise") or []
    except metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parent.parent / "pyproject.toml"
        if not project.exists():
            return
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        yield from table["dependencies"]
        yield from table["optional-dependencies"]["train"]
        return
    for line in lines:
        spec, _, marker = line.partition(";")
        if "extra" not in marker or re.search(r"extra\s*==\s*['\"]train['\"]", marker):
            yield spec.strip()


def packages_check(lines: Sequence[str]) -> Check:
    """Whether every required package is there, in range."""
    if not lines:
        return Check("packages", "wrong", "barnraise is not installed", "pip install 'barnraise[train]'")
    problems = [problem for line in lines if (problem := package_problem(line))]
    if problems:
        return Check("packages", "wrong", "; ".join(problems), "pip install 'barnraise[train]'")
    return Check("packages", "ok", f"{len(lines)} packages are there, in range")


def package_problem(line: str) -> str | None:
    """What is wrong with the package of a line such as `ray>=2.60,<2.61`; None when nothing is."""
    found = re.fullmatch(r"([A-Za-z0-9._-]+)((?:,?(?:>=|<)[0-9.]+)*)", line.replace(" ", ""))
    if not found:
        return f"{line!r} is not understood"
    name, ranges = found[1], found[2]
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is missing"
    for part in filter(None, ranges.split(",")):
        if not _in_range(version, part):
            return f"{name} is {version}, needed is {ranges}"
    return None


def _in_range(version: str, part: str) -> bool:
    """One comparison of release numbers, `>=` or `<`: the project uses no other."""
    least = part.startswith(">=")
    found, limit = _release(version), _release(part.lstrip("<>="))
    width = max(len(found), len(limit))
    found, limit = (numbers + (0,) * (width - len(numbers)) for numbers in (found, limit))
    return found >= limit if least else found < limit


def _release(text: str) -> tuple[int, ...]:
    digits = re.match(r"\s*(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in digits[1].split(".")) if digits else ()


def processor_check(profile: Profile) -> Check:
    """Whether the profile can be set up on this processor; tries it."""
    vendor = _cpu_vendor()
    try:
        prepare(profile, THREADS)
    except ImportError as error:
        return Check(
            "processor", "warning", f"{vendor}; profile {profile} not tried, {error.name} is missing"
        )
    except UsageError as error:
        hint = "--run.profile native works anywhere, for a run whose machines are all alike."
        return Check("processor", "wrong", f"{vendor}: {error.what}", hint if profile == "exact" else "")
    alike = "of this vendor with the same torch" if profile == "exact" else "exactly like it"
    return Check(
        "processor", "ok", f"{vendor}; profile {profile} works, with the bits of any machine {alike}"
    )


def _cpu_vendor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")]
    return f"{platform.machine()} {found[0]}" if found else platform.machine() or "unknown processor"


def cores_check(cores: int) -> Check:
    """Members take turns on one core; that works, slowly."""
    if cores >= 2:
        return Check("cores", "ok", f"{cores} cores")
    return Check(
        "cores", "warning", f"{cores} core", "Members will take turns; the demonstration takes longer."
    )


def free_memory() -> int | None:
    """Bytes that can still be had, within the container's limit where there is one; None when unknown."""
    info, limit, used = (
        Path(p) for p in ("/proc/meminfo", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
    )
    if not info.exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", info.read_text(encoding="ascii"), re.MULTILINE)
    if not found:
        return None
    free = int(found[1]) * 1024
    if limit.exists() and used.exists() and (most := limit.read_text(encoding="ascii").strip()).isdigit():
        free = min(free, int(most) - int(used.read_text(encoding="ascii")))
    return free


def memory_check(free: int | None) -> Check:
    """Whether the demonstration's processes fit."""
    if free is None:
        return Check("memory", "warning", "free memory is unknown here")
    text = f"{free / GIB:.1f} GiB free"
    if free < LEAST_MEMORY:
        return Check("memory", "wrong", text, "A run needs at least 1 GiB; the demonstration 4 GiB.")
    if free < GOOD_MEMORY:
        return Check("memory", "warning", text, "The demonstration wants 4 GiB; use fewer members.")
    return Check("memory", "ok", text)


def disk_check(folder: Path) -> Check:
    """Room and permission where run folders will lie."""
    place = _existing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Check("disk", "wrong", f"{place} cannot be written to", "--folder names another place.")
    return room_check(shutil.disk_usage(place).free, place)


def room_check(free: int, place: Path | str) -> Check:
    """Whether so many free bytes at a place are enough."""
    text = f"{free / GIB:.1f} GiB free at {place}"
    if free < LEAST_DISK:
        return Check("disk", "wrong", text, "Make room: a run stops when the disk is full.")
    return Check("disk", "ok" if free >= GOOD_DISK else "warning", text)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def home_check(home: Path) -> Check:
    """Whether secrets can be kept in the private home, and those that lie there are the owner's alone."""
    place = _existing(home)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Check("home", "wrong", f"{place} cannot be written to", "--home names another place.")
    if place != home.absolute():
        return Check("home", "ok", f"{home} is not there yet; the first run makes it")
    files = [path for path in sorted(home.rglob("*")) if path.name in SECRETS and path.is_file()]
    opened = [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if opened:
        return Check(
            "home",
            "wrong",
            f"{opened[0]} may be read by others" + (f", and {len(opened) - 1} more" if opened[1:] else ""),
            f"chmod 600 {opened[0]}; if others could read it, start a new run instead.",
        )
    return Check("home", "ok", f"{home}, {len(files)} secrets, the owner's alone")
