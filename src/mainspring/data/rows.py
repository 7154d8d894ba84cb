"""Dataset versions in the database: rows to records, selectors to rows, and the only function that adds a version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from mainspring.clock import from_us, to_us
from mainspring.errors import InvalidInput, NotFound, near
from mainspring.lineage import Decision, Foundation
from mainspring.operations import current
from mainspring.records.base import Selector, check_name, from_json, to_json
from mainspring.records.data import DatasetVersion, TableColumn
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref, split_ref
from mainspring.records.reading import ReadReport
from mainspring.storage.sql import Reader, Row

LATEST = "latest"
MAX_INPUTS = 1000
MAX_MESSAGE = 10_000
_MAX_DIRECT_REFS = 16
_HEX = re.compile(r"[0-9a-f]{6,64}")

_SELECT = "SELECT * FROM dataset_versions WHERE project = ? AND dataset = ? AND deleted_us IS NULL"


@dataclass(frozen=True)
class NewVersion:
    """A version that a commit is about to record."""

    dataset: str
    id: str
    kind: Literal["table", "files"]
    tree: str
    objects: Sequence[str]
    """Digests of the objects in the tree."""
    rows: int | None
    columns: list[TableColumn]
    bytes: int
    message: str
    inputs: list[str]
    tags: list[str]
    reading: ReadReport | None = None


def check_commit(dataset: str, message: str, inputs: Iterable[str], tags: Iterable[str]) -> None:
    """Refuse invalid arguments of a commit before any byte is read."""
    check_name(dataset, what="dataset")
    if len(message) > MAX_MESSAGE:
        raise InvalidInput(
            "the message is too long",
            value=len(message),
            place="message",
            next_step=f"At most {MAX_MESSAGE} characters.",
        )
    causes = list(inputs)
    if len(causes) > MAX_INPUTS:
        raise InvalidInput(
            "too many inputs", value=len(causes), place="inputs", next_step=f"At most {MAX_INPUTS}."
        )
    for cause in causes:
        kind, ident = split_ref(cause)
        if not re.fullmatch(r"[a-z_]{1,40}", kind) or not ident or len(cause) > 300:
            raise InvalidInput(
                "not a reference",
                value=cause,
                place="inputs",
                next_step="Write 'kind:id', e.g. 'dataset_version:<id>' or 'run:<id>'.",
            )
    for tag in tags:
        check_tag(tag)


def check_tag(tag: str) -> str:
    """Check a tag: a name that cannot be mistaken for a number, an id or ``latest``. Returns it; raises :class:`InvalidInput`."""
    check_name(tag, what="tag")
    if tag == LATEST or tag.isdigit() or _HEX.fullmatch(tag):
        raise InvalidInput(
            "this tag would read as a version number, an id or 'latest'",
            value=tag,
            next_step="Choose another name, e.g. 'v-' and the number.",
        )
    return tag


def add_version(base: Foundation, decision: Decision, new: NewVersion) -> tuple[DatasetVersion, bool]:
    """Record a version, or get the existing one with equal content. Returns it and whether it is new."""
    tx, now = decision.tx, to_us(base.clock.now())
    tx.execute(
        "INSERT INTO datasets (project, name, next_number, created_us) VALUES (?, ?, 1, ?) ON CONFLICT (project, name) DO NOTHING",
        base.project, new.dataset, now,
    )  # fmt: skip
    # An update that changes nothing takes the row lock on PostgreSQL until the transaction ends (SQLite has one writer anyway):
    # commits to one dataset are serial, so two of them cannot both insert the same content or take the same number.
    tx.execute(
        "UPDATE datasets SET next_number = next_number WHERE project = ? AND name = ?",
        base.project,
        new.dataset,
    )
    row = tx.first(
        "SELECT * FROM dataset_versions WHERE project = ? AND dataset = ? AND id = ?",
        base.project,
        new.dataset,
        new.id,
    )
    fresh = row is None or row["deleted_us"] is not None
    # Content has one origin: inputs are recorded only when these bytes are new to the project, whatever the dataset.
    is_first = fresh and not tx.first(
        "SELECT 1 AS one FROM dataset_versions WHERE project = ? AND id = ? AND deleted_us IS NULL LIMIT 1",
        base.project,
        new.id,
    )
    if fresh:
        number = tx.all(
            "UPDATE datasets SET next_number = next_number + 1 WHERE project = ? AND name = ? RETURNING next_number - 1 AS n",
            base.project,
            new.dataset,
        )[0]["n"]
        _insert_version(base, decision, new, number=int(number), now=now)
    reference = ref("dataset_version", new.id)
    for cause in new.inputs if is_first else ():
        if cause != reference:
            decision.edge(cause, reference, "input")
    for tag in new.tags:
        set_tag(base, decision, new.dataset, tag, new.id)
    version = version_of(tx, base.project, _get_by_id(tx, base.project, new.dataset, new.id))
    if fresh:
        facts = {
            "dataset": new.dataset,
            "number": version.number,
            "kind": new.kind,
            "rows": new.rows,
            "bytes": new.bytes,
            "message": new.message,
            "inputs": new.inputs,
        }
        if new.reading is not None:
            facts["reading"] = _reading_facts(new.reading)
        decision.event(EventKind.DATASET_COMMITTED, reference, facts)
    return version, fresh


def _reading_facts(reading: ReadReport) -> dict[str, object]:
    """The report of reading, shortened for the event: what was lost, and how many remarks there are. The version keeps all of it."""
    return {
        "source": reading.source,
        "encoding": reading.encoding,
        "lost": reading.lost,
        "remarks": len(reading.notes) + sum(bool(c.notes) for c in reading.columns),
    }


def _insert_version(base: Foundation, decision: Decision, new: NewVersion, *, number: int, now: int) -> None:
    call = current()
    decision.tx.execute(
        "DELETE FROM dataset_versions WHERE project = ? AND dataset = ? AND id = ?",
        base.project,
        new.dataset,
        new.id,
    )
    decision.tx.execute(
        "INSERT INTO dataset_versions (project, dataset, id, number, kind, tree, row_count, bytes, file_count, columns, message, created_us, created_by, reading) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        base.project, new.dataset, new.id, number, new.kind, new.tree, new.rows, new.bytes, len(new.objects), to_json(new.columns).decode(),
        new.message, now, call.actor if call else "local", to_json(new.reading).decode() if new.reading is not None else None,
    )  # fmt: skip
    owner = owner_of(new.dataset, new.id)
    decision.refer(new.tree, owner, tree=True)
    # Garbage collection follows the tree anyway; direct references make the ownership check of a small version's files fast.
    if len(new.objects) <= _MAX_DIRECT_REFS:
        for digest in new.objects:
            decision.refer(digest, owner)


def owner_of(dataset: str, ident: str) -> str:
    """The owner of a version's object references: the same content may be a version of several datasets."""
    return f"dataset_version:{ident}@{dataset}"


def set_tag(base: Foundation, decision: Decision, dataset: str, tag: str, ident: str) -> None:
    """Set a tag on the version with this id, or move it there. No event if it is there already."""
    check_tag(tag)
    before = decision.tx.scalar(
        "SELECT id FROM dataset_tags WHERE project = ? AND dataset = ? AND tag = ?",
        base.project,
        dataset,
        tag,
    )
    if before == ident:
        return
    decision.tx.execute(
        "INSERT INTO dataset_tags (project, dataset, tag, id) VALUES (?, ?, ?, ?) ON CONFLICT (project, dataset, tag) DO UPDATE SET id = excluded.id",
        base.project, dataset, tag, ident,
    )  # fmt: skip
    decision.event(
        EventKind.DATASET_TAGGED,
        ref("dataset_version", ident),
        {"dataset": dataset, "tag": tag, "previous": before},
    )


def find_version(tx: Reader, project: str, dataset: str, selector: Selector) -> Row:
    """The row that ``selector`` names: ``latest``, a number, a tag, an id, or the unique beginning of one (6 or more digits)."""
    selector = str(selector)
    check_name(dataset, what="dataset")
    row: Row | None
    if selector == LATEST:
        row = tx.first(f"{_SELECT} ORDER BY number DESC LIMIT 1", project, dataset)
    elif selector.isdecimal() and len(selector) < 16:
        row = tx.first(f"{_SELECT} AND number = ?", project, dataset, int(selector))
    else:
        tagged = tx.scalar(
            "SELECT id FROM dataset_tags WHERE project = ? AND dataset = ? AND tag = ?",
            project,
            dataset,
            selector,
        )
        row = tx.first(f"{_SELECT} AND id = ?", project, dataset, tagged) if tagged else None
    if row is None and _HEX.fullmatch(selector):
        # A range instead of LIKE, so that the primary key (project, dataset, id) serves it. "g" follows every hex digit.
        rows = tx.all(
            f"{_SELECT} AND id >= ? AND id < ? ORDER BY id LIMIT 2",
            project,
            dataset,
            selector,
            selector + "g",
        )
        if len(rows) > 1:
            raise InvalidInput(
                "several versions begin so",
                value=selector,
                place=f"dataset {dataset!r}",
                next_step="Give more digits of the id.",
            )
        row = rows[0] if rows else None
    if row is None:
        raise _missing_error(tx, project, dataset, selector)
    return row


def _missing_error(tx: Reader, project: str, dataset: str, selector: str) -> NotFound:
    names = [str(r["name"]) for r in tx.all("SELECT name FROM datasets WHERE project = ?", project)]
    if dataset not in names:
        return NotFound("no such dataset", value=dataset, next_step=near(dataset, names, what="dataset"))
    deleted = tx.first(
        "SELECT number FROM dataset_versions WHERE project = ? AND dataset = ? AND deleted_us IS NOT NULL AND (id = ? OR CAST(number AS TEXT) = ?)",
        project, dataset, selector, selector,
    )  # fmt: skip
    if deleted:
        return NotFound("this version was deleted", value=selector, place=f"dataset {dataset!r}")
    tags = [
        str(r["tag"])
        for r in tx.all("SELECT tag FROM dataset_tags WHERE project = ? AND dataset = ?", project, dataset)
    ]
    numbers = [str(r["number"]) for r in tx.all(f"{_SELECT} ORDER BY number DESC LIMIT 5", project, dataset)]
    return NotFound(
        "no such version",
        value=selector,
        place=f"dataset {dataset!r}",
        next_step=near(selector, [LATEST, *tags, *numbers], what="version"),
    )


def _get_by_id(tx: Reader, project: str, dataset: str, ident: str) -> Row:
    return tx.one(f"{_SELECT} AND id = ?", project, dataset, ident, what="the version")


def version_of(tx: Reader, project: str, row: Row) -> DatasetVersion:
    """The record of a row of ``dataset_versions``, with its tags."""
    tags = tx.all(
        "SELECT tag FROM dataset_tags WHERE project = ? AND dataset = ? AND id = ? ORDER BY tag",
        project,
        row["dataset"],
        row["id"],
    )
    return version_record(row, [str(t["tag"]) for t in tags])


def version_record(row: Row, tags: list[str]) -> DatasetVersion:
    """The record of a row of ``dataset_versions`` and these tags."""
    columns: list[TableColumn] = from_json(row["columns"], list[TableColumn])
    return DatasetVersion(
        id=row["id"],
        dataset=row["dataset"],
        number=int(row["number"]),
        kind=row["kind"],
        content_digest=row["id"],
        tree=row["tree"],
        rows=None if row["row_count"] is None else int(row["row_count"]),
        columns=columns,
        bytes=int(row["bytes"]),
        files=int(row["file_count"]),
        message=row["message"],
        created_at=_time(row["created_us"]),
        created_by=row["created_by"],
        tags=tags,
        reading=None if row["reading"] is None else from_json(row["reading"], ReadReport),
    )


def _time(us: Any) -> datetime:
    return from_us(int(us))


def facts_of(base: Foundation, ident: str) -> dict[str, object] | None:
    """The facts that lineage shows of a dataset version, by its id alone: from the first dataset that has it. None if none has."""
    with base.store.read() as tx:
        row = tx.first(
            "SELECT * FROM dataset_versions WHERE project = ? AND id = ? ORDER BY created_us LIMIT 1",
            base.project,
            ident,
        )
    if row is None:
        return None
    facts: dict[str, object] = {
        "dataset": row["dataset"], "number": int(row["number"]), "kind": row["kind"], "rows": row["row_count"], "bytes": int(row["bytes"]),
        "created_at": _time(row["created_us"]).isoformat(), "tree": row["tree"],
    }  # fmt: skip
    return facts | {"deleted": True} if row["deleted_us"] is not None else facts
