"""What a person sees of a cluster.

`python -m tests.cluster.hosts_transcript` writes docs/cluster-transcript.md.
Owns the story and how its output is made fit to be read. The commands are those of the tests (hosts_ray.py),
typed into a real cluster on hosts of the test bed.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from tests.cluster.hosts import Done, Hosts, missing
from tests.cluster.hosts_files import SOURCE
from tests.cluster.hosts_ray import CHECKOUT, HEAD, Cluster, Run, tiny_toml
from verification.errors import UsageError

OUT = SOURCE / "docs" / "cluster-transcript.md"
ROUNDS = 20
SEATS = {"contributor": 1, "auditor": 1}
HEADER = """# A cluster, from `ray up` to `ray down`

Written by `python -m tests.cluster.hosts_transcript` from a real run on hosts of the test bed, each with its
own processes, disk, network and sshd; nothing here was typed in. Clock times and most of what Ray says are
left out (`…`). The steps are those of [cluster.md](cluster.md); the model is tiny, so it takes a few minutes.
"""
# Of commands that say much, the lines worth reading.
SHOWN = {
    "ray up": r"Cluster:|New status|\\[\\d/7\\]|Ray runtime started|Success",
    "ray down": r"Stopped|stopped|shut down|Requested|No nodes|Terminating",
    "ray start": r"Ray runtime started|Local node IP",
    "bash -lic 'ray stop'": r"Stopped|stop",
}
TURNS = """
import json
for row in map(json.loads, open("runs/main/metrics.jsonl")):
    said = [f"turn {row['round']}: loss {row['loss']:.2f}", "accepted " + " ".join(row["accepted"])]
    said += [f"{what} {' '.join(row[what])}" for what in ("late", "joined", "left") if row[what]]
    print("; ".join(said))
"""


class Transcript:
    """Runs commands on hosts and keeps what was typed and said, as Markdown."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._open = False
        self.text: list[str] = []

    def tell(self, heading: str, words: str = "") -> None:
        """A heading, and a sentence under it."""
        self._close()
        self.text += [f"\n## {heading}\n", *([f"{words}\n"] if words else [])]

    def run(self, host: str, command: str, *, timeout_s: float = 120) -> Done:
        """Run and note. Raises HostsError when the command fails."""
        print(f"{host}$ {command}", file=sys.stderr)
        done = self._hosts.run(host, command, timeout_s=timeout_s)
        if not self._open:
            self.text.append("```")
            self._open = True
        typed = command.removeprefix(f"cd {CHECKOUT} && ")
        self.text += [f"{host}$ {typed}", *readable(command, done.output)]
        return done

    def markdown(self) -> str:
        """All of it. Raises UsageError where a path of this machine got in."""
        self._close()
        text = "\n".join([HEADER, *self.text]) + "\n"
        for path in {str(SOURCE), sys.prefix, sys.base_prefix}:
            if path in text:
                raise UsageError("the transcript names a path of this machine", got=path)
        return text

    def _close(self) -> None:
        if self._open:
            self.text.append("```")
        self._open = False


def readable(command: str, output: str) -> list[str]:
    """Lines without colours, clock times and long digests; of some commands only those worth reading."""
    wanted = next((kept for word, kept in SHOWN.items() if word in command), "")
    lines: list[str] = []
    for raw in output.splitlines():
        line = re.sub(r"\x1b\[[0-9;]*m", "", raw)
        line = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+[A-Z]+ \S+ -- ", "", line)
        line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?", "…", line)
        line = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b", r"\1…", line)
        line = (
            line.replace(sys.prefix, "~/venv").replace(str(SOURCE), CHECKOUT).replace("/root/", "~/").rstrip()
        )
        if wanted and not re.search(wanted, line):
            if lines[-1:] != ["…"]:
                lines.append("…")
        elif line:
            lines.append(line)
    return lines


def story(hosts: Hosts) -> str:
    """The whole of it, on hosts that are not started yet; Markdown."""
    script = Transcript(hosts)
    cluster = Cluster(hosts, "w1", "w2", seats=SEATS, run=script.run)
    script.tell(
        "Before the first time", "A token for the cluster, and the wheel that every machine installs."
    )
    cluster.prepare()
    script.tell(
        "Up", "The file names the head and two workers; each has a seat for a contributor and an auditor."
    )
    cluster.up()
    script.run(HEAD, "ray status")
    script.tell(
        "A run", f"{ROUNDS} turns, three contributors and three auditors; two newcomers may come later."
    )
    hosts.put(HEAD, "~/bin/turns", f"#!{sys.executable}{TURNS}", 0o755)
    run = Run(
        hosts,
        "main",
        tiny_toml(
            run={"rounds": ROUNDS},
            identity={"newcomers": 2},
            timing={"mode": "measured", "round_ms": 1000, "deadline_ms": 4000, "max_steps": 12},
        ),
        start=script.run,
    )
    run.until(lambda row: row["round"] >= 3, "third turn", 150)
    script.run(HEAD, "~/bin/turns | tail -n 3")
    script.tell(
        "The power of w2 fails", "It costs what its members were doing; they are absent from then on."
    )
    hosts.kill("w2")
    run.until(lambda row: any(name[0] == "c" for name in row["left"]), "turn without w2", 90)
    script.run(HEAD, "~/bin/turns | tail -n 4")
    script.tell("Another machine comes", "One that is in no file. Its free seats get new members.")
    cluster.join("w3", SEATS)
    come = run.until(lambda row: any(name[0] == "c" for name in row["joined"]), "newcomer", 120)
    run.until(lambda row: row["round"] > come["round"], "turn after that", 60)
    script.run(HEAD, "~/bin/turns | tail -n 3")
    script.tell("The end, checked", "Offline, from the run's folder alone; every contribution recomputed.")
    run.end(240)
    script.run(HEAD, "~/bin/turns | tail -n 1")
    script.run(HEAD, f"barnraise verify {run.folder} --level 3", timeout_s=200)
    script.run(HEAD, f"barnraise report {run.folder}")
    script.tell("Down")
    cluster.down()
    return script.markdown()


def main() -> None:
    """Write the file. Exits with a reason where hosts cannot be had."""
    if why := missing():
        sys.exit(why)
    with tempfile.TemporaryDirectory(prefix="barnraise-hosts-") as folder, Hosts(Path(folder)) as hosts:
        text = story(hosts)
    OUT.write_text(text)
    print(OUT.relative_to(SOURCE))


if __name__ == "__main__":
    main()
