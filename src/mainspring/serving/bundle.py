"""Reading the bundle: poll ``routes.json``, verify, load in the background, switch, keep the old table on any failure.

The route table names packages by digest, its own digest is checked, its number only grows. A table that cannot be taken into
service changes nothing but :attr:`Watcher.failure`; it is tried again with growing pauses, and at once when the file changes.
A worker that is killed while loading (out of memory) finds that out when it restarts: after two such attempts the table is
refused and the last good one, kept beside the log, is served.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mainspring.errors import Corrupt, DeadlineExceeded, InvalidInput, MainspringError
from mainspring.records.base import Record, from_json, to_json
from mainspring.records.serving import ROUTES_FILE, RouteTable, table_digest
from mainspring.serving.metrics import Metrics
from mainspring.serving.options import ServeOptions
from mainspring.serving.table import LiveTable, Version, build, load_version
from mainspring.storage.failpoints import declare, failpoint

declare("serving.load", "serving.switch")

logger = logging.getLogger("mainspring.serving")

LOG_FOLDER = "log"
STATE_FILE = "serving-state.json"
"""In the log folder, the only one that the worker may write."""

MAX_ROUTES_BYTES = 16 << 20
_ATTEMPTS = 2


class Failure(Record, frozen=True, kw_only=True):
    """Why a route table is not in service."""

    number: int | None
    reason: str
    at_us: int
    attempts: int = 1


class State(Record, frozen=True, kw_only=True):
    """What must outlive a worker: the last good table, and which one was being loaded when it died."""

    good: RouteTable | None = None
    loading: str | None = None
    attempts: int = 0


def read_routes(bundle: Path) -> RouteTable:
    """The verified route table of a bundle; raises :class:`Corrupt` or :class:`InvalidInput`."""
    path = bundle / ROUTES_FILE
    with path.open("rb") as file:
        data = file.read(MAX_ROUTES_BYTES + 1)
    if len(data) > MAX_ROUTES_BYTES:
        raise Corrupt("the route table is too large", value=len(data), place=str(path))
    table: RouteTable = from_json(data, RouteTable)
    if table_digest(table) != table.digest:
        raise Corrupt(
            "the route table does not match its digest",
            value=table.digest,
            place=str(path),
            next_step="Publish it again.",
        )
    return table


class Watcher:
    """Keeps a live table up to date with the bundle."""

    def __init__(
        self, options: ServeOptions, *, metrics: Metrics, switch: Callable[[LiveTable], None]
    ) -> None:
        self._options = options
        self._bundle = Path(options.bundle)
        self._metrics = metrics
        self._switch = switch
        self._state_path = self._bundle / LOG_FOLDER / STATE_FILE
        self._state = self._read_state()
        self._stamp: Any = None
        self._retry_at = 0.0
        self._abandoned = 0
        self.current = LiveTable(number=0)
        self.failure: Failure | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bundle", daemon=True)

    def start(self) -> None:
        """Load what is there now, then keep watching in a thread."""
        self.poll()
        if self.current.number == 0 and self._state.good is not None:
            self._fall_back(self._state.good)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def poll(self) -> None:
        """Look once; never raises."""
        try:
            stat = (self._bundle / ROUTES_FILE).stat()
        except FileNotFoundError:
            return
        except OSError as error:
            self._failed(None, error)
            return
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp and (self.failure is None or time.monotonic() < self._retry_at):
            return
        changed, self._stamp = stamp != self._stamp, stamp
        number = None
        try:
            table = read_routes(self._bundle)
            number = table.number
            if table.number <= self.current.number:
                self._check_not_older(table)
                self.failure = None
                return
            self._take(table)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a bundle, the old table keeps serving
            self._failed(number, error, again=not changed)

    def _check_not_older(self, table: RouteTable) -> None:
        served = self.current.routes
        if served is not None and (table.number < served.number or table.digest != served.digest):
            raise InvalidInput(
                f"the route table has number {table.number}, but {served.number} is in service",
                place=ROUTES_FILE,
                next_step="Numbers only grow: publish again.",
            )

    def _take(self, table: RouteTable) -> None:
        if self._state.loading == table.digest and self._state.attempts >= _ATTEMPTS:
            raise Corrupt("loading this route table killed the worker", value=f"{self._state.attempts} times")
        attempts = self._state.attempts + 1 if self._state.loading == table.digest else 1
        self._remember(State(good=self._state.good, loading=table.digest, attempts=attempts))
        try:
            live = self._load(table)
        except Exception:
            self._remember(State(good=self._state.good))  # it failed, but killed nobody
            raise
        failpoint("serving.switch")
        self._switch(live)
        self.current, self.failure = live, None
        self._metrics.counters["swaps"] += 1
        self._metrics.gauges["routes_number"] = live.number
        self._remember(State(good=table))
        logger.info("route table %d is in service", table.number)

    def _load(self, table: RouteTable) -> LiveTable:
        have = self.current.packages()
        wanted = {t.package for d in table.deployments for t in d.targets} | {
            s.package for d in table.deployments for s in d.shadows
        }
        versions: dict[str, Version] = {}
        for digest in sorted(wanted):
            versions[digest] = have[digest] if digest in have else self._within_deadline(digest)
        return build(table, versions, options=self._options, metrics=self._metrics)

    def _within_deadline(self, digest: str) -> Version:
        """Load in a thread of its own: one that hangs is abandoned, at most three times in a worker's life."""
        if self._abandoned >= 3:
            raise DeadlineExceeded(
                "three packages hung while loading; this worker loads no more",
                next_step="Restart the server.",
            )
        outcome: list[Version | BaseException] = []

        def load() -> None:
            try:
                failpoint("serving.load")
                outcome.append(
                    load_version(
                        self._bundle / "packages" / digest, digest, inline_ms=self._options.inline_ms
                    )
                )
            except BaseException as error:  # noqa: BLE001 - handed over to the waiting thread
                outcome.append(error)

        thread = threading.Thread(target=load, name=f"load-{digest[:8]}", daemon=True)
        thread.start()
        thread.join(self._options.load_deadline_s)
        if not outcome:
            self._abandoned += 1
            raise DeadlineExceeded(
                f"the package did not load within {self._options.load_deadline_s:g} s", value=digest
            )
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def _failed(self, number: int | None, error: Exception, *, again: bool = False) -> None:
        attempts = self.failure.attempts + 1 if again and self.failure else 1
        reason = str(error) if isinstance(error, MainspringError) else f"{type(error).__name__}: {error}"
        self.failure = Failure(
            number=number, reason=reason[:500], at_us=time.time_ns() // 1000, attempts=attempts
        )
        self._retry_at = time.monotonic() + min(self._options.poll_s * 2**attempts, 60.0)
        self._metrics.counters["route_failures"] += 1
        logger.error("route table %s is not taken into service: %s", number, reason)

    def _fall_back(self, table: RouteTable) -> None:
        try:
            live = self._load(table)
        except Exception as error:  # noqa: BLE001 - then there is nothing to serve, and ready says so
            logger.warning("the last good route table cannot be served either: %s", error)
            return
        self._switch(live)
        self.current = live
        self._metrics.gauges["routes_number"] = live.number
        logger.warning("serving the last good route table, number %d", live.number)

    def _run(self) -> None:
        while not self._stop.wait(self._options.poll_s):
            self.poll()

    def _read_state(self) -> State:
        with contextlib.suppress(OSError, InvalidInput):
            state: State = from_json(self._state_path.read_bytes(), State)
            if state.good is None or table_digest(state.good) == state.good.digest:
                return state
        return State()

    def _remember(self, state: State) -> None:
        """Best effort: a full disk must not keep a good table out of service."""
        if msgspec.structs.asdict(state) == msgspec.structs.asdict(self._state):
            return
        self._state = state
        temporary = self._state_path.with_suffix(".tmp")
        try:
            self._state_path.parent.mkdir(exist_ok=True, mode=0o700)
            with temporary.open("wb") as file:
                file.write(to_json(state))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._state_path)
        except OSError as error:
            logger.warning("the serving state could not be written: %s", error)
