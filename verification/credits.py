"""Credit: tokens earned by accepted work and by audits, vesting late, forfeited on quarantine.

Owns section 10 of docs/protocol.md as one pure function. Does not own payment, or who is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

STRIKE_REASONS = frozenset(
    {"unrevealed", "opening-mismatch", "malformed-payload", "duplicate-payload", "unserved"}
)


@dataclass(frozen=True)
class Standing:
    """A member's balance and conduct. `unvested` holds (turn, tokens); everything counts tokens."""

    earned: int = 0
    vested: int = 0
    forfeited: int = 0
    unvested: tuple[tuple[int, int], ...] = ()
    accepted: int = 0
    strikes: int = 0
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
    accepted, with whether it had been drawn. `rejected`: members and reasons.
    """

    turn: int
    earned: Sequence[tuple[str, int]] = ()
    accepted: Mapping[str, bool] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)


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
                before, strikes=count, suspect=True, quarantined=before.quarantined or count >= strikes
            )
        after[member] = before
    return {name: _vest(standing, result.turn - vest_rounds) for name, standing in after.items()}


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
