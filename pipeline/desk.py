"""What the coordinator and its hearing of audits work with.

Owns the list of it and nothing else: everything on the desk is defined where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from data_prep.dataset import Windows
from model.arrays import Arrays
from pipeline.checkpoint import Aggregator
from pipeline.config import Config
from pipeline.crew import Crew
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.told import ToldFiles
from pipeline.witnessing import Notary
from verification.lottery import HashChain


@dataclass(frozen=True)
class Desk:
    """What the coordinator works with.

    `told` is what auditors told in turns that are not over; `revoked` names members whose keys the organiser
    revokes; `data` has the windows, for evidence; `validate` gives a validation loss in micronats; `notice`
    takes a line for people.
    """

    config: Config
    folder: RunFolder
    ledger: Ledger
    chain: HashChain
    crew: Crew
    notary: Notary
    revoked: Callable[[], Iterable[str]]
    told: ToldFiles
    aggregator: Aggregator
    data: Windows
    validate: Callable[[Arrays], int]
    notice: Callable[[str], None]
