"""Lies for tests.pipeline.forger: how each is told, the words that name it, and where.

LIES is the table of what a coordinator with nothing but its own key may try on a finished run of three
rounds in which c03 (slot 3) failed its audit in round 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.pipeline.forger import Forger
from tests.pipeline.lie_changes import (
    LAST,
    all_of,
    as_it_was,
    drop,
    earlier,
    entries,
    fields,
    forgetful,
    heavier,
    item,
    lucky,
    manifest_again,
    old_head,
    other_momentum,
    other_rate,
    own_outer,
    own_weights,
    paid,
    plus,
    redrawn,
    refused,
    resealed,
    reveals_first,
    settled,
    without,
    without_turn,
)
from verification.records import Draw


@dataclass
class Lie:
    """How it is told, what names it, where; `alone`: nothing else is named."""

    tell: Callable[[Forger], None]
    what: str
    where: str = "round-close of round 3"
    alone: bool = False
    turns: int = 3
    end: bool = True


OPEN, CLOSE, DRAW = "round-open of round 3", "round-close of round 3", "draw of round 3"
SEED = r"the seed of draw in round 3 is wrong"
STEP = "the weights are not what the payloads give"
LIES: dict[str, Lie] = {
    # what the aggregate is made of
    "a wrong weight told": Lie(
        fields("round-close", LAST, accepted=item("accepted", 0, weight=plus(1))),
        "the weight of slot 0 in round 3 is wrong",
        alone=True,
    ),
    "a wrong weight used": Lie(heavier, STEP, "round 3, attempt 0"),
    "an accepted payload left out of the close": Lie(
        fields("round-close", LAST, accepted=without("accepted", 0)),
        "slot 0 is neither accepted nor rejected in round 3",
    ),
    "an accepted payload rejected as disputed": Lie(
        settled(LAST, 0, "disputed"), "slot 0 is settled wrongly in round 3", alone=True
    ),
    "an accepted payload left out of the aggregate": Lie(forgetful, STEP, "round 3, attempt 0"),
    "another payload in its place": Lie(
        fields(
            "round-close",
            LAST,
            accepted=lambda r: item("accepted", 0, payload=r.accepted[1].payload)(r),
        ),
        "the payload of slot 0 in round 3 is wrong",
        alone=True,
    ),
    "tokens nobody trained on": Lie(
        fields("round-close", LAST, accepted=item("accepted", 0, tokens=plus(16))),
        "the tokens of slot 0 in round 3 is wrong",
    ),
    # verdicts
    "a verdict dropped, its slot accepted": Lie(
        all_of(entries("verdict", LAST, drop(0)), settled(LAST, 0, None)),
        "slot 0 is accepted in round 3 though its drawn audit was not done",
        alone=True,
    ),
    "a verdict dropped, its auditor not told as missed": Lie(
        all_of(
            entries("verdict", LAST, drop(0)),
            settled(LAST, 0, None),
            fields("round-close", LAST, missed=lambda r: tuple(m for m in r.missed if m.slot)),
        ),
        "a0[01] gave no verdict for look 1 of slot 0 in round 3",
    ),
    "a failed audit turned into a pass": Lie(
        settled(0, 3, None),
        "slot 3 is settled wrongly in round 1",
        "round-close of round 1",
        alone=True,
        turns=1,
        end=False,
    ),
    "the verdicts against an adversary dropped": Lie(
        all_of(entries("verdict", 0, drop(3)), settled(0, 3, None)),
        "slot 3 is accepted in round 1 though its drawn audit was not done",
        "round-close of round 1",
        alone=True,
        turns=1,
        end=False,
    ),
    "a verdict rewritten": Lie(
        entries(
            "verdict", 0, lambda found: [*found[:3], (replace(found[3][0], differs=(), outcome="pass"), None)]
        ),
        "the verdict of look 1 of slot 3 in round 1 is not signed by a0[01]",
        "verdict of round 1",
        turns=1,
        end=False,
    ),
    "a disputed slot of a second look forgotten": Lie(
        fields("second-draw", 0, looks=()),
        "the second looks of round 1 do not follow from first-looks and seed",
        "second-draw of round 1",
        turns=1,
        end=False,
    ),
    "the evidence withheld": Lie(
        fields("round-close", 0, rejected=item("rejected", 0, evidence=None)),
        "the evidence of rejected slot 3 in round 1 is missing",
        "round-close of round 1",
        alone=True,
        turns=1,
        end=False,
    ),
    "a sound payload called malformed": Lie(
        refused("malformed-payload"),
        "a sound payload was refused as malformed",
        "evidence/r00003-a0-s0/payload",
        alone=True,
    ),
    "a payload called malformed, its evidence withheld": Lie(
        all_of(
            refused("malformed-payload"),
            fields("round-close", LAST, rejected=item("rejected", 0, evidence=None)),
        ),
        "the evidence of rejected slot 0 in round 3 is missing",
        alone=True,
    ),
    "a payload called a copy that was never accepted before": Lie(
        refused("duplicate-payload"),
        "slot 0 in round 3 is listed as duplicate-payload though it opens its commitment",
        "reveal-close of round 3",
    ),
    # the lottery
    "a drawn audit undone": Lie(
        fields("draw", LAST, drawn=without("drawn", 0)),
        "the drawn slots of round 3 do not follow from the seed",
        DRAW,
    ),
    "another auditor called first": Lie(
        fields(
            "draw",
            LAST,
            drawn=lambda r: item("drawn", 0, auditors=r.drawn[0].auditors[::-1])(r),
        ),
        "the auditors of slot 0 in round 3 do not follow from the seed",
        DRAW,
    ),
    "another link": Lie(
        redrawn(lambda _: hashlib.sha256(b"mine").hexdigest()),
        "the link of draw in round 3 is not link 5 of the draw chain",
        DRAW,
    ),
    "a link used before": Lie(
        redrawn(lambda f: f.chain.link(3)),
        "the link of draw in round 3 is not link 5 of the draw chain",
        DRAW,
    ),
    "a later link": Lie(
        redrawn(lambda f: f.chain.link(6)),
        "the link of draw in round 3 is not link 5 of the draw chain",
        DRAW,
    ),
    "another seed": Lie(lambda f: f.lie("draw", LAST, lucky), SEED, DRAW),
    "a draw from an earlier head": Lie(
        lambda f: f.lie("draw", LAST, old_head), "head 2 does not sign exactly the entries before it", DRAW
    ),
    "audited less than the rate": Lie(
        fields("round-open", LAST, roster=item("roster", 0, audit_ppm=0)),
        "the audit_ppm of slot 0 in the roster of round 3 is wrong",
        OPEN,
    ),
    # who works on what, from what
    "a broken lineage": Lie(
        fields(
            "round-open", LAST, roster=lambda r: item("roster", 0, start_state=r.roster[1].start_state)(r)
        ),
        "the start_state of slot 0 in the roster of round 3 is wrong",
        OPEN,
    ),
    "a window used twice": Lie(
        fields("round-open", LAST, roster=item("roster", 0, positions=((0, 6),))),
        "the positions of slot 0 in the roster of round 3 is wrong",
        OPEN,
    ),
    "a window that waits given to nobody": Lie(
        fields("round-close", LAST, cursor=lambda r: r.cursor + 2),
        "the cursor after round 3 is wrong",
        alone=True,
    ),
    "a contributor taken off the roster after the draw": Lie(
        fields("round-open", LAST, roster=without("roster", 1)),
        "the roster of round 3 has the wrong slots",
        OPEN,
    ),
    "a roster changed, the draw as it was shown": Lie(
        all_of(fields("round-open", LAST, roster=item("roster", 0, steps=4)), as_it_was(Draw, "draw")),
        "head 2 does not sign exactly the entries before it",
        DRAW,
    ),
    "an auditor taken off the list": Lie(
        fields("round-open", LAST, auditors=without("auditors", 1)), "the auditors of round 3 are wrong", OPEN
    ),
    "a quarantine lifted": Lie(
        # c03 failed its audit in round 1 and is in the roster of round 2
        fields("round-close", 0, quarantined=()),
        "the members in quarantine after round 1 are wrong",
        "round-close of round 1",
        turns=2,
        end=False,
    ),
    "another inner learning rate": Lie(
        fields("round-open", LAST, inner_lr=lambda r: ((0.5).hex(), *r.inner_lr[1:])),
        "the inner learning rate of step 0 in round 3 is wrong",
        OPEN,
        alone=True,
    ),
    "another outer learning rate": Lie(
        fields("round-open", LAST, outer_lr=(0.5).hex()),
        "the outer learning rate of round 3 is wrong",
        OPEN,
        alone=True,
    ),
    "another outer learning rate used": Lie(other_rate, STEP, "round 3, attempt 0"),
    "no snapshot where one is due": Lie(
        fields("round-open", LAST, snapshot=False), "the snapshot flag of round 3 is wrong", OPEN
    ),
    "a start from another checkpoint": Lie(
        fields("round-open", LAST, base=lambda r: replace(r.base, weights="blake3:" + "0" * 64)),
        "round 3 does not start from the last checkpoint",
        OPEN,
    ),
    # checkpoints
    "a wrong outer state, the weights following it": Lie(
        other_momentum, "the outer state are not what the payloads give", "round 3, attempt 0"
    ),
    "a wrong outer state left behind": Lie(
        own_outer, "the outer state are not what the payloads give", "round 3, attempt 0"
    ),
    "one weight of the last checkpoint moved by a bit": Lie(own_weights, STEP, "round 3, attempt 0"),
    # accounts
    "credit for nothing": Lie(
        fields("round-close", LAST, credits=item("credits", 2, earned=plus(1000))),
        "the earned credit of c00 after round 3 is wrong",
        alone=True,
    ),
    "an auditor paid for a verdict that nobody confirmed": Lie(
        all_of(
            lambda forger: forger.lie("verdict2", 0, lambda found, _: []),
            lambda forger: forger.lie("round-close", 0, paid),
        ),
        r"the earned credit of a0[01] after round 1 is wrong",
        "round-close of round 1",
        alone=True,
        turns=1,
        end=False,
    ),
    "credit vested early": Lie(
        fields("round-close", LAST, credits=item("credits", 2, vested=plus(96))),
        "the vested credit of c00 after round 3 is wrong",
        alone=True,
    ),
    "a forfeit forgiven": Lie(
        fields("round-close", 0, credits=item("credits", 5, earned=64)),
        "the earned credit of c03 after round 1 is wrong",
        "round-close of round 1",
        alone=True,
        turns=1,
        end=False,
    ),
    "a train loss made up": Lie(
        fields("round-close", LAST, train_loss=lambda r: r.train_loss - 1),
        "the train loss of round 3 is wrong",
        alone=True,
    ),
    "a validation loss left out": Lie(
        fields("round-close", LAST, val_loss=None), "the validation loss of round 3 is missing", alone=True
    ),
    "another total of tokens": Lie(
        fields("run-close", -1, tokens=lambda r: r.tokens + 1),
        "the tokens of the run-close are wrong",
        "run-close",
        alone=True,
    ),
    "another number of rounds": Lie(
        fields("run-close", -1, rounds=4), "the rounds of the run-close are wrong", "run-close", alone=True
    ),
    "other last weights": Lie(
        fields("run-close", -1, weights="blake3:" + "0" * 64),
        "the weights of the run-close are wrong",
        "run-close",
        alone=True,
    ),
    # the log as a whole
    "a second manifest": Lie(manifest_again, "a record is out of order", "log entry 28, manifest"),
    "a commitment replaced": Lie(
        entries("commitment", LAST, resealed(lambda c: replace(c, commitment="sha256:" + "1" * 64))),
        "the commitment of slot 0 in round 3 is not signed by c00",
        "commitment of round 3",
    ),
    "a reveal replaced": Lie(
        entries("reveal", LAST, resealed(lambda r: replace(r, salt="1" * 64))),
        "the reveal of slot 0 in round 3 is not signed by c00",
        "reveal of round 3",
    ),
    "a commitment of an earlier round": Lie(
        lambda f: f.lie("commitment", LAST, earlier),
        "the round in the commitment is not that of its round-open",
        "commitment of round 2",
    ),
    "commitments in another order": Lie(
        entries("commitment", LAST, lambda found: found[::-1]),
        "the commitment of slot 1 in round 3 is out of order",
        "commitment of round 3",
    ),
    "reveals in another order": Lie(
        entries("reveal", LAST, lambda found: found[::-1]),
        "the reveal of slot 1 in round 3 is out of order",
        "reveal of round 3",
    ),
    "reveals before the commitments are closed": Lie(reveals_first, "a record is out of order", "reveal"),
    "a turn deleted": Lie(
        without_turn(1), "the round in the commitment is not that of its round-open", "commitment of round 3"
    ),
    "the last turn deleted": Lie(
        without_turn(2), "the run is closed before its last round", "run-close", alone=True
    ),
    "the first turn told twice": Lie(
        lambda f: f.turns.insert(1, f.turns[0]),
        "the round in the commitment is not that of its round-open",
        "commitment of round 1",
    ),
}
