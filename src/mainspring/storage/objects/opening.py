"""Opening a store by URL: wiring only."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mainspring.errors import ConfigError, Conflict, NotFound
from mainspring.storage.objects.bytestore import ByteStore, LocalBytes, Sweepable
from mainspring.storage.objects.chunking import RepositoryFormat
from mainspring.storage.objects.pins import FilePins, Pins, PostgresPins
from mainspring.storage.objects.store import Objects

SWEEP_AFTER_S = 24 * 3600.0


class _Leases(Protocol):
    """What we need of ``storage.leases.Leases``; serving reads objects without importing anything of SQL."""

    @property
    def store(self) -> Any: ...


def open_objects(
    url: str = "local", *, home: Path, leases: _Leases | None = None, options: Mapping[str, str] | None = None
) -> Objects:
    """Open the store ``local`` (``home/objects``) or ``s3://bucket/prefix``, making it when it is new.

    Without ``leases`` the store is known to this machine only: writers and gc exclude each other by a file lock, and
    gc keeps only the roots it is given. ``options`` are those of :class:`S3Bytes`.
    """
    store: ByteStore
    if url == "local":
        store = LocalBytes(home / "objects")
    elif url.startswith("s3://"):
        from mainspring.storage.objects.s3 import S3Bytes

        store = S3Bytes(url, options=options)
    else:
        raise ConfigError("unknown object store", value=url, next_step="Use 'local' or 's3://bucket/prefix'.")
    form = _format(store)
    if isinstance(store, Sweepable):
        store.sweep(older_than_s=SWEEP_AFTER_S)
    references: Callable[[], Iterable[str]] | None = None
    pins: Pins = FilePins(home / "locks" / "objects.lock")
    if leases is not None:
        references = _references(leases.store)
        if leases.store.engine.name == "postgres":
            pins = PostgresPins(leases.store.engine, key=zlib.crc32(form.id.encode()))
    return Objects(store, form=form, pins=pins, references=references)


def _format(store: ByteStore) -> RepositoryFormat:
    try:
        return RepositoryFormat.load(store.get("format.json"))
    except NotFound:
        with contextlib.suppress(Conflict):  # another process makes it at the same moment: theirs holds
            store.put("format.json", RepositoryFormat.fresh().dump())
        return RepositoryFormat.load(store.get("format.json"))


def _references(store: Any) -> Callable[[], list[str]]:
    def read() -> list[str]:
        with store.read() as tx:
            return [str(row["digest"]) for row in tx.all("SELECT DISTINCT digest FROM object_refs")]

    return read
