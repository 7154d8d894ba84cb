"""The rows behind the registry.

A row that holds a decision (a version, an approval, a move of an alias) holds a digest over its project and content too, which every
read checks: a changed row raises :class:`~mainspring.errors.Corrupt`. Reads take a :class:`Reader`, and so run within the caller's
transaction if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import blake3
import msgspec

from mainspring.clock import to_us
from mainspring.errors import Corrupt, InvalidInput, NotFound, near
from mainspring.lineage import Foundation
from mainspring.records.base import from_json, to_json
from mainspring.records.lineage import ref, split_ref
from mainspring.records.models import AliasEvent, Approval, ModelVersion, Package
from mainspring.storage.sql import Reader, Row, Writer

T = TypeVar("T")


@dataclass(frozen=True)
class Draft:
    """A model version that has no number yet."""

    model: str
    package: str
    manifest: Package
    run: str | None
    dataset_version: str | None
    holdout: str | None
    label: str | None
    profile: str | None
    metrics: dict[str, float]
    tags: dict[str, str]
    captured: dict[str, str] = field(default_factory=dict)
    """Code and environment that the run was captured with, where the manifest names none."""

    def version(self, number: int, *, at: datetime, actor: str) -> ModelVersion:
        """The version of that number; code and environment of the manifest come before those of the run."""
        return ModelVersion(
            model=self.model,
            version=number,
            package=self.package,
            format=self.manifest.format,
            signature=self.manifest.signature,
            created_at=at,
            created_by=actor,
            run=self.run,
            dataset_version=self.dataset_version,
            holdout=self.holdout,
            label=self.label,
            profile=self.profile,
            code=self.manifest.code or self.captured.get("code"),
            environment=self.manifest.environment or self.captured.get("environment"),
            metrics=self.metrics,
            tags=self.tags,
        )


def read_captured(tx: Reader, base: Foundation, run: str | None) -> dict[str, str]:
    """Digests of the code and the environment that ``run`` was captured with, by kind; what lineage does not know is left out."""
    if run is None:
        return {}
    edges = tx.all(
        "SELECT source, kind FROM edges WHERE project = ? AND target = ? AND kind IN ('code', 'environment')",
        base.project,
        ref("run", run),
    )
    return {row["kind"]: split_ref(row["source"])[1] for row in edges}


def list_models(tx: Reader, base: Foundation) -> list[Row]:
    """The rows of all models, by name."""
    return tx.all("SELECT * FROM models WHERE project = ? ORDER BY name", base.project)


def check_exists(tx: Reader, base: Foundation, model: str) -> None:
    """Raise NotFound, naming similar names, if there is no such model."""
    if tx.first("SELECT 1 AS n FROM models WHERE project = ? AND name = ?", base.project, model) is None:
        raise _no_such_model(tx, base, model)


def lock_model(tx: Writer, base: Foundation, model: str, *, create: bool = True) -> int:
    """Lock the model's row until this transaction ends; returns how many versions it has.

    ``create`` makes the row if there is none, else an unknown model raises NotFound. Whoever numbers a version or an alias event, or
    compares an alias before moving it, takes this lock first: on PostgreSQL the UPDATE, which changes nothing, makes such
    transactions wait for each other (SQLite has one writer anyway). The INSERT goes first so that there is a row to lock.
    """
    if create:
        tx.execute(
            "INSERT INTO models (project, name, created_us, versions, alias_events) VALUES (?, ?, ?, 0, 0) ON CONFLICT (project, name) DO NOTHING",
            base.project, model, to_us(base.clock.now()),
        )  # fmt: skip
    locked = tx.all(
        "UPDATE models SET versions = versions WHERE project = ? AND name = ? RETURNING versions",
        base.project,
        model,
    )
    if not locked:
        raise _no_such_model(tx, base, model)
    return int(locked[0]["versions"])


def _no_such_model(tx: Reader, base: Foundation, model: str) -> NotFound:
    names = [row["name"] for row in list_models(tx, base)]
    return NotFound("no such model", value=model, next_step=near(model, names, what="model"))


# --- versions


def insert_version(tx: Writer, base: Foundation, version: ModelVersion) -> None:
    """Store a version whose number was taken under the lock of its model."""
    record, digest = _seal_record(base, version)
    tx.execute(
        "INSERT INTO model_versions (project, model, version, package, run, created_us, record, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        base.project, version.model, version.version, version.package, version.run or "", to_us(version.created_at), record, digest,
    )  # fmt: skip
    tx.execute(
        "UPDATE models SET versions = ? WHERE project = ? AND name = ?",
        version.version,
        base.project,
        version.model,
    )


def read_version(tx: Reader, base: Foundation, model: str, number: int | None) -> ModelVersion | None:
    """The version of that number, or the newest; None if there is none."""
    versions = (
        list_versions(tx, base, model, before=None, limit=1)
        if number is None
        else _select_versions(tx, base, model, "version = ?", number, 1)
    )
    if not versions:
        return None
    version = versions[0]
    # A digest covers a record, not the row's key: a whole record copied into another row would pass it.
    if version.model != model or (number is not None and version.version != number):
        raise _corrupt(f"model {model!r}")
    return version


def list_versions(
    tx: Reader, base: Foundation, model: str, *, before: int | None, limit: int
) -> list[ModelVersion]:
    """At most ``limit`` versions with numbers below ``before`` (None: from the newest on), newest first."""
    return _select_versions(tx, base, model, "version < ?", before if before is not None else 1 << 62, limit)


def find_registered(
    tx: Reader, base: Foundation, model: str, package: str, run: str | None
) -> ModelVersion | None:
    """The version that this package from this run already is, or None."""
    row = tx.first(
        "SELECT version FROM model_versions WHERE project = ? AND model = ? AND package = ? AND run = ?",
        base.project,
        model,
        package,
        run or "",
    )
    return None if row is None else read_version(tx, base, model, int(row["version"]))


def set_tags(tx: Writer, base: Foundation, model: str, number: int, tags: dict[str, str]) -> None:
    """Set tags of a registered version. Its record stays as it is; an empty value hides the tag of that name."""
    for key, value in tags.items():
        tx.execute(
            "INSERT INTO model_tags (project, model, version, key, value) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (project, model, version, key) DO UPDATE SET value = excluded.value",
            base.project, model, number, key, value,
        )  # fmt: skip


def _select_versions(
    tx: Reader, base: Foundation, model: str, where: str, value: int, limit: int
) -> list[ModelVersion]:
    records = tx.all(
        f"SELECT record, digest FROM model_versions WHERE project = ? AND model = ? AND {where} ORDER BY version DESC LIMIT ?",
        base.project, model, value, limit,
    )  # fmt: skip
    items = [_open_row(base, row, ModelVersion, f"model {model!r}") for row in records]
    if not items:
        return items
    # The tags of all these versions in one statement, over the range of their numbers.
    later: dict[int, dict[str, str]] = {}
    low, high = items[-1].version, items[0].version
    tags = "SELECT version, key, value FROM model_tags WHERE project = ? AND model = ? AND version BETWEEN ? AND ?"
    for row in tx.all(tags, base.project, model, low, high):
        later.setdefault(int(row["version"]), {})[row["key"]] = row["value"]
    return [_with_tags(item, later[item.version]) if item.version in later else item for item in items]


def _with_tags(item: ModelVersion, later: dict[str, str]) -> ModelVersion:
    return msgspec.structs.replace(item, tags={k: v for k, v in {**item.tags, **later}.items() if v})


# --- approvals


def insert_approval(tx: Writer, base: Foundation, approval: Approval) -> None:
    """Append an approval or a refusal. Its number is counted, so the caller holds the lock of its model."""
    record, digest = _seal_record(base, approval)
    tx.execute(
        "INSERT INTO model_approvals (project, model, version, seq, record, digest) "
        "SELECT ?, ?, ?, count(*) + 1, ?, ? FROM model_approvals WHERE project = ? AND model = ? AND version = ?",
        base.project, approval.model, approval.version, record, digest, base.project, approval.model, approval.version,
    )  # fmt: skip


def list_approvals(tx: Reader, base: Foundation, model: str, number: int) -> list[Approval]:
    """Approvals and refusals of one version, oldest first."""
    records = tx.all(
        "SELECT record, digest FROM model_approvals WHERE project = ? AND model = ? AND version = ? ORDER BY seq",
        base.project,
        model,
        number,
    )
    return [_open_row(base, row, Approval, f"approvals of {model}@{number}") for row in records]


# --- aliases


def insert_alias_event(tx: Writer, base: Foundation, move: AliasEvent, *, kind: str) -> None:
    """Append a move (``kind``: ``set``, ``removed`` or ``rollback``), under the lock of its model."""
    seq = tx.all(
        "UPDATE models SET alias_events = alias_events + 1 WHERE project = ? AND name = ? RETURNING alias_events AS n",
        base.project,
        move.model,
    )[0]["n"]
    record, digest = _seal_record(base, move, kind)
    tx.execute(
        "INSERT INTO model_alias_events (project, model, seq, alias, kind, at_us, record, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        base.project, move.model, seq, move.alias, kind, to_us(move.at), record, digest,
    )  # fmt: skip


def read_alias(tx: Reader, base: Foundation, model: str, alias: str) -> AliasEvent | None:
    """The newest event of one alias, or None if it never pointed anywhere."""
    row = tx.first(
        "SELECT kind, record, digest FROM model_alias_events WHERE project = ? AND model = ? AND alias = ? ORDER BY seq DESC LIMIT 1",
        base.project, model, alias,
    )  # fmt: skip
    if row is None:
        return None
    event = _open_row(base, row, AliasEvent, f"aliases of {model!r}", row["kind"])
    if (event.model, event.alias) != (model, alias):
        raise _corrupt(f"aliases of {model!r}")
    return event


def list_aliases(tx: Reader, base: Foundation, model: str, *, at_us: int | None = None) -> list[AliasEvent]:
    """The newest event of each alias, removals too, by name; with ``at_us`` (microseconds since 1970) up to that moment."""
    limit = at_us if at_us is not None else 1 << 62
    # Newest by seq, which grows under the model's lock: two moves may have one time.
    records = tx.all(
        "SELECT e.kind AS kind, e.record AS record, e.digest AS digest FROM model_alias_events e JOIN ("
        " SELECT alias, max(seq) AS seq FROM model_alias_events WHERE project = ? AND model = ? AND at_us <= ? GROUP BY alias"
        ") n ON n.seq = e.seq WHERE e.project = ? AND e.model = ? ORDER BY e.alias",
        base.project, model, limit, base.project, model,
    )  # fmt: skip
    return [_open_row(base, row, AliasEvent, f"aliases of {model!r}", row["kind"]) for row in records]


def list_alias_moves(tx: Reader, base: Foundation, model: str) -> list[tuple[AliasEvent, str]]:
    """All moves of a model's aliases with their kinds, oldest first; a gap in the sequence raises Corrupt."""
    records = tx.all(
        "SELECT seq, kind, record, digest FROM model_alias_events WHERE project = ? AND model = ? ORDER BY seq",
        base.project,
        model,
    )
    count = (
        tx.scalar("SELECT alias_events FROM models WHERE project = ? AND name = ?", base.project, model) or 0
    )
    # A digest shows that a row was changed, the sequence and its count that one was deleted.
    if [int(row["seq"]) for row in records] != list(range(1, int(count) + 1)):
        raise _corrupt(f"aliases of {model!r}")
    return [
        (_open_row(base, row, AliasEvent, f"aliases of {model!r}", row["kind"]), row["kind"])
        for row in records
    ]


def read_alias_versions(
    tx: Reader, base: Foundation, model: str, alias: str
) -> tuple[int | None, int | None]:
    """``(version now, version to roll back to)`` of an alias, each None if there is none.

    The moves are replayed on a stack: ``set`` pushes a version, ``rollback`` pops down to the one it went back to. So two rollbacks
    go two versions back, and never forward again.
    """
    pile: list[int] = []
    held: int | None = None
    for event, kind in list_alias_moves(tx, base, model):
        if event.alias != alias:
            continue
        held = event.version
        if kind == "set" and event.version is not None:
            pile.append(event.version)
        elif kind == "rollback":
            while pile and pile[-1] != event.version:
                pile.pop()
    if held is None:  # removed: a rollback goes back to the version it pointed at last
        return None, pile[-1] if pile else None
    return held, next((number for number in reversed(pile) if number != held), None)


# --- rows of other rooms


def was_committed(tx: Reader, base: Foundation, dataset_version: str) -> bool:
    """Whether this dataset version was ever committed here; its event stays when the version is deleted."""
    row = tx.first(
        "SELECT 1 AS n FROM events WHERE project = ? AND subject = ? AND kind = 'dataset.committed' LIMIT 1",
        base.project,
        ref("dataset_version", dataset_version),
    )
    return row is not None


def list_dataset_objects(tx: Reader, base: Foundation, dataset_version: str) -> list[str]:
    """Digests of the objects that references of this dataset version keep."""
    # Their owner is dataset_version:<id>@<dataset>. The range is that prefix ('A' follows '@' in ASCII), and unlike LIKE it uses the
    # index on owner on both databases.
    owner = ref("dataset_version", dataset_version)
    rows = tx.all(
        "SELECT DISTINCT digest FROM object_refs WHERE project = ? AND owner >= ? AND owner < ?",
        base.project,
        f"{owner}@",
        f"{owner}A",
    )
    return [str(row["digest"]) for row in rows]


# --- digests


def _seal_record(base: Foundation, record: object, *more: str) -> tuple[str, str]:
    data = to_json(record)
    return data.decode(), _digest(base, data, *more)


def _open_row(base: Foundation, row: Row, kind: type[T], place: str, *more: str) -> T:
    data = str(row["record"]).encode()
    if _digest(base, data, *more) != row["digest"]:
        raise _corrupt(place)
    try:
        return from_json(data, kind)
    except InvalidInput:
        raise _corrupt(place) from None


def _digest(base: Foundation, data: bytes, *more: str) -> str:
    return blake3.blake3(to_json([base.project, *more]) + data).hexdigest()


def _corrupt(place: str) -> Corrupt:
    return Corrupt(
        "a stored decision does not match its digest",
        place=place,
        next_step="Check the database and restore it from a backup: mainspring fsck",
    )
