"""Credit, strikes and quarantine from the records alone, written from docs/protocol.md, section 10.

Shares nothing with verification.credits or verification.judge: what was accepted and rejected is read in
the closes, and whether those are right is another check's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulator.story import Scene, Story
from verification.records import Enrol, RoundClose, RoundOpen, Settlement

STRIKES = ("unrevealed", "opening-mismatch", "malformed-payload", "duplicate-payload", "unserved")


@dataclass
class Account:
    """A member's money and conduct."""

    earned: int = 0
    vested: int = 0
    forfeited: int = 0
    unvested: list[tuple[int, int]] = field(default_factory=list)
    strikes: int = 0
    out: bool = False

    def earn(self, turn: int, tokens: int) -> None:
        self.earned += tokens
        self.unvested.append((turn, tokens))

    def lose(self, turn: int, tokens: int) -> None:
        """What a removed contribution of `turn` had earned: it was not vested, or is forfeited already."""
        self.earned -= tokens
        if (turn, tokens) in self.unvested:
            self.unvested.remove((turn, tokens))
        else:
            self.forfeited -= tokens


def credit_is_accepted_tokens(story: Story) -> list[str]:
    """Credits and quarantine of every close and settlement are what its records and those before it give."""
    settings = story.manifest.config["credit"]
    accounts = {record.member: Account() for record in story.first}
    found: list[str] = []
    total = 0
    for scene, record in story.course():
        if isinstance(record, RoundOpen):
            for change, _ in scene.before:
                if isinstance(change, Enrol):
                    accounts[change.member] = Account()
            for name in scene.revoked:
                accounts[name].out = True
                _vest(accounts[name], -1)
            continue
        if isinstance(record, Settlement):
            total -= _settle(story, scene, record, accounts)
        else:
            total += sum(item.tokens for item in record.accepted)
            _pay(story, scene, record, accounts)
            _punish(record, accounts, settings["strikes"])
            for account in accounts.values():
                _vest(account, scene.open.turn - settings["vest_rounds"])
        found += _compare(scene, record, accounts)
    if story.end is not None and story.end.tokens != total:
        found.append(f"the run-close tells {story.end.tokens} tokens, the closes {total}")
    return found


def _tokens(story: Story, scene: Scene, slot: int) -> int:
    entry = scene.open.entry(slot)
    windows: int = entry.steps * story.manifest.config["train"]["batch"]
    return windows * int(story.manifest.dataset["context"])


def _audited(story: Story, scene: Scene, slot: int) -> int:
    """Tokens of the steps that an audit of the drawn segments repeats, counted one by one."""
    train, steps = story.manifest.config["train"], scene.open.entry(slot).steps
    repeated = [step for step in range(steps) if step // train["trace_every"] in scene.segments[slot]]
    return len(repeated) * int(train["batch"]) * int(story.manifest.dataset["context"])


def _pay(story: Story, scene: Scene, close: RoundClose, accounts: dict[str, Account]) -> None:
    for item in close.accepted:
        accounts[item.member].earn(scene.open.turn, _tokens(story, scene, item.slot))
    if not story.lag:
        _pay_auditors(story, scene, accounts)


def _pay_auditors(story: Story, scene: Scene, accounts: dict[str, Account]) -> None:
    accepted = {item.slot for item in story.accepted(scene)}
    failed = {line.slot for line in story.rejected(scene) if line.reason == "failed-audit"}
    gone = {(item.slot, item.look) for item in story.overruled(scene)}
    for verdict in scene.verdicts:
        borne_out = verdict.slot in (accepted if verdict.outcome == "pass" else failed)
        if borne_out and (verdict.slot, verdict.look) not in gone:
            accounts[verdict.auditor].earn(scene.open.turn, _audited(story, scene, verdict.slot))


def _settle(story: Story, scene: Scene, record: Settlement, accounts: dict[str, Account]) -> int:
    """The tokens that were taken back from the run's."""
    total = 0
    for item in record.removed:
        of = story.at(item.round, item.attempt)
        tokens = _tokens(story, of, item.slot)
        accounts[item.member].lose(of.open.turn, tokens)
        total += tokens
    # A later settlement cannot remove what this one leaves, so the verdicts are paid by what is accepted.
    _pay_auditors(story, scene, accounts)
    for item in record.removed:
        accounts[item.member].out |= item.reason == "failed-audit"
    for line in record.overruled:
        accounts[line.auditor].out = True
    for account in accounts.values():
        _vest(account, -1)
    return total


def _punish(close: RoundClose, accounts: dict[str, Account], strikes: int) -> None:
    for line in close.rejected:
        account = accounts[line.member]
        account.strikes += line.reason in STRIKES
        if line.reason == "failed-audit" or (line.reason in STRIKES and account.strikes >= strikes):
            account.out = True
    for item in close.overruled:
        accounts[item.auditor].out = True


def _vest(account: Account, due: int) -> None:
    if account.out:
        account.forfeited += sum(tokens for _, tokens in account.unvested)
        account.unvested = []
    account.vested += sum(tokens for turn, tokens in account.unvested if turn <= due)
    account.unvested = [(turn, tokens) for turn, tokens in account.unvested if turn > due]


def _compare(scene: Scene, record: RoundClose | Settlement, accounts: dict[str, Account]) -> list[str]:
    found = []
    told = {line.member: (line.earned, line.vested, line.forfeited) for line in record.credits}
    label = f"{scene.label}, {record.kind}"
    if list(told) != sorted(accounts):
        found.append(f"{label}: the log tells credits of {list(told)}, not of {sorted(accounts)}")
    for name, account in accounts.items():
        true = (account.earned, account.vested, account.forfeited)
        if told.get(name) != true:
            found.append(f"{label}: {name} has {true}, the log tells {told.get(name)}")
        waiting = sum(tokens for _, tokens in account.unvested)
        whole = account.earned == account.vested + account.forfeited + waiting
        if not whole or min(*true, waiting) < 0:
            found.append(f"{label}: the account of {name} does not add up")
    out = sorted(name for name, account in accounts.items() if account.out)
    if list(record.quarantined) != out:
        found.append(f"{label}: in quarantine are {out}, the log tells {record.quarantined}")
    return found
