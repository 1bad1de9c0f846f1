"""The one path from an assignment to a payload."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.arrays import arrays_digest, arrays_from_bytes, arrays_to_bytes
from model.hidden_state import state_specs
from pipeline.work import Job, Work, do_work, positions_of
from tests.pipeline.tiny_world import World, world
from verification.encoding import blake3_digest
from verification.errors import BarnraiseError, FormatError, ProtocolError, WorkError


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("work"))


def work(here: World, **changes: object) -> Work:
    job, open_ = here.c0.job, here.open()
    entry = replace(open_.roster[0], **changes)  # type: ignore[arg-type]
    weights = job.weights(here.checkpoint, open_.base.weights)
    return do_work(
        job, here.c0.data, open_, entry, weights, job.state(job.zero_state, here.manifest.zero_state)
    )


def test_ranges_are_positions_in_their_order() -> None:
    assert positions_of([(5, 7), (0, 2)]) == [5, 6, 0, 1]
    assert positions_of([]) == []


def test_equal_assignments_give_equal_bytes_and_the_claims_are_of_these_bytes(here: World) -> None:
    first, second = work(here), work(here)
    assert first == second
    assert first.claims.payload == blake3_digest(first.payload)
    assert first.claims.next_state == blake3_digest(first.next_state)
    assert len(first.payload) == here.c0.job.codec.payload_bytes
    assert len(first.claims.trace) == 3  # three steps, a leaf every two and one at the end; the boundary
    assert first.claims.loss_first is not None
    assert abs(first.claims.loss_first / 1e6 - np.log(300)) < 0.3  # as good as chance


def test_other_windows_give_other_work(here: World) -> None:
    assert work(here).payload != work(here, positions=((6, 12),)).payload


def test_the_next_state_counts_the_steps_and_holds_the_residue(here: World) -> None:
    job = here.c0.job
    done = work(here)
    state = arrays_from_bytes(done.next_state, state_specs(job.specs, job.spec.mode))
    assert int(state["step"]) == 3
    sent = job.codec.decode(done.payload).dense(job.codec.length)
    kept = state["error_feedback"]
    assert np.count_nonzero(kept) > 0
    nothing_sent = sent == 0
    assert nothing_sent.any()
    assert arrays_digest(state) == done.claims.next_state


def test_bytes_that_are_not_what_was_asked_for_are_refused(here: World) -> None:
    job, digest = here.c0.job, here.open().base.weights
    with pytest.raises(ProtocolError, match="base checkpoint"):
        job.weights(here.checkpoint, "blake3:" + "0" * 64)
    with pytest.raises(ProtocolError, match="hidden state"):
        job.state(job.zero_state, "blake3:" + "0" * 64)
    with pytest.raises(BarnraiseError):
        job.weights(here.checkpoint[:100], digest)
    assert arrays_digest(job.weights(memoryview(here.checkpoint), digest)) == digest  # type: ignore[arg-type]


def test_the_zero_state_is_the_manifests(here: World) -> None:
    assert blake3_digest(here.c0.job.zero_state) == here.manifest.zero_state


def test_weights_are_a_copy(here: World) -> None:
    job, digest = here.c0.job, here.open().base.weights
    weights = job.weights(here.checkpoint, digest)
    for array in weights.values():
        array[...] = 0
    assert arrays_digest(job.weights(here.checkpoint, digest)) == digest


def test_work_that_is_not_finite_is_the_contributors_error(here: World) -> None:
    open_ = replace(here.open(), inner_lr=((1e38).hex(),) * 3)
    job = here.c0.job
    weights = job.weights(here.checkpoint, open_.base.weights)
    start = job.state(job.zero_state, here.manifest.zero_state)
    with pytest.raises(WorkError):
        do_work(job, here.c0.data, open_, open_.roster[0], weights, start)


def test_a_job_is_made_of_the_manifest_alone(here: World, tmp_path: Path) -> None:
    del tmp_path
    job = Job.of(here.manifest)
    assert job.codec.length == sum(spec.size for spec in job.specs)
    assert job.codec.name == here.manifest.codec


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": ((0, 2**53 - 1),)},
        {"positions": ((0, 5),)},
        {"micro_batch": 0},
        {"micro_batch": 3},
        {"positions": ()},
        {"steps": 2**53 - 1, "positions": ((0, 2 * (2**53 - 1)),)},
        {"steps": 10**9, "positions": ((0, 2 * 10**9),)},
    ],
)
def test_an_assignment_that_no_run_gives_costs_nothing(here: World, changes: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="is none of this run"):
        work(here, **changes)


@pytest.mark.parametrize(
    "arrays",
    [
        (("model.norm.weight", (2**40,)),),
        lambda arrays: arrays[:-1],
        lambda arrays: ((arrays[0][0], (2**40, 16)), *arrays[1:]),
    ],
)
def test_arrays_that_are_not_the_models_are_not_trained(here: World, arrays: Any) -> None:
    named = arrays(here.manifest.arrays) if callable(arrays) else arrays
    job = Job.of(replace(here.manifest, arrays=named))
    with pytest.raises(ProtocolError, match="not its model's"):
        do_work(job, here.c0.data, here.open(), here.open().roster[0], {}, {})


@pytest.mark.parametrize("step", [-1, (1 << 51) + 1, (1 << 63) - 1])
def test_a_state_whose_count_leads_nowhere_is_none(here: World, step: int) -> None:
    """Its digest may stand in the log all the same: nobody looked at it when it was claimed."""
    job = here.c0.job
    forms = state_specs(job.specs, job.spec.mode)
    state = {**arrays_from_bytes(job.zero_state, forms), "step": np.array(step, np.int64)}
    data = arrays_to_bytes(state)
    with pytest.raises(FormatError, match="step"):
        job.state(data, blake3_digest(data))
    fine = arrays_to_bytes({**state, "step": np.array(1 << 51, np.int64)})
    assert job.state(fine, blake3_digest(fine))["step"] == 1 << 51


def test_bytes_that_are_no_state_are_none_whatever_their_digest(here: World) -> None:
    for data in (b"no state at all", b"", here.c0.job.zero_state + b"more"):
        with pytest.raises(FormatError):
            here.c0.job.state(data, blake3_digest(data))
