"""The spool: the files that a training process logs to, and how their content reaches the operations exactly once.

One folder per run, a journal in it with prefix ``spool`` (a writer per process), copies of artifacts under ``files/``.
Records: one tag byte, then msgpack. Where a batch ends follows from the journal alone: at a cut mark, at a size, at the end of a
segment. So any process that ships it, the training process or the next one after a kill -9, ships the same batch under the same
id (the position of its first record), and the store keeps each batch once. No cursor has to survive.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mainspring.errors import Conflict, InvalidInput, MainspringError, NotFound, TooLarge
from mainspring.records.tracking import (
    Artifact,
    BatchResult,
    CaptureResult,
    CodeState,
    EnvironmentState,
    Point,
    Run,
)
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.journal import JournalReader, JournalWriter, Segment

PREFIX = "spool"
MAX_POINTS = 20_000
MAX_BYTES = 1 << 20
ALIVE_S = 60.0

declare("spool.shipped", "spool.removed")

BEGIN, METRIC, METRICS, PARAMS, TAGS, ARTIFACT, CAPTURE, USE, FINISH, CUT = (
    b"b",
    b"m",
    b"M",
    b"p",
    b"t",
    b"a",
    b"k",
    b"u",
    b"f",
    b"c",
)

_encoder = msgspec.msgpack.Encoder()
_json = msgspec.json.Encoder()
NOTE = "degraded-"
_BATCHED = frozenset({METRIC, METRICS, PARAMS, TAGS})

REJECTED = (InvalidInput, TooLarge, Conflict)
"""Errors that another attempt cannot cure. NotFound is not among them: the process that begins the run may ship later than this one."""


class TrackingOperations(Protocol):
    """What shipping needs of the room, local or remote."""

    def create_run(self, **arguments: Any) -> Run: ...
    def log_batch(self, **arguments: Any) -> BatchResult: ...
    def heartbeat(self, **arguments: Any) -> None: ...
    def finish_run(self, **arguments: Any) -> Run: ...
    def set_tags(self, **arguments: Any) -> Run: ...
    def log_inputs(self, **arguments: Any) -> None: ...
    def record_capture(self, **arguments: Any) -> CaptureResult: ...
    def upload_artifact(self, **arguments: Any) -> Artifact: ...


def encode(tag: bytes, value: Any) -> bytes:
    """A spool record."""
    return tag + _encoder.encode(value)


@dataclass
class Batch:
    """What goes to the store in one call: merged points, params and tags, or one single action."""

    id: str
    end: int
    """Offset behind its last record."""
    points: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    size: int = 0
    action: tuple[bytes, Any] | None = None

    def add(self, tag: bytes, value: Any, size: int) -> None:
        self.size += size
        if tag == METRIC:
            key, number, step, time_us = value
            self.points.append(Point.of(key, number, step=step, time_us=time_us))
        elif tag == METRICS:
            numbers, step, time_us = value
            self.points += [Point.of(k, n, step=step, time_us=time_us) for k, n in numbers.items()]
        elif tag == PARAMS:
            self.params |= value
        else:
            self.tags |= value

    @property
    def full(self) -> bool:
        return len(self.points) >= MAX_POINTS or self.size >= MAX_BYTES


def batches(records: Iterable[tuple[int, bytes]], *, segment: str, final: bool) -> Iterator[Batch]:
    """Cut a segment's records ``(offset, payload)``, read from the start of a batch, into batches.

    The last one is held back unless ``final`` (nothing will follow in this segment) or a rule ends it.
    """
    batch: Batch | None = None
    for offset, payload in records:
        tag, end = payload[:1], offset + 8 + len(payload)
        if tag in _BATCHED:
            batch = batch or Batch(id=f"{segment}:{offset}", end=end)
            batch.add(tag, msgspec.msgpack.decode(payload[1:]), len(payload))
            batch.end = end
            if batch.full:
                yield batch
                batch = None
            continue
        if batch is not None:
            yield batch
            batch = None
        # A cut ships nothing; nor does a record of a kind that this program does not know, from a newer client.
        action = (tag, msgspec.msgpack.decode(payload[1:])) if tag != CUT else None
        yield Batch(id=f"{segment}:{offset}", end=end, action=action)
    if batch is not None and final:
        yield batch


@dataclass
class Shipment:
    """What was shipped. ``rejected`` counts batches that the store refused for good (kept beside the spool)."""

    batches: int = 0
    points: int = 0
    rejected: int = 0
    torn: int = 0
    reasons: list[str] = field(default_factory=list)


class Shipper:
    """Ships the spool of one run through the operations. Not thread-safe: one thread ships."""

    def __init__(
        self, folder: Path, run: str, operations: TrackingOperations, *, alive_s: float | None = None
    ) -> None:
        self._folder = folder
        self._run = run
        self._operations = operations
        self._alive_s = alive_s
        self._reader = JournalReader(folder, PREFIX)
        self._done: dict[str, int] = {}
        self._actions: dict[bytes, Callable[[Any], None]] = {
            BEGIN: self._begin,
            CAPTURE: self._capture,
            USE: self._use,
            ARTIFACT: self._artifact,
            FINISH: self._finish,
        }
        self.total = Shipment()

    def ship(self, *, writer: str | None = None, most: int | None = None) -> bool:
        """Ship what is in the spool, of one writer or of all that have ended; returns whether everything was shipped.

        ``most`` ends the round after that many batches. Raises what the operations raise when the store is not there: then
        call again later.
        """
        segments = self._reader.segments()
        alive = {s.writer for s in segments if s.alive} if writer is None else set()
        chosen = [
            s for s in segments if (s.writer == writer if writer is not None else s.writer not in alive)
        ]
        budget = most
        for segment in chosen:
            budget = self._ship_segment(segment, budget)
            if budget is not None and budget <= 0:
                return False
        return True

    def deliver(self, records: list[bytes], *, writer: str) -> None:
        """Ship records that could not be written to the spool. Sent again after an error, they are stored once."""
        for batch in batches(enumerate(records), segment=f"{writer}-memory", final=True):
            self._send(batch)

    def _ship_segment(self, segment: Segment, budget: int | None) -> int | None:
        final = not segment.alive
        name = segment.path.stem
        while True:
            start = self._done.get(name, 0)
            records, read_to = self._reader.records(segment, start, max_bytes=4 << 20)
            last = not records or (final and self._reader.at_end(segment, read_to))
            shipped = False
            for batch in batches(records, segment=name.partition("-")[2], final=last):
                self._send(batch)
                self._done[name] = batch.end
                shipped = True
                if budget is not None:
                    budget -= 1
                    if budget <= 0:
                        return budget
            if last or not shipped:
                break
        if final and self._reader.at_end(segment, max(read_to, self._done.get(name, 0))):
            self._reader.remove([segment])
            self._done.pop(name, None)
            failpoint("spool.removed")
        self.total.torn = self._reader.torn
        return budget

    def _send(self, batch: Batch) -> None:
        try:
            self._deliver(batch)
        except REJECTED as error:
            self._reject(batch, error)
        else:
            self.total.batches += 1
            self.total.points += len(batch.points)
        failpoint("spool.shipped")

    def _deliver(self, batch: Batch) -> None:
        run, operations = self._run, self._operations
        if batch.action is not None:
            tag, value = batch.action
            action = self._actions.get(tag)
            if action is not None:  # else a record of a newer client, which this program does not know
                action(value)
        elif batch.points or batch.params or batch.tags:
            operations.log_batch(
                run=run,
                batch_id=batch.id,
                metrics=batch.points,
                params=batch.params,
                tags=batch.tags,
                alive_s=self._alive_s,
            )

    def _reject(self, batch: Batch, error: MainspringError) -> None:
        """The store will never accept this batch as it is: store the parts that it accepts, and keep the batch beside the spool."""
        self.total.rejected += 1
        self.total.reasons = [*self.total.reasons[-9:], str(error)]
        with contextlib.suppress(*REJECTED):
            if batch.points:
                self._operations.log_batch(run=self._run, batch_id=f"{batch.id}:points", metrics=batch.points)
        with contextlib.suppress(*REJECTED):
            self._operations.log_batch(
                run=self._run,
                batch_id=f"{batch.id}:tags",
                tags=batch.tags | {"mainspring.rejected": str(error)[:1000]},
            )
        for key, value in batch.params.items():
            with contextlib.suppress(*REJECTED):
                self._operations.log_batch(
                    run=self._run, batch_id=f"{batch.id}:{key}"[:200], params={key: value}
                )
        with contextlib.suppress(MainspringError), JournalWriter(self._folder, prefix="rejected") as kept:
            kept.append(
                _encoder.encode(
                    [batch.id, str(error), batch.points, batch.params, batch.tags, list(batch.action or ())]
                )
            )

    # One method for each kind of single record; each is idempotent, since a record may be shipped twice.

    def _begin(self, value: Any) -> None:
        self._operations.create_run(**value)

    def _capture(self, value: Any) -> None:
        code, environment, source, *files = value
        self._operations.record_capture(
            run=self._run,
            code=msgspec.convert(code, CodeState) if code else None,
            environment=msgspec.convert(environment, EnvironmentState) if environment else None,
            source=source,
            **({"files": files[0]} if files and files[0] else {}),
        )

    def _use(self, value: Any) -> None:
        self._operations.log_inputs(run=self._run, inputs=value)

    def _artifact(self, value: Any) -> None:
        path, file = value
        source = self._folder / "files" / Path(file).name
        try:
            with source.open("rb") as body:
                self._operations.upload_artifact(
                    run=self._run, path=path, body=iter(lambda: body.read(1 << 20), b"")
                )
        except FileNotFoundError:  # shipped before: the file goes only after the upload
            return
        source.unlink(missing_ok=True)

    def _finish(self, value: Any) -> None:
        status, ended_us = value
        self._operations.finish_run(run=self._run, status=status, ended_us=ended_us)


class Note:
    """A small file for what must be recorded even when the disk is full: that log calls were lost, and how the run ended.

    Its bytes are allocated when the run begins, so that writing it needs no space. The process holds its lock while it lives, as
    with segments.
    """

    SIZE = 1024

    def __init__(self, folder: Path, writer: str) -> None:
        self._path = folder / f"{NOTE}{writer}"
        self._fd = -1
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if os.pwrite(self._fd, b" " * self.SIZE, 0) != self.SIZE:
                self.remove()

    def write(self, *, lost: int, why: str | None, finish: tuple[str, int] | None) -> None:
        """Overwrite in place, by one write."""
        data = _json.encode({"lost": lost, "why": (why or "")[:300], "finish": finish})
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                os.pwrite(self._fd, data.ljust(self.SIZE)[: self.SIZE], 0)

    def read(self) -> dict[str, Any] | None:
        """Its content (also what a forked child wrote into it); None if it is empty."""
        with contextlib.suppress(OSError):
            return _decode_note(os.pread(self._fd, self.SIZE, 0)) if self._fd >= 0 else None
        return None

    def remove(self) -> None:
        """Remove the file: its content is stored elsewhere."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def _decode_note(data: bytes) -> dict[str, Any] | None:
    if not data.strip():
        return None
    try:
        return dict(msgspec.json.decode(data))
    except (
        msgspec.DecodeError,
        ValueError,
        TypeError,
    ):  # overwritten in part: that it was written at all means that calls were lost
        return {"lost": 0, "why": "the note of it cannot be read", "finish": None}


def _store_notes(home: Path, run: str, operations: TrackingOperations) -> None:
    """Store the content of the notes of dead processes. Idempotent: a note is deleted only afterwards."""
    for path in sorted(home.glob(f"{NOTE}*")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            note = _decode_note(file.read(Note.SIZE))
            if note is not None and (note["lost"] or note["why"]):
                tags = {
                    "mainspring.degraded": f"lost at least {note['lost']} log calls: {note['why']}"[:1000]
                }
                operations.log_batch(run=run, batch_id=path.name, tags=tags)
            if note is not None and note["finish"]:
                status, ended_us = note["finish"]
                operations.finish_run(run=run, status=status, ended_us=ended_us)
        path.unlink(missing_ok=True)


def ingest_spool(folder: Path, operations: TrackingOperations) -> dict[str, Shipment]:
    """Ship what dead processes left in ``folder`` (the spool of a project), exactly once; returns what was shipped per run.

    Whoever opens the workspace next calls this. Runs of living processes are left alone, and so is a run that another
    process ingests at this moment. Raises what the operations raise when the store is not there; nothing is lost then.
    """
    shipped: dict[str, Shipment] = {}
    for home in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []:
        with _ingesting(home) as locked:
            if not locked:
                continue
            shipper = Shipper(home, home.name, operations)
            try:
                shipper.ship()
                _store_notes(home, home.name, operations)
            except NotFound as error:  # a run of another project, or of a lost database: its spool stays, the others are shipped
                shipper.total.reasons.append(str(error))
            if shipper.total != Shipment():
                shipped[home.name] = shipper.total
            sweep(home)
    return shipped


def sweep(home: Path) -> None:
    """Remove the folder of a run whose spool is empty; one with rejected records stays."""
    with contextlib.suppress(OSError):
        (home / "files").rmdir()
    if {p.name for p in home.iterdir()} <= {".ingest"}:
        with contextlib.suppress(OSError):
            (home / ".ingest").unlink(missing_ok=True)
            home.rmdir()


@contextlib.contextmanager
def _ingesting(home: Path) -> Iterator[bool]:
    """Whether this process may ingest the run. Without the lock two processes would do the same work twice, to the same result."""
    try:
        fd = os.open(home / ".ingest", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(fd)
