"""The client of training code: ``with tracking.start_run(experiment="x") as run: run.log_metric("loss", 0.1, step=1)``.

A log call appends to the spool (one ``write()``) and returns; a background thread ships it. Training never waits for a server
and goes on without one. A full disk or a failed fsync makes the spool *degraded*: one warning, a mark on the run, and
training goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from mainspring.clock import Clock, SystemClock, to_us
from mainspring.errors import InvalidInput, MainspringError
from mainspring.operations import delegating
from mainspring.records.base import check_name, check_path, new_id
from mainspring.records.tracking import Run as RunRecord
from mainspring.storage.journal import JournalWriter
from mainspring.tracking import spool
from mainspring.tracking.capture import Captured, capture
from mainspring.tracking.operations import Tracking
from mainspring.tracking.spool import Shipment, Shipper, TrackingOperations, encode, ingest_spool, sweep

SHIP_EVERY_S = 0.5
DUTY = 4
"""The shipping thread waits this many times as long as it worked, so that the training loop keeps most of the interpreter."""

FLUSH_S = 10.0
KEPT_BYTES = 4 << 20
"""At most so much of what must not be lost (params, tags, inputs, the end) waits in memory while the spool cannot be written."""

LONG_TEXT = 256 << 10
"""A longer param or tag is kept whole as an artifact; the value holds its beginning and names the artifact."""

if TYPE_CHECKING:
    _Operations = Tracking
else:
    _Operations = delegating(Tracking)
"""All operations of the room are the client's too: ``search_runs``, ``get_metric_history``, ..."""

Number = float | int
Ended = Literal["finished", "failed", "killed"]


class TrackingClient(_Operations):
    """Runs from the user's side. ``operations`` is the tracking room, here or remote.

    ``spool`` is a private folder on this machine; by default inside the local workspace, or in the user's cache for a
    remote one.
    """

    def __init__(
        self,
        operations: Tracking,
        _objects: object = None,
        *,
        spool: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        base = getattr(operations, "_base", None)
        self.operations = operations
        self._clock: Clock = clock or (base.clock if base is not None else SystemClock())
        self._shared = spool is None and base is None
        if spool is None:
            spool = (
                base.home / "spool" / base.project
                if base is not None
                else Path.home() / ".cache" / "mainspring" / "spool"
            )
        self.spool = spool

    def start_run(
        self,
        *,
        experiment: str = "default",
        name: str = "",
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        parent: str | None = None,
        capture: bool = True,
        seeds: Mapping[str, int] | None = None,
    ) -> Run:
        """Begin a run; use it as a context manager, or call :meth:`Run.finish`.

        ``capture`` records code, environment and machine in the background; what cannot be captured is recorded as such.
        """
        check_name(experiment, what="experiment")
        begin = {
            "experiment": experiment,
            "name": _storable_text(name),
            "parent": parent,
            "started_us": to_us(self._clock.now()),
            "alive_s": spool.ALIVE_S,
        }
        run = Run(
            self.operations,
            self.spool,
            new_id(),
            clock=self._clock,
            begin=begin,
            captured=capture,
            seeds=dict(seeds or {}),
        )
        run.log_params(params or {})
        run.set_tags(tags or {})
        _begun.set((*(r for r in _begun.get() if not r.ended), run))
        return run

    def attach(self, run: str) -> Run:
        """Log into a run that another process began (a step of a pipeline, a rank of a distributed training); that process ends it."""
        return Run(self.operations, self.spool, run, clock=self._clock, begin=None, captured=False, seeds={})

    def recover(self) -> dict[str, Shipment]:
        """Ship what processes that died left in the spool, exactly once.

        A remote client needs its own ``spool`` folder for this: the common one also holds runs of other servers.
        """
        if self._shared:
            return {}
        return ingest_spool(self.spool, cast("TrackingOperations", self.operations))


class Run:
    """A run being logged. All methods may be called from any thread; none raises for a server or disk that fails."""

    def __init__(
        self,
        operations: Tracking,
        folder: Path,
        run: str,
        *,
        clock: Clock,
        begin: dict[str, Any] | None,
        captured: bool,
        seeds: dict[str, int],
    ) -> None:
        self.id = run
        self.degraded: str | None = None
        """Why the spool could not be written at some time; None if it always could."""
        self.lost = 0
        """Log calls whose data is lost because the spool could not be written."""
        self._operations = operations
        self._folder = folder / run
        self._clock = clock
        self._owner = begin is not None
        self._captured = captured
        self._seeds = seeds
        self._journal = JournalWriter(self._folder, prefix=spool.PREFIX, max_bytes=8 << 20)
        self._params: dict[str, str] = {}
        self._note = spool.Note(self._folder, self._journal.writer)
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._delivered = 0
        self._kept_lock = threading.RLock()
        self._retry_at = 0.0
        self._dirty = False
        self._ended = False
        self._warned: set[str] = set()
        self._wake = threading.Event()
        self._capture_done = threading.Event()
        self._stop = False
        self._pid = os.getpid()
        if begin is not None:
            self._append(encode(spool.BEGIN, begin | {"id": run}), keep=True)
        self._thread = threading.Thread(target=self._ship_forever, name="mainspring-spool", daemon=True)
        self._thread.start()
        _open_runs.add(self)

    @property
    def ended(self) -> bool:
        """Whether :meth:`finish` was called."""
        return self._ended

    # --- logging -------------------------------------------------------------------------------------------------------

    def log_metric(self, key: str, value: Number, step: int = 0) -> None:
        """Log one number. NaN and infinities are kept; an integer beyond 2**53 is rounded to the nearest double."""
        self._append(encode(spool.METRIC, (key, float(value), step, time.time_ns() // 1000)))

    def log_metrics(self, metrics: Mapping[str, Number], step: int = 0) -> None:
        """Log several numbers of one step."""
        if metrics:
            self._append(
                encode(
                    spool.METRICS, ({k: float(v) for k, v in metrics.items()}, step, time.time_ns() // 1000)
                )
            )

    def log_param(self, key: str, value: object) -> None:
        """Log an input value of the run. A param never changes: another value raises :class:`InvalidInput`."""
        self.log_params({key: value})

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log several input values; see :meth:`log_param`."""
        texts = {
            _storable_text(str(k)): self._shorten(_storable_text(str(v)), "params") for k, v in params.items()
        }
        for key, value in texts.items():
            if self._params.get(key, value) != value:
                raise InvalidInput(
                    f"param {key!r} is {self._params[key]!r} already",
                    value=value,
                    next_step="A param keeps its first value: log a tag, or start another run.",
                )
        new = {k: v for k, v in texts.items() if k not in self._params}
        self._params |= new
        if new:
            self._append(encode(spool.PARAMS, new), keep=True)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set several tags; a tag that exists gets the new value."""
        texts = {
            _storable_text(str(k)): self._shorten(_storable_text(str(v)), "tags") for k, v in tags.items()
        }
        if texts:
            self._append(encode(spool.TAGS, texts), keep=True)

    def set_tag(self, key: str, value: object) -> None:
        """Set a tag; one that exists gets the new value."""
        self.set_tags({key: value})

    def log_inputs(self, *inputs: str) -> None:
        """Record inputs: ids of dataset versions, or references such as ``object:<digest>``."""
        references = [i if ":" in i else f"dataset_version:{i}" for i in inputs]
        if references:
            self._append(encode(spool.USE, references), keep=True)

    def log_artifact(self, source: Path | str | bytes, path: str | None = None) -> None:
        """Keep a file (or a folder, or bytes) with the run under the logical ``path``; it is copied now and uploaded later."""
        if isinstance(source, bytes):
            if path is None:
                raise InvalidInput("bytes have no name", next_step="Pass path='name'.")
            self._copy_artifact(source, check_path(path, what="artifact path"))
            return
        file = Path(source)
        target = check_path(path or file.name, what="artifact path")
        if file.is_dir():
            for inner in sorted(p for p in file.rglob("*") if p.is_file() and not p.is_symlink()):
                self._copy_artifact(
                    inner, check_path(f"{target}/{inner.relative_to(file).as_posix()}", what="artifact path")
                )
        elif file.is_file():
            self._copy_artifact(file, target)
        else:
            raise InvalidInput(
                "no such file", value=str(source), next_step="Pass the path of a file or folder that exists."
            )

    # --- ending --------------------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until everything logged so far is stored; returns False if it was not within ``timeout_s`` seconds (it stays in the spool)."""
        self._dirty = True
        if threading.current_thread() is self._thread or os.getpid() != self._pid:
            return False
        done = threading.Event()
        self._waiting = done
        self._wake.set()
        return done.wait(timeout_s)

    def finish(self, status: Ended = "finished", *, flush_s: float = FLUSH_S) -> bool:
        """End the run: fsync the spool and wait at most ``flush_s`` seconds for it to be stored.

        Returns whether all is stored. If not, nothing is lost: whoever opens the workspace next ships the rest.
        """
        if self._ended or os.getpid() != self._pid:
            return True
        self._ended = True
        _open_runs.discard(self)
        self._capture_done.wait(flush_s)  # a short run may end before its capture does
        ended = (status, to_us(self._clock.now())) if self._owner else None
        self._log_end(ended)
        with contextlib.suppress(MainspringError):
            self._journal.close()
        self._stop = True
        self._wake.set()
        self._thread.join(flush_s)
        stored = not self._thread.is_alive() and not self._has_unshipped() and not self._kept
        if not stored:
            kept = f", {len(self._kept)} log calls could not be written and are lost" if self._kept else ""
            self._warn(
                "flush",
                f"run {self.id}: not everything is stored yet; what is in {self._folder} ships when the workspace is next opened{kept}",
            )
        return stored

    def _log_end(self, ended: tuple[str, int] | None) -> None:
        """Log the tag of a degraded run, and how it ended: into the spool or, if that fails, in memory for the store; and into the note."""
        note = self._note.read()
        if note is not None:  # a forked child may have lost more calls than this process
            self.degraded = self.degraded or note["why"]
            self.lost = max(self.lost, note["lost"])
        unwritten = len(self._kept)
        if self.degraded:
            mark = {"mainspring.degraded": f"lost {self.lost} log calls: {self.degraded}"[:1000]}
            self._append(encode(spool.TAGS, mark), keep=True)
        if ended is not None:
            self._append(encode(spool.FINISH, ended), keep=True)
        if self.degraded:
            self._note.write(lost=self.lost + unwritten, why=self.degraded, finish=ended)

    def record(self) -> RunRecord:
        """The run as it is stored now."""
        return self._operations.get_run(run=self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.finish("killed" if issubclass(kind, KeyboardInterrupt) else "failed")

    # --- inside --------------------------------------------------------------------------------------------------------

    def _append(self, record: bytes, *, keep: bool = False) -> None:
        """Write to the spool. What cannot be written is lost and counted; with ``keep`` it waits in memory for the next write."""
        # The lock orders records that are kept in memory before those that follow. A metric takes it only while some are kept: the
        # journal's own append is safe between threads.
        with self._kept_lock if self._kept or keep else contextlib.nullcontext():
            if self.degraded is not None and time.monotonic() < self._retry_at:
                self._keep_or_count(record, keep=keep)
                return
            try:
                while self._kept:
                    self._journal.append(self._kept[0])
                    self._drop_kept(1)
                self._journal.append(record)
            except MainspringError as error:
                self._keep_or_count(record, keep=keep)
                self._degrade(error)
            else:
                self._dirty = True

    def _keep_or_count(self, record: bytes, *, keep: bool) -> None:
        if keep and self._kept_bytes + len(record) <= KEPT_BYTES:
            self._kept.append(record)
            self._kept_bytes += len(record)
        else:
            self.lost += 1

    def _drop_kept(self, count: int) -> None:
        self._kept_bytes -= sum(map(len, self._kept[:count]))
        del self._kept[:count]

    def _degrade(self, error: BaseException) -> None:
        self._retry_at = time.monotonic() + 1.0
        self.degraded = str(error)
        self._note.write(lost=self.lost, why=self.degraded, finish=None)
        self._warn("degraded", f"run {self.id}: logging is degraded, training goes on: {error}")

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            with contextlib.suppress(
                RuntimeWarning
            ):  # a filter that turns warnings into errors must not end the training
                warnings.warn(message, RuntimeWarning, stacklevel=4)

    def _shorten(self, value: str, kind: str) -> str:
        if len(value) <= LONG_TEXT:
            return value
        name = f"mainspring/{kind}/{new_id()}.txt"
        self._copy_artifact(value.encode(), name)
        return f"{value[:1000]}... ({len(value)} characters; whole in artifact {name})"

    def _copy_artifact(self, source: Path | bytes, path: str) -> None:
        """Copy into the spool, then append the record that names the copy: a crash in between leaves an unused file."""
        target = self._folder / "files" / new_id()
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
        except OSError as error:
            self.lost += 1
            self._degrade(error)
            return
        self._append(encode(spool.ARTIFACT, (path, target.name)), keep=True)

    def _has_unshipped(self) -> bool:
        return self._folder.is_dir() and any(self._folder.glob(f"{spool.PREFIX}-{self._journal.writer}-*"))

    _waiting: threading.Event | None = None

    def _ship_round(self, shipper: Shipper, *, last: bool) -> None:
        """Cut what was logged so far into a batch and ship it."""
        if self._dirty and not last:
            self._dirty = False
            with contextlib.suppress(MainspringError):
                self._journal.append(encode(spool.CUT, None))
        shipper.ship(writer=self._journal.writer)
        self._deliver_kept(shipper)
        if last:
            shipper.ship()  # the records of this run's forked children
            self._note.remove()
            sweep(self._folder)

    def _deliver_kept(self, shipper: Shipper) -> None:
        """Send records that could not be written to the spool to the store directly: it may be on another disk."""
        with self._kept_lock:
            kept = list(self._kept)
        if kept:  # not under the lock: training must not wait for a server
            shipper.deliver(kept, writer=f"{self._journal.writer}-{self._delivered}")
            with self._kept_lock:
                self._delivered += len(kept)
                if (
                    self._kept[: len(kept)] == kept
                ):  # else they were written to the spool meanwhile; storing them twice changes nothing
                    self._drop_kept(len(kept))

    def _log_capture(self) -> None:
        if self._captured:
            captured: Captured = capture(seeds=self._seeds)
            capture_record = (captured.code, captured.environment, captured.source, captured.files)
            self._append(encode(spool.CAPTURE, capture_record), keep=True)

    def _ship_forever(self) -> None:
        """The background thread: capture, then ship until the run has ended and everything is stored."""
        shipper = Shipper(
            self._folder, self.id, cast("TrackingOperations", self._operations), alive_s=spool.ALIVE_S
        )
        try:
            self._log_capture()
        except Exception as error:  # noqa: BLE001 - capture never fails the run
            self._append(encode(spool.TAGS, {"mainspring.capture_failed": str(error)[:1000]}), keep=True)
        finally:
            self._capture_done.set()
        failures, beat = 0, time.monotonic()
        while True:
            self._wake.clear()
            began, stopping, waiting = time.monotonic(), self._stop, self._waiting
            try:
                self._ship_round(shipper, last=stopping)
                if began - beat > spool.ALIVE_S / 3 and not stopping:
                    self._operations.heartbeat(run=self.id, alive_s=spool.ALIVE_S)
                    beat = began
                failures = 0
            except Exception as error:  # noqa: BLE001 - whatever the store or the network raises: try again later
                failures += 1
                if failures == 3:
                    self._warn(
                        "unreachable",
                        f"run {self.id}: the store is not reachable, logging goes on in the spool: {error}",
                    )
            if shipper.total.rejected:
                self._warn(
                    "rejected",
                    f"run {self.id}: the store refused {shipper.total.rejected} batches: {shipper.total.reasons[-1]}",
                )
            if not failures:
                if waiting is not None and waiting is self._waiting:
                    self._waiting = None
                    waiting.set()
                if stopping:
                    return
            spent = time.monotonic() - began
            self._wake.wait(min(0.1 * 2**failures, 30.0) if failures else max(SHIP_EVERY_S, DUTY * spent))


_begun: ContextVar[tuple[Run, ...]] = ContextVar("mainspring_begun_runs", default=())
"""The runs that were begun here, in a thread or task, and are not known to have ended; the newest is the current one."""


def get_current_run() -> Run | None:
    """The run that was begun last in this thread or task and has not ended; None if there is none."""
    return next((run for run in reversed(_begun.get()) if not run.ended), None)


_open_runs: set[Run] = set()
"""Runs that are not finished yet, so that one that is never finished ends with the program."""


def _finish_all() -> None:
    """At interpreter exit: end the runs that are not finished, with the status of the program."""
    status: Ended = "failed" if getattr(sys, "last_value", None) is not None else "finished"
    for run in list(_open_runs):
        run.finish(status)


atexit.register(_finish_all)


def _storable_text(text: str) -> str:
    """``text`` as every database can store it: NUL and lone surrogates are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
