"""What a run's notary makes of late cosignatures, and that a draw with a pulse fits an entry."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.witnessing import Notary, check_draw_fits
from tests.verification.fake_run import (
    CHAIN,
    NOON,
    WITNESSES,
    FakeWitness,
    Play,
    head,
    links,
    made_up_beacon,
    made_up_pulse,
    started,
)
from verification.errors import UsageError
from verification.keys import PrivateKey
from verification.notes import cosign, parse_cosigned
from verification.plans import due_pulse, plan_draw
from verification.records import Draw
from verification.rounds import apply

ONE, TWO, THREE = WITNESSES


class Prepared:
    """Witnesses whose cosigned head is made already; who cosigned it shows its link."""

    def __init__(self, note: str) -> None:
        self.note = note

    def present(self) -> tuple[str, ...]:
        return WITNESSES

    def cosign(self, note: str, consistency: object, names: Sequence[str]) -> str:
        del note, consistency, names
        return self.note

    def links(self, note: str, number: int, names: Sequence[str], sign: object) -> dict[str, tuple[str, str]]:
        del note, sign
        return links(head(2)[0], number, names)


@pytest.mark.parametrize(
    ("named", "late", "away", "stay"),
    [
        (WITNESSES, (), (), WITNESSES),
        ((ONE, TWO), (), (), WITNESSES),
        ((ONE, TWO), (THREE,), (), (ONE, TWO)),  # two are required: without it the draw is in time
        ((ONE, TWO), (THREE,), (TWO,), (ONE, THREE)),  # it is needed
        (WITNESSES, (THREE,), (), WITNESSES),  # it was named: its link is wanted
        ((ONE, TWO), (TWO, THREE), (), (ONE, TWO)),
        (WITNESSES, WITNESSES, (), WITNESSES),
    ],
)
def test_a_late_cosignature_that_nobody_needs_is_left_out(
    named: tuple[str, ...], late: tuple[str, ...], away: tuple[str, ...], stay: tuple[str, ...]
) -> None:
    state = started(witnesses=3, beacon=made_up_beacon(period=1))
    play = Play(state)
    play.absent = set(WITNESSES) - set(named)
    play.turn({})
    for record in play.records:
        if isinstance(record, Draw):
            break
        state = apply(state, record)
    point, plain = head(2)
    note = plain
    for name in WITNESSES:
        if name not in away:
            witness = FakeWitness(name)
            note += cosign(point, name, witness.key, NOON + (3600 if name in late else 2))
    ledger: Any = SimpleNamespace(
        manifest=state.manifest, state=state, head=plain, consistency=None, sign_link_request=None
    )
    notices: list[str] = []
    found, shown = Notary(ledger, Prepared(note), notices.append).attest("draw")
    cosigned = parse_cosigned(found, state.manifest.log_vkey, state.manifest.witness_vkeys)
    assert cosigned.names == stay
    assert sorted(shown) == sorted(set(stay) & set(named))
    blamed = [line.split(":")[0] for line in notices if "after its pulse, by its clock" in line]
    assert blamed == [name for name in late if name in stay]
    assert any("is the clock here slow?" in line for line in notices) == (late == WITNESSES)
    draw = plan_draw(state, found, CHAIN.link(1), shown, made_up_pulse(due_pulse(state) or 0))
    assert apply(state, draw).open_turn.draw == draw


def test_a_draw_with_a_pulse_must_fit_an_entry() -> None:
    key_ = PrivateKey.generate()

    def fits(length: int, *, with_beacon: bool) -> bool:
        try:
            check_draw_fits("o", key_, 1, ["a" * length], WITNESSES, segments=1, beacon=with_beacon)
        except UsageError:
            return False
        return True

    most, too_many = 1, 65_536
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if fits(middle, with_beacon=False) else (most, middle)
    assert not fits(most, with_beacon=True)
    assert fits(most - 200, with_beacon=True)
