"""Reserved space on a workspace's disk, so that operations that free space can run when the disk is full.

SQLite cannot even open a database on a full disk (it needs 32 KiB for its shared memory), deleting writes a log, and garbage
collection writes a new index before it removes the old bytes. So a file of some megabytes is allocated while there is room, removed
by operations that free space, and allocated again afterwards.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

BYTES = 8 << 20
_PART = 12
_OPENING = 96 << 10


class Reserve:
    """The reserve file ``path``. A failure to allocate it is silent: it is a precaution, not a guarantee."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._extra = 0

    def make(self, extra: int | None = None) -> None:
        """Allocate what is missing of the reserve; with ``extra`` it is that many bytes larger from now on."""
        if extra is not None:
            self._extra = extra
        with contextlib.suppress(OSError):
            wanted = self.wanted
            if self._size() >= wanted:
                return
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # If all of it does not fit: the largest part, in sixteenths, that does.
                parts = (wanted * part // 16 & ~0xFFF for part in range(16, 0, -1))
                if not any(size <= self._size() or _allocate(fd, size) for size in parts):
                    self.release()
            finally:
                os.close(fd)

    def has_room(self) -> bool:
        """Whether the disk could hold the reserve a second time. Found by allocating: statvfs does not know about quotas."""
        probe = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            return _allocate(fd, self.wanted)
        finally:
            os.close(fd)
            probe.unlink(missing_ok=True)

    def release(self) -> None:
        """Remove the reserve."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    def lend(self) -> bool:
        """Shrink the reserve by what opening a database needs; returns whether there was a reserve."""
        with contextlib.suppress(OSError):
            size = self._size()
            if size:
                os.truncate(self._path, max(size - _OPENING, 0))
                return True
        return False

    @property
    def wanted(self) -> int:
        """Bytes to reserve while there is room: at most one twelfth of the disk."""
        disk = os.statvfs(self._path.parent)
        return min(BYTES + self._extra, disk.f_blocks * disk.f_frsize // _PART) & ~0xFFF

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0


def _allocate(fd: int, size: int) -> bool:
    before = os.fstat(fd).st_size
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, before)
        return False
    return True
