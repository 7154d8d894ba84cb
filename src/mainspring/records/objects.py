"""References to bytes in the object store, and the reports of its maintenance (fsck, garbage collection)."""

from __future__ import annotations

from typing import Literal

from mainspring.records.base import Digest, Record


class ObjectRef(Record, frozen=True):
    """Immutable bytes by the BLAKE3 of their whole content. ``size`` in bytes."""

    digest: Digest
    size: int


class FsckProblem(Record, frozen=True):
    """One thing that is wrong with stored bytes.

    ``missing``: indexed or referred to, but absent. ``corrupt``: present, not what the digest says. ``wrong_size``: a
    pack or object of another length than recorded. ``dangling``: a reference to an object that does not exist.
    """

    kind: Literal["missing", "corrupt", "wrong_size", "dangling"]
    subject: str
    """The digest of the blob or object, or the key of the file."""
    place: str
    detail: str = ""
    objects: tuple[str, ...] = ()
    """Digests of the complete objects that it damages."""


class FsckReport(Record, frozen=True):
    """``ok`` if there is no problem. Leftovers (packs without index, old temporary files) are waste, not damage."""

    ok: bool
    problems: tuple[FsckProblem, ...]
    objects: int
    packs: int
    bytes_read: int
    orphaned_packs: tuple[str, ...] = ()
    leftover_temp: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    """Files that were damaged, and were restored before the check."""


class GcReport(Record, frozen=True):
    """What garbage collection removed, or would remove. ``missing``: reachable digests whose bytes are gone."""

    dry_run: bool
    objects_removed: int
    bytes_removed: int
    packs_removed: int
    packs_rewritten: int
    objects_kept: int
    bytes_kept: int
    missing: tuple[str, ...] = ()
    corrupt: tuple[str, ...] = ()


class ObjectStats(Record, frozen=True):
    """How much the store holds."""

    objects: int
    packs: int
    stored_bytes: int
    index_files: int
