"""Reads the bundle: polls ``routes.json``, verifies it, loads packages in the background, and switches; on a failure what serves stays.

The route table names packages by digest, its own digest is checked, and its number only grows. Each package is loaded by a thread of
its own, and each deployment is switched as soon as its packages are loaded: one that fails or takes long does not delay the others. A
deployment that cannot be taken into service keeps its earlier routes (the last good ones, stored beside the log, survive a restart), or
answers 503 with the reason. Its packages are tried again with growing pauses, and at once when the file changes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mainspring import durable
from mainspring.errors import Corrupt, InvalidInput, MainspringError
from mainspring.records.base import Record, from_json, to_json
from mainspring.records.serving import ROUTES_FILE, Deployment, RouteTable, table_digest, with_digest
from mainspring.serving.hosting import Nursery
from mainspring.serving.metrics import Metrics
from mainspring.serving.options import ServeOptions
from mainspring.serving.table import LiveTable, build, load_version, packages_of
from mainspring.serving.versions import Version
from mainspring.storage.failpoints import declare, failpoint

declare("serving.load", "serving.switch")

logger = logging.getLogger("mainspring.serving")

LOG_FOLDER = "log"
STATE_FILE = "serving-state.json"
"""In the log folder, the only one that the worker may write."""

MAX_ROUTES_BYTES = 16 << 20
_MAX_LOADING = 4
_LOADING = "it is being loaded"
_START_WAIT_S = 20.0


class Failure(Record, frozen=True, kw_only=True):
    """Why a route table, or some of its deployments, are not in service. ``deployments``: the reason of each, by name."""

    number: int | None
    reason: str
    at_us: int
    attempts: int = 1
    deployments: dict[str, str] = {}


class State(Record, frozen=True, kw_only=True):
    """What must survive a worker: for each deployment the routes that it last served."""

    good: RouteTable | None = None


@dataclass(slots=True)
class _FailedLoad:
    """A package that did not load."""

    reason: str
    attempts: int
    retry_at: float


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
    """Keeps a live table up to date with the bundle. Only the thread that polls changes it; loading threads hand over what they loaded."""

    def __init__(
        self,
        options: ServeOptions,
        *,
        metrics: Metrics,
        switch: Callable[[LiveTable], None],
        nursery: Nursery,
    ) -> None:
        self._options = options
        self._bundle = Path(options.bundle)
        self._metrics = metrics
        self._switch = switch
        self._nursery = nursery
        self._state_path = self._bundle / LOG_FOLDER / STATE_FILE
        self._state = self._read_state()
        self._stamp: Any = None
        self._table: RouteTable | None = None
        self._versions: dict[str, Version] = {}
        self._loading: set[str] = set()
        self._failed: dict[str, _FailedLoad] = {}
        self._loaded: list[tuple[str, Version | Exception]] = []
        self._broken: Failure | None = None
        """Why the newest ``routes.json`` was refused as a whole."""
        self.current = LiveTable(number=0)
        self.failure: Failure | None = None
        self.persists = True
        """Whether the state file is written: a spare worker does not write it until it serves."""
        self._stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bundle", daemon=True)

    def start(self) -> None:
        """Load the current bundle, then watch it in a thread.

        Waits for all packages, but at most :data:`_START_WAIT_S` seconds once some deployment can be served.
        """
        wait_until = time.monotonic() + _START_WAIT_S
        self.poll()
        while (self._loading or self._loaded) and not (
            self.current.deployments and time.monotonic() > wait_until
        ):
            self._wake.wait(0.5)
            self._wake.clear()
            self.poll()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def persist(self) -> None:
        """Write the state file from now on."""
        self.persists = True
        self._write_state()

    def poll(self) -> None:
        """Read the bundle once and switch to what was loaded since; never raises."""
        try:
            changed = self._read_if_changed()
            loaded = self._collect_loaded()
            self._load_missing()
            if changed or loaded:
                self._switch_to_loaded()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a bundle, what serves keeps serving
            self._refuse(None, error)

    def _read_if_changed(self) -> bool:
        """Read ``routes.json`` if it changed; returns whether there is a new table to serve."""
        try:
            stat = (self._bundle / ROUTES_FILE).stat()
        except FileNotFoundError:
            return False
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        number = None
        try:
            table = read_routes(self._bundle)
            number = table.number
            self._check_table(table)
        except Exception as error:  # noqa: BLE001 - as above
            if isinstance(error, OSError):
                self._stamp = None  # it may be readable at the next poll
            self._refuse(number, error)
            if self._table is not None or self._state.good is None:
                return False
            table = self._state.good
            logger.warning("serving the last good routes, number %d", table.number)
        else:
            self._broken = None
        self._table = table
        self._failed.clear()  # the file changed: try everything again
        return True

    def _check_table(self, table: RouteTable) -> None:
        names = [d.name for d in table.deployments]
        if len(set(names)) != len(names):
            raise InvalidInput("a deployment is there twice", value=names, place=ROUTES_FILE)
        served = self._table
        if served is None or table.number > served.number or table.digest == served.digest:
            return
        raise InvalidInput(
            f"the route table has number {table.number}, but {served.number} is in service",
            place=ROUTES_FILE,
            next_step="Numbers only grow: publish again.",
        )

    def _load_missing(self) -> None:
        now = time.monotonic()
        for digest in sorted(self._list_wanted() - self._versions.keys() - self._loading):
            failed = self._failed.get(digest)
            if (failed is None or now >= failed.retry_at) and len(self._loading) < _MAX_LOADING:
                self._loading.add(digest)
                threading.Thread(
                    target=self._load, args=(digest,), name=f"load-{digest[:8]}", daemon=True
                ).start()

    def _load(self, digest: str) -> None:
        result: Version | Exception
        try:
            failpoint("serving.load")
            folder = self._bundle / "packages" / digest
            result = load_version(folder, digest, nursery=self._nursery, options=self._options)
        except Exception as error:  # noqa: BLE001 - handed over to the polling thread
            result = error
        self._loaded.append((digest, result))
        self._wake.set()

    def _collect_loaded(self) -> bool:
        loaded = bool(self._loaded)
        while self._loaded:
            digest, result = self._loaded.pop(0)
            self._loading.discard(digest)
            if isinstance(result, Version):
                self._versions[digest] = result
                self._failed.pop(digest, None)
                continue
            attempts = self._failed[digest].attempts + 1 if digest in self._failed else 1
            pause = min(self._options.poll_s * 2**attempts, 60.0)
            self._failed[digest] = _FailedLoad(_describe_error(result), attempts, time.monotonic() + pause)
            self._metrics.counters["route_failures"] += 1
            logger.error("package %s does not load: %s", digest[:12], _describe_error(result))
        return loaded

    def _list_wanted(self) -> set[str]:
        """Packages of the newest table, and of a deployment's last good routes if its new ones do not load."""
        if self._table is None:
            return set()
        wanted: set[str] = set()
        for deployment in self._table.deployments:
            own = packages_of(deployment)
            wanted |= own
            before = self._last_good(deployment.name)
            if (
                before is not None
                and own & self._failed.keys()
                and deployment.name not in self.current.deployments
            ):
                wanted |= packages_of(before)
        return wanted

    def _last_good(self, name: str) -> Deployment | None:
        good = self._state.good.deployments if self._state.good is not None else []
        return next((d for d in good if d.name == name), None)

    def _switch_to_loaded(self) -> None:
        """Take each deployment into service whose packages are loaded, and record the problems of the others."""
        table = self._table
        if table is None:
            return
        problems: dict[str, str] = {}
        records: list[Deployment] = []
        for deployment in table.deployments:
            usable, why = self._usable_routes(deployment)
            if why is not None:
                problems[deployment.name] = why
            before = self.current.record(deployment.name) or self._last_good(deployment.name)
            for record in (usable, before):
                if record is not None and packages_of(record) <= self._versions.keys():
                    records.append(record)
                    break
        live, refused = build(
            records, self._versions, self.current.deployments, options=self._options, metrics=self._metrics
        )
        for name, why in refused.items():
            problems[name] = why
            serving = self.current.deployments.get(name)
            if serving is not None:
                live[name] = serving
        # Others wait for the number: it is that of a table of which nothing is being loaded any more.
        number = (
            self.current.number if any(why.endswith(_LOADING) for why in problems.values()) else table.number
        )
        new = LiveTable(number=number, deployments=live, routes=table, problems=problems)
        failpoint("serving.switch")
        if not new.same_as(self.current):
            self._switch(new)
            self.current = new
            self._metrics.counters["swaps"] += 1
            self._metrics.gauges["routes_number"] = new.number
            logger.info(
                "route table %d: %d of %d deployments are in service",
                table.number,
                len(live),
                len(table.deployments),
            )
        used = {v.package for v in new.packages().values()} | self._list_wanted()
        self._versions = {digest: v for digest, v in self._versions.items() if digest in used}
        self._report_problems(table.number, problems)
        if not self._loading:
            self._write_state()

    def _usable_routes(self, deployment: Deployment) -> tuple[Deployment | None, str | None]:
        """The routes that can be served now (None: none), and what is wrong with the rest. Shadows that do not load are left out."""
        missing = {t.package for t in deployment.targets} - self._versions.keys()
        if missing:
            return None, self._reason_for(missing)
        shadows = {s.package for s in deployment.shadows} - self._versions.keys()
        if not shadows:
            return deployment, None
        kept = [s for s in deployment.shadows if s.package not in shadows]
        return msgspec.structs.replace(deployment, shadows=kept), f"a shadow: {self._reason_for(shadows)}"

    def _reason_for(self, missing: set[str]) -> str:
        known = [self._failed[digest].reason for digest in sorted(missing) if digest in self._failed]
        return known[0] if known else _LOADING

    def _report_problems(self, number: int, problems: dict[str, str]) -> None:
        reported = {name: why for name, why in problems.items() if not why.endswith(_LOADING)}
        if not reported:
            self.failure = self._broken
            return
        attempts = max((failed.attempts for failed in self._failed.values()), default=1)
        reason = "; ".join(f"{name}: {why}" for name, why in sorted(reported.items()))
        self.failure = Failure(
            number=number,
            reason=reason[:1000],
            at_us=time.time_ns() // 1000,
            attempts=attempts,
            deployments=reported,
        )

    def _refuse(self, number: int | None, error: Exception) -> None:
        self._broken = self.failure = Failure(
            number=number, reason=_describe_error(error), at_us=time.time_ns() // 1000
        )
        self._metrics.counters["route_failures"] += 1
        logger.error("route table %s is not taken into service: %s", number, _describe_error(error))

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(self._options.poll_s)
            self._wake.clear()
            if not self._stopped:
                self.poll()

    def _read_state(self) -> State:
        with contextlib.suppress(OSError, InvalidInput):
            written: dict[str, Any] = from_json(self._state_path.read_bytes(), dict[str, Any])
            state: State = from_json(to_json({"good": written.get("good")}), State)
            if state.good is None or table_digest(state.good) == state.good.digest:
                return state
        return State()

    def _write_state(self) -> None:
        """Write the routes that serve to the state file. Best effort: a full disk must not keep a good table out of service."""
        routes = self.current.routes
        if not self.persists or routes is None or not self.current.deployments:
            return
        # A deployment that does not serve keeps its last good routes: its new ones may still be loading.
        kept = [self.current.record(d.name) or self._last_good(d.name) for d in routes.deployments]
        records = [record for record in kept if record is not None]
        good = with_digest(msgspec.structs.replace(routes, deployments=records))
        if self._state.good is not None and good.digest == self._state.good.digest:
            return
        self._state = State(good=good)
        try:
            self._state_path.parent.mkdir(exist_ok=True, mode=0o700)
            durable.replace(
                self._state_path, to_json(self._state), mode=0o644
            )  # the control plane reads it, perhaps as another user
        except OSError as error:
            logger.warning("the serving state could not be written: %s", error)


def _describe_error(error: Exception) -> str:
    text = str(error) if isinstance(error, MainspringError) else f"{type(error).__name__}: {error}"
    return text[:500]
