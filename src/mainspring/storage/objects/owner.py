"""Which database an object store belongs to, and how a lost database is distinguished from a new one.

The database keeps three facts under the empty project of ``settings``: its id, when it was made, and a copy of the store's
``format.json``. The store keeps ``owner.json``: the id of the database that refers to its objects. Either side without
the other is refused: garbage collection for a database without references would remove everything.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import blake3

from mainspring.errors import Conflict, Corrupt, MainspringError, NotFound
from mainspring.records.base import Record, from_json, new_id, to_json
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.objects.bytestore import ByteStore
from mainspring.storage.objects.chunking import RepositoryFormat
from mainspring.storage.objects.index import Index, load_index
from mainspring.storage.objects.pack import begun_s

declare("objects.bind.identified", "objects.bind.owned")

FORMAT_KEY, OWNER_KEY = "format.json", "owner.json"
_ID, _CREATED, _FORM = "database.id", "database.created_us", "objects.format"

ANEW = (
    "Restore it from a backup. To begin with a new database beside the old objects: mainspring fsck --start-anew; "
    "it removes nothing."
)
_REPAIR = "Run 'mainspring fsck --repair': the database keeps a copy."


class _Store(Protocol):
    """The part of ``storage.sql.Store`` used here; serving reads objects without importing anything of SQL."""

    def read(self) -> Any: ...
    def write(self) -> Any: ...


@dataclass(frozen=True)
class Owner:
    """The database that an object store belongs to. ``since_us``: when it was made, microseconds since the epoch."""

    id: str
    since_us: int


class _OwnerFile(Record, frozen=True):
    database: str
    check: str

    @classmethod
    def dump(cls, database: str) -> bytes:
        return to_json(cls(database=database, check=_check_digest(database)))


@dataclass(frozen=True)
class _Recorded:
    """The facts that the database has recorded about itself and its store."""

    id: str | None
    since_us: int
    form: bytes | None


def owner_of(store: ByteStore) -> str | None:
    """The id of the database that the object store belongs to; None if it has none. Raises :class:`Corrupt`."""
    try:
        data = store.get(OWNER_KEY)
    except NotFound:
        return None
    try:
        owner: _OwnerFile = from_json(data, _OwnerFile)
    except (MainspringError, ValueError):
        owner = _OwnerFile(database="", check="")
    if owner.check != _check_digest(owner.database) or data != _OwnerFile.dump(owner.database):
        raise Corrupt("the object store's owner.json is damaged", place=OWNER_KEY, next_step=_REPAIR)
    return owner.database


def has_packs(store: ByteStore) -> bool:
    """Whether anything is stored."""
    return next(iter(store.list("packs/")), None) is not None


def form_of(store: ByteStore) -> RepositoryFormat:
    """The store's format; an empty store gets a new one. Raises :class:`Corrupt` if it was lost or is damaged."""
    try:
        return RepositoryFormat.load(store.get(FORMAT_KEY))
    except NotFound:
        # The format is read again after the packs were seen: another process may be creating the store at the same moment.
        if has_packs(store):
            with contextlib.suppress(NotFound):
                return RepositoryFormat.load(store.get(FORMAT_KEY))
            raise _lost_form() from None
        # Another process has created it at the same moment: its format is used
        with contextlib.suppress(Conflict):
            store.put(FORMAT_KEY, RepositoryFormat.fresh().dump())
        return RepositoryFormat.load(store.get(FORMAT_KEY))


def bind(database: _Store, store: ByteStore, *, anew: bool = False) -> tuple[RepositoryFormat, Owner]:
    """Check that database and object store belong together; at the first opening, record it in both.

    An unbound database (a new one, or one of version 0.1) takes an unowned store if the store is empty, or if the objects that the
    database refers to are there. ``anew`` takes any store. Raises :class:`Conflict` or :class:`Corrupt`; nothing is changed then.
    """
    # Read the store first: a process that binds them writes to the database before the store, so an owner seen here is recorded there.
    owner, packs = None if anew else owner_of(store), has_packs(store)
    recorded = _read_recorded(database)
    if owner is not None and owner != recorded.id:
        raise _other_owner(owner, recorded.id)
    if recorded.form is not None:
        form = _check_recorded_form(store, recorded.form)
    else:
        if packs and owner is None and not anew:
            _check_references(database, store)
        form = form_of(store)
        recorded = _record_identity(
            database, min(int(time.time() * 1e6), _oldest_pack_us(store) if not anew else 1 << 62)
        )
        failpoint("objects.bind.identified")
    if anew:
        store.delete([OWNER_KEY])
    _claim(store, str(recorded.id))
    if recorded.form is None:
        failpoint("objects.bind.owned")
        _record(database, {_FORM: store.get(FORMAT_KEY).decode()})
    return form, Owner(str(recorded.id), recorded.since_us)


def restore(database: _Store, store: ByteStore) -> list[str]:
    """Write ``format.json`` and ``owner.json`` again from the copies in the database; returns the keys that were repaired."""
    recorded = _read_recorded(database)
    if recorded.form is None or recorded.id is None:
        return []
    try:
        owner = owner_of(store)
    except Corrupt:
        owner = None
    if owner not in (None, recorded.id):
        raise _other_owner(str(owner), recorded.id)
    mended = []
    for key, expected in ((FORMAT_KEY, recorded.form), (OWNER_KEY, _OwnerFile.dump(recorded.id))):
        stored = _read(store, key)
        if stored == expected:
            continue
        if key == FORMAT_KEY:
            _check_same(stored, recorded.form)
        store.delete([key])
        store.put(key, expected)
        mended.append(key)
    return mended


def check_age(owner: Owner | None, packs: Iterable[str], *, bound: bool) -> None:
    """Refuse to collect garbage for a database that is younger than some packs, or without the owner's database."""
    if owner is None:
        return
    if not bound:
        raise Conflict(
            "only the database that this object store belongs to knows what is garbage",
            value=owner.id,
            place=OWNER_KEY,
            next_step="Collect garbage through its workspace: mainspring gc.",
        )
    older = sum(begun_s(name) * 1e6 < owner.since_us for name in packs)
    if older:
        raise Conflict(
            f"the database was made after {older} of the packs: it cannot know whether they are needed",
            place="the object store",
            next_step="Restore the older database. If what it referred to may go: mainspring gc --even-if-younger.",
        )


# ---- the database's side


def _read_recorded(database: _Store) -> _Recorded:
    with database.read() as tx:
        settings = {
            r["name"]: str(r["value"]) for r in tx.all("SELECT name, value FROM settings WHERE project = ''")
        }
    form = settings.get(_FORM)
    return _Recorded(
        settings.get(_ID), int(settings.get(_CREATED, 0)), None if form is None else form.encode()
    )


def _record_identity(database: _Store, created_us: int) -> _Recorded:
    _record(database, {_ID: new_id(), _CREATED: str(created_us)})
    return _read_recorded(database)


def _record(database: _Store, values: dict[str, str]) -> None:
    """Write the settings unless another process was first: several first starts at the same time result in one id."""
    with database.write() as tx:
        # The check keeps values of one process together; ON CONFLICT covers PostgreSQL, where two writers may pass it at once.
        if tx.first("SELECT value FROM settings WHERE project = '' AND name = ?", next(iter(values))):
            return
        tx.many(
            "INSERT INTO settings (project, name, value) VALUES ('', ?, ?) ON CONFLICT (project, name) DO NOTHING",
            list(values.items()),
        )


def _check_references(database: _Store, store: ByteStore) -> None:
    """Check a database without an id beside packs: they belong together if the store holds most objects that it refers to."""
    with database.read() as tx:
        referred = [str(row["digest"]) for row in tx.all("SELECT DISTINCT digest FROM object_refs")]
    if not referred:
        raise Conflict(
            "the database knows nothing of the objects beside it: it was emptied, or made anew",
            place="the object store",
            next_step=ANEW,
        )
    try:
        index = load_index(store, Index())
    except Corrupt:
        # Without the index nothing can be compared, and fsck --repair must be able to open the store
        return
    present = sum(index.find(bytes.fromhex(digest)) is not None for digest in referred)
    if 2 * present < len(referred):
        raise Conflict(
            f"of {len(referred)} objects that the database refers to, {present} are here: it belongs to another workspace",
            place="the object store",
            next_step=ANEW,
        )


# ---- the store's side


def _claim(store: ByteStore, database: str) -> None:
    if owner_of(store) is None:
        with contextlib.suppress(Conflict):  # another process has claimed it at the same moment
            store.put(OWNER_KEY, _OwnerFile.dump(database))
    owner = owner_of(store)
    if owner != database:
        raise _other_owner(str(owner), database)


def _check_recorded_form(store: ByteStore, recorded: bytes) -> RepositoryFormat:
    stored = _read(store, FORMAT_KEY)
    if stored is None:
        raise _lost_form()
    if stored != recorded:
        _check_same(stored, recorded)
        raise Corrupt("the object store's format.json is damaged", place=FORMAT_KEY, next_step=_REPAIR)
    return RepositoryFormat.load(stored)


def _check_same(stored: bytes | None, recorded: bytes) -> None:
    """Raise :class:`Conflict` if the stored format is intact but another store's: these are the objects of another workspace."""
    if stored is None:
        return
    try:
        other = RepositoryFormat.load(stored)
    except (Corrupt, Conflict):
        return
    own = RepositoryFormat.load(recorded)
    if other.id != own.id:
        raise Conflict(
            "this is the object store of another workspace",
            value=other.id,
            place=FORMAT_KEY,
            next_step=f"This database belongs to object store {own.id}: put that one back.",
        )


def _oldest_pack_us(store: ByteStore) -> int:
    return min(
        (int(begun_s(key.removeprefix("packs/")) * 1e6) for key, _ in store.list("packs/")), default=1 << 62
    )


def _read(store: ByteStore, key: str) -> bytes | None:
    try:
        return store.get(key)
    except NotFound:
        return None


def _check_digest(database: str) -> str:
    return blake3.blake3(database.encode()).hexdigest()[:16]


def _lost_form() -> Corrupt:
    return Corrupt("the object store has lost its format.json", place=FORMAT_KEY, next_step=_REPAIR)


def _other_owner(owner: str, own: str | None) -> Conflict:
    difference = f"this one is {own}" if own else "this one is new, or was emptied"
    return Conflict(
        f"this object store belongs to another database ({difference})",
        value=owner,
        place=OWNER_KEY,
        next_step=f"{ANEW} Or give this database another place in [storage] objects.",
    )
