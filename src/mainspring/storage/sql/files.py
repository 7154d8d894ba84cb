"""Is the database file what it should be? Asked before SQLite opens it: that would make a new one without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mainspring.errors import Conflict, Corrupt, MainspringError

Lost = Callable[[], str | None]
"""Asks whether the workspace has had a database before, and what shows it; None if nothing does."""

ANEW = (
    "Restore it from a backup (with the -wal file beside it, if there is one). "
    "To begin with a new database beside the old objects: mainspring fsck --start-anew; it removes nothing."
)
_MAGIC = b"SQLite format 3\x00"
_HEADER = 100


def check_file(path: Path, lost: Lost) -> None:
    """Raise :class:`Corrupt` for a database file that is gone, empty, cut off or something else.

    A file that is absent or empty is a new workspace's, unless ``lost`` says otherwise or a write-ahead log stands beside it.
    """
    if (flaw := _flaw(path)) is None:
        return
    if flaw not in (_MISSING, _EMPTY):
        raise _refused(path, flaw, None)
    log = path.with_name(f"{path.name}-wal")
    shown = f"its log {log.name} is here" if log.exists() and log.stat().st_size else lost()
    # Once more: whoever makes the workspace at this moment has made the database before anything that shows it.
    if shown is not None and (flaw := _flaw(path)) is not None:
        raise _refused(path, flaw, shown)


def emptied(place: str, shown: str) -> MainspringError:
    """For a database without any table where there was one before."""
    return Corrupt(
        f"the database of this workspace has no tables: it was emptied or made anew ({shown})",
        place=place,
        next_step=ANEW,
    )


def not_ours(place: str) -> MainspringError:
    """For a database that holds tables of another program."""
    return Conflict("this database belongs to another program", place=place, next_step=ANEW)


_MISSING, _EMPTY = "is missing", "is an empty file"


def _flaw(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            header = file.read(_HEADER)
    except FileNotFoundError:
        return _MISSING
    if not size:
        return _EMPTY
    if not header.startswith(_MAGIC[: len(header)]):
        return "is not a SQLite database"
    if len(header) < _HEADER:
        return f"is cut off: {size} bytes, less than its header"
    wanted = _stated_size(header)
    log = path.with_name(f"{path.name}-wal")
    if size < wanted and not (log.exists() and log.stat().st_size):
        # With a log beside it a checkpoint may have been interrupted, which the log will mend.
        return f"is cut off: {size} bytes instead of {wanted}"
    return None


def _stated_size(header: bytes) -> int:
    """Size in bytes that the header states; 0 if it states none (https://www.sqlite.org/fileformat.html#in_header_database_size)."""
    page = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    valid = header[24:28] == header[92:96]
    return (65536 if page == 1 else page) * pages if valid else 0


def _refused(path: Path, flaw: str, shown: str | None) -> MainspringError:
    because = f" ({shown})" if shown else ""
    return Corrupt(f"the database of this workspace {flaw}{because}", place=str(path), next_step=ANEW)
