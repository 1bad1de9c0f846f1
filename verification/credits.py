"""Credit: tokens earned by accepted work and by audits, vesting late, forfeited on quarantine.

Owns section 10 of docs/protocol.md as one pure function. Does not own payment, or who is at fault.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

STRIKE_REASONS = frozenset(
    {"unrevealed", "opening-mismatch", "malformed-payload", "duplicate-payload", "unserved"}
)


@dataclass(frozen=True)
class Standing:
    """A member's balance and conduct. `unvested` holds (turn, tokens); everything counts tokens.

    `struck` is the turn of the last strike, -1 without one.
    """

    earned: int = 0
    vested: int = 0
    forfeited: int = 0
    unvested: tuple[tuple[int, int], ...] = ()
    accepted: int = 0
    strikes: int = 0
    struck: int = -1
    suspect: bool = False
    quarantined: bool = False

    @property
    def pending(self) -> int:
        """Tokens that have not vested yet."""
        return sum(tokens for _, tokens in self.unvested)


@dataclass(frozen=True)
class TurnResult:
    """What a turn means for standings.

    `earned`: member to tokens, contributions and audits alike. `accepted`: members whose contribution was
    accepted, with whether it had been drawn. `rejected`: members and reasons. `overruled`: auditors.
    """

    turn: int
    earned: Sequence[tuple[str, int]] = ()
    accepted: Mapping[str, bool] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)
    overruled: Collection[str] = ()


def after_turn(
    standings: Mapping[str, Standing], result: TurnResult, *, vest_rounds: int, strikes: int
) -> dict[str, Standing]:
    """The standings after a turn's close, in the order of steps that section 10 fixes."""
    after = dict(standings)
    for member, tokens in result.earned:
        before = after[member]
        after[member] = replace(
            before, earned=before.earned + tokens, unvested=(*before.unvested, (result.turn, tokens))
        )
    for member, drawn in result.accepted.items():
        before = after[member]
        after[member] = replace(before, accepted=before.accepted + 1, suspect=before.suspect and not drawn)
    for member, reason in result.rejected.items():
        before = after[member]
        if reason == "failed-audit":
            before = replace(before, quarantined=True)
        elif reason in STRIKE_REASONS:
            count = before.strikes + 1
            before = replace(
                before,
                strikes=count,
                struck=result.turn,
                suspect=True,
                quarantined=before.quarantined or count >= strikes,
            )
        after[member] = before
    for member in result.overruled:
        after[member] = replace(after[member], quarantined=True)
    return {name: _vest(standing, result.turn - vest_rounds) for name, standing in after.items()}


@dataclass(frozen=True)
class LateResult:
    """What a settlement means for standings.

    `removed`: (member, turn, tokens) of each contribution that was taken out. `earned`: auditor to tokens, as
    of `turn`. `faults`: members at fault, auditors that were overruled too. `cleared`: members whose
    contribution was drawn and holds.
    """

    turn: int
    removed: Sequence[tuple[str, int, int]] = ()
    earned: Sequence[tuple[str, int]] = ()
    faults: Collection[str] = ()
    cleared: Collection[str] = ()


def after_settlement(standings: Mapping[str, Standing], result: LateResult) -> dict[str, Standing]:
    """The standings after a turn's late settlement; nothing vests by it."""
    after = dict(standings)
    for member, turn, tokens in result.removed:
        after[member] = _taken_back(after[member], turn, tokens)
    for member, tokens in result.earned:
        before = after[member]
        entry = (result.turn, tokens)
        after[member] = replace(before, earned=before.earned + tokens, unvested=(*before.unvested, entry))
    for member in result.faults:
        after[member] = replace(after[member], quarantined=True)
    for member in result.cleared:
        # Work from before a strike clears nobody of it.
        after[member] = replace(after[member], suspect=after[member].struck > result.turn)
    return {name: _vest(standing, -1) for name, standing in after.items()}


def _taken_back(standing: Standing, turn: int, tokens: int) -> Standing:
    less = replace(standing, earned=standing.earned - tokens, accepted=max(0, standing.accepted - 1))
    kept = list(standing.unvested)
    if (turn, tokens) in kept:
        kept.remove((turn, tokens))
        return replace(less, unvested=tuple(kept))
    return replace(less, forfeited=standing.forfeited - tokens)  # in quarantine since


def revoked(standing: Standing) -> Standing:
    """The standing of a member whose key was revoked: in quarantine, what had not vested forfeited."""
    return _vest(replace(standing, quarantined=True), 0)


def _vest(standing: Standing, due: int) -> Standing:
    if standing.quarantined:
        return replace(standing, forfeited=standing.forfeited + standing.pending, unvested=())
    ripe = sum(tokens for turn, tokens in standing.unvested if turn <= due)
    if not ripe:
        return standing
    kept = tuple(entry for entry in standing.unvested if entry[0] > due)
    return replace(standing, vested=standing.vested + ripe, unvested=kept)
