"""What a machine of a cluster says about itself when the doctor asks.

Owns the functions that run there. They are sent by value and use nothing of this project but what they are
told to call, by name and inside a `try`: a machine with another version of it, or none, answers all the same.
Judges nothing (pipeline/cluster_checks.py) and does not import ray (doctor.py sends it).
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

CONNECT_S, PROBE_S = 3.0, 120.0
MOST_FILES = 50_000  # that are looked at under a home
SHM = Path("/dev/shm")  # noqa: S108 - looked at, never written to


def look(question: Mapping[str, Any]) -> dict[str, Any]:
    """Plain facts about this machine, JSON's types only.

    `question` has: `packages` whose versions are wanted, `calls` {fact: "module:function"} of this machine's
    own barnraise, `home`, names of `secrets`, and `probe`, a program that prints JSON, or "". Never raises:
    of a fact that cannot be had, `errors` has the reason.
    """
    errors: dict[str, str] = {}
    started = _started_with(os.getppid())
    facts: dict[str, Callable[[], Any]] = {
        "host": socket.gethostname,
        "python": platform.python_version,
        "versions": lambda: _versions(question["packages"]),
        "token": lambda: _token(started[1]),
        "home": lambda: _home(Path(question["home"]).expanduser(), frozenset(question["secrets"])),
        "cores": lambda: len(os.sched_getaffinity(0)),
        "threads": lambda: started[1].get("OMP_NUM_THREADS"),
        "shared_memory": lambda: shutil.disk_usage(SHM).total if SHM.is_dir() else None,
        "store_folder": lambda: _option(started[0], "--plasma_directory"),
        **{name: partial(_call, where) for name, where in question["calls"].items()},
    }
    if question["probe"]:
        facts["numerics"] = lambda: _probe(question["probe"])
    found = {}
    for name, fact in facts.items():
        try:
            found[name] = fact()
        except (Exception, SystemExit) as error:  # another barnraise may fail in any way
            found[name] = None
            errors[name] = f"{type(error).__name__}: {error}"[:500]
    return {**found, "errors": errors}


def clock() -> float:
    """Seconds since 1970 by this machine's clock."""
    return time.time()


def reach(places: Iterable[tuple[str, int]]) -> dict[str, str]:
    """Why a TCP connection to `host:port` cannot be made within `CONNECT_S`, of those to which it cannot."""

    def attempt(place: tuple[str, int]) -> str:
        try:
            socket.create_connection(place, CONNECT_S).close()
        except OSError as error:
            return (error.strerror or str(error) or type(error).__name__).lower()
        return ""

    wanted = list(places)
    if not wanted:
        return {}
    with ThreadPoolExecutor(min(32, len(wanted))) as threads:
        answers = zip(wanted, threads.map(attempt, wanted), strict=True)
        return {f"{host}:{port}": why for (host, port), why in answers if why}


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _call(where: str) -> Any:
    module, _, function = where.partition(":")
    return getattr(importlib.import_module(module), function)()


def _started_with(process: int) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of Ray's own process on this machine, which starts the workers.

    Ray and its workers set variables of their own; what the machine was started with stands here alone.
    """
    try:
        folder = Path("/proc") / str(process)
        command = folder.joinpath("cmdline").read_bytes().decode(errors="replace").split("\0")
        lines = folder.joinpath("environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [], dict(os.environ)
    return command, {name: value for name, _, value in (line.partition("=") for line in lines) if name}


def _option(command: Iterable[str], name: str) -> str | None:
    return next((word.partition("=")[2] for word in command if word.startswith(f"{name}=")), None)


def _token(environment: Mapping[str, str]) -> dict[str, Any]:
    """How this machine's Ray knows others; its token's file and mode. The token itself is not read."""
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return {
        "mode": environment.get("RAY_AUTH_MODE", "").lower(),
        "in_environment": bool(environment.get("RAY_AUTH_TOKEN")),
        "path": str(path),
        "bits": stat.S_IMODE(path.stat().st_mode) if path.exists() else None,
    }


def _home(home: Path, names: frozenset[str]) -> dict[str, Any]:
    """Secrets under the home, those that others may read, their open folders; room and permission there."""
    place = home.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    secrets, opened = 0, []
    folders = set()
    for path in _files(home):
        if path.name in names or path.suffix == ".key":
            secrets += 1
            folders.add(path.parent)
            if (bits := stat.S_IMODE(path.stat().st_mode)) & 0o077:
                opened.append([str(path), bits])
    loose = [[str(path), bits] for path in sorted(folders) if (bits := _mode(path)) & 0o077]
    return {
        "path": str(home),
        "place": str(place),
        "writable": place.is_dir() and os.access(place, os.W_OK | os.X_OK),
        "free": shutil.disk_usage(place).free,
        "secrets": secrets,
        "open_files": sorted(opened),
        "open_folders": loose,
    }


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _files(home: Path) -> Iterator[Path]:
    """Plain files under a folder, those of virtual environments left out; no more than `MOST_FILES`."""
    left = MOST_FILES
    for folder, below, names in os.walk(home):
        if "pyvenv.cfg" in names:
            below.clear()
            continue
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path
            left -= 1
            if not left:
                return


def _probe(program: str) -> dict[str, str]:
    """What the program prints, in a process of its own: torch must be prepared before it is imported."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(  # noqa: S603 - the driver's own program, on a machine that runs what it says
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PROBE_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it failed without a word"])[-1])
    value: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return value
