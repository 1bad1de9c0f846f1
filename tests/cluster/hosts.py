"""Separate hosts on one machine: namespaces, a bridge, sshd on each; nothing of it outlives the process.

Owns bringing hosts up, running commands on them over ssh, killing them, narrowing their links and taking
all of it down. Knows nothing of Ray or of a run. No namespace has a name and no mount is seen from outside:
each host hangs on one process that the kernel kills when its parent ends, so that even a killed test leaves
nothing.

A host has its own processes, host name, network, /tmp, /root, /run, /var/log and /dev/shm. It sees the rest
of the machine's files read-only, this interpreter and the source tree (as it was when the bed came up) among
them, and reaches nothing but the other hosts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.hosts_files import INIT, SEARCH, SOURCE, prepare_bed, prepare_host, visible
from verification.errors import BarnraiseError

TOOLS = ("ip", "tc", "unshare", "nsenter", "setpriv", "sshd", "ssh", "ssh-keygen", "rsync", "hostname")
NETWORK = "10.77.0"
CLIENT = "client"
UP_S = 20.0
DOWN_S = 10.0
# A shell inside a host sees a plain machine, nothing of the test's own environment.
PLAIN = ["env", "-i", "-C", "/root", "HOME=/root", "USER=root", "TERM=dumb", f"PATH={SEARCH}", "LANG=C.UTF-8"]

APART = ["unshare", "-m", "-p", "-u", "-i", "-n", "-f", "--mount-proc", "--kill-child"]


class HostsError(BarnraiseError):
    """The test bed could not do what it was asked for."""


@dataclass(frozen=True)
class Host:
    """`pid` is that of the host's first process, as seen from outside: with it the whole host ends."""

    name: str
    ip: str
    port: str
    holder: subprocess.Popen[bytes]
    pid: int
    space: str


@dataclass(frozen=True)
class Done:
    """What a command on a host ended with; output and errors in the order in which they came."""

    code: int
    output: str


def missing() -> str | None:
    """Why hosts cannot be had here, or None."""
    if os.geteuid() != 0:
        return "hosts need root"
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=SEARCH) is None]
    if lacking:
        return f"hosts need {', '.join(lacking)} (Debian: openssh-server rsync iproute2 util-linux)"
    trial = "mount -t tmpfs tmpfs /mnt && ip link add trial type veth peer name other && hostname trial"
    command = [*APART, "sh", "-c", trial]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return f"hosts need namespaces: {tried.stderr.strip()[:200]}" if tried.returncode else None


class Hosts:
    """Hosts in a private network, and `client`, from which every command goes out over ssh.

    Use as a context manager: on the way out, also after a failure or Ctrl-C, everything is taken down and
    HostsError raised should anything be left.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bridge: list[subprocess.Popen[bytes]] = []
        self._spaces: dict[
            str, int
        ] = {}  # held open: the kernel gives the number of one that ended to another
        self._running: list[subprocess.Popen[str]] = []
        self.hosts: dict[str, Host] = {}
        self._count = 0

    def __enter__(self) -> Hosts:
        prepare_bed(self._folder)
        try:
            self._build_bridge()
            self.start(CLIENT)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, *names: str) -> None:
        """Bring up hosts that are not there yet, and wait until each answers ssh. Raises HostsError."""
        for name in names:
            self._count += 1
            ip, port = f"{NETWORK}.{10 + self._count}", f"port{self._count}"
            with (self._folder / "hosts").open("a") as file:  # every host has it mounted
                file.write(f"{ip} {name}\n")
            holder = self._hold(name)
            self._wait(lambda holder=holder: _children(holder.pid), f"the first process of {name}")
            pid = _children(holder.pid)[0]
            space = _space(pid)
            self._spaces[space] = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
            self.hosts[name] = Host(name, ip, port, holder, pid, space)
            self._ip(pid, f"link add eth0 type veth peer name {port} netns {self._bridge[0].pid}")
            self._ip(self._bridge[0].pid, f"link set {port} master bridge up")
            self._ip(pid, "link set lo up")
            self._ip(pid, f"addr add {ip}/24 dev eth0")
            self._ip(pid, "link set eth0 up")
            self._ip(pid, f"route add default via {NETWORK}.1")  # without one Ray takes 127.0.0.1
        for name in names:
            self._wait(lambda name=name: self.run(name, "true", check=False).code == 0, f"sshd of {name}")

    def run(self, name: str, command: str, *, timeout_s: float = 120, check: bool = True) -> Done:
        """Run a shell command on a host over ssh, from the client. Raises HostsError if it fails or hangs."""
        process = self.popen(name, command)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _cut(process)
            output, _ = process.communicate()
            raise HostsError(f"`{command}` on {name} took over {timeout_s} s", got=output[-3000:]) from None
        finally:
            self._running.remove(process)
        if check and process.returncode:
            raise HostsError(f"`{command}` on {name} ended with {process.returncode}", got=output[-3000:])
        return Done(process.returncode, output)

    def popen(self, name: str, command: str) -> subprocess.Popen[str]:
        """Begin a shell command on a host; its output and errors are at `stdout` of what is returned."""
        process = subprocess.Popen(
            [*self._inside(CLIENT), "ssh", "-n", "-o", "ConnectTimeout=5", name, command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._running.append(process)
        return process

    def put(self, name: str, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file on a host; `path` may start with ~."""
        command = f"umask 077; mkdir -p $(dirname {path}) && cat > {path} && chmod {mode:o} {path}"
        subprocess.run([*self._inside(name), "bash", "-c", command], input=text, text=True, check=True)

    def kill(self, name: str) -> None:
        """As when the power fails: the link is gone, then all processes, and nobody is told."""
        host = self.hosts.pop(name)
        self._ip(self._bridge[0].pid, f"link del {host.port}")
        _end(host.holder)
        self._wait(lambda: not list(processes(host.space)), f"the end of {name}")

    def shape(self, name: str, mbit: float | None) -> None:
        """Let the link of a host carry so many megabits a second each way; None takes the limit off."""
        host = self.hosts[name]
        for pid, device in ((host.pid, "eth0"), (self._bridge[0].pid, host.port)):
            command = ["nsenter", "-t", str(pid), "-n", "tc", "qdisc"]
            if mbit is None:
                subprocess.run([*command, "del", "dev", device, "root"], check=True)
                continue
            rate = ["rate", f"{int(mbit * 1000)}kbit", "burst", "32kb", "latency", "400ms"]
            subprocess.run([*command, "replace", "dev", device, "root", "tbf", *rate], check=True)

    def processes(self, name: str, words: str = "") -> list[str]:
        """Command lines of what runs on a host and has `words` in it."""
        return [line for _, line in processes(self.hosts[name].space) if words in line]

    def close(self) -> None:
        """Take everything down. Raises HostsError when something is left."""
        for process in self._running:
            _cut(process)
            process.communicate()
        _end(*(host.holder for host in self.hosts.values()), *self._bridge)
        self.hosts.clear()
        with contextlib.suppress(HostsError):
            self._wait(lambda: not self.left(), "the end of everything", DOWN_S)
        left = self.left()
        for held in self._spaces.values():
            os.close(held)
        self._spaces.clear()
        if left:
            raise HostsError("something of the hosts is left", got=left)

    def left(self) -> list[str]:
        """Processes of this bed, and mounts of its folder that this machine sees."""
        found = [f"{pid} {line}" for pid, line in processes(*self._spaces)]
        found += [str(bridge.args) for bridge in self._bridge if bridge.poll() is None]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return found + [line for line in mounts if str(self._folder) in line]

    def _build_bridge(self) -> None:
        """A process that holds the bridge's namespace: this machine's own network is untouched."""
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "-n", "sleep", "infinity"]
        holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._bridge.append(holder)
        self._wait(lambda: _space(holder.pid, "net") != _space(os.getpid(), "net"), "a bridge")
        self._ip(holder.pid, "link add bridge type bridge")
        self._ip(holder.pid, f"addr add {NETWORK}.1/24 dev bridge")
        self._ip(holder.pid, "link set bridge up")

    def _hold(self, name: str) -> subprocess.Popen[bytes]:
        """The process on which a host hangs; the kernel kills it when this process ends."""
        files = prepare_host(self._folder, f"host{self._count}", with_key=name == CLIENT)
        inner = ["sh", "-c", INIT, "init", name, str(files), str(SOURCE), *map(str, visible())]
        command = ["setpriv", "--pdeathsig", "KILL", *PLAIN, *APART, *inner]
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _inside(self, name: str) -> list[str]:
        return ["nsenter", "-t", str(self.hosts[name].pid), "-m", "-u", "-i", "-n", "-p", "--", *PLAIN]

    @staticmethod
    def _ip(pid: int, command: str) -> None:
        inside = ["nsenter", "-t", str(pid), "-n", "ip", *command.split()]
        done = subprocess.run(inside, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HostsError(f"ip {command} failed", got=done.stderr.strip())

    @staticmethod
    def _wait(ready: object, what: str, limit_s: float = UP_S) -> None:
        assert callable(ready)
        stop = time.monotonic() + limit_s
        while not ready():
            if time.monotonic() > stop:
                raise HostsError(f"no {what} after {limit_s} s")
            time.sleep(0.05)


def processes(*spaces: str) -> Iterator[tuple[int, str]]:
    """Process ids and command lines of all that run in one of these namespaces, without zombies."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and _space(int(folder.name)) in spaces:
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                yield int(folder.name), line


def _space(pid: int, kind: str = "pid") -> str:
    """Such as pid:[4026531836]; empty for a process that is gone."""
    with contextlib.suppress(OSError):
        return str((Path("/proc") / str(pid) / "ns" / kind).readlink())
    return ""


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _cut(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # nsenter and the ssh that it started


def _end(*holders: subprocess.Popen[bytes]) -> None:
    for holder in holders:
        holder.kill()
    for holder in holders:
        holder.wait()
