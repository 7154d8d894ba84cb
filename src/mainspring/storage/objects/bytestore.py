"""Where bytes are stored: a small contract, and its implementation for a local directory.

Digests, chunks, packs and gc are implemented once above it, in :mod:`mainspring.storage.objects.store`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from mainspring.durable import sync_folder
from mainspring.errors import Conflict, Corrupt, MainspringError, NotFound, StorageFull, Unavailable
from mainspring.records.base import new_id
from mainspring.storage.failpoints import declare, failpoint

declare("objects.put.temp", "objects.put.synced", "objects.put.published", "objects.put.done")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ByteStore(Protocol):
    """Named immutable blobs. Keys are ours (``packs/<id>.pack``), never a caller's. Safe to use from many threads."""

    name: str

    def put(self, key: str, data: bytes) -> None:
        """Create ``key``; durable when it returns, and never seen half written.

        Raises :class:`Conflict` if it exists (it is left alone), :class:`StorageFull` or :class:`Unavailable`.
        """
        ...

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes from ``offset`` on, at most ``length``; fewer if the value ends before. Raises :class:`NotFound`."""
        ...

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """``(key, size)`` of everything below ``prefix`` (which ends in ``/``), in any order."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the keys; absent ones are no error."""
        ...

    def size(self, key: str) -> int:
        """Size in bytes. Raises :class:`NotFound`."""
        ...


@runtime_checkable
class Sweepable(Protocol):
    """Optional: an engine that can leave temporary files behind when its process is killed."""

    def leftovers(self, *, older_than_s: float) -> list[str]:
        """Temporary files not modified for so many seconds."""
        ...

    def sweep(self, *, older_than_s: float) -> int:
        """Remove the leftovers; returns how many."""
        ...


class LocalBytes:
    """A directory, mode 0700. A new file is written under ``tmp/``, synced, linked to its name, and its directory synced."""

    name = "local"

    def __init__(self, root: Path) -> None:
        self._root = root
        for folder in (root, root / "tmp"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put(self, key: str, data: bytes) -> None:
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temp = self._root / "tmp" / f"{new_id()}.{os.getpid()}"
        with _translate_errors(key, needed=len(data)):
            try:
                self._write_temp(temp, data)
                _publish(temp, target)
                failpoint("objects.put.published")
                sync_folder(target.parent)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temp.unlink()
        failpoint("objects.put.done")

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        with _translate_errors(key):
            fd = os.open(self._root / key, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return _read_range(fd, offset, os.fstat(fd).st_size - offset if length is None else length)
            finally:
                os.close(fd)

    def leftovers(self, *, older_than_s: float) -> list[str]:
        oldest = time.time() - older_than_s
        names = []
        for entry in os.scandir(self._root / "tmp"):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime <= oldest:
                    names.append(f"tmp/{entry.name}")
        return sorted(names)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        try:
            entries = os.scandir(self._root / prefix)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # deleted since the listing
                    yield prefix + entry.name, entry.stat(follow_symlinks=False).st_size

    def delete(self, keys: Sequence[str]) -> None:
        folders: set[Path] = set()
        for key in keys:
            with _translate_errors(key), contextlib.suppress(FileNotFoundError):
                (self._root / key).unlink()
                folders.add((self._root / key).parent)
        for folder in folders:
            sync_folder(folder)

    def size(self, key: str) -> int:
        with _translate_errors(key):
            return (self._root / key).stat().st_size

    def sweep(self, *, older_than_s: float) -> int:
        stale = self.leftovers(older_than_s=older_than_s)
        self.delete(stale)
        return len(stale)

    @staticmethod
    def _write_temp(temp: Path, data: bytes) -> None:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            failpoint("objects.put.temp")
            os.fsync(fd)
            failpoint("objects.put.synced")
        finally:
            os.close(fd)


def _publish(temp: Path, target: Path) -> None:
    """Give the file its name unless the name exists: ``rename`` would replace an existing file, ``link`` fails."""
    try:
        os.link(temp, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
            raise
        # A file system without hard links. Names are unique ids, so no other process creates this one between check and rename.
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        temp.rename(target)


def _read_range(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, max(length, 0), offset)
    if len(data) == length or not data:
        return data
    parts = [data]  # Linux returns at most 2 GiB at once; a file may also end early
    done = len(data)
    while done < length and (data := os.pread(fd, length - done, offset + done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


@contextlib.contextmanager
def _translate_errors(key: str, *, needed: int | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, place=key, needed=needed) from error


def from_os_error(error: OSError, *, place: str, needed: int | None = None) -> MainspringError:
    """Our error for an error of the operating system. ``needed``: bytes that were to be written."""
    if isinstance(error, FileNotFoundError):
        return NotFound("there are no such bytes", value=place)
    if isinstance(error, FileExistsError):
        return Conflict("these bytes exist already", value=place)
    if error.errno in _FULL:
        return StorageFull(
            "no space left for objects",
            value=None if needed is None else f"{needed} bytes needed",
            place=place,
            next_step="Free space ('mainspring gc' works on a full disk), then try again: nothing of this write is visible.",
        )
    if error.errno == errno.EIO:
        return Corrupt(
            "the disk reports an input/output error",
            place=place,
            next_step="Check the disk; then 'mainspring fsck'.",
        )
    return Unavailable(
        f"the object store cannot be used: {error.strerror}",
        place=place,
        next_step="Check the directory's permissions and mount.",
    )
