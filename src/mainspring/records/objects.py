"""References to bytes in the object store."""

from __future__ import annotations

from mainspring.records.base import Digest, Record


class ObjectRef(Record, frozen=True):
    """Immutable bytes by the BLAKE3 of their whole content. ``size`` in bytes."""

    digest: Digest
    size: int
