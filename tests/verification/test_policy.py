"""Policy files: the format's own example, each rule with a file that breaks it, the quorum by a model."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification import policy as module
from verification.errors import BarnraiseError, FormatError, UsageError
from verification.keys import PrivateKey
from verification.notes import vkey, witness_vkey
from verification.policy import (
    Group,
    PolicyLog,
    PolicyWitness,
    load_policy,
    parse_policy,
    shown,
    write_policy,
)

KEYS = [PrivateKey.from_seed(bytes([number]) * 32) for number in range(1, 8)]
LOG = vkey("example.org/barn", KEYS[6].public)
W = [witness_vkey(f"w{i}.example", key.public) for i, key in enumerate(KEYS)]
# The example of c2sp.org/tlog-policy with keys filled in.
EXAMPLE = f"""log {LOG}

witness X1 {W[0]}
witness X2 {W[1]}
witness X3 {W[2]}
group X-witnesses 2 X1 X2 X3

witness Y1 {W[3]}
witness Y2 {W[4]}
witness Y3 {W[5]}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""
TWO = f"witness a {W[0]}\nwitness b {W[1]}\n"


def refused(text: str | bytes, line: int | None, match: str) -> None:
    with pytest.raises(FormatError, match=match) as caught:
        parse_policy(text if isinstance(text, bytes) else text.encode())
    assert line is None or caught.value.what.startswith(f"line {line} of the policy ")


def test_the_example_of_the_specification() -> None:
    policy = parse_policy(EXAMPLE.encode())
    assert policy.logs == (PolicyLog(LOG, None),)
    assert policy.log_vkeys == (LOG,)
    assert policy.witness_vkeys == tuple(W[:6])
    assert policy.witnesses[3] == PolicyWitness("Y1", W[3], None)
    assert policy.groups[0] == Group("X-witnesses", 2, ("X1", "X2", "X3"))
    assert policy.groups[1].k == 1
    assert policy.groups[2].k == 2
    for bits in range(64):
        seen = {W[i] for i in range(6) if bits >> i & 1}
        enough = len(seen & set(W[:3])) >= 2 and len(seen & set(W[3:6])) >= 1
        assert policy.satisfied_by(seen) == enough
    assert not policy.satisfied_by({"X1", "X2", "Y1", "X-and-Y"})
    with pytest.raises(UsageError, match="another rule"):
        policy.threshold()


def test_white_space_comments_and_addresses() -> None:
    text = f" \t\n# a comment\n\t # another\n log\t {LOG}  https://log.example/ \n"
    text += f"witness \t a {W[0]} http://w/x\t\nquorum a\n"
    policy = parse_policy(text.encode())
    assert policy.logs == (PolicyLog(LOG, "https://log.example/"),)
    assert policy.witnesses == (PolicyWitness("a", W[0], "http://w/x"),)
    assert policy.threshold() == (1, policy.witnesses)


def test_names_are_bytes() -> None:
    kelvin = b"\xe2\x84\xaa"
    keys = [text.encode() for text in W]
    text = b"witness K %s\nwitness %s %s\nwitness \xff %s\n" % (keys[0], kelvin, keys[1], keys[2])
    text += b"witness \xef\xbf\xbd %s\ngroup g all K %s\nquorum g\n" % (keys[3], kelvin)
    policy = parse_policy(text)
    assert [witness.name for witness in policy.witnesses] == ["K", "\u212a", "\udcff", "\ufffd"]
    assert policy.satisfied_by({W[0], W[1]})
    assert not policy.satisfied_by({W[0], W[2]})
    assert shown("\udcff") == "\ufffd"
    refused(text.replace(b"group g", b"group \xff"), 5, "name that is taken")


@pytest.mark.parametrize("k", ["1", "2", "3", "any", "all"])
def test_a_plain_threshold(k: str) -> None:
    text = f"{TWO}witness c {W[2]} http://c\ngroup unused any a\n".replace("group unused any a\n", "")
    policy = parse_policy(f"{text}group g {k} c a b\nquorum g\n".encode())
    number = {"any": 1, "all": 3}.get(k) or int(k)
    assert policy.threshold() == (number, policy.witnesses)
    for chosen in itertools.chain.from_iterable(itertools.combinations(W[:3], n) for n in range(4)):
        assert policy.satisfied_by(chosen) == (len(chosen) >= number)


@pytest.mark.parametrize(("count", "required"), [(0, 0), (1, 1), (3, 2), (5, 5)])
def test_a_runs_own_policy_reads_back(count: int, required: int) -> None:
    policy = parse_policy(write_policy(LOG, W[:count], required).encode())
    assert policy.log_vkeys == (LOG,)
    assert policy.threshold() == (required, policy.witnesses)
    assert [witness.vkey for witness in policy.witnesses] == W[:count]


def test_no_quorum_needs_nobody() -> None:
    for text in ("quorum none\n", f"{TWO}quorum none\n"):
        policy = parse_policy(text.encode())
        assert policy.satisfied_by(())
        assert policy.threshold() == (0, policy.witnesses)


@pytest.mark.parametrize(
    "tail",
    [
        "quorum a\n",
        "group g all a b\nquorum a\n",
        "group g any a\nquorum g\n",
        "group h any b\ngroup g any a h\nquorum g\n",
    ],
)
def test_other_rules_are_no_threshold(tail: str) -> None:
    with pytest.raises(UsageError, match="another rule") as caught:
        parse_policy((TWO + tail).encode()).threshold()
    assert "group all-witnesses K a b" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "match"),
    [
        ("", None, "no quorum line"),
        ("# quorum none\n", None, "no quorum line"),
        ("quorum none", None, "does not end"),
        ("quorum none\nquorum none\n", 2, "second quorum"),
        ("quorum none x\n", 1, "does not define the quorum"),
        ("quorum\n", 1, "does not define the quorum"),
        ("quorum a\nwitness a " + W[0] + "\n", 1, "no line before"),
        (f"{TWO}quorum c\n", 3, "no line before"),
        ("quorum none\r\n", 1, "control character"),
        ("\x00quorum none\n", 1, "control character"),
        ("quorum none\n#\x7f\n", 2, "control character"),
        ("quorum none # all\n", 1, "does not define the quorum"),
        ("Quorum none\n", 1, "unknown word"),
        ("threshold 2\n", 1, "unknown word"),
        ("log\n", 1, "does not define a log"),
        (f"log {LOG} a b\n", 1, "does not define a log"),
        (f"log {W[0]}\n", 1, "unusable key"),
        (f"log {LOG[:-1]}\n", 1, "unusable key"),
        (f"log {LOG}\nlog {LOG}\n", 2, "another log line"),
        (f"log {LOG}\nlog {vkey('other', KEYS[6].public)}\n", 2, "another log line"),
        (f"witness {W[0]}\n", 1, "does not define a witness"),
        (f"witness a {W[0]} u v\n", 1, "does not define a witness"),
        (f"witness a {LOG}\n", 1, "unusable key"),
        (f"witness a {W[0]}\nwitness b {W[0]}\n", 2, "another witness line"),
        (f"witness a {W[0]}\nwitness b {witness_vkey('b', KEYS[0].public)}\n", 2, "another witness line"),
        (f"witness a {W[0]}\nwitness a {W[1]}\n", 2, "name that is taken"),
        (f"witness none {W[0]}\n", 1, "name that is taken"),
        (f"{TWO}group a any b\n", 3, "name that is taken"),
        (f"{TWO}group none any b\n", 3, "name that is taken"),
        (f"{TWO}group g any\n", 3, "does not define a group"),
        (f"{TWO}group g 1\n", 3, "does not define a group"),
        (f"{TWO}group g any c\n", 3, "no line before"),
        (f"{TWO}group g any g\n", 3, "no line before"),
        (f"{TWO}group g any none\n", 3, "no line before"),
        (f"{TWO}group g any a a\n", 3, "member again"),
        (f"{TWO}group g any a\ngroup h any a\n", 4, "member again"),
        (f"{TWO}group g 0 a b\n", 3, "impossible threshold"),
        (f"{TWO}group g 3 a b\n", 3, "impossible threshold"),
        (f"{TWO}group g 01 a b\n", 3, "impossible threshold"),
        (f"{TWO}group g +1 a b\n", 3, "impossible threshold"),
        (f"{TWO}group g 99999 a b\n", 3, "impossible threshold"),
        (f"{TWO}group g most a b\n", 3, "impossible threshold"),
        (f"{TWO}group g \u0661 a b\n", 3, "impossible threshold"),
    ],
)
def test_each_rule(text: str, line: int | None, match: str) -> None:
    refused(text, line, match)


def test_unicode_spaces_do_not_separate() -> None:
    refused(f"witness a\u00a0{W[0]}\nquorum a\n", 1, "does not define a witness")


def test_limits() -> None:
    many = [PrivateKey.from_seed(number.to_bytes(32, "big")).public for number in range(257)]
    for count in (32, 256, 257):
        logs = "".join(f"log {vkey('l', key)}\n" for key in many[:count])
        witnesses = "".join(f"witness w{i} {witness_vkey('w', key)}\n" for i, key in enumerate(many[:count]))
        chain = f"witness w {W[0]}\n" + "".join(
            f"group g{i} all {f'g{i - 1}' if i else 'w'}\n" for i in range(count)
        )
        for text in (logs + "quorum none\n", witnesses + "quorum w3\n", f"{chain}quorum g{count - 1}\n"):
            if count > 256:
                refused(text, None, "one definition too many")
            else:
                policy = parse_policy(text.encode())
                assert len(policy.logs) + len(policy.witnesses) + len(policy.groups) >= count
                assert policy.satisfied_by({W[0], witness_vkey("w", many[3])})
    refused(b"#" * module.MAX_POLICY_BYTES + b"\n", None, "too long")
    assert parse_policy(b"quorum none\n".rjust(module.MAX_POLICY_BYTES)).quorum == "none"


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    with pytest.raises(UsageError, match="cannot be read"):
        load_policy(path)
    path.write_text(EXAMPLE)
    assert load_policy(path) == parse_policy(EXAMPLE.encode())
    path.write_bytes(b"#" * (module.MAX_POLICY_BYTES + 10))
    with pytest.raises(FormatError, match="too long"):
        load_policy(path)


@st.composite
def rules(draw: st.DrawFn) -> tuple[str, int, list[tuple[int, list[int]]]]:
    """A policy of witnesses 0 to 6 and groups above them; the last group is the quorum."""
    free = list(range(7))
    groups = []
    for number in range(7, 7 + draw(st.integers(1, 4))):
        members = draw(st.lists(st.sampled_from(free), min_size=1, max_size=4, unique=True))
        k = draw(st.integers(1, len(members)))
        free = [name for name in free if name not in members] + [number]
        groups.append((k, members))
    text = "".join(f"witness n{i} {W[i]}\n" for i in range(7))
    for number, (k, members) in enumerate(groups, 7):
        text += f"group n{number} {k} {' '.join(f'n{name}' for name in members)}\n"
    return f"{text}quorum n{6 + len(groups)}\n", 6 + len(groups), groups


@given(rules(), st.sets(st.integers(0, 6)))
def test_the_quorum_is_the_recursive_rule(
    rule: tuple[str, int, list[tuple[int, list[int]]]], cosigned: Collection[int]
) -> None:
    text, quorum, groups = rule

    def holds(name: int) -> bool:
        if name < 7:
            return name in cosigned
        k, members = groups[name - 7]
        return sum(holds(member) for member in members) >= k

    policy = parse_policy(text.encode())
    assert policy.satisfied_by([W[i] for i in cosigned]) == holds(quorum)
    with suppress(UsageError):
        k, witnesses = policy.threshold()
        assert all(
            policy.satisfied_by(chosen) == (n >= k)
            for n in range(8)
            for chosen in itertools.combinations([witness.vkey for witness in witnesses], n)
        )


@given(st.binary(max_size=60), st.integers(0, len(EXAMPLE)), st.integers(0, 30))
def test_bad_bytes_stay_in_the_family(junk: bytes, at: int, cut: int) -> None:
    data = EXAMPLE.encode()
    known = set(parse_policy(data).witness_vkeys)
    with suppress(BarnraiseError):
        assert set(parse_policy(data[:at] + junk + data[at + cut :]).witness_vkeys) <= known
    with suppress(BarnraiseError):
        assert parse_policy(junk).quorum == "none"
