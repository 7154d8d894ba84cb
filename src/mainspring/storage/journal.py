"""An append-only journal of small records: the client's metric spool and the prediction log (docs/rooms/journal.md).

A folder holds numbered segments, each with one writer: ``<prefix>-<writer>-<number>.open``, renamed to ``.seg`` when
closed. A segment is a magic header and records: length and CRC-32 (little-endian, 4 bytes each; the CRC covers the length
bytes and the payload, so a run of zeros is never a record), then the payload. One ``write()`` per append survives
kill -9 of the process; only :meth:`JournalWriter.sync` survives a power cut. A torn tail is dropped and counted.

The journal does not interpret payloads: a reader of records skips the kinds that it does not know.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import struct
import sys
import threading
import time
import weakref
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mainspring.durable import sync_folder
from mainspring.errors import Corrupt, InvalidInput, StorageFull, TooLarge, Unavailable
from mainspring.storage.failpoints import declare, failpoint

declare("journal.append", "journal.sync", "journal.rename")

MAGIC = b"MSJRNL\x00\x01"
"""Seven bytes of magic and one of format version."""

MAX_RECORD = 64 << 20
_FRAME = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_READ = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class JournalWriter:
    """Appends records to a folder that other processes may write as well. Safe to use from many threads.

    ``prefix`` (letters, digits, ``_``) names the journal within the folder. A segment is closed at ``max_bytes``;
    with ``sync_bytes`` it is also fsynced each time that many bytes were appended. A writer used after a fork starts
    its own segments. Nothing is created before the first append.
    """

    def __init__(
        self, folder: Path, *, prefix: str, max_bytes: int = 32 << 20, sync_bytes: int | None = None
    ) -> None:
        if not prefix.replace("_", "").isalnum() or not prefix.isascii():
            raise InvalidInput("not a journal prefix", value=prefix, next_step="Use letters, digits and '_'.")
        self._folder = folder
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._sync_bytes = sync_bytes
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._sync_fd = -1
        self._closed = False
        self._start_writer()
        _writers.add(self)

    def _start_writer(self) -> None:
        self._pid = os.getpid()
        self.writer = f"{time.time_ns():016x}{os.urandom(4).hex()}"
        """This writer's id: time-ordered, unique."""
        self._number = 0
        self._fd = -1
        self._size = 0
        self._unsynced = 0
        self._path = self._folder

    def append(self, payload: bytes) -> None:
        """Add one record by one ``write()``.

        Raises :class:`TooLarge` above 64 MiB, :class:`StorageFull` when the disk is full, :class:`Unavailable` on any other
        I/O error. After an error nothing of the record is in the journal, and the writer may be used again.
        """
        length = len(payload)
        if length > MAX_RECORD:
            raise TooLarge("a journal record may have 64 MiB", value=length)
        frame = _FRAME.pack(length, zlib.crc32(payload, zlib.crc32(_LENGTH.pack(length)))) + payload
        with self._lock:
            if self._fd < 0 or self._pid != os.getpid():
                self._open_segment()
            try:
                failpoint("journal.append")
                written = os.write(self._fd, frame)
                if written != len(frame):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 - a short write is a full disk
            except OSError as error:
                self._undo()
                raise _translate_error(error, self._path) from error
            self._size += written
            self._unsynced += written
            if self._sync_bytes is not None and self._unsynced >= self._sync_bytes:
                self._sync()
            if self._size >= self._max_bytes:
                self._close_segment()

    def sync(self) -> None:
        """Make everything appended so far survive a power cut.

        Raises as :meth:`append` does; after a failed fsync the kernel may have dropped the bytes, and a second
        fsync would succeed without writing them: the segment is abandoned and the next append starts a new one.
        """
        # Taken before the lock, and never inside it: one fsync at a time, appends do not wait for it
        with self._syncing:
            with self._lock:
                if self._fd < 0 or self._pid != os.getpid():
                    return
                # The fsync has its own descriptor and runs without the lock: appends go on meanwhile and may close the segment.
                path, unsynced, self._sync_fd = self._path, self._unsynced, os.dup(self._fd)
            try:
                failpoint("journal.sync")
                os.fdatasync(self._sync_fd)
            except OSError as error:
                with self._lock:
                    if self._fd >= 0 and self._path == path:
                        os.close(self._fd)
                        self._fd = -1
                raise _translate_error(error, path) from error
            else:
                with self._lock:
                    if self._path == path:
                        self._unsynced = max(0, self._unsynced - unsynced)
            finally:
                fd, self._sync_fd = self._sync_fd, -1
                os.close(fd)

    def rotate(self) -> None:
        """Close the current segment, so that readers may treat it as final; the next append begins a new one."""
        with self._lock:
            if self._fd >= 0 and self._pid == os.getpid():
                self._close_segment()

    def close(self) -> None:
        """Sync and close. Idempotent; a later append raises :class:`Unavailable`."""
        with self._lock:
            self._closed = True
            if self._fd >= 0 and self._pid == os.getpid():
                self._close_segment()

    @property
    def position(self) -> tuple[str, int]:
        """``(segment name without suffix, bytes)``: where the next record goes; for status pages."""
        return self._path.stem, self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset_after_fork(self) -> None:
        """New locks in a forked child: another thread of the parent may have held them, and it does not exist in the child."""
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        if self._sync_fd >= 0:
            # An open copy would hold the file lock, which shows the parent's writer as alive
            os.close(self._sync_fd)
            self._sync_fd = -1

    def _open_segment(self) -> None:
        if self._closed:
            raise Unavailable("this journal is closed", place=str(self._folder))
        if self._pid != os.getpid():
            if self._fd >= 0:
                # Closes this process's copy of the descriptor only; the parent's stays open
                os.close(self._fd)
            self._start_writer()
        path = self._folder / f"{self._prefix}-{self.writer}-{self._number:08d}.open"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _translate_error(error, path) from error
        try:
            # The lock shows readers that the writer is alive: the kernel releases it when this process dies.
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.write(fd, MAGIC) != len(MAGIC):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
            sync_folder(self._folder)
        except OSError as error:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
            raise _translate_error(error, path) from error
        self._number += 1
        self._fd, self._path, self._size, self._unsynced = fd, path, len(MAGIC), 0

    def _undo(self) -> None:
        """After a failed append: cut off what may have been written; abandon the segment if that fails too."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            os.close(self._fd)
            self._fd = -1

    def _sync(self) -> None:
        try:
            failpoint("journal.sync")
            os.fdatasync(self._fd)
        except OSError as error:
            os.close(self._fd)
            self._fd = -1
            raise _translate_error(error, self._path) from error
        self._unsynced = 0

    def _close_segment(self) -> None:
        self._sync()
        fd, self._fd = self._fd, -1
        try:
            failpoint("journal.rename")
            self._path.rename(self._path.with_suffix(".seg"))
            sync_folder(self._folder)
        except FileNotFoundError:  # a reader has consumed and removed it
            pass
        except OSError as error:
            raise _translate_error(error, self._path) from error
        finally:
            os.close(fd)


_writers: weakref.WeakSet[JournalWriter] = weakref.WeakSet()


def _after_fork() -> None:
    for writer in _writers:
        writer.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class Segment:
    """One file of a journal. ``closed``: its writer finished it (or began the next one)."""

    path: Path
    writer: str
    number: int
    closed: bool

    @property
    def alive(self) -> bool:
        """Whether a living process may still append to it."""
        if self.closed:
            return False
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(fd)


@dataclass
class _Budget:
    """How many records and bytes may still be read, and the payloads read so far."""

    records: int
    size: int
    payloads: list[bytes] = field(default_factory=list)

    def take(self, payload: bytes) -> None:
        self.payloads.append(payload)
        self.records -= 1
        self.size -= len(payload)

    @property
    def spent(self) -> bool:
        return self.records <= 0 or self.size <= 0


class JournalReader:
    """Reads the records of all writers of one journal, in the order of each writer.

    The cursor is a plain string: the position in each writer's segments, ``writer/number:offset`` joined by commas.
    Store it in the transaction that stores the effect of the records: then reading again after a crash repeats nothing.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self.torn = 0
        """Torn or damaged tails dropped so far by this reader."""
        self.torn_bytes = 0
        """Bytes dropped with them."""

    def segments(self) -> list[Segment]:
        """All segments, by writer and number. A stale ``.open`` of a dead writer is listed like any other."""
        by_key: dict[tuple[str, int], Segment] = {}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._folder):  # noqa: PTH208 - names only: one call for thousands of files
                stem, dot, suffix = name.rpartition(".")
                parts = stem.split("-")
                if (
                    dot
                    and suffix in {"open", "seg"}
                    and len(parts) == 3
                    and parts[0] == self._prefix
                    and parts[2].isdigit()
                ):
                    key = (parts[1], int(parts[2]))
                    # A listing during the rename may show both names
                    if key not in by_key or suffix == "seg":
                        by_key[key] = Segment(
                            path=self._folder / name, writer=parts[1], number=key[1], closed=suffix == "seg"
                        )
        ordered = [by_key[key] for key in sorted(by_key)]
        # A writer has one open segment at a time, so those before it are final.
        followed = {(s.writer, s.number - 1) for s in ordered}
        return [dataclasses.replace(s, closed=s.closed or (s.writer, s.number) in followed) for s in ordered]

    def read(
        self, cursor: str = "", *, max_records: int = 10_000, max_bytes: int = 8 << 20
    ) -> tuple[list[bytes], str]:
        """The next records after ``cursor`` and the cursor behind them; without records there is nothing new yet.

        At most ``max_records`` records and about ``max_bytes`` bytes. An incomplete record at the end of a living
        writer's segment is left for later; of a dead or closed one it is dropped and counted.
        """
        positions = _parse_cursor(cursor)
        budget = _Budget(max_records, max_bytes)
        segments = self.segments()
        for segment in segments:
            number, offset = positions.get(segment.writer, (-1, 0))
            if segment.number < number:
                continue
            if budget.spent:
                break
            start = offset if segment.number == number else 0
            end = self._read_segment(segment, start, budget)
            positions[segment.writer] = (segment.number, end)
        present = {s.writer for s in segments}
        return budget.payloads, _format_cursor({w: p for w, p in positions.items() if w in present})

    def records(
        self, segment: Segment, start: int = 0, *, max_bytes: int = 8 << 20
    ) -> tuple[list[tuple[int, bytes]], int]:
        """Records of one segment from offset ``start``, each with its offset, and the offset behind them.

        For readers that keep offsets: an offset always names the same record.
        """
        budget = _Budget(sys.maxsize, max_bytes)
        end = self._read_segment(segment, start, budget)
        offset, records = start or len(MAGIC), []
        for payload in budget.payloads:
            records.append((offset, payload))
            offset += _FRAME.size + len(payload)
        return records, end

    def at_end(self, segment: Segment, offset: int) -> bool:
        """Whether ``offset`` is the end of the segment as it is now; a removed segment has ended."""
        try:
            return offset >= _current_path(segment).stat().st_size
        except FileNotFoundError:
            return True

    def behind(self, cursor: str) -> list[Segment]:
        """Closed or abandoned segments that ``cursor`` has fully passed: no reader at ``cursor`` needs them again."""
        positions = _parse_cursor(cursor)
        done = []
        for segment in self.segments():
            number, offset = positions.get(segment.writer, (-1, 0))
            if segment.number < number:
                done.append(segment)
            elif segment.number == number and not segment.alive:
                with contextlib.suppress(FileNotFoundError):
                    if offset >= _current_path(segment).stat().st_size:
                        done.append(segment)
        return done

    def remove(self, segments: list[Segment]) -> None:
        """Delete segments whose records are stored elsewhere by now, oldest first."""
        for segment in segments:
            for suffix in (".seg", ".open"):
                with contextlib.suppress(FileNotFoundError):
                    segment.path.with_suffix(suffix).unlink()

    def _read_segment(self, segment: Segment, start: int, budget: _Budget) -> int:
        """Read on from ``start`` into ``budget``; returns the offset reached."""
        # Checked before reading: if the writer dies meanwhile, its tail is read as final the next time, and nothing is lost.
        final = not segment.alive
        try:
            file = _current_path(segment).open("rb", buffering=_READ)
        except FileNotFoundError:  # removed by another reader
            return start
        with file:
            size = os.fstat(file.fileno()).st_size
            if start == 0:
                header = file.read(len(MAGIC))
                if header != MAGIC:
                    return self._bad_header(segment, header, size, final=final)
                start = len(MAGIC)
            file.seek(start)
            while not budget.spent:
                frame = file.read(_FRAME.size)
                payload = _payload(
                    frame, file.read(_FRAME.unpack(frame)[0]) if _fits(frame, size - start) else b""
                )
                if payload is None:
                    return self._drop(start, size) if final and start < size else start
                budget.take(payload)
                start += _FRAME.size + len(payload)
        return start

    def _bad_header(self, segment: Segment, header: bytes, size: int, *, final: bool) -> int:
        if len(header) == len(MAGIC) and header[:7] == MAGIC[:7]:
            raise Corrupt(
                f"this journal has format version {header[7]}, this program reads {MAGIC[7]}",
                place=str(segment.path),
                next_step="Upgrade mainspring; the segment was not touched.",
            )
        return self._drop(0, size) if final and size else 0

    def _drop(self, start: int, size: int) -> int:
        self.torn += 1
        self.torn_bytes += size - start
        return size


def _fits(frame: bytes, left: int) -> bool:
    return len(frame) == _FRAME.size and _FRAME.unpack(frame)[0] <= min(MAX_RECORD, left - _FRAME.size)


def _payload(frame: bytes, payload: bytes) -> bytes | None:
    if len(frame) != _FRAME.size:
        return None
    length, crc = _FRAME.unpack(frame)
    if len(payload) != length or zlib.crc32(payload, zlib.crc32(frame[:4])) != crc:
        return None
    return payload


def _current_path(segment: Segment) -> Path:
    """The current path: the writer may have closed and renamed the file since the listing."""
    if segment.path.suffix == ".open" and not segment.path.exists():
        return segment.path.with_suffix(".seg")
    return segment.path


def _parse_cursor(cursor: str) -> dict[str, tuple[int, int]]:
    positions: dict[str, tuple[int, int]] = {}
    for part in filter(None, cursor.split(",")):
        writer, _, place = part.partition("/")
        number, _, offset = place.partition(":")
        if not writer or not number.isdigit() or not offset.isdigit():
            raise InvalidInput(
                "not a journal cursor",
                value=part,
                next_step="Pass back what read() returned, or '' to begin.",
            )
        positions[writer] = (int(number), int(offset))
    return positions


def _format_cursor(positions: dict[str, tuple[int, int]]) -> str:
    return ",".join(f"{w}/{number}:{offset}" for w, (number, offset) in sorted(positions.items()))


def _translate_error(error: OSError, path: Path) -> StorageFull | Unavailable:
    if error.errno in _FULL:
        return StorageFull(
            "no space left for the journal",
            place=str(path),
            next_step="Free space; the journal goes on by itself.",
        )
    return Unavailable(
        f"the journal could not be written: {error.strerror or error}",
        place=str(path),
        next_step="Look at the disk.",
    )
