"""Files that survive a power cut: written under a temporary name and synced, then renamed, then the folder synced.

After a rename alone readers never see half a file, but a power cut may leave the new name without its bytes. So the bytes are
synced before the rename, and the folder after it, since the folder holds the name.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path


def replace(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace the content of ``path`` by ``data``, as a whole or not at all; durable when this returns. Raises :class:`OSError`."""
    stage(path, data, mode=mode).replace(path)
    sync_folder(path.parent)


def stage(path: Path, data: bytes, *, mode: int = 0o600) -> Path:
    """Write ``data``, synced, to a temporary file beside ``path`` and return its path; the caller renames it. Raises :class:`OSError`."""
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
