"""Which database an object store belongs to, and how a lost one is told from a new one.

The database keeps three facts under the empty project of ``settings``: its id, when it was made, and a copy of the store's
``format.json``. The store keeps ``owner.json``: the id of the database that knows what in it is needed. Either side without
the other is refused: garbage collection by a database that knows nothing would remove everything.
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
    """What is needed of ``storage.sql.Store``; serving reads objects without importing anything of SQL."""

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
        return to_json(cls(database=database, check=_check(database)))


@dataclass(frozen=True)
class _Recorded:
    """What the database says of itself."""

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
        found: _OwnerFile = from_json(data, _OwnerFile)
    except (MainspringError, ValueError):
        found = _OwnerFile(database="", check="")
    if found.check != _check(found.database) or data != _OwnerFile.dump(found.database):
        raise Corrupt("the object store's owner.json is damaged", place=OWNER_KEY, next_step=_REPAIR)
    return found.database


def has_packs(store: ByteStore) -> bool:
    """Whether anything is stored."""
    return next(iter(store.list("packs/")), None) is not None


def form_of(store: ByteStore) -> RepositoryFormat:
    """The store's format, made when the store is empty. Raises :class:`Corrupt` if it was lost or damaged."""
    try:
        return RepositoryFormat.load(store.get(FORMAT_KEY))
    except NotFound:
        # Looked for in this order: another process may be making the store at the same moment.
        if has_packs(store):
            with contextlib.suppress(NotFound):
                return RepositoryFormat.load(store.get(FORMAT_KEY))
            raise _lost_form() from None
        with contextlib.suppress(Conflict):  # another process makes it at the same moment: theirs holds
            store.put(FORMAT_KEY, RepositoryFormat.fresh().dump())
        return RepositoryFormat.load(store.get(FORMAT_KEY))


def bind(database: _Store, store: ByteStore, *, anew: bool = False) -> tuple[RepositoryFormat, Owner]:
    """Check that database and object store belong together; both learn it at their first opening.

    An unbound database (a new one, or one of version 0.1) takes an unowned store if the store is empty, or if the objects that the
    database refers to are there. ``anew`` takes any store. Raises :class:`Conflict` or :class:`Corrupt`; nothing is changed then.
    """
    # The store first: whoever writes there has written to the database before, so what is seen here is explained there.
    owner, packs = None if anew else owner_of(store), has_packs(store)
    known = _recorded(database)
    if owner is not None and owner != known.id:
        raise _anothers(owner, known.id)
    if known.form is not None:
        form = _form_as_recorded(store, known.form)
    else:
        if packs and owner is None and not anew:
            _check_known(database, store)
        form = form_of(store)
        known = _identify(database, min(int(time.time() * 1e6), _oldest_us(store) if not anew else 1 << 62))
        failpoint("objects.bind.identified")
    if anew:
        store.delete([OWNER_KEY])
    _claim(store, str(known.id))
    if known.form is None:
        failpoint("objects.bind.owned")
        _record(database, {_FORM: store.get(FORMAT_KEY).decode()})
    return form, Owner(str(known.id), known.since_us)


def restore(database: _Store, store: ByteStore) -> list[str]:
    """Write ``format.json`` and ``owner.json`` again from what the database knows; returns the keys that were mended."""
    known = _recorded(database)
    if known.form is None or known.id is None:
        return []
    try:
        owner = owner_of(store)
    except Corrupt:
        owner = None
    if owner not in (None, known.id):
        raise _anothers(str(owner), known.id)
    mended = []
    for key, wanted in ((FORMAT_KEY, known.form), (OWNER_KEY, _OwnerFile.dump(known.id))):
        found = _bytes(store, key)
        if found == wanted:
            continue
        if key == FORMAT_KEY:
            _check_same(found, known.form)
        store.delete([key])
        store.put(key, wanted)
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


def _recorded(database: _Store) -> _Recorded:
    with database.read() as tx:
        found = {
            r["name"]: str(r["value"]) for r in tx.all("SELECT name, value FROM settings WHERE project = ''")
        }
    form = found.get(_FORM)
    return _Recorded(found.get(_ID), int(found.get(_CREATED, 0)), None if form is None else form.encode())


def _identify(database: _Store, created_us: int) -> _Recorded:
    _record(database, {_ID: new_id(), _CREATED: str(created_us)})
    return _recorded(database)


def _record(database: _Store, values: dict[str, str]) -> None:
    """Whoever is first: eight first starts at once give one id."""
    with database.write() as tx:
        if tx.first("SELECT value FROM settings WHERE project = '' AND name = ?", next(iter(values))):
            return
        tx.many(
            "INSERT INTO settings (project, name, value) VALUES ('', ?, ?) ON CONFLICT (project, name) DO NOTHING",
            list(values.items()),
        )


def _check_known(database: _Store, store: ByteStore) -> None:
    """A database without an id beside packs: it is theirs if they hold what it refers to."""
    with database.read() as tx:
        wanted = [str(row["digest"]) for row in tx.all("SELECT DISTINCT digest FROM object_refs")]
    if not wanted:
        raise Conflict(
            "the database knows nothing of the objects beside it: it was emptied, or made anew",
            place="the object store",
            next_step=ANEW,
        )
    try:
        index = load_index(store, Index())
    except Corrupt:  # a damaged index says nothing about the database; fsck --repair must be able to open
        return
    found = sum(index.find(bytes.fromhex(digest)) is not None for digest in wanted)
    if 2 * found < len(wanted):
        raise Conflict(
            f"of {len(wanted)} objects that the database refers to, {found} are here: it belongs to another workspace",
            place="the object store",
            next_step=ANEW,
        )


# ---- the store's side


def _claim(store: ByteStore, database: str) -> None:
    if owner_of(store) is None:
        with contextlib.suppress(Conflict):  # another process at the same moment
            store.put(OWNER_KEY, _OwnerFile.dump(database))
    owner = owner_of(store)
    if owner != database:
        raise _anothers(str(owner), database)


def _form_as_recorded(store: ByteStore, wanted: bytes) -> RepositoryFormat:
    found = _bytes(store, FORMAT_KEY)
    if found is None:
        raise _lost_form()
    if found != wanted:
        _check_same(found, wanted)
        raise Corrupt("the object store's format.json is damaged", place=FORMAT_KEY, next_step=_REPAIR)
    return RepositoryFormat.load(found)


def _check_same(found: bytes | None, wanted: bytes) -> None:
    """A sound format file of another store is no damage: these are another workspace's objects."""
    if found is None:
        return
    try:
        other = RepositoryFormat.load(found)
    except (Corrupt, Conflict):
        return
    mine = RepositoryFormat.load(wanted)
    if other.id != mine.id:
        raise Conflict(
            "this is the object store of another workspace",
            value=other.id,
            place=FORMAT_KEY,
            next_step=f"This database belongs to object store {mine.id}: put that one back.",
        )


def _oldest_us(store: ByteStore) -> int:
    return min(
        (int(begun_s(key.removeprefix("packs/")) * 1e6) for key, _ in store.list("packs/")), default=1 << 62
    )


def _bytes(store: ByteStore, key: str) -> bytes | None:
    try:
        return store.get(key)
    except NotFound:
        return None


def _check(database: str) -> str:
    return blake3.blake3(database.encode()).hexdigest()[:16]


def _lost_form() -> Corrupt:
    return Corrupt("the object store has lost its format.json", place=FORMAT_KEY, next_step=_REPAIR)


def _anothers(owner: str, mine: str | None) -> Conflict:
    said = f"this one is {mine}" if mine else "this one is new, or was emptied"
    return Conflict(
        f"this object store belongs to another database ({said})",
        value=owner,
        place=OWNER_KEY,
        next_step=f"{ANEW} Or give this database another place in [storage] objects.",
    )
