"""A run in wandb: one wandb run for each training run, over accepted tokens, offline unless a key is there.

Owns how wandb is started, taken up again and ended, and the bounds on what it may take. Does not own what is
charted (charts.py), what is worth an alert (alerts.py), nor that a failing or hanging wandb does no harm
(`Fallible` and `Background` in monitor.py).
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.alerts import SEVERE
from pipeline.charts import TABLES, X_AXIS, table_rows, values_of
from pipeline.monitor import Background, Row
from verification.records import Manifest

PROJECT = "barnraise"
# The first writer of a shared run, as its system metrics are labelled.
COORDINATOR = "coordinator"
LEET = "wandb leet"
SYNC = "wandb sync"
# Bounds on what wandb may take, in seconds: to start, to go on without an answer, to send what is left. The
# end waits for a start that fails, for its second try offline, and for the sending.
INIT_S = 20.0
PATIENCE_S = 120.0
SEND_S = 15.0
FINISH_S = 45.0
FLUSH_S = 2.0
# A file of wandb's begins with so many bytes that hold nothing.
HEADER_BYTES = 7
TABLE_ROWS = 2000
TABLE_EVERY = 100


class Wandb:
    """One wandb run in the driver; it starts at the first closed turn.

    A run that goes on is taken up under the same id. Steps are counted from round and attempt, so that the
    pieces that several processes wrote fit together, online and when they are synced later. `earlier` are
    rows that the tables begin with. `tell` gets a line on where to look, online at the start, else at the
    end. `shared` makes an online run one that other machines can write to beside this one
    (cluster/wandb_nodes.py); wandb calls that mode experimental, and the server then counts the steps.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        tell: Callable[[str], None],
        earlier: Iterable[Row] = (),
        *,
        shared: bool = False,
    ) -> None:
        import wandb  # noqa: PLC0415 - only training needs it

        self._wandb = wandb
        self._folder = folder
        self._manifest = manifest
        self._tell = tell
        self._shared = shared
        self._run: Any = None
        self._step = 0
        self._turns = 0
        self._tables = {name: deque[list[Any]](maxlen=TABLE_ROWS) for name in TABLES}
        for row in earlier:
            with contextlib.suppress(AttributeError, KeyError, OverflowError, TypeError, ValueError):
                self._keep(row)

    def turn(self, row: Row) -> None:  # noqa: D102
        self._run = self._run or self._start()
        attempts = self._manifest.config["run"]["max_void"] + 1
        # Two steps a turn: the second is for the tables.
        self._step = 2 * (row["round"] * attempts + row["attempt"])
        self._log(self._run, values_of(row), self._step)
        for alert in row.get("alerts", ()):
            level = "ERROR" if alert["kind"] in SEVERE else "WARN"
            title = f"{alert['kind']}: {self._manifest.name}"[:60]  # wandb takes less than 64 characters
            self._run.alert(title, alert["text"], level, 1)
        self._keep(row)
        self._turns += 1
        if self._turns % TABLE_EVERY == 0:
            self._log_tables()

    def note(self, text: str) -> None:  # noqa: D102
        del text

    def close(self) -> None:  # noqa: D102
        if not self._run:
            return
        run, self._run = self._run, None
        if self._turns % TABLE_EVERY:
            self._log_tables(run)
        where = shlex.quote(str(self._folder / "wandb"))
        try:
            run.finish()
        except TimeoutError:
            self._tell(f"wandb did not take all in time; the rest: {SYNC} --include-online {where}")
            return
        if run.offline:
            self._tell(f"charts in the terminal: {LEET} {where}")
            self._tell(f"to send them to wandb's servers: {SYNC} {where}")

    def _start(self) -> Any:
        # At the first closed turn: a run that could not be taken up leaves nothing in its folder.
        logging.getLogger("wandb").setLevel(logging.ERROR)
        # wandb.init's own settings come too late for what it says of a key.
        self._wandb.setup(settings=self._wandb.Settings(silent=True))
        self._drop_empty()
        run = None
        if logged_in():
            try:
                run = self._init("shared" if self._shared else "online")
                self._tell(f"wandb: {run.url}")
            except Exception as error:  # no network, a key that is no more: nothing is lost offline
                why = (str(error).splitlines() or [type(error).__name__])[0]
                self._tell(f"wandb cannot be reached ({why}); the run is written offline")
                self._wandb.teardown()  # else the id counts as in use
        run = run or self._init("offline")
        run.define_metric(X_AXIS)
        run.define_metric("*", step_metric=X_AXIS)
        return run

    def _init(self, mode: Literal["online", "offline", "shared"]) -> Any:
        first = {"x_primary": True, "x_label": COORDINATOR} if mode == "shared" else {}
        settings = self._wandb.Settings(
            **first,
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=INIT_S,
            finish_timeout=SEND_S,
            finish_timeout_raises=True,
            # What is not in the file when the process is killed is lost, and nobody can look at it before.
            x_transaction_log_flush_interval=FLUSH_S,
        )
        return self._wandb.init(
            project=PROJECT,
            name=self._manifest.name,
            id=wandb_id(self._manifest),
            resume="allow",
            dir=str(self._folder),
            mode=mode,
            config={"run_id": self._manifest.run_id, **self._manifest.config},
            settings=settings,
        )

    def _drop_empty(self) -> None:
        """Remove files that a kill left without a record: one such makes `wandb sync` fail."""
        for path in self._folder.glob(f"wandb/*run-*-{wandb_id(self._manifest)}/*.wandb"):
            if path.stat().st_size <= HEADER_BYTES:
                path.unlink()

    def _keep(self, row: Row) -> None:
        for table, line in table_rows(row):
            self._tables[table].append(line)

    def _log_tables(self, run: Any = None) -> None:
        # Online, a table asks the server; while that is away there is none, and the charts go on.
        with contextlib.suppress(Exception):
            tables = {
                name: self._wandb.Table(columns=list(TABLES[name]), data=list(lines))
                for name, lines in self._tables.items()
                if lines
            }
            if tables:
                self._log(run or self._run, tables, self._step + 1)

    def _log(self, run: Any, values: Mapping[str, Any], step: int) -> None:
        if run.offline or not self._shared:
            run.log(values, step=step, commit=True)
        else:  # several writers: the server counts
            run.log(values)


def wandb_view(
    folder: Path,
    manifest: Manifest,
    tell: Callable[[str], None],
    earlier: Iterable[Row] = (),
    *,
    shared: bool = False,
) -> Background:
    """`Wandb` in a thread of its own, with bounds on all that it may wait for."""
    view = Wandb(folder, manifest, tell, earlier, shared=shared)
    return Background(view, patience_s=PATIENCE_S, finish_s=FINISH_S)


def wandb_id(manifest: Manifest) -> str:
    """The id of the wandb run, the same over restarts and on every machine."""
    return manifest.run_id.removeprefix("sha256:")[:16]


def logged_in() -> bool:
    """Whether wandb may go online: it has a key, in its variable or in netrc, and no mode says no."""
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared", "run"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
