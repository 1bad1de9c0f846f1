"""Credit, strikes and quarantine from the records alone, written from docs/protocol.md, section 10.

Shares nothing with verification.credits or verification.judge: what was accepted and rejected is read in
the closes, and whether those are right is another check's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulator.story import Scene, Story

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


def credit_is_accepted_tokens(story: Story) -> list[str]:
    """Every close's credits and quarantine are what its records and those before it give."""
    settings = story.manifest.config["credit"]
    accounts = {name: Account() for name in story.enrolled}
    found: list[str] = []
    total = 0
    for scene in story.scenes:
        for name in scene.revoked:
            accounts[name].out = True
            _vest(accounts[name], -1)
        if scene.close is None:
            continue
        total += sum(item.tokens for item in scene.close.accepted)
        _pay(story, scene, accounts)
        _punish(scene, accounts, settings["strikes"])
        for account in accounts.values():
            _vest(account, scene.open.turn - settings["vest_rounds"])
        found += _compare(scene, accounts)
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


def _pay(story: Story, scene: Scene, accounts: dict[str, Account]) -> None:
    assert scene.close is not None
    accepted = {item.slot for item in scene.close.accepted}
    failed = {line.slot for line in scene.close.rejected if line.reason == "failed-audit"}
    for item in scene.close.accepted:
        accounts[item.member].earn(scene.open.turn, _tokens(story, scene, item.slot))
    for verdict in scene.verdicts:
        if verdict.slot in (accepted if verdict.outcome == "pass" else failed):
            accounts[verdict.auditor].earn(scene.open.turn, _audited(story, scene, verdict.slot))


def _punish(scene: Scene, accounts: dict[str, Account], strikes: int) -> None:
    assert scene.close is not None
    for line in scene.close.rejected:
        account = accounts[line.member]
        account.strikes += line.reason in STRIKES
        if line.reason == "failed-audit" or (line.reason in STRIKES and account.strikes >= strikes):
            account.out = True


def _vest(account: Account, due: int) -> None:
    if account.out:
        account.forfeited += sum(tokens for _, tokens in account.unvested)
        account.unvested = []
    account.vested += sum(tokens for turn, tokens in account.unvested if turn <= due)
    account.unvested = [(turn, tokens) for turn, tokens in account.unvested if turn > due]


def _compare(scene: Scene, accounts: dict[str, Account]) -> list[str]:
    assert scene.close is not None
    found = []
    told = {line.member: (line.earned, line.vested, line.forfeited) for line in scene.close.credits}
    for name, account in accounts.items():
        true = (account.earned, account.vested, account.forfeited)
        if told.get(name) != true:
            found.append(f"{scene.label}: {name} has {true}, the close tells {told.get(name)}")
        waiting = sum(tokens for _, tokens in account.unvested)
        if account.earned != account.vested + account.forfeited + waiting:
            found.append(f"{scene.label}: the account of {name} does not add up")
    out = sorted(name for name, account in accounts.items() if account.out)
    if list(scene.close.quarantined) != out:
        found.append(f"{scene.label}: in quarantine are {out}, the close tells {scene.close.quarantined}")
    return found
