"""The files for KubeRay and the image: fields, versions, keys that outlive a pod, nobody root, no secret.

The fields are checked against FIELDS below, written by hand from the references of KubeRay 1.5.1 and of
Kubernetes for what the files use and nothing more. Each rule is shown to bite on a changed copy.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.ray_pool import MACHINE, OPERATOR, ROLES
from pipeline.config import parse_config
from pipeline.options import HOME, ResumeOptions, TrainOptions, parse_options

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
FILES = ("kuberay-cluster.yaml", "kuberay-job.yaml")
USER_HOME = "/home/barnraise"
SECRETS = re.compile(r"-----BEGIN|\b[0-9a-fA-F]{32,}\b|RAY_AUTH_TOKEN|(?i:password|api_key)\s*[:=]")

Documents = list[dict[str, Any]]


def text_of(name: str) -> str:
    return (ROOT / "cluster" / name).read_text()


def pinned(ray: str) -> bool:
    [line] = [line for line in PROJECT["optional-dependencies"]["train"] if line.startswith("ray")]
    low, high = (
        tuple(map(int, part.strip("<>=").split("."))) for part in line.removeprefix("ray").split(",")
    )
    return low <= tuple(map(int, ray.split("."))) < high


# A shape: a type, a set of words, [shape] for a list, {"name": shape} for an object with just these fields,
# those with "!" always, or {str: shape} for any names.

QUANTITY = re.compile(r"[0-9]+(m|Mi|Gi)?")
STRINGS = {str: str}
PROBE = {
    "httpGet!": {"path!": str, "port!": int},
    "periodSeconds": int,
    "timeoutSeconds": int,
    "failureThreshold": int,
}
CONTAINER = {
    "name!": str,
    "image!": str,
    "securityContext!": {"allowPrivilegeEscalation!": bool, "capabilities!": {"drop!": [str]}},
    "ports": [{"name!": str, "containerPort!": int}],
    "resources!": {
        "requests!": {"cpu!": QUANTITY, "memory!": QUANTITY},
        "limits!": {"cpu": QUANTITY, "memory!": QUANTITY},
    },
    "startupProbe!": PROBE,
    "livenessProbe!": PROBE,
    "readinessProbe!": PROBE,
    "volumeMounts!": [{"name!": str, "mountPath!": str, "subPath": str, "readOnly": bool}],
}
POD = {
    "automountServiceAccountToken!": bool,
    "securityContext!": {
        "runAsNonRoot!": bool,
        "runAsUser!": int,
        "runAsGroup!": int,
        "fsGroup!": int,
        "seccompProfile!": {"type!": {"RuntimeDefault"}},
    },
    "topologySpreadConstraints": [
        {
            "maxSkew!": int,
            "topologyKey!": str,
            "whenUnsatisfiable!": {"DoNotSchedule", "ScheduleAnyway"},
            "labelSelector": {"matchLabels": STRINGS},
        }
    ],
    "containers!": [CONTAINER],
    "volumes!": [{"name!": str, "persistentVolumeClaim": {"claimName!": str}, "configMap": {"name!": str}}],
}
GROUP = {
    "labels!": STRINGS,
    "resources!": STRINGS,
    "rayStartParams!": STRINGS,
    "template!": {"metadata": {"labels": STRINGS}, "spec!": POD},
}
WORKERS = {**GROUP, "groupName!": str, "replicas!": int, "minReplicas!": int, "maxReplicas!": int}
CLUSTER = {
    "rayVersion!": str,
    "authOptions!": {"mode!": {"token"}},
    "headGroupSpec!": GROUP,
    "workerGroupSpecs!": [WORKERS],
}
JOB = {
    "submissionMode!": {"HTTPMode", "K8sJobMode", "SidecarMode", "InteractiveMode"},
    "entrypoint!": str,
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec!": CLUSTER,
}
CLAIM = {
    "accessModes!": [{"ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"}],
    "resources!": {"requests!": {"storage!": QUANTITY}},
    "storageClassName": str,
}
HEADER = {"apiVersion!": str, "kind!": str, "metadata!": {"name!": str}}
FIELDS: dict[tuple[str, str], dict[str, Any]] = {
    ("ray.io/v1", "RayCluster"): {**HEADER, "spec!": CLUSTER},
    ("ray.io/v1", "RayJob"): {**HEADER, "spec!": JOB},
    ("v1", "PersistentVolumeClaim"): {**HEADER, "spec!": CLAIM},
    ("v1", "ConfigMap"): {**HEADER, "data!": STRINGS},
}


def misfits(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Where `value` is not of `shape`."""
    if isinstance(shape, type):
        if type(value) is not shape:
            yield f"{path}: {value!r}"
    elif isinstance(shape, re.Pattern):
        if not isinstance(value, str) or not shape.fullmatch(value):
            yield f"{path}: {value!r}"
    elif isinstance(shape, set):
        if value not in shape:
            yield f"{path}: {value!r}"
    elif isinstance(shape, list):
        if not isinstance(value, list) or not value:
            yield f"{path}: no list"
        else:
            for index, item in enumerate(value):
                yield from misfits(item, shape[0], f"{path}[{index}]")
    elif not isinstance(value, dict):
        yield f"{path}: no object"
    elif str in shape:
        for name, item in value.items():
            yield from misfits(name, str, path)
            yield from misfits(item, shape[str], f"{path}.{name}")
    else:
        known = {name.rstrip("!"): of for name, of in shape.items()}
        must = {name.rstrip("!") for name in shape if name.endswith("!")}
        yield from (f"{path}.{name} is missing" for name in sorted(must - set(value)))
        for name, item in value.items():
            if name in known:
                yield from misfits(item, known[name], f"{path}.{name}")
            else:
                yield f"{path}.{name} is no field"


def cluster_of(documents: Documents) -> dict[str, Any]:
    [found] = [d for d in documents if d["apiVersion"] == "ray.io/v1"]
    spec = found["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return cluster


def groups_of(documents: Documents) -> list[dict[str, Any]]:
    cluster = cluster_of(documents)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods_of(documents: Documents) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in groups_of(documents)]


# Rules: each yields what is wrong with a file.


def rule_fields(documents: Documents, text: str) -> Iterator[str]:
    for document in documents:
        kind = (document["apiVersion"], document["kind"])
        if kind not in FIELDS:
            yield f"no such kind: {kind}"
        else:
            yield from misfits(document, FIELDS[kind], document["kind"])


def rule_versions(documents: Documents, text: str) -> Iterator[str]:
    ray = cluster_of(documents)["rayVersion"]
    if not pinned(ray):
        yield f"Ray {ray}"
    for pod in pods_of(documents):
        image = pod["containers"][0]["image"]
        if not image.endswith(f":{PROJECT['version']}-ray{ray}"):
            yield f"image {image}"


def rule_token(documents: Documents, text: str) -> Iterator[str]:
    if cluster_of(documents).get("authOptions") != {"mode": "token"}:
        yield "no token"
    yield from (f"looks like a secret: {found}" for found in SECRETS.findall(text))


def rule_machines(documents: Documents, text: str) -> Iterator[str]:
    """A group is one pod under one name, with seats; KubeRay refuses labels in rayStartParams."""
    names = [group["labels"].get(MACHINE) for group in groups_of(documents)]
    if None in names or len(set(names)) != len(names):
        yield f"machines {names}"
    seats: dict[str, int] = {}
    for group in groups_of(documents):
        if not group["resources"] or not set(group["resources"]) <= set(ROLES):
            yield f"seats {group['resources']}"
        for role, number in group["resources"].items():
            seats[role] = seats.get(role, 0) + int(number)
        if not set(group["labels"]) <= {MACHINE, OPERATOR}:
            yield f"labels {group['labels']}"
        if {"labels", "resources", "num-cpus", "num-gpus", "memory"} & set(group["rayStartParams"]):
            yield "labels or resources in rayStartParams"
        if "groupName" in group and [group[f] for f in ("replicas", "minReplicas", "maxReplicas")] != [
            1,
            1,
            1,
        ]:
            yield f"{group['groupName']} is not one machine"
    if seats.get("auditor", 0) < 3 or not seats.get("contributor"):
        yield f"seats in all {seats}"


def rule_keys(documents: Documents, text: str) -> Iterator[str]:
    """Keys and run folders lie on volumes, one for each machine."""
    claims = [d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"]
    used = [pod["volumes"][0].get("persistentVolumeClaim", {}).get("claimName") for pod in pods_of(documents)]
    if sorted(map(str, used)) != sorted(claims) or len(set(claims)) != len(claims):
        yield f"claims {claims}, used {used}"
    for number, pod in enumerate(pods_of(documents)):
        volume = pod["volumes"][0]["name"]
        kept = {
            m["mountPath"]: m.get("subPath")
            for m in pod["containers"][0]["volumeMounts"]
            if m["name"] == volume
        }
        wanted = {f"{USER_HOME}/.barnraise"} | ({f"{USER_HOME}/runs"} if number == 0 else set())
        if set(kept) != wanted or len(set(kept.values())) != len(kept) or None in kept.values():
            yield f"kept {kept}"


def rule_pods(documents: Documents, text: str) -> Iterator[str]:
    """Nobody is root, nobody talks to Kubernetes, memory is what was asked for, probes ask what answers."""
    for number, pod in enumerate(pods_of(documents)):
        user = pod["securityContext"]
        if not user["runAsNonRoot"] or {user["runAsUser"], user["runAsGroup"], user["fsGroup"]} != {10001}:
            yield f"user {user}"
        if pod["automountServiceAccountToken"]:
            yield "a member could talk to Kubernetes"
        [container] = pod["containers"]
        if container["securityContext"] != {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }:
            yield "privileges"
        memory = {container["resources"][kind]["memory"] for kind in ("requests", "limits")}
        if len(memory) != 1:
            yield f"memory {memory}"
        store = int(groups_of(documents)[number]["rayStartParams"].get("object-store-memory", 0))
        if not 78_643_200 <= store <= int(memory.pop().removesuffix("Gi")) << 28:  # a quarter
            yield f"object store {store}"
        health = ("/api/gcs_healthz", 8265) if number == 0 else ("/api/local_raylet_healthz", 52365)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if tuple(container[probe]["httpGet"].values()) != health:
                yield f"{probe} {container[probe]['httpGet']}"
    if groups_of(documents)[0]["rayStartParams"].get("disable-usage-stats") != "true":
        yield "reports its usage"


RULES: dict[str, Callable[[Documents, str], Iterator[str]]] = {
    name.removeprefix("rule_"): value for name, value in sorted(globals().items()) if name.startswith("rule_")
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rule", RULES)
def test_every_shipped_file_keeps_every_rule(name: str, rule: str) -> None:
    text = text_of(name)
    assert list(RULES[rule](list(yaml.safe_load_all(text)), text)) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("apiVersion: ray.io/v1\n", "apiVersion: ray.io/v2\n", "fields"),
        ("workerGroupSpecs:", "workerGroups:", "fields"),
        ("readinessProbe:", "readynessProbe:", "fields"),
        ('resources: {auditor: "3"}', "resources: {auditor: 3}", "fields"),
        ("rayVersion:", "rayVersions:", "fields"),
        ("memory: 16Gi", "memory: 16GB", "fields"),
        ("storage: 20Gi", "size: 20Gi", "fields"),
        ('rayVersion: "2.60.0"', 'rayVersion: "2.61.0"', "versions"),
        ("0.1.0-ray2.60.0", "0.1.0-ray2.59.0", "versions"),
        ("0.1.0-ray2.60.0", "0.0.9-ray2.60.0", "versions"),
        ("mode: token", "mode: disabled", "token"),
        ("subPath: runs}", "subPath: runs} # 0123456789abcdef0123456789abcdef", "token"),
        ("barnraise-machine: worker-2", "barnraise-machine: worker-1", "machines"),
        ("barnraise-machine: head", "machine: head", "machines"),
        ('{contributor: "2"}', '{contributors: "2"}', "machines"),
        ('{auditor: "3"}', '{auditor: "2"}', "machines"),
        ("replicas: 1", "replicas: 2", "machines"),
        ('disable-usage-stats: "true"', 'labels: "a=b"', "machines"),
        ("claimName: barnraise-worker-2", "claimName: barnraise-worker-1", "keys"),
        ("mountPath: /home/barnraise/.barnraise", "mountPath: /home/ray/.barnraise", "keys"),
        ("subPath: runs", "subPath: home", "keys"),
        ("runAsUser: 10001", "runAsUser: 0", "pods"),
        ("automountServiceAccountToken: false", "automountServiceAccountToken: true", "pods"),
        ("drop: [ALL]", "drop: [NET_RAW]", "pods"),
        ('limits: {cpu: "4", memory: 8Gi}', 'limits: {cpu: "4", memory: 4Gi}', "pods"),
        ('"1073741824"', '"9973741824"', "pods"),
        ("port: 52365", "port: 8265", "pods"),
        ('disable-usage-stats: "true"', 'disable-usage-stats: "false"', "pods"),
    ],
)
def test_every_rule_bites(name: str, old: str, new: str, rule: str) -> None:
    text = text_of(name)
    assert old in text
    changed = text.replace(old, new)
    assert list(RULES[rule](list(yaml.safe_load_all(changed)), changed))


def test_the_job_has_the_cluster_of_the_other_file_with_a_configuration() -> None:
    cluster, job = (list(yaml.safe_load_all(text_of(name))) for name in FILES)
    head = cluster_of(job)["headGroupSpec"]["template"]["spec"]
    mount = head["containers"][0]["volumeMounts"].pop()
    volume = head["volumes"].pop()
    assert (mount["name"], mount["mountPath"]) == (volume["name"], f"{USER_HOME}/config")
    assert volume["configMap"]["name"] in [d["metadata"]["name"] for d in job if d["kind"] == "ConfigMap"]
    assert cluster_of(job) == cluster_of(cluster)
    claims = [[d for d in documents if d["kind"] == "PersistentVolumeClaim"] for documents in (cluster, job)]
    assert claims[0] == claims[1]


def test_the_jobs_configuration_is_one_and_fits_the_seats() -> None:
    job = list(yaml.safe_load_all(text_of("kuberay-job.yaml")))
    [data] = [d["data"] for d in job if d["kind"] == "ConfigMap"]
    config = parse_config(tomllib.loads(data["run.toml"]), "run.toml")
    seats = {role: sum(int(group["resources"].get(role, 0)) for group in groups_of(job)) for role in ROLES}
    assert len(config.train.steps) == seats["contributor"]
    assert config.audit.auditors == seats["auditor"]


def test_the_job_starts_a_run_and_then_goes_on_with_it(tmp_path: Path) -> None:
    [job] = [d["spec"] for d in yaml.safe_load_all(text_of("kuberay-job.yaml")) if d["kind"] == "RayJob"]
    program = tmp_path / "barnraise"
    program.write_text('#!/bin/sh\nfor word; do echo "$word"; done\nmkdir -p "$HOME/runs/main"\n')
    program.chmod(0o755)
    said = []
    for _ in range(2):
        done = subprocess.run(
            ["/bin/sh", "-c", job["entrypoint"]],
            env={"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        said.append(done.stdout.splitlines())
    run = tmp_path / "runs" / "main"
    first = parse_options(TrainOptions, "train", said[0][1:])
    assert (said[0][0], first.address, first.folder) == ("train", "auto", run)
    assert first.config == tmp_path / "config" / "run.toml"
    second = parse_options(ResumeOptions, "resume", said[1][1:])
    assert (said[1][0], second.address, second.run) == ("resume", "auto", run)


def test_members_keep_their_keys_where_the_volume_is() -> None:
    assert str(HOME).replace("~", USER_HOME, 1) == f"{USER_HOME}/.barnraise"


# The image.


def instructions(text: str) -> list[tuple[str, str]]:
    lines = re.sub(
        r"\\\n", " ", "\n".join(x for x in text.splitlines() if not x.startswith("#"))
    ).splitlines()
    pairs = [line.split(None, 1) for line in lines if line.strip()]
    return [(word.upper(), rest.strip()) for word, rest in pairs]


def image_problems(text: str) -> Iterator[str]:
    said = instructions(text)
    bases = [rest.split()[0] for word, rest in said if word == "FROM"]
    if len(bases) < 2 or len(set(bases)) != 1:
        yield f"stages {bases}"
    if not re.fullmatch(
        r"docker\.io/library/python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", bases[-1]
    ):
        yield f"base {bases[-1]}"
    last = said[max(i for i, (word, _) in enumerate(said) if word == "FROM") :]
    users = [rest for word, rest in last if word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        yield f"user {users}"
    [pod, *_] = pods_of(list(yaml.safe_load_all(text_of("kuberay-cluster.yaml"))))
    if users and users[-1].split(":")[0] != str(pod["securityContext"]["runAsUser"]):
        yield "another user than the pods'"
    if any(word == "COPY" and "--from=" not in rest for word, rest in last):
        yield "the last stage copies from outside"
    versions = re.findall(
        r"^RAY_VERSION=(.+)$", "\n".join(rest for word, rest in said if word == "ARG"), re.MULTILINE
    )
    if len(versions) != 1 or not pinned(versions[0]) or '"ray[default]==${RAY_VERSION}"' not in text:
        yield f"Ray {versions}"
    if pod["containers"][0]["image"] not in text:
        yield "another image than the pods'"
    copied = {rest.split()[-1] for word, rest in said if word == "COPY"}
    if not set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied:
        yield f"not the whole package: {copied}"
    for word, rest in said:
        if word == "ADD" or (
            word in ("ENV", "ARG") and re.search(r"(?i)token|secret|password|api_key", rest)
        ):
            yield f"{word} {rest}"
    if SECRETS.search(re.sub(r"sha256:[0-9a-f]{64}", "", text)):
        yield "looks like a secret"


def test_the_image_keeps_every_rule() -> None:
    assert list(image_problems(text_of("Containerfile"))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("USER 10001:10001", "USER root"),
        ("USER 10001:10001", "USER 10002:10002"),
        ("USER 10001:10001\n", ""),
        ("USER 10001:10001", "USER 0:0"),
        ("3.11.14-slim-bookworm", "3-slim"),
        ("3.11.14-slim-bookworm AS build", "3.11.13-slim-bookworm AS build"),
        ("ARG RAY_VERSION=2.60.0", "ARG RAY_VERSION=2.59.0"),
        ('"ray[default]==${RAY_VERSION}"', '"ray[default]"'),
        ("0.1.0-ray2.60.0", "0.2.0-ray2.60.0"),
        ("COPY pipeline pipeline\n", ""),
        ("WORKDIR /home/barnraise", "COPY runs runs"),
        ("ARG PIP_EXTRA_INDEX_URL", "ARG WANDB_API_KEY"),
        ("COPY model model", "ADD model model"),
    ],
)
def test_every_rule_of_the_image_bites(old: str, new: str) -> None:
    text = text_of("Containerfile")
    assert old in text
    assert list(image_problems(text.replace(old, new)))


def test_the_images_commands_are_shell() -> None:
    for word, rest in instructions(text_of("Containerfile")):
        if word == "RUN":
            assert subprocess.run(["sh", "-n", "-c", rest], check=False).returncode == 0, rest
        if word == "CMD":
            assert shlex.join(json.loads(rest)) == "barnraise --help"
