"""A contributor's trace, opened for an audit: leaf hashes, and the states that segments start from.

Owns the bytes in which it travels (docs/protocol.md, section 7), and the check that they are of the
commitment. Does not own which leaves are due (verification/segments.py) or what an auditor computes from them
(segment_audit.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model.arrays import arrays_from_bytes, arrays_length, arrays_to_bytes, weight_specs
from model.hidden_state import midway_specs
from verification.encoding import MAX_INTEGER, blake3_digest, hash_object
from verification.errors import FormatError, ProtocolError
from verification.judge import Audit, trace_leaf_digest, trace_leaf_hash, trace_root
from verification.records import Opening
from verification.segments import segment_count, segment_steps

if TYPE_CHECKING:
    from model.local_steps import Midpoint
    from pipeline.work import Job

_MAGIC = b"barnraise-trace-v1\n"
NOT_FINITE = hash_object("barnraise/trace-not-finite/v1", {})


@dataclass(frozen=True)
class OpenedLeaf:
    """Where the work stood at a leaf: array bytes of weights and state, losses since the leaf before."""

    losses: tuple[int, ...]
    weights: bytes
    state: bytes

    @classmethod
    def of(cls, point: Midpoint, losses: tuple[int, ...]) -> OpenedLeaf:
        """The leaf at a point of the work."""
        return cls(losses, arrays_to_bytes(point.weights), arrays_to_bytes(point.state))

    def digest(self, step: int) -> str:
        """The leaf itself, after `step` local steps of the round."""
        state, weights = blake3_digest(self.state), blake3_digest(self.weights)
        return trace_leaf_digest(self.losses, state, step, weights)


@dataclass(frozen=True)
class OpenedTrace:
    """The leaf hashes of a whole trace, bare hex, and some of its leaves by index.

    `digests` are those leaves' digests where they are known, which saves hashing their arrays once more.
    """

    hashes: tuple[str, ...]
    leaves: Mapping[int, OpenedLeaf]
    digests: Mapping[int, str] = field(default_factory=dict)

    def only(self, leaves: Sequence[int]) -> OpenedTrace:
        """The same trace with no more than these of its leaves opened."""
        return OpenedTrace(self.hashes, {index: self.leaves[index] for index in leaves})

    def to_bytes(self) -> bytes:
        """The bytes in which it travels and is kept as evidence."""
        parts = [_MAGIC, struct.pack("<I", len(self.hashes)), *map(bytes.fromhex, self.hashes)]
        for index, leaf in sorted(self.leaves.items()):
            parts.append(struct.pack("<II", index, len(leaf.losses)))
            parts.append(struct.pack(f"<{len(leaf.losses)}Q", *leaf.losses))
            for data in (leaf.weights, leaf.state):
                parts += [struct.pack("<Q", len(data)), data]
        return b"".join(parts)


def open_trace(leaves: Sequence[str], due: Sequence[int], leaf: Callable[[int], OpenedLeaf]) -> bytes:
    """The bytes of a trace of leaf digests with those that are `due` opened, `leaf` giving each by index."""
    hashes = tuple(trace_leaf_hash(digest).hex() for digest in leaves)
    return OpenedTrace(hashes, {index: leaf(index) for index in due}).to_bytes()


def read_trace(job: Job, opening: Opening, steps: int, audit: Audit, data: bytes) -> OpenedTrace:
    """The trace in `data`, opened as an audit of a contribution of `steps` local steps needs it.

    Raises as `read_leaves` does.
    """
    count = segment_count(steps, job.config.train.trace_every)
    return read_leaves(job, opening, steps, audit.opened_leaves(count), data)


def read_leaves(job: Job, opening: Opening, steps: int, due: Sequence[int], data: bytes) -> OpenedTrace:
    """The trace in `data`, of a contribution of `steps` local steps, with the leaves that are `due` opened.

    Its length follows from the job and is compared before anything is read. Raises FormatError for other
    bytes, and ProtocolError when they are not of the trace that `opening` commits to.
    """
    every = job.config.train.trace_every
    count = segment_count(steps, every)
    if opening.trace_leaves != count + 1:
        raise ProtocolError("a trace is too long or short", expected=count + 1, got=opening.trace_leaves)
    spans = {index: segment_steps(index, steps, every) for index in due}
    start = _MAGIC + struct.pack("<I", count + 1)
    forms = weight_specs(job.specs), midway_specs(job.specs, job.config.train.mode)
    each = 24 + sum(arrays_length(form) for form in forms)
    losses = sum(stop - begin for begin, stop in spans.values())
    expected = len(start) + 32 * (count + 1) + 8 * losses + each * len(spans)
    if len(data) != expected:
        raise FormatError("an opened trace has the wrong length", expected=expected, got=len(data))
    reader = _Reader(data)
    reader.constant(start)
    hashes = tuple(reader.take(32).hex() for _ in range(count + 1))
    if trace_root(hashes) != opening.trace_root:
        what = "the leaf hashes are not of the trace that was committed to"
        raise ProtocolError(what, expected=opening.trace_root, got=trace_root(hashes))
    leaves, digests = {}, {}
    for index, (begin, stop) in spans.items():
        leaf = leaves[index] = reader.leaf(index, stop - begin, [arrays_length(form) for form in forms])
        digests[index] = leaf.digest(stop)
        if trace_leaf_hash(digests[index]).hex() != hashes[index]:
            raise ProtocolError(f"leaf {index} is not of the trace that was committed to")
        for part, form in zip((leaf.weights, leaf.state), forms, strict=True):
            arrays_from_bytes(part, form)
    return OpenedTrace(hashes, leaves, digests)


class _Reader:
    """Takes an opened trace apart, whose whole length was checked before."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def constant(self, expected: bytes) -> None:
        got = self.take(len(expected))
        if got != expected:
            raise FormatError("an opened trace is not built as it must be", expected=expected, got=got)

    def leaf(self, index: int, losses: int, lengths: Sequence[int]) -> OpenedLeaf:
        self.constant(struct.pack("<II", index, losses))
        told: tuple[int, ...] = struct.unpack(f"<{losses}Q", self.take(8 * losses))
        if max(told) > MAX_INTEGER:
            raise FormatError("a loss is too large", expected=f"at most {MAX_INTEGER}", got=max(told))
        parts = []
        for length in lengths:
            self.constant(struct.pack("<Q", length))
            parts.append(self.take(length))
        return OpenedLeaf(told, *parts)
