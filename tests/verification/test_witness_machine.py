"""A witness among honest and dishonest logs, crashes and clocks: what it never does, whatever happens."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.verification.log_model import Crash, failing
from tests.verification.witness_world import (
    NAME,
    ORIGIN,
    PLACE,
    VKEY,
    WITNESS_KEY,
    WITNESS_VKEY,
    Clock,
    add_body,
    ask_chain,
    ask_link,
    grown,
    note,
)
from verification.lottery import HashChain
from verification.merkle import Tree
from verification.notes import parse_cosigned
from verification.witness import Answer, Witness
from verification.witness_store import WitnessStore

MOST = 12
LENGTH = 10
# The log's three faces: entries from number 4 or 7 on are others. Which sizes agree is known by their roots.
TREES = [grown(MOST), grown(MOST, branch=1, fork=4), grown(MOST, branch=2, fork=7)]
FORKED_AT = {(0, 1): 4, (0, 2): 7, (1, 2): 4}
BRANCH, SIZE = st.integers(0, 2), st.integers(0, MOST)
CRASH = st.none() | st.tuples(st.sampled_from(["open", "write", "fsync", "replace"]), st.integers(1, 4))


class World(RuleBasedStateMachine):
    """Everything that ever left the witness is kept here, and what it may not contradict is checked."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.cosigned: list[tuple[int, bytes, int]] = []  # size, root, time, in order
        self.shown: list[tuple[int, int, str]] = []  # number, size, root, in order
        self.sent: list[bytes] = []
        self.open()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def chain(self) -> None:
        assert ask_chain(self.witness, LENGTH)[0] == 200

    @rule()
    def open(self) -> None:
        """A restart: only the disk remembers."""
        self.witness = Witness(WITNESS_KEY, NAME, WitnessStore(self.folder), self.clock, [VKEY])

    @rule(by=st.integers(-10, 10))
    def tick(self, by: int) -> None:
        self.clock.now += by

    @rule(branch=BRANCH, size=SIZE, old=SIZE | st.none(), proof_of=BRANCH | st.none(), crash=CRASH)
    def submit(
        self, branch: int, size: int, old: int | None, proof_of: int | None, crash: tuple[str, int] | None
    ) -> None:
        """A head of one branch, from the size the witness is at or not, with that branch's proof or not."""
        if old is None:
            old = self.newest()[0]
        tree = TREES[branch if proof_of is None else proof_of]
        proof = tree.consistency_proof(old, size) if old <= size else []
        body = add_body(old, proof, note(TREES[branch], size))
        self.sent.append(body)
        self.send(body, TREES[branch], size, old, proof_of in (None, branch), crash)

    @rule(number=st.integers(0, 1000), crash=CRASH)
    def replay(self, number: int, crash: tuple[str, int] | None) -> None:
        """Bytes that were sent before."""
        if self.sent:
            self.post("/add-checkpoint", self.sent[number % len(self.sent)], crash)

    @rule(branch=BRANCH, size=SIZE | st.none(), number=st.integers(0, LENGTH + 1), crash=CRASH)
    def link(self, branch: int, size: int | None, number: int, crash: tuple[str, int] | None) -> None:
        size = self.newest()[0] if size is None else size
        tree = TREES[branch]
        answer: Answer | None = None
        if crash is None:
            answer = ask_link(self.witness, note(tree, size), number)
        else:
            try:
                with failing(crash[0], crash[1], Crash()):
                    answer = ask_link(self.witness, note(tree, size), number)
            except Crash:
                self.open()
        if answer and answer[0] == 200:
            assert self.newest() == (size, tree.root(size))
            chain = HashChain.load(self.folder / "logs" / PLACE / "chain")
            assert json.loads(answer[2])["link"] == chain.link(number)
            self.shown.append((number, size, tree.root(size).hex()))

    def send(
        self, body: bytes, tree: Tree, size: int, old: int, own_proof: bool, crash: tuple[str, int] | None
    ) -> None:
        at, root = self.newest()
        answer = self.post("/add-checkpoint", body, crash)
        if answer is None:
            return
        grows = at <= size and (at == 0 or tree.root(at) == root)
        if old > size:
            assert answer[0] == 400
        elif old != at:
            assert answer == (409, "text/x.tlog.size", b"%d\n" % at)
        elif not grows:
            assert answer[0] == 422
        elif own_proof or old in (0, size):
            assert answer[0] == 200
        else:
            assert answer[0] in (200, 422)

    def post(self, path: str, body: bytes, crash: tuple[str, int] | None) -> Answer | None:
        """An answer, None when the witness crashed before it was out; then it is started again."""
        try:
            if crash is None:
                answer = self.witness.handle("POST", path, body)
            else:
                with failing(crash[0], crash[1], Crash()):
                    answer = self.witness.handle("POST", path, body)
        except Crash:
            self.open()
            return None
        if answer[0] == 200:
            plain = body.split(b"\n\n", 1)[1].decode()
            found = parse_cosigned(plain + answer[2].decode(), VKEY, [WITNESS_VKEY])
            self.cosigned.append((found.checkpoint.size, found.checkpoint.root, found.times[0]))
            assert self.newest() == (found.checkpoint.size, found.checkpoint.root)
        return answer

    def newest(self) -> tuple[int, bytes]:
        found = self.witness.newest(ORIGIN)
        return (found.checkpoint.size, found.checkpoint.root) if found else (0, b"")

    @invariant()
    def one_root_for_a_size(self) -> None:
        assert len({size for size, _, _ in self.cosigned}) == len({(s, root) for s, root, _ in self.cosigned})

    @invariant()
    def only_growth(self) -> None:
        sizes = [size for size, _, _ in self.cosigned]
        assert sizes == sorted(sizes)
        for size, root, _ in self.cosigned:
            assert any(
                tree.root(size) == root and all(tree.root(s) == r for s, r, _ in self.cosigned)
                for tree in TREES
            )

    @invariant()
    def time_goes_on(self) -> None:
        times = [time for _, _, time in self.cosigned]
        assert times == sorted(times)

    @invariant()
    def a_link_is_for_one_head(self) -> None:
        heads = {(size, root) for _, size, root in self.shown}
        assert len({number for number, _, _ in self.shown}) == len(set(self.shown)) == len(heads)
        assert self.shown == sorted(self.shown)

    @invariant()
    def forks_have_evidence(self) -> None:
        texts = [path.read_text() for path in WitnessStore(self.folder).forks()]
        assert len(set(texts)) == len(texts)
        assert all(VKEY in text for text in texts)


TestWorld = World.TestCase
TestWorld.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_faces_of_the_log_differ_where_they_should() -> None:
    for (one, other), at in FORKED_AT.items():
        for size in range(MOST + 1):
            assert (TREES[one].root(size) == TREES[other].root(size)) == (size <= at)
