"""Files that survive a power cut: written beside their name and synced, then renamed, then the folder synced.

A rename alone keeps readers from half a file, but after a power cut the new name may hold no bytes: the bytes are synced
before the rename, and the folder after it, since the name itself lives in the folder.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path


def replace(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Have ``data`` in ``path``, whole or as it was before; durable when this returns. Raises :class:`OSError`."""
    stage(path, data, mode=mode).replace(path)
    sync_folder(path.parent)


def stage(path: Path, data: bytes, *, mode: int = 0o600) -> Path:
    """Write ``data``, synced, beside ``path`` and return where; the caller renames it. Raises :class:`OSError`."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:  # noqa: PTH123 - with a mode
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return staged


def sync_file(path: Path) -> None:
    """Make the bytes of ``path`` durable."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
