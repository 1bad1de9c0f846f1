"""The cluster files for `ray up`: valid for Ray, a token everywhere, no secret, pyproject's versions, and
what their commands do when a shell runs them as Ray would. Every rule is shown to bite on a changed copy.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from cluster.ray_pool import MACHINE, OPERATOR, ROLES

ray_util = pytest.importorskip("ray.autoscaler._private.util")
runner = pytest.importorskip("ray.autoscaler._private.command_runner")
scripts = pytest.importorskip("ray.scripts.scripts")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WHEEL = f"barnraise-{PROJECT['version']}-py3-none-any.whl"
FILES = ("local.yaml", "aws.yaml", "gcp.yaml")
SECRETS = re.compile(
    r"-----BEGIN|\bAKIA[0-9A-Z]{16}\b|\b[0-9a-fA-F]{32,}\b|\"private_key\"|(?i:password|passwd|wandb_api_key)\s*[:=]"
)


def text_of(name: str) -> str:
    return (ROOT / "cluster" / name).read_text()


def pinned_ray() -> tuple[str, str]:
    """(at least, below) of the extra `train`."""
    extra = PROJECT["optional-dependencies"]["train"]
    found = [re.fullmatch(r"ray>=([\d.]+),<([\d.]+)", line) for line in extra if line.startswith("ray")]
    assert len(found) == 1
    assert found[0] is not None
    return found[0][1], found[0][2]


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def fits_pin(ray: str) -> bool:
    low, high = pinned_ray()
    return version(low) <= version(ray) < version(high)


def starts(config: dict[str, Any]) -> dict[str, str]:
    """The one command of head and of workers that starts Ray."""
    found = {}
    for side in ("head", "worker"):
        commands = [c for c in config[f"{side}_start_ray_commands"] if "ray start" in c]
        assert len(commands) == 1, side
        found[side] = commands[0]
    return found


def options(command: str) -> dict[str, str]:
    words = shlex.split(command[command.index("ray start") :], comments=False)
    return dict(word.lstrip("-").partition("=")[::2] for word in words if word.startswith("--"))


# Rules: each yields what is wrong with a loaded file.


def rule_schema(config: dict[str, Any], text: str) -> Iterator[str]:
    try:
        ray_util.validate_config(ray_util.prepare_config(yaml.safe_load(text)))
    except (click.ClickException, jsonschema.ValidationError, ValueError, RuntimeError) as error:
        yield str(error).splitlines()[0]


def rule_token(config: dict[str, Any], text: str) -> Iterator[str]:
    for side, command in starts(config).items():
        before = command[: command.index("ray start")]
        if not re.search(r"\bexport\b[^;]*\bRAY_AUTH_MODE=token\b", before):
            yield f"{side} starts without a token"
    if config["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token":
        yield "the token is not handed out"
    if not any("chmod 600 ~/.ray/auth_token" in command for command in config["setup_commands"]):
        yield "the token may be read by others"
    if not any("RAY_AUTH_MODE=token" in command for command in config["head_setup_commands"]):
        yield "a shell on the head does not know of the token"


def rule_secret(config: dict[str, Any], text: str) -> Iterator[str]:
    yield from (f"looks like a secret: {found[:12]}" for found in SECRETS.findall(text))


def rule_versions(config: dict[str, Any], text: str) -> Iterator[str]:
    said = set(re.findall(r"\bray(?:\[\w+\])?==([\d.]+)", " ".join(config["setup_commands"])))
    if len(said) != 1 or not all(map(fits_pin, said)):
        yield f"Ray {said}"
    if config["file_mounts"].get(f"~/{WHEEL}") != f"dist/{WHEEL}":
        yield "another wheel is handed out"
    if not any(f'"$HOME/{WHEEL}[train]"' in command for command in config["setup_commands"]):
        yield "another wheel is installed"
    if any(f'<= {{"{PROJECT["version"]}"}}' not in c for c in config["setup_commands"] if "import" in c):
        yield "another version is looked for"


def rule_unset(config: dict[str, Any], text: str) -> Iterator[str]:
    for side, command in starts(config).items():
        unset = re.search(r"\bunset ([\w ]+);", command[: command.index("ray start")])
        names = unset[1].split() if unset else []
        if "OMP_NUM_THREADS" not in names:
            yield f"{side}: OMP_NUM_THREADS stays"
        local = config["provider"]["type"] == "local"
        if side == "head" and ("RAY_enable_autoscaler_v2" in names) is not local:
            yield "autoscaler v2 starts no worker of the local provider, and is right everywhere else"


def rule_machine(config: dict[str, Any], text: str) -> Iterator[str]:
    for side, command in starts(config).items():
        if not options_with_values(command).get("labels", "").startswith(f"{MACHINE}=$(uname -n)"):
            yield f"{side} does not say which machine it is"


def options_with_values(command: str) -> dict[str, str]:
    """As `options`, where a value may be the next word."""
    words = shlex.split(command[command.index("ray start") :])
    pairs = zip(words, [*words[1:], "--"], strict=True)
    return {w[2:].split("=")[0]: w.partition("=")[2] or after for w, after in pairs if w.startswith("--")}


def rule_seats(config: dict[str, Any], text: str) -> Iterator[str]:
    offered: dict[str, int] = {}
    if config["provider"]["type"] == "local":
        found = [re.search(r"echo '(\{.*?\})'", command) for command in starts(config).values()]
        kinds = [json.loads(match[1]) if match else {} for match in found]
    else:
        kinds = [kind["resources"] for kind in config["available_node_types"].values()]
    for seats in kinds:
        mine = {role: number for role, number in seats.items() if role not in ("CPU", "GPU")}
        if not mine or not set(mine) <= set(ROLES) or not all(isinstance(n, int) for n in mine.values()):
            yield f"no seats: {seats}"
        for role, number in mine.items():
            offered[role] = offered.get(role, 0) + number
    if offered.get("auditor", 0) < 2 or "contributor" not in offered:
        yield f"too few seats: {offered}"


def rule_start(config: dict[str, Any], text: str) -> Iterator[str]:
    known = {name.lstrip("-") for option in scripts.start.params for name in option.opts}
    for side, command in starts(config).items():
        said = options(command)
        yield from (f"ray start has no --{name}" for name in sorted(set(said) - known))
        if not 78_643_200 <= int(said.get("object-store-memory", 0)) <= 1 << 34:
            yield f"{side}: the object store is not bounded"
        if "RAY_USAGE_STATS_ENABLED=0" not in command:
            yield f"{side} reports its usage"
    head = options(starts(config)["head"])
    if "disable-usage-stats" not in head:
        yield "the head reports its usage"
    if head.get("dashboard-host") != "127.0.0.1":
        yield "the dashboard is seen from outside"
    if head.get("autoscaling-config") != "~/ray_bootstrap_config.yaml":
        yield "the head starts no workers"


def rule_kinds(config: dict[str, Any], text: str) -> Iterator[str]:
    """The head stays, contributors are cheap."""
    for name, kind in config.get("available_node_types", {}).items():
        node = kind["node_config"]
        spot = "spot" in json.dumps([node.get("InstanceMarketOptions"), node.get("scheduling")]).lower()
        if spot is not ("contributor" in kind["resources"]):
            yield f"{name}: {'spot' if spot else 'not spot'}"
        if name != config["head_node_type"] and not 0 <= kind["min_workers"] <= kind["max_workers"]:
            yield f"{name}: min and max"


def rule_shell(config: dict[str, Any], text: str) -> Iterator[str]:
    for key in (
        "setup_commands",
        "head_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ):
        for command in config[key]:
            done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
            if done.returncode:
                yield done.stderr


RULES: dict[str, Callable[[dict[str, Any], str], Iterator[str]]] = {
    name.removeprefix("rule_"): value for name, value in sorted(globals().items()) if name.startswith("rule_")
}


def problems(text: str) -> dict[str, list[str]]:
    config = yaml.safe_load(text)
    found = {name: list(rule(config, text)) for name, rule in RULES.items()}
    return {name: said for name, said in found.items() if said}


@pytest.mark.parametrize("name", FILES)
def test_every_shipped_file_keeps_every_rule(name: str) -> None:
    assert problems(text_of(name)) == {}


V2 = "unset RAY_enable_autoscaler_v2 OMP_NUM_THREADS;"
EXPORT = "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0;"


@pytest.mark.parametrize(
    ("name", "old", "new", "rule"),
    [
        ("local.yaml", "worker_ips:", "workers:", "schema"),
        ("aws.yaml", "head_node_type: head", "head_node_type: tail", "schema"),
        ("aws.yaml", "max_workers: 8", "max_workers: 1", "schema"),
        ("gcp.yaml", "upscaling_speed", "upscale_speed", "schema"),
        ("gcp.yaml", '"contributor": 2', '"contributor": "2"', "schema"),
        ("local.yaml", EXPORT, "export RAY_USAGE_STATS_ENABLED=0;", "token"),
        ("aws.yaml", EXPORT, "export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0;", "token"),
        ("gcp.yaml", '  "~/.ray/auth_token": "~/.ray/auth_token"\n', "", "token"),
        ("local.yaml", "chmod 600 ~/.ray/auth_token", "chmod 644 ~/.ray/auth_token", "token"),
        ("aws.yaml", "'export RAY_AUTH_MODE=token'", "'export NOTHING=1'", "token"),
        ("local.yaml", "ssh_user: barnraise", "ssh_user: '0123456789abcdef0123456789abcdef'", "secret"),
        ("aws.yaml", "ssh_user: ubuntu", "ssh_user: AKIAABCDEFGHIJKLMNOP", "secret"),
        ("local.yaml", "'ray[default]==2.60.0'", "'ray[default]==2.61.0'", "versions"),
        ("aws.yaml", "ray[default]==2.60.0'; }", "ray[default]'; }", "versions"),
        ("gcp.yaml", "dist/barnraise-0.1.0", "dist/barnraise-0.0.9", "versions"),
        ("gcp.yaml", '"$HOME/barnraise-0.1.0', '"$HOME/barnraise-0.0.9', "versions"),
        ("local.yaml", '<= {"0.1.0"}', '<= {"0.0.9"}', "versions"),
        ("local.yaml", V2, "unset OMP_NUM_THREADS;", "unset"),
        ("local.yaml", V2, "unset RAY_enable_autoscaler_v2;", "unset"),
        ("aws.yaml", "unset OMP_NUM_THREADS;", V2, "unset"),
        ("aws.yaml", "unset OMP_NUM_THREADS; ", "", "unset"),
        ("gcp.yaml", '--labels "barnraise-machine=$(uname -n)"', "", "machine"),
        ("local.yaml", "barnraise-machine=$(uname -n)", "barnraise-machine=one", "machine"),
        ("local.yaml", '{"contributor": 2, "auditor": 1}', "{}", "seats"),
        ("local.yaml", '"auditor": 1', '"auditors": 1', "seats"),
        ("aws.yaml", '{"auditor": 3}', "{}", "seats"),
        ("gcp.yaml", '"auditor": 3', '"auditor": 1', "seats"),
        ("local.yaml", "--object-store-memory=1073741824", "", "start"),
        ("aws.yaml", "--object-store-memory=4294967296", "--object-store-memory=99999999999", "start"),
        ("aws.yaml", "--disable-usage-stats", "", "start"),
        ("gcp.yaml", "RAY_USAGE_STATS_ENABLED=0", "", "start"),
        ("local.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "start"),
        ("local.yaml", "--autoscaling-config=~/ray_bootstrap_config.yaml", "", "start"),
        ("local.yaml", "--metrics-export-port", "--metric-export-port", "start"),
        ("aws.yaml", "MarketType: spot", "MarketType: capacity-block", "kinds"),
        ("gcp.yaml", "provisioningModel: SPOT", "provisioningModel: STANDARD", "kinds"),
        ("gcp.yaml", "    max_workers: 2\n", "    max_workers: -1\n", "kinds"),
        ("local.yaml", "'ray[default]==2.60.0'; }", "'ray[default]==2.60.0';", "shell"),
    ],
)
def test_every_rule_bites(name: str, old: str, new: str, rule: str) -> None:
    text = text_of(name)
    assert old in text
    changed = text.replace(old, new)
    assert list(RULES[rule](yaml.safe_load(changed), changed))


# What the commands do, run as Ray runs them, with programs that only write down how they were called.

STUB = """#!/bin/bash
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\n'; } >> "$HOME/calls"
env > "$HOME/env"
"""


class Shell:
    """A home folder and a PATH whose programs only take notes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.programs = home / "programs"
        self.programs.mkdir()
        for name in ("ray", "pip"):
            self.program(name, STUB)
        (home / ".bashrc").write_text(f"export PATH={self.programs}:$PATH\n")

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def run(self, command: str, **variables: str) -> None:
        """`command` as Ray has it run over ssh, after `variables` as its launcher puts them before it."""
        [command] = ray_util.with_envs([command], variables)
        words = runner._with_interactive(command)
        plain = {"HOME": str(self.home), "PATH": os.environ["PATH"], "TERM": "dumb"}
        done = subprocess.run(
            ["bash", "-c", " ".join(words)],
            env=plain,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert done.returncode == 0, done.stderr

    def calls(self) -> list[list[str]]:
        file = self.home / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.split("\0")[:-1] for line in lines]

    def environment(self) -> dict[str, str]:
        lines = (self.home / "env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def value_after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def start(shell: Shell, name: str, side: str) -> list[str]:
    config = yaml.safe_load(text_of(name))
    given = {"RAY_enable_autoscaler_v2": "1"} if side == "head" else {"RAY_HEAD_IP": "10.0.0.1"}
    shell.run(starts(config)[side], **given)
    return shell.calls()[-1]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("side", ["head", "worker"])
def test_a_node_starts_with_its_name_its_seats_and_a_token(shell: Shell, name: str, side: str) -> None:
    words = start(shell, name, side)
    assert words[:2] == ["ray", "start"]
    assert value_after(words, "--labels") == f"{MACHINE}={os.uname().nodename}"
    assert ("--address=10.0.0.1:6379" in words) is (side == "worker")
    environment = shell.environment()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert "OMP_NUM_THREADS" not in environment
    assert "RAY_USE_TLS" not in environment
    assert ("RAY_enable_autoscaler_v2" in environment) is (name != "local.yaml" and side == "head")
    if name == "local.yaml":
        assert set(json.loads(value_after(words, "--resources"))) == set(ROLES)


@pytest.mark.parametrize("side", ["head", "worker"])
def test_a_machine_of_ones_own_says_its_seats_and_whose_it_is(shell: Shell, side: str) -> None:
    folder = shell.home / ".barnraise"
    (folder / "tls").mkdir(parents=True)
    (folder / "seats.json").write_text('{"contributor": 5}\n')
    (folder / "operator").write_text("alice\n")
    (folder / "tls" / "env").write_text("export RAY_USE_TLS=1\n")
    words = start(shell, "local.yaml", side)
    assert json.loads(value_after(words, "--resources")) == {"contributor": 5}
    assert value_after(words, "--labels") == f"{MACHINE}={os.uname().nodename},{OPERATOR}=alice"
    assert shell.environment()["RAY_USE_TLS"] == "1"


def test_a_head_and_its_workers_keep_to_the_same_ports() -> None:
    said = {side: options(command) for side, command in starts(yaml.safe_load(text_of("local.yaml"))).items()}
    ports = {side: {k: v for k, v in of.items() if "port" in k} for side, of in said.items()}
    assert ports["worker"] | {"port": "6379"} == ports["head"]
    fixed = [int(v) for k, v in ports["head"].items() if "worker" not in k]
    assert len(set(fixed)) == len(fixed) == 7
    assert all(not 10002 <= port <= 10999 for port in fixed)


@pytest.mark.parametrize("name", FILES)
def test_setting_up_twice_installs_once_and_closes_the_token(shell: Shell, name: str) -> None:
    config = yaml.safe_load(text_of(name))
    token = shell.home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("not a token")
    token.chmod(0o644)
    for other in ("sudo", "cloud-init"):
        shell.program(other, "#!/bin/sh\n")
    shell.program("python", '#!/bin/sh\nexec test -e "$HOME/calls"\n')  # can import it once pip was called
    shell.program("python3", '#!/bin/sh\nmkdir -p "$3/bin"; echo "VIRTUAL_ENV=$3" > "$3/bin/activate"\n')
    for _ in range(2):
        for command in config["setup_commands"]:
            shell.run(command)
    [call] = shell.calls()
    assert call == ["pip", "install", f"{shell.home}/{WHEEL}[train]", "ray[default]==2.60.0"]
    assert (shell.home / ".barnraise/venv/bin/activate").exists()
    assert (shell.home / ".bashrc").read_text().count(". ~/.barnraise/venv/bin/activate") == 1
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700


def test_where_an_environment_is_active_none_is_made(shell: Shell) -> None:
    shell.program("python", "#!/bin/sh\nexit 1\n")
    with (shell.home / ".bashrc").open("a") as file:
        file.write("export VIRTUAL_ENV=/opt/mine\n")
    shell.run(yaml.safe_load(text_of("local.yaml"))["setup_commands"][1])
    assert [call[0] for call in shell.calls()] == ["pip"]
    assert not (shell.home / ".barnraise").exists()


def test_a_shell_on_the_head_knows_of_the_token_and_is_told_once(shell: Shell) -> None:
    config = yaml.safe_load(text_of("local.yaml"))
    for _ in range(2):
        shell.run(config["head_setup_commands"][0])
    assert (shell.home / ".bashrc").read_text().count("RAY_AUTH_MODE=token") == 1
    shell.run("ray status")
    assert shell.environment()["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(
    ("package", "installed", "found"),
    [(False, None, False), (True, None, True), (True, PROJECT["version"], True), (True, "0.0.9", False)],
)
def test_what_counts_as_installed(tmp_path: Path, package: bool, installed: str | None, found: bool) -> None:
    words = shlex.split(yaml.safe_load(text_of("local.yaml"))["setup_commands"][1])
    assert words[:2] == ["python", "-c"]
    if package:
        (tmp_path / "cluster").mkdir()
        (tmp_path / "cluster" / "ray_pool.py").touch()
    if installed:
        folder = tmp_path / f"barnraise-{installed}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: barnraise\nVersion: {installed}\n")
    # -S: nothing but what lies in the folder can be imported.
    asked = [sys.executable, "-S", "-c", words[2]]
    done = subprocess.run(asked, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, check=False, cwd="/")
    assert (done.returncode == 0) is found


def test_the_wheel_ships_the_files() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "cluster" in build["targets"]["wheel"]["packages"]
    assert set(build["targets"]["wheel"]) == {"packages"}  # nothing is left out of the folder
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not [line for line in ignored if "yaml" in line or "cluster" in line or "Container" in line]


def test_the_guide_names_every_file_and_every_port() -> None:
    guide = (ROOT / "docs" / "cluster.md").read_text()
    shipped = [path.name for path in (ROOT / "cluster").iterdir() if path.suffix == ".yaml"]
    assert sorted(shipped) == sorted((*FILES, "kuberay-cluster.yaml", "kuberay-job.yaml"))
    named = set(re.findall(r"cluster/([\w.-]+\.yaml|Containerfile)", guide))
    assert named == {*shipped, "Containerfile"}
    table = guide[guide.index("### Ports") : guide.index("### TLS")]
    head = options(starts(yaml.safe_load(text_of("local.yaml")))["head"])
    ports = {value for option, value in head.items() if option.endswith("port")}
    assert len(ports) == 9
    assert {port for port in ports if not re.search(rf"\b{port}\b", table)} == set()
