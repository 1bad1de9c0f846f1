"""What a machine says of itself: whatever is missing or broken there, it answers in words."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.node_facts import clock, look, reach
from tests.fresh import ROOT


def ask(home: Path, **more: Any) -> dict[str, Any]:
    return look({"packages": ["numpy", "no-such-package"], "calls": {}, "home": str(home), "secrets": ["key"],
                 "probe": ""} | more)  # fmt: skip


def test_a_machine_describes_itself_in_plain_values(tmp_path: Path) -> None:
    found = ask(tmp_path / "none" / "yet")
    assert json.loads(json.dumps(found)) == found
    assert found["errors"] == {}
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found["versions"]) == {"numpy"}
    assert found["host"] == socket.gethostname()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["home"]["place"] == str(tmp_path)
    assert (found["home"]["secrets"], found["home"]["writable"]) == (0, True)
    assert abs(clock() - time.time()) < 1


def test_open_keys_and_their_folders_are_found_and_environments_left_out(tmp_path: Path) -> None:
    for name, bits, folder_bits in (("run/a/key", 0o600, 0o700), ("run/b/key", 0o640, 0o755),
                                    ("tls/host.key", 0o604, 0o700), ("venv/lib/key", 0o644, 0o755),
                                    ("run/c/chart", 0o644, 0o755)):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
        path.chmod(bits)
        path.parent.chmod(folder_bits)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    home = ask(tmp_path)["home"]
    assert home["secrets"] == 3
    assert home["open_files"] == [
        [str(tmp_path / "run/b/key"), 0o640],
        [str(tmp_path / "tls/host.key"), 0o604],
    ]
    assert home["open_folders"] == [[str(tmp_path / "run/b"), 0o755]]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("pipeline.source:no_such_function", "AttributeError"),
        ("sys:exit", "SystemExit"),
    ],
)
def test_a_broken_or_missing_barnraise_is_told_in_words(tmp_path: Path, call: str, error: str) -> None:
    found = ask(tmp_path, calls={"source": call})
    assert found["source"] is None
    assert found["errors"]["source"].startswith(error)
    assert found["versions"]


def test_the_probe_is_a_program_of_its_own(tmp_path: Path) -> None:
    found = ask(tmp_path, probe="print('noise'); print('{\"class\": \"x\"}')")
    assert found["numerics"] == {"class": "x"}
    failed = ask(tmp_path, probe="raise SystemExit('no torch here')")
    assert failed["numerics"] is None
    assert failed["errors"]["numerics"] == "RuntimeError: no torch here"


def test_what_the_machine_was_started_with_is_what_counts(tmp_path: Path) -> None:
    """Ray's own process is the parent: its words and variables, not those that a worker has by now."""
    token = tmp_path / "token"
    token.touch(mode=0o644)
    token.chmod(0o644)
    ours = (
        "import json, os; from cluster.node_facts import look; os.environ['OMP_NUM_THREADS'] = '1'; "
        "print(json.dumps(look({'packages': [], 'calls': {}, 'home': '.', 'secrets': [], 'probe': ''})))"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ours!r}], check=True)"
    variables = {"OMP_NUM_THREADS": "7", "RAY_AUTH_MODE": "TOKEN", "RAY_AUTH_TOKEN_PATH": str(token)}
    done = subprocess.run([sys.executable, "-c", parent, "--plasma_directory=/tmp"], check=True, text=True,
                          capture_output=True, env={**os.environ, **variables}, cwd=ROOT)  # fmt: skip
    found = json.loads(done.stdout)
    assert found["threads"] == "7"
    assert found["store_folder"] == "/tmp"
    assert found["token"] == {"mode": "token", "in_environment": False, "path": str(token), "bits": 0o644}


def test_what_listens_is_reached_and_what_does_not_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        here, nobody = server.getsockname()[1], closed.getsockname()[1]
        found = reach([("127.0.0.1", here), ("127.0.0.1", nobody)])
    assert found == {f"127.0.0.1:{nobody}": "connection refused"}
    assert reach([]) == {}
