"""Writes files whose names come from data: never outside the target, through a link, or into a repository's metadata.

Used by checkouts, pulls and packages (SAFETY P04). Directories below the target are opened with
``openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)``, or component by component with ``O_NOFOLLOW`` where the kernel has no
``openat2``. Files get mode 0644: nothing that arrives as data is executable.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from mainspring.errors import InvalidInput, StorageFull, Unavailable
from mainspring.records.base import check_path, new_id
from mainspring.storage.failpoints import declare, failpoint

declare("materialise.file")

PROTECTED = frozenset({".git", ".hg", ".svn", ".mainspring"})
"""Directories that tools read hooks and metadata from: data must not be able to write there."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SYS_OPENAT2 = 437  # the same number on every Linux architecture
_RESOLVE = 0x04 | 0x08  # RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
_OPEN_FOLDERS = 64


def check_not_protected(path: str) -> None:
    """Refuse a path with a protected segment at any depth, also in another spelling (case, invisible characters, 8.3 names)."""
    for segment in path.split("/"):
        plain = (
            segment
            if segment.isascii()
            else "".join(c for c in unicodedata.normalize("NFKC", segment) if unicodedata.category(c) != "Cf")
        )
        plain = plain.casefold().rstrip(". ")
        if plain in PROTECTED or plain == "git~1":
            raise InvalidInput(
                "a protected directory",
                value=path,
                next_step=f"Data cannot contain {', '.join(sorted(PROTECTED))}.",
            )


def check_target(target: Path) -> Path:
    """The resolved target; raises :class:`InvalidInput` inside a protected directory (a repository's metadata or our own)."""
    resolved = target.resolve()
    for part in resolved.parts:
        if part.casefold() in PROTECTED:
            raise InvalidInput(
                "the target lies in a protected directory",
                value=str(target),
                next_step="Choose a directory outside of it.",
            )
    return resolved


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def _openat2(folder: int, path: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    how = _OpenHow(_DIRECTORY, 0, _RESOLVE)
    fd = libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(folder),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(fd)


def _open_by_component(folder: int, path: str, *, create: bool) -> int:
    """Open ``path`` below ``folder`` one component at a time, following no link."""
    fd = os.dup(folder)
    try:
        for segment in path.split("/"):
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(segment, 0o755, dir_fd=fd)
            deeper = os.open(segment, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = deeper
    except BaseException:
        os.close(fd)
        raise
    return fd


class SafeFolder:
    """Writes files below one directory and nowhere else. Use as a context manager; not for several threads."""

    def __init__(
        self, root: Path, *, fresh: bool = False, durable: bool = False, use_openat2: bool = True
    ) -> None:
        """``fresh``: the directory is new and ours, so files are created in place. ``durable``: sync every file."""
        self._root = root
        self._fresh = fresh
        self._durable = durable
        self._use_openat2 = use_openat2
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folders: OrderedDict[str, int] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._folders.values():
            if self._durable:
                os.fsync(fd)
            os.close(fd)
        self._folders.clear()
        if self._durable:
            os.fsync(self._fd)
        os.close(self._fd)

    def write(self, path: str, parts: Iterable[bytes]) -> None:
        """Write one file; an existing one is replaced as a whole. Raises :class:`InvalidInput` if a link is in the way."""
        check_path(path)
        check_not_protected(path)
        folder, _, name = path.rpartition("/")
        with self._translate_errors(path):
            parent = self._folder(folder)
            if self._fresh:
                self._write(parent, name, parts)
            else:
                self._replace(parent, name, parts)

    def _write(self, parent: int, name: str, parts: Iterable[bytes]) -> None:
        fd = os.open(
            name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent
        )
        try:
            for part in parts:
                rest = memoryview(part)
                while rest:
                    rest = rest[os.write(fd, rest) :]
            failpoint("materialise.file")
            if self._durable:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _replace(self, parent: int, name: str, parts: Iterable[bytes]) -> None:
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode):
                raise OSError(errno.ELOOP if stat.S_ISLNK(mode) else errno.EEXIST, "not a plain file", name)
        temp = f".tmp-{new_id()}"
        try:
            self._write(parent, temp, parts)
            os.rename(temp, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temp, dir_fd=parent)
            raise

    def _folder(self, path: str) -> int:
        if not path:
            return self._fd
        fd = self._folders.get(path)
        if fd is not None:
            self._folders.move_to_end(path)
            return fd
        fd = self._folders[path] = self._open_folder(path)
        if len(self._folders) > _OPEN_FOLDERS:
            _, oldest = self._folders.popitem(last=False)
            if self._durable:
                os.fsync(oldest)
            os.close(oldest)
        return fd

    def _open_folder(self, path: str) -> int:
        if self._use_openat2:
            try:
                return _openat2(self._fd, path)
            except OSError as error:
                if error.errno not in {
                    errno.ENOENT,
                    errno.ENOSYS,
                    errno.EPERM,
                    errno.EINVAL,
                    errno.E2BIG,
                    errno.EAGAIN,
                }:
                    raise
        return _open_by_component(self._fd, path, create=True)

    @contextlib.contextmanager
    def _translate_errors(self, path: str) -> Iterator[None]:
        place = f"{self._root}/{path}"
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.EEXIST, errno.EISDIR}:
                raise InvalidInput(
                    "a link or another kind of file is in the way",
                    value=path,
                    place=place,
                    next_step="Remove it, or choose an empty directory.",
                ) from error
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise StorageFull(
                    "no space left in the target", place=place, next_step="Free space, then try again."
                ) from error
            raise Unavailable(
                f"cannot write: {error.strerror}", place=place, next_step="Check the directory's permissions."
            ) from error
