"""Checks of the database file before SQLite opens it: SQLite would silently create a new one in place of a lost one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mainspring.errors import Conflict, Corrupt, MainspringError

Lost = Callable[[], str | None]
"""Returns the evidence that the workspace has had a database before; None if there is none."""

ANEW = (
    "Restore it from a backup (with the -wal file beside it, if there is one). "
    "To begin with a new database beside the old objects: mainspring fsck --start-anew; it removes nothing."
)
_MAGIC = b"SQLite format 3\x00"
_HEADER = 100


def check_file(path: Path, lost: Lost) -> None:
    """Raise :class:`Corrupt` for a database file that is gone, empty, cut off or something else.

    An absent or empty file belongs to a new workspace, unless ``lost`` returns evidence or there is a write-ahead log beside it.
    """
    if (flaw := _find_flaw(path)) is None:
        return
    if flaw not in (_MISSING, _EMPTY):
        raise _damaged_file(path, flaw, None)
    log = path.with_name(f"{path.name}-wal")
    evidence = f"its log {log.name} is here" if log.exists() and log.stat().st_size else lost()
    # Checked again: a process that creates the workspace right now writes the database before anything that is evidence of one.
    if evidence is not None and (flaw := _find_flaw(path)) is not None:
        raise _damaged_file(path, flaw, evidence)


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


def _find_flaw(path: Path) -> str | None:
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
    stated = _stated_size(header)
    log = path.with_name(f"{path.name}-wal")
    if size < stated and not (log.exists() and log.stat().st_size):
        # With a log beside it a checkpoint may have been interrupted; SQLite then completes the file from the log.
        return f"is cut off: {size} bytes instead of {stated}"
    return None


def _stated_size(header: bytes) -> int:
    """Size in bytes that the header states; 0 if it states none (https://www.sqlite.org/fileformat.html#in_header_database_size)."""
    page = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    valid = header[24:28] == header[92:96]
    return (65536 if page == 1 else page) * pages if valid else 0


def _damaged_file(path: Path, flaw: str, shown: str | None) -> MainspringError:
    because = f" ({shown})" if shown else ""
    return Corrupt(f"the database of this workspace {flaw}{because}", place=str(path), next_step=ANEW)
