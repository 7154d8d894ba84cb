"""Opens a store by its URL and connects it with its database."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from mainspring.errors import ConfigError
from mainspring.storage.objects.bytestore import ByteStore, LocalBytes, Sweepable
from mainspring.storage.objects.owner import Owner, bind, form_of, owner_of
from mainspring.storage.objects.pins import FilePins, Pins, PostgresPins
from mainspring.storage.objects.store import Objects

SWEEP_AFTER_S = 24 * 3600.0


class _Leases(Protocol):
    """The part of ``storage.leases.Leases`` used here; serving reads objects without importing anything of SQL."""

    @property
    def store(self) -> Any: ...


def open_bytes(url: str, *, home: Path, options: Mapping[str, str] | None = None) -> ByteStore:
    """The bytes of the store ``local`` (``home/objects``) or ``s3://bucket/prefix``."""
    if url == "local":
        return LocalBytes(home / "objects")
    if url.startswith("s3://"):
        from mainspring.storage.objects.s3 import S3Bytes

        return S3Bytes(url, options=options)
    raise ConfigError("unknown object store", value=url, next_step="Use 'local' or 's3://bucket/prefix'.")


def open_objects(
    url: str = "local",
    *,
    home: Path,
    leases: _Leases | None = None,
    options: Mapping[str, str] | None = None,
    anew: bool = False,
) -> Objects:
    """Open the store ``local`` (``home/objects``) or ``s3://bucket/prefix``, creating it if it does not exist.

    Without ``leases`` the store is known to this machine only: writers and gc exclude each other by a file lock, and
    gc keeps only the roots passed to it. With them, store and database must belong together (:func:`owner.bind`); ``anew`` lets
    the database take a store that belonged to another one. ``options`` are those of :class:`S3Bytes`.
    """
    store = open_bytes(url, home=home, options=options)
    references: Callable[[], Iterable[str]] | None = None
    pins: Pins = FilePins(home / "locks" / "objects.lock")
    owner: Owner | None
    if leases is None:
        form, database = form_of(store), owner_of(store)
        owner = None if database is None else Owner(database, 0)
    else:
        form, owner = bind(leases.store, store, anew=anew)
        references = _reference_reader(leases.store)
        if leases.store.engine.name == "postgres":
            pins = PostgresPins(leases.store.engine, key=zlib.crc32(form.id.encode()))
    if isinstance(store, Sweepable):
        store.sweep(older_than_s=SWEEP_AFTER_S)
        # gc writes a new index before it removes anything, so that much must be reserved
        if leases is not None:
            leases.store.engine.keep_back(sum(size for _, size in store.list("index/")))
    return Objects(
        store,
        form=form,
        pins=pins,
        references=references,
        owner=owner,
        freeing=leases.store.freeing if leases is not None else contextlib.nullcontext,
    )


def _reference_reader(store: Any) -> Callable[[], list[str]]:
    def read() -> list[str]:
        with store.read() as tx:
            return [str(row["digest"]) for row in tx.all("SELECT DISTINCT digest FROM object_refs")]

    return read
