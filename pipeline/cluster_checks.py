"""What is right or wrong with a cluster, from what its nodes said.

Owns the question that nodes are asked, and the judgement: dicts of all nodes in (cluster.doctor.survey says
which), findings out. Does not ask and does not know Ray. What one machine needs is in doctor.py, whose limits
hold here as well.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from model.numerics import Profile
from pipeline.doctor import GIB, SECRETS, Check, DoctorOptions, memory_check, room_check
from pipeline.hiring import ROLES
from pipeline.source import LIBRARIES
from pipeline.wandb_view import logged_in
from verification.errors import UsageError, printable
from verification.fields import NAME

Node = Mapping[str, Any]
Survey = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]

CLOCK_WARNING_S, CLOCK_WRONG_S = 2.0, 60.0
MEMBER_BYTES = 3 * GIB // 10  # of the demonstration
MOST_SEATS = 10_000  # that the pool believes a machine to have
LABELS = frozenset({"barnraise-machine", "barnraise-operator"})
# Members refuse to work where these differ; other libraries touch no bits that a run compares.
ALIKE = ("barnraise", "ray", "torch", "numpy")
_PROBE = (
    "import json; from model.numerics import THREADS, numerics_class, prepare; "
    "prepare({profile!r}, THREADS); "
    "from pipeline.probe import probe_digest; "
    "print(json.dumps({{'class': numerics_class({profile!r}, THREADS), 'digest': probe_digest()}}))"
)


def question(home: str, profile: Profile | None) -> dict[str, Any]:
    """What every node is asked; its numerics when a profile is given."""
    return {
        "packages": sorted({*LIBRARIES, *ALIKE}),
        "calls": {"source": "pipeline.source:source_digest", "memory": "pipeline.doctor:free_memory"},
        "home": home,
        "secrets": sorted(SECRETS),
        "probe": _PROBE.format(profile=profile) if profile else "",
    }


def examine(survey: Survey, options: DoctorOptions) -> list[Check]:
    """Ask every node of the cluster, and judge. A cluster that cannot be reached is a finding, too."""
    asked = question(str(options.home), options.profile if options.numerics else None)
    try:
        found = survey(options.address or "auto", asked)
    except UsageError as error:
        got = f" ({error.got})" if error.got is not None else ""
        return [Check("head", "wrong", printable(f"{error.what}{got}"), error.hint or "")]
    return [*judge(found), wandb_check(logged_in=logged_in())]


def judge(found: Mapping[str, Any]) -> list[Check]:
    """Every finding about the cluster; a rule that nothing breaks has one that says so."""
    there = [node for node in found["nodes"] if node["alive"]]
    awake = [node for node in there if node["answer"] is not None]
    rules: dict[str, tuple[Iterable[Check], str]] = {
        "nodes": (_nodes(found, there), f"{len(there)}, and all answer"),
        "versions": (_versions(awake, found["head"]), "the same Python, barnraise and libraries everywhere"),
        "token": (_token(awake), "every node asks for the token, and no other user can read it"),
        "secrets": (_secrets(awake), "keys are their owner's alone"),
        "clocks": (_clocks(awake), f"within {CLOCK_WARNING_S:.0f} s of this machine's"),
        "addresses": (_addresses(there), "every node has an address of its own"),
        "ports": (_ports(awake, found["gcs"], there), "every node reaches the head and all others"),
        "labels": (_labels(there), "machines have names of their own"),
        "seats": (_seats(there), _offered(there)),
        "members": (_memory(awake), "memory for all that have seats"),
        "homes": (_disk(awake), "there is room on every machine"),
        "shared": (_shared_memory(awake), "every object store has its shared memory"),
        "threads": (_threads(awake), "no node was started with OMP_NUM_THREADS"),
        "numerics": (_numerics(awake), "all machines compute the same bits"),
    }
    if not any("numerics" in node["answer"] for node in awake):
        del rules["numerics"]
    checks = []
    for name, (findings, good) in rules.items():
        checks += [replace(one, name=name) for one in findings] or [Check(name, "ok", good)]
    return [replace(one, text=printable(one.text), node=printable(one.node)) for one in checks]


def wandb_check(*, logged_in: bool) -> Check:
    """Where the driver's charts will be."""
    if logged_in:
        return Check("wandb", "ok", "logged in here; machines that are logged in chart themselves, too")
    return Check("wandb", "ok", "not logged in: the run is charted offline, in its own folder", "wandb login")


def _on(node: Node, status: Literal["ok", "warning", "wrong"], text: str, hint: str = "") -> Check:
    return Check("", status, text, hint, node["name"])


_wrong: Callable[..., Check] = partial(Check, "", "wrong")
_warning: Callable[..., Check] = partial(Check, "", "warning")


def _nodes(found: Mapping[str, Any], there: Sequence[Node]) -> Iterator[Check]:
    """Who is there and answers; a machine that is gone is named once, unless it came back."""
    for node in there:
        if node["error"]:
            hint = "It is overloaded, or its ports for workers are closed: docs/cluster.md, Ports."
            yield _on(node, "wrong", f"does not answer: {node['error']}", hint)
    names = {node["name"] for node in there}
    for name in sorted({node["name"] for node in found["nodes"]} - names):
        yield Check(
            "", "warning", "was there and is gone", "docs/cluster.md says how a machine is added.", name
        )
    if found["head"] and found["driver"] != found["head"]:
        hint = "Run barnraise there: `ray attach`."
        yield _warning("this machine is not the head, where the coordinator belongs", hint)


def _versions(awake: Sequence[Node], head: str) -> Iterator[Check]:
    """Each node against the head, or against most where the head did not answer."""
    same = "Install the head's wheel and versions there, then restart Ray on that machine."
    kinds = {node["id"]: _software(node["answer"]) for node in awake}
    if not kinds:
        return
    known = [tuple(sorted(kind.items())) for kind in kinds.values()]
    norm = kinds.get(head) or dict(Counter(known).most_common(1)[0][0])
    for node in awake:
        mine, errors = kinds[node["id"]], node["answer"]["errors"]
        odd = [
            f"{name} is {mine.get(name, 'missing')}, elsewhere {norm.get(name, 'missing')}"
            for name in sorted(mine.keys() | norm.keys())
            if mine.get(name) != norm.get(name)
        ]
        if "source" in errors:
            odd = [text for text in odd if not text.startswith("source ")]
            odd.append(f"its barnraise cannot be imported ({errors['source']})")
        if odd:
            yield _on(node, "wrong", "; ".join(odd), same)


def _software(answer: Mapping[str, Any]) -> dict[str, str]:
    """Versions that must be equal; of Python the minor one, of the source enough of its digest."""
    versions = answer["versions"] or {}
    found = {name: versions[name] for name in ALIKE if name in versions}
    if answer["python"]:
        found["python"] = ".".join(answer["python"].split(".")[:2])
    if answer["source"]:
        found["source"] = answer["source"].removeprefix("sha256:")[:16]
    return found


def _several(nodes: Iterable[Node]) -> bool:
    return len({node["host"] for node in nodes}) > 1


def _token(awake: Sequence[Node]) -> Iterator[Check]:
    several = _several(awake)
    for node in awake:
        token = node["answer"]["token"]
        if not token:
            reason = node["answer"]["errors"].get("token", "")
            yield _on(node, "warning", f"its token's file is unknown: {reason}", "ls -l ~/.ray there.")
            continue
        bits = token["bits"]
        if bits is not None and bits & 0o077:
            hint = "chmod 600 there; if others could read it, make a new one (docs/cluster.md, Tokens)."
            yield _on(node, "wrong", f"{token['path']} has mode {bits:04o}, others may read it", hint)
        if token["mode"] != "token" and several:
            hint = "Start Ray there with RAY_AUTH_MODE=token."
            yield _on(node, "warning", "Ray asks nobody for a token: who reaches its ports can do all", hint)
        elif token["mode"] == "token" and bits is None and not token["in_environment"]:
            yield _on(node, "wrong", f"{token['path']} is not there", "Copy it from the head, mode 0600.")


def _secrets(awake: Sequence[Node]) -> Iterator[Check]:
    for node in awake:
        home = node["answer"]["home"]
        for what, right in (("open_files", "600"), ("open_folders", "700")):
            found = home[what] if home else ()
            if found:
                path, bits = found[0]
                more = f", and {len(found) - 1} more" if found[1:] else ""
                hint = f"chmod {right} {path}"
                yield _on(node, "wrong", f"{path} has mode {bits:04o}, others may look into it{more}", hint)


def _clocks(awake: Sequence[Node]) -> Iterator[Check]:
    """Only what the round trip cannot explain counts."""
    for node in awake:
        if node["clock"] is None:
            yield _on(node, "warning", "its clock could not be read", "barnraise doctor --cluster again.")
            continue
        ahead, unsure = node["clock"]
        if (least := abs(ahead) - unsure) > CLOCK_WARNING_S:
            way = "ahead of" if ahead > 0 else "behind"
            hint = "Have NTP set it (timedatectl set-ntp true): witnesses and beacons go by time."
            status: Literal["warning", "wrong"] = "wrong" if least > CLOCK_WRONG_S else "warning"
            yield _on(node, status, f"its clock is {least:.0f} s or more {way} this machine's", hint)


def _addresses(there: Sequence[Node]) -> Iterator[Check]:
    for node in there if _several(there) else ():
        if node["address"].startswith("127.") or node["address"] in ("::1", "localhost"):
            hint = "Start Ray there with --node-ip-address, or give the machine a default route."
            yield _on(node, "wrong", f"has the address {node['address']}, which others cannot reach", hint)


def _ports(awake: Sequence[Node], gcs: str, there: Sequence[Node]) -> Iterator[Check]:
    owner = {f"{node['address']}:{port}": node["name"] for node in there for port in node["ports"]}
    owner[gcs] = "the head"
    for node in awake:
        for place, why in sorted((node["unreached"] or {}).items()):
            hint = "Open that port to the cluster's machines: docs/cluster.md, Ports."
            yield _on(node, "wrong", f"cannot connect to {owner.get(place, '?')} at {place}: {why}", hint)


def _labels(there: Sequence[Node]) -> Iterator[Check]:
    often = Counter(node["machine"] for node in there)
    say = "Start Ray there with --labels barnraise-machine=NAME."
    for node in there:
        if node["seats"] and not node["machine"]:
            yield _on(node, "wrong", "offers seats but has no name: they do not count", say)
        elif node["machine"] and not node["machine_is_label"]:
            yield _on(node, "wrong", f"the name {node['machine']!r} is no label of Ray's", say)
        operator = node["operator"]
        if operator is not None and not NAME.match(operator):
            hint = "1 to 64 of [a-z0-9._-], in ~/.barnraise/operator there."
            yield _on(node, "wrong", f"its operator {operator!r} is no name: its seats do not count", hint)
        for label in node["labels"]:
            if label not in LABELS and (near := difflib.get_close_matches(label, LABELS, 1, 0.8)):
                yield _on(node, "warning", f"the label {label} is not known", f"Is {near[0]} meant?")
    for name, count in often.items():
        if name and count > 1:
            addresses = ", ".join(sorted(node["address"] for node in there if node["machine"] == name))
            text = f"{count} nodes have this name ({addresses}): none of their seats counts"
            yield Check("", "wrong", text, say, name)


def _seats(there: Sequence[Node]) -> Iterator[Check]:
    for node in there:
        for role, number in sorted(node["seats"].items()):
            if number != int(number) or not 1 <= number <= MOST_SEATS:
                hint = f"Whole numbers of 1 to {MOST_SEATS} in ~/.barnraise/seats.json there."
                yield _on(node, "warning", f"offers {number:g} seats for {role}s", hint)
        for name in node["resources"]:
            if near := difflib.get_close_matches(name.lower(), ROLES, 1, 0.8):
                yield _on(node, "warning", f"the resource {name} is no seat", f"Is {near[0]} meant?")
        if node["machine"] and not node["seats"]:
            hint = "~/.barnraise/seats.json there says how many; docs/cluster.md."
            yield _on(node, "warning", "has a name but offers no seats", hint)
    if there and not any(node["seats"] for node in there):
        hint = "Start machines with --labels and --resources, as docs/cluster.md has it."
        yield _warning("no machine offers seats: members go anywhere, and their keys with them", hint)
    elif there:
        for role in ROLES:
            if not any(node["seats"].get(role, 0) >= 1 for node in there):
                yield _warning(f"there is no seat for {role}s", "A run needs members of both roles.")


def _offered(there: Sequence[Node]) -> str:
    sums = [f"{sum(int(node['seats'].get(role, 0)) for node in there)} for {role}s" for role in ROLES]
    return ", ".join(sums)


def _memory(awake: Sequence[Node]) -> Iterator[Check]:
    """As on one machine where members live; and those that have seats, all at once."""
    for node in awake:
        seats = int(sum(min(number, MOST_SEATS) for number in node["seats"].values()))
        free = node["answer"]["memory"]
        if not seats:
            continue
        found = memory_check(free)
        if found.status == "wrong" or free is None:
            hint = found.hint or "`free -h` there tells."
            yield _on(node, found.status, found.text, hint)
        elif free < seats * MEMBER_BYTES:
            text = f"{found.text} for {seats} seats: small members take {MEMBER_BYTES / GIB:.1f} GiB each"
            yield _on(node, "warning", text, "Offer fewer seats there.")


def _disk(awake: Sequence[Node]) -> Iterator[Check]:
    for node in awake:
        home = node["answer"]["home"]
        if not home:
            reason = node["answer"]["errors"].get("home", "")
            yield _on(
                node, "wrong", f"its home cannot be looked at: {reason}", "Members keep their keys there."
            )
        elif not home["writable"]:
            yield _on(node, "wrong", f"{home['place']} cannot be written to", "--home names another place.")
        elif (found := room_check(home["free"], home["place"])).status != "ok":
            yield _on(node, found.status, found.text, found.hint or "Make room there.")


def _shared_memory(awake: Sequence[Node]) -> Iterator[Check]:
    hint = (
        "Give the machine a larger /dev/shm (--shm-size in a container), or a smaller --object-store-memory."
    )
    for node in awake:
        total, place, store = (
            node["answer"]["shared_memory"],
            node["answer"]["store_folder"],
            node["store_bytes"],
        )
        if place and not place.startswith("/dev/shm"):  # noqa: S108 - a name that is compared
            yield _on(node, "warning", f"Ray's object store lies in {place}, on disk, which is slow", hint)
        elif total is not None and store > total:
            sizes = f"{store / GIB:.1f} GiB for objects, /dev/shm has {total / GIB:.1f} GiB"
            yield _on(node, "warning", f"too little shared memory: {sizes}", hint)


def _threads(awake: Sequence[Node]) -> Iterator[Check]:
    """Members set one thread themselves; a variable that says otherwise is somebody's mistake."""
    for node in awake:
        answer = node["answer"]
        if answer["threads"] not in (None, "", "1"):
            text = (
                f"Ray was started with OMP_NUM_THREADS={answer['threads']}; members compute with one thread"
            )
            yield _on(node, "warning", text, "Unset it before `ray start`.")
        if answer["cores"] and node["cpus"] > answer["cores"]:
            text = f"Ray counts {node['cpus']:g} CPUs, the machine lets it use {answer['cores']}"
            yield _on(node, "warning", text, "Leave --num-cpus out of its start command.")


def _numerics(awake: Sequence[Node]) -> Iterator[Check]:
    """Machines by their arithmetic: in one group contributors are audited to the bit."""
    groups: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in awake:
        value = node["answer"].get("numerics")
        if value:
            groups[value["class"], value["digest"]].append(node)
        else:
            reason = node["answer"]["errors"].get("numerics", "no answer")
            yield _on(node, "wrong", f"its numerics could not be tried: {reason}", "barnraise doctor there.")
    digests = Counter(name for name, _ in groups)
    for name, count in digests.items():
        if count > 1:
            text = f"{count} kinds of machines name the class {name}, and their probes differ"
            yield _wrong(text, "Compare their torch builds and barnraise versions; see the lines below.")
    for (name, digest), members in sorted(groups.items()) if len(groups) > 1 else ():
        who = ", ".join(sorted(node["name"] for node in members))
        yield Check("", "ok", f"{name}, probe {digest.removeprefix('sha256:')[:16]}: {who}")
    for (name, _), members in sorted(groups.items()):
        if alone := sorted(node["name"] for node in members if not _audited(node, members)):
            hint = (
                "A seat for auditors on such a machine of another operator, or audit.tolerance for the class."
            )
            yield _warning(
                f"nobody of another operator can audit {', '.join(alone)} to the bit ({name})", hint
            )


def _audited(node: Node, group: Sequence[Node]) -> bool:
    """Whether somebody else can audit the node's contributors; members without an operator are their own."""
    if node["seats"].get("contributor", 0) < 1:
        return True
    auditors = [other["operator"] for other in group if other["seats"].get("auditor", 0) >= 1]
    return any(node["operator"] is None or operator != node["operator"] for operator in auditors)
