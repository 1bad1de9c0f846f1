"""What a calibration compares: points of a walk of local steps, and the file that takes them elsewhere.

Owns the windows of a walk, a point's bytes and the format of the file. Does not own the steps
(calibrate_child.py), who takes them (calibrate_workers.py) or what follows from them (calibrate_numbers.py).
Nothing here depends on a machine's arithmetic, and nothing imports torch before it is needed.

Shape legend: S steps of the walk, B windows a step, T context (windows hold T + 1 tokens).
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from model.arrays import Arrays, ArraySpec, arrays_from_bytes, arrays_length, arrays_to_bytes, weight_specs
from model.config import parameter_count
from model.hidden_state import midway_specs, zero_state
from model.init import array_specs, initial_weights
from pipeline.config import Config, config_from_manifest, manifest_config
from verification.durable import storage_error
from verification.encoding import MAX_INTEGER, canonical_json, parse_canonical
from verification.errors import FormatError, UsageError

if TYPE_CHECKING:
    from model.local_steps import Midpoint, WorkSpec

_MAGIC = b"barnraise-calibration-v1\n"
_MOST_HEADER = 1 << 20
MOST_STEPS = 10_000
_MOST_TOKENS = 1 << 26
_MOST_PARAMETERS = 1 << 31
Tokens = npt.NDArray[np.int64]
Forms = dict[str, tuple[npt.DTypeLike, tuple[int, ...]]]


@dataclass(frozen=True)
class Plan:
    """What is walked: the work of a configuration, a step's rate by step, and its windows."""

    config: Config
    rates: tuple[float, ...]
    windows_SBT: Tokens

    @classmethod
    def of(cls, config: Config, steps: int) -> Plan:
        """A walk of `steps` over this Python's own library as text, warmed up as a run is.

        Raises UsageError for a number of steps that a file could not hold.
        """
        if not 1 <= steps <= MOST_STEPS:
            raise UsageError("the number of audits is out of range", expected=f"1 to {MOST_STEPS}", got=steps)
        inner, model = config.train.inner, config.model
        warm = max(1, inner.warmup_steps)
        rates = tuple(inner.lr * min(1.0, (step + 1) / warm) for step in range(steps))
        shape = steps, config.train.batch, model.context + 1
        return cls(config, rates, library_tokens(shape, model.vocab_size))

    @property
    def specs(self) -> tuple[ArraySpec, ...]:
        """The model's arrays."""
        return array_specs(self.config.model)

    @property
    def spec(self) -> WorkSpec:
        """How a local step is taken, each of them a segment."""
        from model.local_steps import WorkSpec  # noqa: PLC0415 - imports torch

        train, inner = self.config.train, self.config.train.inner
        return WorkSpec(
            train.mode, 1, inner.beta1, inner.beta2, inner.eps, inner.weight_decay, inner.max_grad_norm
        )

    def beginning(self) -> bytes:
        """The point that every walk starts from: initial weights, and no history."""
        from model.local_steps import Midpoint  # noqa: PLC0415 - imports torch

        state = zero_state(self.specs, self.config.train.mode)
        forms = midway_specs(self.specs, self.config.train.mode)
        state |= {n: np.zeros(shape, dtype) for n, (dtype, shape) in forms.items() if n not in state}
        return self.to_bytes(Midpoint(initial_weights(self.config.model, self.config.run.seed), state))

    def to_bytes(self, point: Midpoint) -> bytes:
        """A point as one set of arrays, without the error feedback, which no local step touches."""
        state = {name: array for name, array in point.state.items() if name != "error_feedback"}
        return arrays_to_bytes({**point.weights, **state})

    def point(self, data: bytes) -> Midpoint:
        """The point in `data`, its error feedback zero. Raises FormatError for other bytes."""
        from model.local_steps import Midpoint  # noqa: PLC0415 - imports torch

        arrays = arrays_from_bytes(data, self._forms)
        weights: Arrays = {array.name: arrays.pop(array.name) for array in self.specs}
        zero = np.zeros(sum(array.size for array in self.specs), np.float32)
        return Midpoint(weights, {**arrays, "error_feedback": zero})

    @property
    def point_bytes(self) -> int:
        """How long a point's bytes are."""
        return arrays_length(self._forms)

    @property
    def _forms(self) -> Forms:
        state = midway_specs(self.specs, self.config.train.mode)
        del state["error_feedback"]
        return {**weight_specs(self.specs), **state}


def library_tokens(shape: tuple[int, ...], vocabulary: int) -> Tokens:
    """Windows of the standard library's text, pairs of bytes folded into the vocabulary.

    Needs no tokenizer and has the uneven frequencies of text, on which an embedding's gradient depends.
    """
    wanted = int(np.prod(shape)) + 1
    data = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        if len(data) >= wanted:
            break
        data += path.read_bytes()
    bytes_N = np.resize(np.frombuffer(bytes(data) or b"no library", np.uint8), wanted).astype(np.int64)
    return ((bytes_N[:-1] * 263 + bytes_N[1:]) % vocabulary).reshape(shape)


class PointsWriter:
    """Writes a walk to a file, point by point. Raises StorageError."""

    def __init__(self, path: Path, numerics_class: str, plan: Plan) -> None:
        self._path = path
        head = canonical_json(
            {"class": numerics_class, "config": manifest_config(plan.config), "steps": len(plan.rates)}
        )
        given = {"rates": np.array(plan.rates, np.float64), "windows": plan.windows_SBT}
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise storage_error(path, error) from error
        self.add(_MAGIC + len(head).to_bytes(4, "little") + head + arrays_to_bytes(given))

    def add(self, data: bytes) -> None:
        """The next point's bytes."""
        try:
            self._file.write(data)
        except OSError as error:
            raise storage_error(self._path, error) from error

    def finish(self, losses: Sequence[int]) -> None:
        """All points are there; these are the steps' losses."""
        self.add(arrays_to_bytes({"losses": np.array(losses, np.int64)}))
        try:
            self._file.close()
        except OSError as error:
            raise storage_error(self._path, error) from error


class PointsFile:
    """A walk's file, read point by point. Raises FormatError, StorageError when unreadable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
            size = path.stat().st_size
        except OSError as error:
            raise storage_error(path, error) from error
        try:
            self._read_all_but_points(size)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def point(self, index: int) -> bytes:
        """The bytes of the point after `index` steps."""
        self._file.seek(self._start + index * self.plan.point_bytes)
        return self._read(self.plan.point_bytes)

    def _read(self, length: int) -> bytes:
        try:
            data = self._file.read(length)
        except OSError as error:
            raise storage_error(self._path, error) from error
        if len(data) != length:
            raise FormatError("a calibration file ends too soon", expected=f"{length} bytes", got=len(data))
        return data

    def _read_all_but_points(self, size: int) -> None:
        magic = self._read(len(_MAGIC))
        if magic != _MAGIC:
            raise FormatError("this is no calibration file", expected=_MAGIC, got=magic)
        length = int.from_bytes(self._read(4), "little")
        if length > _MOST_HEADER:
            raise FormatError("a header is too long", expected=f"at most {_MOST_HEADER} bytes", got=length)
        self.numerics_class, config, steps = _parse_header(self._read(length))
        shape = steps, config.train.batch, config.model.context + 1
        given: Forms = {"rates": (np.float64, (steps,)), "windows": (np.int64, shape)}
        ends: Forms = {"losses": (np.int64, (steps,))}
        self._start = self._file.tell() + arrays_length(given)
        points = (steps + 1) * Plan(config, (), np.zeros((0, 0, 0), np.int64)).point_bytes
        expected = self._start + points + arrays_length(ends)
        if size != expected:
            raise FormatError(
                "a calibration file has the wrong length", expected=f"{expected} bytes", got=f"{size} bytes"
            )
        arrays = arrays_from_bytes(self._read(arrays_length(given)), given)
        self._file.seek(self._start + points)
        losses = arrays_from_bytes(self._read(arrays_length(ends)), ends)["losses"]
        self.losses = tuple(losses.tolist())
        self.plan = Plan(config, tuple(arrays["rates"].tolist()), arrays["windows"])
        _check_numbers(self.plan, self.losses)


def _parse_header(data: bytes) -> tuple[str, Config, int]:
    value = parse_canonical(data, max_bytes=_MOST_HEADER)
    if not isinstance(value, dict) or sorted(value) != ["class", "config", "steps"]:
        raise FormatError("the header of a calibration file is none", expected="class, config, steps")
    name, config, steps = value["class"], value["config"], value["steps"]
    if not isinstance(name, str) or not 1 <= len(name) <= 500:
        raise FormatError("a numerics class is none", expected="1 to 500 characters", got=name)
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
        raise FormatError(
            "a walk's number of steps is out of range", expected=f"1 to {MOST_STEPS}", got=steps
        )
    try:
        parsed = config_from_manifest(config)
    except UsageError as error:
        raise FormatError(f"the configuration in a calibration file is not valid: {error}") from error
    model, tokens = parsed.model, steps * parsed.train.batch * (parsed.model.context + 1)
    # So that neither names of arrays nor windows ask for more memory than a file deserves.
    if model.n_layers > 1000 or parameter_count(model) > _MOST_PARAMETERS or tokens > _MOST_TOKENS:
        raise FormatError(
            "the walk in a calibration file is too large",
            expected=f"at most 1000 layers, {_MOST_PARAMETERS} parameters, {_MOST_TOKENS} tokens",
            got=f"{model.n_layers}, {parameter_count(model)}, {tokens}",
        )
    return name, parsed, steps


def _check_numbers(plan: Plan, losses: Sequence[int]) -> None:
    low, high = int(plan.windows_SBT.min()), int(plan.windows_SBT.max())
    most = plan.config.model.vocab_size - 1
    if low < 0 or high > most:
        raise FormatError("a token is not in the vocabulary", expected=f"0 to {most}", got=[low, high])
    if not all(math.isfinite(rate) for rate in plan.rates):
        raise FormatError("a rate in a calibration file is not finite")
    if not all(0 <= loss <= MAX_INTEGER for loss in losses):
        raise FormatError("a loss in a calibration file is out of range", expected="0 to 2^53 - 1")
