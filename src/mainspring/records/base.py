"""The base record, ids and names: shared by all rooms."""

from __future__ import annotations

import os
import re
import threading
import time
import unicodedata
from typing import Annotated, Any, TypeVar

import msgspec

from mainspring.errors import InvalidInput


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen record. Unknown fields are refused on decoding: a sender's typo never passes silently."""


class Page(Record, frozen=True):
    """One page of a listing: pass ``next`` as ``after`` to get the next page; ``None`` means the end."""

    next: str | None = None


Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
"""Lower-case hex BLAKE3-256 of the exact bytes."""

Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f-]{36}$")]
"""A UUIDv7 in its canonical form: opaque, time-ordered."""

Selector = str | int
"""Selects a version: its number (also as text), a name that points at it, ``latest``, or for data its id."""

_T = TypeVar("_T")
_id_lock = threading.Lock()
"""Guards ``_last_id`` and ``_tails``: two threads never get the same id, and ids of one process are ordered."""
_last_id = 0
_tails: list[str] = []
"""Random ends of ids, drawn many at a time: one system call per id would cost more than the rest of :func:`new_id`."""


def _after_fork() -> None:
    """In a child: draw new random ends, or parent and child would issue the same ids; and replace the lock, which another
    thread may have held at the fork and would never release.
    """
    global _id_lock  # noqa: PLW0603 - as below
    _id_lock = threading.Lock()
    _tails.clear()


os.register_at_fork(after_in_child=_after_fork)


def _draw_tails() -> None:
    """Add 128 ends of ids: the variant ``0b10``, then 62 random bits (RFC 9562 §5.7). The caller holds the lock."""
    drawn = os.urandom(1024)
    for at in range(0, 1024, 8):
        bits = int.from_bytes(drawn[at : at + 8], "big") & ((1 << 62) - 1) | 0b10 << 62
        _tails.append(f"{bits >> 48:04x}-{bits & 0xFFFF_FFFF_FFFF:012x}")


def new_id() -> str:
    """A fresh UUIDv7 (RFC 9562 §5.7); ids made by one process sort in the order of creation.

    >>> len(new_id()), new_id() < new_id()
    (36, True)
    """
    global _last_id  # noqa: PLW0603 - one counter per process is what makes ids monotonic
    # 48 bits of milliseconds, then 12 bits of sub-millisecond fraction (RFC 9562 §6.2, method 3).
    stamp = (time.time_ns() << 12) // 1_000_000
    with _id_lock:
        if stamp <= _last_id:
            stamp = _last_id + 1
        _last_id = stamp
        if not _tails:
            _draw_tails()
        tail = _tails.pop()
    head = f"{stamp:015x}"
    return f"{head[:8]}-{head[8:12]}-7{head[12:]}-{tail}"


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


def counted(number: float, noun: str, several: str | None = None) -> str:
    """A number with its noun.

    >>> counted(1, "request"), counted(1200, "row"), counted(2, "class", "classes")
    ('1 request', '1200 rows', '2 classes')
    """
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def check_name(name: str, *, what: str) -> str:
    """Check a name of a project, dataset, model, alias, experiment or deployment by one rule.

    1 to 128 of ``A-Z a-z 0-9 _ - .``, not starting with ``-`` or ``.``, no ``..``, not ending in ``.``:
    safe in URLs, file names and labels everywhere. Returns ``name``; raises :class:`InvalidInput`.
    """
    if not _NAME.fullmatch(name) or ".." in name or name.endswith("."):
        raise InvalidInput(
            f"not a valid {what} name",
            value=name,
            next_step="Use 1 to 128 letters, digits, '_', '-' or '.', starting with a letter, digit or '_'.",
        )
    return name


def check_path(path: str, *, what: str = "path") -> str:
    """Check a logical path inside a tree or package: relative, ``/``-separated, NFC, and with the same meaning on every file system.

    Refused: absolute, backslash, drive letter, ``.``/``..``/empty segments, control characters, ``%``, ``;``, ``?``,
    ``#``, segments over 255 bytes, trailing dot or space, non-NFC. Returns ``path``; raises :class:`InvalidInput`.
    """
    bad = (
        not path
        or len(path.encode("utf-8", "surrogatepass")) > 4096
        or unicodedata.normalize("NFC", path) != path
        or any(
            ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF or c in '\\%;?#:*"<>|' for c in path
        )
        or any(not _is_good_segment(s) for s in path.split("/"))
    )
    if bad:
        raise InvalidInput(
            f"not a valid {what}",
            value=path,
            next_step="Use a relative path of plain segments separated by '/', without '..'.",
        )
    return path


def _is_good_segment(segment: str) -> bool:
    return (
        segment not in {"", ".", ".."}
        and len(segment.encode()) <= 255
        and not segment.endswith((".", " "))
        and not segment.startswith(" ")
    )


_encoder = msgspec.json.Encoder(order="sorted")


def to_json(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces. Digests are computed over this form, and it is what is stored."""
    return _encoder.encode(value)


def from_json(data: bytes | str, kind: type[_T] | Any = Any) -> _T:
    """Decode JSON into ``kind``. Raises :class:`InvalidInput` with the path inside the document."""
    try:
        decoded: _T = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"malformed document: {error}") from None
    return decoded


Duration = Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(ms|s|m|h|d|w)$")]
"""A length of time in policy: a whole number and a unit (``ms s m h d w``), e.g. ``14d``."""

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(duration: str) -> float:
    """A :data:`Duration` in seconds.

    >>> seconds("14d"), seconds("250ms")
    (1209600.0, 0.25)
    """
    match = re.fullmatch(r"([0-9]+)(ms|s|m|h|d|w)", duration)
    if match is None:
        raise InvalidInput(
            "not a duration",
            value=duration,
            next_step="Write a number and a unit, e.g. '90s', '1h' or '14d'.",
        )
    return int(match[1]) * float(_UNITS[match[2]])
