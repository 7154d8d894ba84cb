"""The registry's rows. Each that bears a decision carries a digest over its project and content, checked at every read."""

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
    """A version before it has its number."""

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


def captured_of(tx: Reader, base: Foundation, run: str | None) -> dict[str, str]:
    """Digests of the code and the environment that led to ``run``, as far as lineage knows."""
    if run is None:
        return {}
    found = tx.all(
        "SELECT source, kind FROM edges WHERE project = ? AND target = ? AND kind IN ('code', 'environment')",
        base.project,
        ref("run", run),
    )
    return {row["kind"]: split_ref(row["source"])[1] for row in found}


def exists(tx: Reader, base: Foundation, model: str) -> bool:
    return (
        tx.first("SELECT 1 AS one FROM models WHERE project = ? AND name = ?", base.project, model)
        is not None
    )


def lock_model(tx: Writer, base: Foundation, model: str, *, create: bool = True) -> int:
    """Lock the model's row for this transaction; returns how many versions it has."""
    if create:
        tx.execute(
            "INSERT INTO models (project, name, created_us, versions, alias_events) VALUES (?, ?, ?, 0, 0) ON CONFLICT (project, name) DO NOTHING",
            base.project, model, to_us(base.clock.now()),
        )  # fmt: skip
    found = tx.all(
        "UPDATE models SET versions = versions WHERE project = ? AND name = ? RETURNING versions",
        base.project,
        model,
    )
    if not found:
        names = [row["name"] for row in tx.all("SELECT name FROM models WHERE project = ?", base.project)]
        raise NotFound("no such model", value=model, next_step=near(model, names, what="model"))
    return int(found[0]["versions"])


# --- versions


def insert_version(tx: Writer, base: Foundation, version: ModelVersion) -> None:
    """Store a version whose number was taken under the lock of its model."""
    record, digest = _sealed(base, version)
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


def version(tx: Reader, base: Foundation, model: str, number: int | None) -> ModelVersion | None:
    """The version of that number, or the newest."""
    found = (
        versions(tx, base, model, before=None, limit=1)
        if number is None
        else _versions(tx, base, model, "version = ?", number, 1)
    )
    if found and (found[0].model != model or (number is not None and found[0].version != number)):
        raise _corrupt(f"model {model!r}")
    return found[0] if found else None


def versions(
    tx: Reader, base: Foundation, model: str, *, before: int | None, limit: int
) -> list[ModelVersion]:
    return _versions(tx, base, model, "version < ?", before if before is not None else 1 << 62, limit)


def same_package(
    tx: Reader, base: Foundation, model: str, package: str, run: str | None
) -> ModelVersion | None:
    row = tx.first(
        "SELECT version FROM model_versions WHERE project = ? AND model = ? AND package = ? AND run = ?",
        base.project,
        model,
        package,
        run or "",
    )
    return None if row is None else version(tx, base, model, int(row["version"]))


def set_tags(tx: Writer, base: Foundation, model: str, number: int, tags: dict[str, str]) -> None:
    """Later tags; an empty value hides the tag of that name."""
    for key, value in tags.items():
        tx.execute(
            "INSERT INTO model_tags (project, model, version, key, value) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (project, model, version, key) DO UPDATE SET value = excluded.value",
            base.project, model, number, key, value,
        )  # fmt: skip


def _versions(
    tx: Reader, base: Foundation, model: str, where: str, value: int, limit: int
) -> list[ModelVersion]:
    found = tx.all(
        f"SELECT record, digest FROM model_versions WHERE project = ? AND model = ? AND {where} ORDER BY version DESC LIMIT ?",
        base.project, model, value, limit,
    )  # fmt: skip
    items = [_opened(base, row, ModelVersion, f"model {model!r}") for row in found]
    if not items:
        return items
    later: dict[int, dict[str, str]] = {}
    low, high = items[-1].version, items[0].version
    tags = "SELECT version, key, value FROM model_tags WHERE project = ? AND model = ? AND version BETWEEN ? AND ?"
    for row in tx.all(tags, base.project, model, low, high):
        later.setdefault(int(row["version"]), {})[row["key"]] = row["value"]
    return [_with_tags(item, later[item.version]) if item.version in later else item for item in items]


def _with_tags(item: ModelVersion, later: dict[str, str]) -> ModelVersion:
    return msgspec.structs.replace(item, tags={k: v for k, v in {**item.tags, **later}.items() if v})


# --- approvals


def insert_approval(tx: Writer, base: Foundation, made: Approval) -> None:
    record, digest = _sealed(base, made)
    tx.execute(
        "INSERT INTO model_approvals (project, model, version, seq, record, digest) "
        "SELECT ?, ?, ?, count(*) + 1, ?, ? FROM model_approvals WHERE project = ? AND model = ? AND version = ?",
        base.project, made.model, made.version, record, digest, base.project, made.model, made.version,
    )  # fmt: skip


def approvals(tx: Reader, base: Foundation, model: str, number: int) -> list[Approval]:
    found = tx.all(
        "SELECT record, digest FROM model_approvals WHERE project = ? AND model = ? AND version = ? ORDER BY seq",
        base.project,
        model,
        number,
    )
    return [_opened(base, row, Approval, f"approvals of {model}@{number}") for row in found]


# --- aliases


def insert_alias_event(tx: Writer, base: Foundation, made: AliasEvent, *, kind: str) -> None:
    """Append a move, under the lock of its model."""
    seq = tx.all(
        "UPDATE models SET alias_events = alias_events + 1 WHERE project = ? AND name = ? RETURNING alias_events AS n",
        base.project,
        made.model,
    )[0]["n"]
    record, digest = _sealed(base, made, kind)
    tx.execute(
        "INSERT INTO model_alias_events (project, model, seq, alias, kind, at_us, record, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        base.project, made.model, seq, made.alias, kind, to_us(made.at), record, digest,
    )  # fmt: skip


def newest_of(tx: Reader, base: Foundation, model: str, alias: str) -> AliasEvent | None:
    """The newest event of one alias."""
    row = tx.first(
        "SELECT kind, record, digest FROM model_alias_events WHERE project = ? AND model = ? AND alias = ? ORDER BY seq DESC LIMIT 1",
        base.project, model, alias,
    )  # fmt: skip
    if row is None:
        return None
    event = _opened(base, row, AliasEvent, f"aliases of {model!r}", row["kind"])
    if (event.model, event.alias) != (model, alias):
        raise _corrupt(f"aliases of {model!r}")
    return event


def newest(tx: Reader, base: Foundation, model: str, *, at_us: int | None = None) -> list[AliasEvent]:
    """The newest event of each alias up to a moment, by name."""
    limit = at_us if at_us is not None else 1 << 62
    found = tx.all(
        "SELECT e.kind AS kind, e.record AS record, e.digest AS digest FROM model_alias_events e JOIN ("
        " SELECT alias, max(seq) AS seq FROM model_alias_events WHERE project = ? AND model = ? AND at_us <= ? GROUP BY alias"
        ") n ON n.seq = e.seq WHERE e.project = ? AND e.model = ? ORDER BY e.alias",
        base.project, model, limit, base.project, model,
    )  # fmt: skip
    return [_opened(base, row, AliasEvent, f"aliases of {model!r}", row["kind"]) for row in found]


def history(tx: Reader, base: Foundation, model: str) -> list[tuple[AliasEvent, str]]:
    """All moves of a model's aliases with their kinds, oldest first; a gap in the sequence is Corrupt."""
    found = tx.all(
        "SELECT seq, kind, record, digest FROM model_alias_events WHERE project = ? AND model = ? ORDER BY seq",
        base.project,
        model,
    )
    count = (
        tx.scalar("SELECT alias_events FROM models WHERE project = ? AND name = ?", base.project, model) or 0
    )
    if [int(row["seq"]) for row in found] != list(range(1, int(count) + 1)):
        raise _corrupt(f"aliases of {model!r}")
    return [
        (_opened(base, row, AliasEvent, f"aliases of {model!r}", row["kind"]), row["kind"]) for row in found
    ]


def held_and_before(tx: Reader, base: Foundation, model: str, alias: str) -> tuple[int | None, int | None]:
    """What an alias points at, and what it should go back to: a set puts a version on a pile, a rollback takes one off."""
    pile: list[int] = []
    held: int | None = None
    for event, kind in history(tx, base, model):
        if event.alias != alias:
            continue
        held = event.version
        if kind == "set" and event.version is not None:
            pile.append(event.version)
        elif kind == "rollback":
            while pile and pile[-1] != event.version:
                pile.pop()
    if held is None:  # removed: what it pointed at last is what it goes back to
        return None, pile[-1] if pile else None
    return held, next((number for number in reversed(pile) if number != held), None)


# --- digests


def _sealed(base: Foundation, record: object, *more: str) -> tuple[str, str]:
    data = to_json(record)
    return data.decode(), _digest(base, data, *more)


def _opened(base: Foundation, row: Row, kind: type[T], place: str, *more: str) -> T:
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
