"""The run's configuration: frozen, strict, from TOML, every field documented.

Owns what an organiser may choose, its defaults and its checks, and the form in which it enters the manifest
(floats as hexadecimal text). Does not own the command line or what any choice means for a round.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.config import DataConfig
from model.config import PRESETS, ModelConfig
from verification.encoding import MAX_INTEGER, hex_float, parse_hex_float
from verification.errors import SignatureError, UsageError
from verification.keys import check_public_key
from verification.segments import segment_count
from verification.tolerance import NO_BOUND

Ppm = Annotated[int, Field(ge=0, le=1_000_000)]
# A log entry holds 65,535 bytes; what one part of a round takes of it in base64, rounded up.
ENTRY_BYTES = 60_000
OPEN_ENTRY_BYTES = 560
AUDITOR_BYTES = 260
RATE_BYTES = 34
LEAF_BYTES = 100
DEVIATION_BYTES = 420
REMOVED_BYTES = 360  # with the range that it gives back
CREDIT_BYTES = 150

Count = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
Limit = Annotated[int, Field(ge=0, lt=NO_BOUND)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class RunConfig(_Section):
    """How long the run is and where its randomness starts."""

    rounds: Count = Field(40, description="Rounds to close with something accepted.")
    seed: int = Field(1, ge=0, le=MAX_INTEGER, description="Seeds the initial weights and the data order.")
    max_void: Count = Field(3, description="Void turns in a row after which the run stops.")
    profile: Literal["exact", "native"] = Field(
        "exact", description="exact: equal bits on every x86-64 machine with AVX2. native: faster."
    )
    native: tuple[str, ...] = Field(
        (), description="Members whose machines compute in the native profile though the run's is exact."
    )

    def profile_of(self, member: str) -> Literal["exact", "native"]:
        """The numerics profile of a member."""
        return "native" if member in self.native else self.profile


class InnerConfig(_Section):
    """AdamW inside a contributor's local steps, and the schedule of its learning rate."""

    lr: float = Field(2e-3, gt=0, description="Peak learning rate.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled decay of arrays with two dimensions.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient's norm; 0 leaves it.")
    warmup_steps: int = Field(20, ge=0, le=MAX_INTEGER, description="Local steps over which the rate rises.")
    decay_rounds: int = Field(16, ge=0, le=MAX_INTEGER, description="Last rounds, over which the rate falls.")


class TrainConfig(_Section):
    """What one contribution is."""

    mode: Literal["gradient", "local"] = Field(
        "local", description="gradient: one mean gradient. local: several inner steps, pseudo-gradient."
    )
    batch: Count = Field(4, description="Windows a local step.")
    steps: tuple[Count, ...] = Field(
        (14, 12, 8, 6, 8),
        min_length=1,
        description="Local steps of each contributor, and so how many there are.",
    )
    micro_batch: tuple[Count, ...] = Field(
        (),
        description="Windows that each contributor takes through the model at once, fewer where memory is "
        "small; empty: all of a step's. It changes bits, so auditors take as many.",
    )
    trace_every: Count = Field(4, description="Local steps between two digests of the trace.")
    inner: InnerConfig = Field(InnerConfig(), description="The inner optimizer.")


class CompressionConfig(_Section):
    """Chunked top-k with error feedback."""

    chunk: Count = Field(4096, description="Values in a chunk; a power of two.")
    k: Count = Field(64, description="Values kept of each chunk; a power of two, 8 to chunk/4.")
    error_feedback: float = Field(0.95, ge=0, le=1, description="How much of the residue is carried over.")

    @model_validator(mode="after")
    def _shape(self) -> CompressionConfig:
        for name, value in (("chunk", self.chunk), ("k", self.k)):
            if value & (value - 1):
                raise ValueError(f"{name} must be a power of two")
        if not 8 <= self.k <= self.chunk // 4:
            raise ValueError("k must lie between 8 and chunk / 4")
        return self


class OuterConfig(_Section):
    """The optimizer that applies the aggregate to the weights."""

    optimizer: Literal["nesterov", "adamw"] = Field("nesterov", description="Outer optimizer.")
    lr: float = Field(1.0, gt=0, description="Outer learning rate (peak, in gradient mode).")
    momentum: float = Field(0.0, ge=0, lt=1, description="Nesterov momentum.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW: decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="AdamW: added to the root of the second moment.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW: decay of arrays with two dimensions.")


class ToleranceConfig(_Section):
    """How far a local step may lie from its repetition in another numerics class.

    `barnraise calibrate` measures it and prints such a section.
    """

    classes: tuple[str, str] = Field(description="The two numerics classes, in either order.")
    loss_ppm: Limit = Field(description="Most difference of a loss, in millionths.")
    norm_ppb: Limit = Field(description="Most difference of an array's gradient, by norm, in billionths.")
    peak_ppm: Limit = Field(description="Most difference of one element of a gradient, in millionths.")
    step_milli: Limit = Field(
        description="Most difference of an optimizer step, in thousandths of what rounding allows."
    )


class AuditConfig(_Section):
    """Who is recomputed, and how often twice."""

    auditors: int = Field(
        3,
        ge=0,
        le=10_000,
        description="Auditors, each of an operator of its own; of fewer than three none can be overruled.",
    )
    rate_ppm: Ppm = Field(1_000_000, description="Audit rate in millionths, once probation is over.")
    segments: int = Field(
        0,
        ge=0,
        le=MAX_INTEGER,
        description="Segments of train.trace_every steps that an audit looks into once probation is over; "
        "0 recomputes everything.",
    )
    second_look_ppm: Ppm = Field(100_000, description="Share of passes that a second auditor repeats.")
    probation_rounds: int = Field(
        3, ge=0, le=MAX_INTEGER, description="Accepted contributions before the rate applies."
    )
    lag: int = Field(
        0,
        ge=0,
        le=64,
        description="Turns for which work counts before its audits are done; 0 audits it before it counts.",
    )
    tolerance: tuple[ToleranceConfig, ...] = Field(
        (),
        description="Between which classes audits may go by tolerance, where none of the same class is left.",
    )
    tolerance_cap_ppm: int = Field(
        500_000,
        ge=1,
        le=1_000_000,
        description="Most share of a turn's weight that may rest on tolerance, where any work does not.",
    )

    @model_validator(mode="after")
    def _pairs(self) -> AuditConfig:
        pairs = [tuple(sorted(item.classes)) for item in self.tolerance]
        if any(one == other for one, other in pairs):
            raise ValueError("a tolerance needs two classes; within one class audits go by digest")
        if len(set(pairs)) < len(pairs):
            raise ValueError("two tolerances are between the same two classes")
        return self


class CreditConfig(_Section):
    """When credit vests, and what costs it."""

    vest_rounds: int = Field(10, ge=0, le=MAX_INTEGER, description="Turns until earned tokens vest.")
    strikes: Count = Field(2, description="Failures to reveal or serve before quarantine.")
    operator_cap_ppm: Ppm = Field(
        500_000, description="Share of a turn's tokens up to which one operator's work counts in full."
    )


class StateConfig(_Section):
    """What bounds the cost of recomputing one old contribution from the run folder."""

    policy: Literal["snapshot", "reset"] = Field(
        "snapshot", description="snapshot: hidden state is kept. reset: it starts from zero again."
    )
    every: Count = Field(10, description="Rounds between two snapshots or resets.")


class TimingConfig(_Section):
    """Whether clocks may decide anything."""

    mode: Literal["fixed", "measured"] = Field(
        "fixed", description="fixed: steps from the config, nobody late. measured: the coordinator's clock."
    )
    round_ms: Count = Field(5_000, description="measured: how long a contributor's work should take.")
    deadline_ms: Count = Field(20_000, description="measured: when a contributor is dropped for the turn.")
    max_steps: Count = Field(64, description="measured: most local steps.")


class IdentityConfig(_Section):
    """Who may take part, by which key."""

    allow: dict[str, str] = Field(
        {},
        description="Each member's public key, the key file being HOME/keys/MEMBER where the member lives; "
        "empty lets every member make its own.",
    )

    newcomers: int = Field(
        0, ge=0, le=10_000, description="How many members may join after the start, of either role."
    )

    @model_validator(mode="after")
    def _keys(self) -> IdentityConfig:
        for name, key in self.allow.items():
            try:
                check_public_key(key)
            except SignatureError as error:
                raise ValueError(f"the key of {name}: {error}") from None
        if len(set(self.allow.values())) < len(self.allow):
            raise ValueError("two members have the same key")
        return self


class CheckpointConfig(_Section):
    """Which checkpoints stay in the folder."""

    every: Count = Field(10, description="Rounds between two checkpoints that are kept.")


class RetentionConfig(_Section):
    """What may leave the run folder as the run goes on; what may be missing follows from it and the log."""

    payload_rounds: int = Field(
        0,
        ge=0,
        le=MAX_INTEGER,
        description="Last rounds whose payloads and hidden states are kept, up to checkpoint.every more; "
        "0 keeps all.",
    )
    checkpoint_every: int = Field(
        0,
        ge=0,
        le=MAX_INTEGER,
        description="Of checkpoints older than these, only every so many rounds one is kept; 0 keeps all.",
    )


class EvalConfig(_Section):
    """Validation during the run."""

    every: Count = Field(5, description="Rounds between two validations; the first and last are added.")
    windows: Count = Field(64, description="Validation windows used.")


class Config(_Section):
    """Everything that decides what a run computes. It is hashed into the run id."""

    run: RunConfig = Field(RunConfig(), description="Length and seed.")
    data: DataConfig = Field(DataConfig(), description="What is trained on.")
    model: ModelConfig = Field(..., description="The network.")
    train: TrainConfig = Field(TrainConfig(), description="Local work.")
    compression: CompressionConfig = Field(CompressionConfig(), description="The payload.")
    outer: OuterConfig = Field(OuterConfig(), description="The outer step.")
    audit: AuditConfig = Field(AuditConfig(), description="Audits.")
    credit: CreditConfig = Field(CreditConfig(), description="Credit.")
    state: StateConfig = Field(StateConfig(), description="Hidden state.")
    identity: IdentityConfig = Field(IdentityConfig(), description="Who may take part.")
    timing: TimingConfig = Field(TimingConfig(), description="Time.")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="Checkpoints.")
    retention: RetentionConfig = Field(RetentionConfig(), description="What may be dropped.")
    eval: EvalConfig = Field(EvalConfig(), description="Validation.")

    @property
    def contributors(self) -> tuple[str, ...]:
        """Names of the contributors, by slot."""
        return tuple(f"c{index:02d}" for index in range(len(self.train.steps)))

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all members, contributors first."""
        return (*self.contributors, *(f"a{index:02d}" for index in range(self.audit.auditors)))

    @property
    def most_steps(self) -> int:
        """The most local steps that a contribution can have."""
        return max(*self.train.steps, self.timing.max_steps if self.timing.mode == "measured" else 1)

    @property
    def most_segments(self) -> int:
        """The most segments that a contribution can have."""
        return segment_count(self.most_steps, self.train.trace_every)

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.data.context != self.model.context:
            raise ValueError(
                f"data.context {self.data.context} and model.context {self.model.context} differ"
            )
        if self.data.vocab_size != self.model.vocab_size:
            raise ValueError(
                f"data.vocab_size {self.data.vocab_size} and model.vocab_size {self.model.vocab_size} differ"
            )
        if self.train.micro_batch and len(self.train.micro_batch) != len(self.train.steps):
            raise ValueError(
                f"train.micro_batch has {len(self.train.micro_batch)} numbers for "
                f"{len(self.train.steps)} contributors; give one for each, or none"
            )
        if max(self.train.micro_batch, default=0) > self.train.batch:
            raise ValueError(f"train.micro_batch is above train.batch, which is {self.train.batch}")
        if self.train.mode == "gradient" and self.outer.optimizer != "adamw":
            raise ValueError("train.mode gradient needs outer.optimizer adamw")
        if self.audit.auditors == 0 and (self.audit.rate_ppm or self.audit.probation_rounds):
            raise ValueError("audit.auditors 0 needs audit.rate_ppm 0 and audit.probation_rounds 0")
        if self.audit.tolerance and self.train.trace_every != 1:
            raise ValueError("audit.tolerance needs train.trace_every 1: a tolerance is of single steps")
        if self.audit.lag and self.credit.vest_rounds <= self.audit.lag:
            raise ValueError("credit.vest_rounds must be above audit.lag: what vested cannot be taken back")
        self._keeps_enough()
        if strangers := set(self.run.native) - set(self.members):
            raise ValueError(f"run.native names {', '.join(sorted(strangers))}, who are no members")
        later = set(self.identity.allow) - set(self.members)
        missing = set(self.members) - set(self.identity.allow)
        if self.identity.allow and (missing or len(later) > self.identity.newcomers):
            more = f" and at most {self.identity.newcomers} newcomers" if self.identity.newcomers else ""
            raise ValueError(
                f"identity.allow must name exactly {', '.join(self.members)}{more}, or nobody; "
                f"it names {', '.join(sorted(self.identity.allow))}"
            )
        most, newcomers = self.most_steps, self.identity.newcomers
        contributors = len(self.train.steps) + newcomers
        rates = most if self.train.mode == "local" else 0
        largest = max(
            OPEN_ENTRY_BYTES * contributors + AUDITOR_BYTES * self.audit.auditors + RATE_BYTES * rates,
            LEAF_BYTES * (self.most_segments + 1)
            + (DEVIATION_BYTES * self.most_segments if self.audit.tolerance else 0),
            REMOVED_BYTES * contributors * (self.audit.lag + 1)
            + CREDIT_BYTES * (len(self.members) + newcomers)
            if self.audit.lag
            else 0,
        )
        if largest > ENTRY_BYTES:
            raise ValueError(
                f"a round of {contributors} contributors, {self.audit.auditors} auditors and "
                f"{most} local steps, settled {self.audit.lag} turns late, does not fit a log entry: "
                f"about {largest} of {ENTRY_BYTES} bytes"
            )
        if self.run.rounds >= 1 << 20:
            raise ValueError("run.rounds must be below 2^20")
        return self

    def _keeps_enough(self) -> None:
        rounds, sparse = self.retention.payload_rounds, self.retention.checkpoint_every
        least = self.credit.vest_rounds + self.audit.lag + self.state.every
        if 0 < rounds < least:
            raise ValueError(
                f"retention.payload_rounds {rounds} drops what verification needs: it must be 0, which keeps "
                f"all, or at least credit.vest_rounds + audit.lag + state.every, which is {least}"
            )
        if sparse and (not rounds or sparse % self.checkpoint.every):
            raise ValueError(
                f"retention.checkpoint_every {sparse} must be a multiple of checkpoint.every, "
                f"{self.checkpoint.every}, and needs retention.payload_rounds"
            )


def load_config(path: Path) -> Config:
    """Read a TOML file. Raises UsageError naming the field, what was expected and what was found."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the configuration {path} cannot be read", got=error.strerror) from None
    except UnicodeDecodeError:
        raise UsageError(f"the configuration {path} is not UTF-8 text") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML", got=str(error)) from None
    return parse_config(values, str(path))


def parse_config(values: dict[str, Any], where: str) -> Config:
    """Validate plain values. Lists stand for tuples, as TOML and JSON have them.

    `model.preset` stands for the fields of one of `model.config.PRESETS`; fields beside it replace its own.
    Unless `data` says otherwise, its vocabulary and context are the model's.
    """
    values = _with_preset(values, where)
    try:
        # Through JSON, where strict mode takes lists for tuples. TOML's dates have no JSON: they go as text.
        return Config.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise UsageError(
            f"{where}: {describe(error)}", hint="See configs/demo.toml for all fields."
        ) from None


def _with_preset(values: dict[str, Any], where: str) -> dict[str, Any]:
    model = values.get("model")
    if not isinstance(model, dict) or "preset" not in model:
        return values
    name = model["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise UsageError(f"{where}: model.preset is unknown", expected=", ".join(PRESETS), got=repr(name))
    fields = {**PRESETS[name], **{key: value for key, value in model.items() if key != "preset"}}
    data = values.get("data", {})
    if isinstance(data, dict):
        data = {"vocab_size": fields["vocab_size"], "context": fields["context"], **data}
    return {**values, "model": fields, "data": data}


def describe(error: ValidationError) -> str:
    """A validation error in one line: every field and what is wrong with it."""
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            lines.append(f"{place} is not a known field")
        elif item["type"] == "missing":
            lines.append(f"{place} is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
            lines.append(f"{place}: {message[0].lower()}{message[1:]}{got}")
    return "; ".join(lines)


def manifest_config(config: Config) -> dict[str, Any]:
    """The configuration as it stands in the manifest: floats as hex text, everything else as it is."""
    value = _hexed(config.model_dump(mode="json"))
    assert isinstance(value, dict)  # noqa: S101 - narrows the type; a model dumps to a dict
    return value


def _hexed(value: Any) -> Any:
    if isinstance(value, float):
        return hex_float(value)
    if isinstance(value, dict):
        return {key: _hexed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hexed(item) for item in value]
    return value


_HEX_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-][0-9]+\Z")


def config_from_manifest(value: dict[str, Any]) -> Config:
    """The configuration that `manifest_config` wrote. Raises UsageError when it is not one."""
    return parse_config(_unhexed(value), "manifest.json")


def _unhexed(value: Any) -> Any:
    if isinstance(value, str) and _HEX_FLOAT.match(value):
        return parse_hex_float(value)
    if isinstance(value, dict):
        return {key: _unhexed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unhexed(item) for item in value]
    return value
