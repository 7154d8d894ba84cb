"""The data room's operations: commit, read, compare, check, profile and delete dataset versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from mainspring.clock import from_us, to_us
from mainspring.data import reports, rows
from mainspring.data.rows import NewVersion
from mainspring.errors import CheckFailed, Conflict, InvalidInput, NotFound, near
from mainspring.lineage import Foundation
from mainspring.lineage.audit import event_of, rows_of
from mainspring.lineage.uploads import check_owned
from mainspring.operations import GIB, MIB, Download, Kind, Role, operation
from mainspring.records.base import Selector, check_name, from_json, to_json
from mainspring.records.data import (
    CheckReport,
    CheckRule,
    DatasetDiff,
    DatasetInfo,
    DatasetVersion,
    FileEntry,
    Finding,
    RowDiff,
    VersionPage,
)
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.objects import ObjectRef
from mainspring.records.profile import Profile
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.sql import Row

if TYPE_CHECKING:
    from mainspring.data.engines import ParquetSource, Source

declare("data.staged", "data.stored", "data.committed")

TABLE_PATH = "table.parquet"
MAX_RULES = 200


class Data:
    """Datasets of one project. Versions are immutable; equal content is the same version."""

    room = "data"

    def __init__(self, base: Foundation) -> None:
        self._base = base

    # --- reading -----------------------------------------------------------------------------------------------------

    @operation(role=Role.VIEWER)
    def list_datasets(self) -> list[DatasetInfo]:
        """All datasets that have a version, by name."""
        with self._base.store.read() as tx:
            # One grouped subquery gives count and newest number of every dataset; the joins then use the primary and unique keys.
            selected = tx.all(
                "SELECT d.created_us AS first_us, v.*, s.n AS n FROM datasets d "
                "JOIN (SELECT dataset, COUNT(*) AS n, MAX(number) AS top FROM dataset_versions WHERE project = ? AND deleted_us IS NULL GROUP BY dataset) s "
                "ON s.dataset = d.name "
                "JOIN dataset_versions v ON v.project = d.project AND v.dataset = d.name AND v.number = s.top "
                "WHERE d.project = ? ORDER BY d.name",
                self._base.project, self._base.project,
            )  # fmt: skip
        return [
            DatasetInfo(
                name=r["dataset"],
                versions=int(r["n"]),
                latest=int(r["number"]),
                latest_id=r["id"],
                kind=r["kind"],
                rows=r["row_count"],
                bytes=int(r["bytes"]),
                created_at=from_us(int(r["first_us"])),
                updated_at=from_us(int(r["created_us"])),
            )
            for r in selected
        ]

    @operation(role=Role.VIEWER)
    def list_versions(self, dataset: str, *, after: str | None = None, limit: int = 100) -> VersionPage:
        """Versions of a dataset, newest first. ``after`` is ``next`` of the page before."""
        if not 1 <= limit <= 1000:
            raise InvalidInput("limit must be 1 to 1000", value=limit)
        if after is not None and not (after.isdecimal() and len(after) < 16):
            raise InvalidInput(
                "not a place in this listing", value=after, next_step="Pass 'next' of the page before."
            )
        base = self._base
        with base.store.read() as tx:
            # Raises NotFound for a dataset without a version.
            rows.find_version(tx, base.project, dataset, rows.LATEST)
            # Pages continue by number (not by OFFSET), so new versions do not shift them.
            selected = tx.all(
                "SELECT * FROM dataset_versions WHERE project = ? AND dataset = ? AND deleted_us IS NULL AND number < ? ORDER BY number DESC LIMIT ?",
                base.project, dataset, int(after) if after else 1 << 62, limit + 1,
            )  # fmt: skip
            tags: dict[str, list[str]] = {}
            for t in tx.all(
                "SELECT tag, id FROM dataset_tags WHERE project = ? AND dataset = ? ORDER BY tag",
                base.project,
                dataset,
            ):
                tags.setdefault(t["id"], []).append(t["tag"])
        items = [rows.version_record(row, tags.get(row["id"], [])) for row in selected[:limit]]
        return VersionPage(items=items, next=str(items[-1].number) if len(selected) > limit else None)

    @operation(role=Role.VIEWER)
    def get_version(self, dataset: str, selector: Selector = "latest") -> DatasetVersion:
        """One version: ``latest``, a number, a tag, an id or its unique beginning. Raises NotFound naming near ones."""
        with self._base.store.read() as tx:
            return rows.version_of(
                tx, self._base.project, rows.find_version(tx, self._base.project, dataset, selector)
            )

    @operation(role=Role.VIEWER)
    def get_version_by_id(self, id: str) -> DatasetVersion:  # noqa: A002 - the wire name of the argument
        """The version with this content, in the dataset where it was committed first."""
        with self._base.store.read() as tx:
            row = tx.first(
                "SELECT * FROM dataset_versions WHERE project = ? AND id = ? AND deleted_us IS NULL ORDER BY created_us, dataset LIMIT 1",
                self._base.project, id,
            )  # fmt: skip
            if row is None:
                raise NotFound("no dataset version has this id", value=id)
            return rows.version_of(tx, self._base.project, row)

    @operation(role=Role.VIEWER)
    def list_files(self, dataset: str, selector: Selector = "latest") -> list[FileEntry]:
        """The files of a version, by path; a table version has one, ``table.parquet``."""
        row = self._find_row(dataset, selector)
        tree = self._base.objects.tree(str(row["tree"]))
        return [
            FileEntry(path=path, digest=item.digest, size=item.size) for path, item in sorted(tree.items())
        ]

    @operation(role=Role.VIEWER, kind=Kind.DOWNLOAD, deadline_s=3600)
    def download(self, dataset: str, selector: Selector = "latest", *, path: str = TABLE_PATH) -> Download:
        """The bytes of one file of a version."""
        row = self._find_row(dataset, selector)
        item = self._find_file(row, path)
        media = "application/vnd.apache.parquet" if row["kind"] == "table" else "application/octet-stream"
        return Download(
            chunks=self._base.objects.chunks(item.digest),
            media_type=media,
            name=path.rsplit("/", 1)[-1],
            size=item.size,
        )

    # --- committing --------------------------------------------------------------------------------------------------

    @operation(role=Role.EDITOR, changes=True, kind=Kind.UPLOAD, max_body=64 * GIB, deadline_s=3600)
    def commit_table(
        self,
        *,
        body: Iterable[bytes],
        dataset: str,
        message: str = "",
        inputs: list[str] | None = None,
        tags: list[str] | None = None,
        checks: list[CheckRule] | None = None,
    ) -> DatasetVersion:
        """Make a version from a stream of Parquet, written again in our layout; its identity is the canonical content digest.

        ``inputs`` are references to what it was made from. ``checks`` run before the version is visible: a breached rule with
        ``refuse`` raises CheckFailed with counts and rows, records the event ``dataset.refused``, and nothing is committed.
        """
        from mainspring.data.engines import ParquetSource
        from mainspring.data.intake import open_staging, receive_table
        from mainspring.data.tables import open_parquet

        rows.check_commit(dataset, message, inputs or (), tags or ())
        place = f"dataset {dataset!r}"
        with open_staging(self._base.home) as folder:
            staged = receive_table(body, folder, place=place)
            failpoint("data.staged")
            findings: list[Finding] = []
            if checks:
                with open_parquet(staged.path, place=place) as file:
                    findings = self._run_checks(ParquetSource(file), checks, folder)
                self._refuse_failed(dataset, staged.rows, findings)
            with self._base.objects.writing() as writer:
                stored = writer.put(staged.path, table=True)
                tree = writer.tree({TABLE_PATH: stored})
                writer.flush()
                failpoint("data.stored")
                new = NewVersion(
                    dataset=dataset, id=staged.digest, kind="table", tree=tree.digest, objects=[stored.digest], rows=staged.rows,
                    columns=staged.columns, bytes=stored.size, message=message, inputs=inputs or [], tags=tags or [],
                    reading=staged.reading,
                )  # fmt: skip
                return self._add_version(new, findings)

    @operation(role=Role.EDITOR, changes=True, max_body=64 * MIB)
    def commit_files(
        self,
        dataset: str,
        *,
        files: dict[str, ObjectRef],
        message: str = "",
        inputs: list[str] | None = None,
        tags: list[str] | None = None,
    ) -> DatasetVersion:
        """Make a version from objects that this project already stores, by path."""
        rows.check_commit(dataset, message, inputs or (), tags or ())
        if not files:
            raise InvalidInput("a version has at least one file", place="files")
        check_owned(self._base, files.values(), place="files")
        with self._base.objects.writing() as writer:
            return self._commit_tree(
                writer.tree(files), files, dataset, message, inputs, tags, flush=writer.flush
            )

    @operation(role=Role.EDITOR, changes=True, kind=Kind.UPLOAD, max_body=1024 * GIB, deadline_s=24 * 3600)
    def commit_stream(
        self,
        *,
        body: Iterable[bytes],
        dataset: str,
        message: str = "",
        inputs: list[str] | None = None,
        tags: list[str] | None = None,
    ) -> DatasetVersion:
        """Make a version from many files in one stream (frames: see ``data.intake``), bytes kept exactly as they are."""
        from mainspring.data.intake import FramedFiles

        rows.check_commit(dataset, message, inputs or (), tags or ())
        files: dict[str, ObjectRef] = {}
        with self._base.objects.writing() as writer:
            for path, size, file in FramedFiles(body, limit=1024 * GIB):
                if path in files:
                    raise InvalidInput("a path occurs twice", value=path, place="body")
                small: bytes | BinaryIO = file.read() if size <= MIB else file
                files[path] = writer.put(small)
            if not files:
                raise InvalidInput("a version has at least one file", place="body")
            return self._commit_tree(
                writer.tree(files), files, dataset, message, inputs, tags, flush=writer.flush
            )

    def _commit_tree(
        self,
        tree: ObjectRef,
        files: dict[str, ObjectRef],
        dataset: str,
        message: str,
        inputs: list[str] | None,
        tags: list[str] | None,
        *,
        flush: object,
    ) -> DatasetVersion:
        if callable(flush):
            flush()
        failpoint("data.stored")
        new = NewVersion(
            dataset=dataset, id=tree.digest, kind="files", tree=tree.digest, objects=[f.digest for f in files.values()], rows=None, columns=[],
            bytes=sum(f.size for f in files.values()), message=message, inputs=inputs or [], tags=tags or [],
        )  # fmt: skip
        return self._add_version(new, [])

    def _add_version(self, new: NewVersion, findings: list[Finding]) -> DatasetVersion:
        with self._base.ledger.decision() as decision:
            version, fresh = rows.add_version(self._base, decision, new)
            if findings and fresh:
                decision.event(
                    EventKind.DATASET_CHECKED,
                    ref("dataset_version", version.id),
                    reports.summarise(new.dataset, findings) | {"version": version.number},
                )
            decision.done(version)
        failpoint("data.committed")
        return version

    # --- checks and profiles -----------------------------------------------------------------------------------------

    @operation(role=Role.EDITOR, changes=True, deadline_s=600)
    def check(self, dataset: str, rules: Sequence[CheckRule], selector: Selector = "latest") -> CheckReport:
        """Run rules over a table version and record the outcome as an event. Failing rows come back, at most 10 per rule."""
        from mainspring.data.intake import open_staging

        row = self._find_table_row(dataset, selector)
        with open_staging(self._base.home) as folder, self._open_source(row) as table:
            findings = self._run_checks(table, list(rules), folder)
        with self._base.ledger.decision() as decision:
            event = decision.event(
                EventKind.DATASET_CHECKED,
                ref("dataset_version", row["id"]),
                reports.summarise(dataset, findings) | {"version": int(row["number"])},
            )
            return decision.done(
                reports.make_report(
                    dataset,
                    row["id"],
                    int(row["row_count"]),
                    findings,
                    at=self._base.clock.now(),
                    event=event.id,
                )
            )

    @operation(role=Role.VIEWER)
    def list_refusals(self, dataset: str, *, limit: int = 20) -> list[CheckReport]:
        """Commits that checks refused, newest first, with some of the failing rows."""
        check_name(dataset, what="dataset")
        where = "project = ? AND subject = ? AND kind = 'dataset.refused'"
        with self._base.store.read() as tx:
            selected = rows_of(
                tx, where, [self._base.project, ref("dataset", dataset)], f"ORDER BY seq DESC LIMIT {max(1, min(limit, 100))}"
            )  # fmt: skip
        return [reports.read_refusal(dataset, event_of(row)) for row in selected]

    @operation(role=Role.VIEWER, deadline_s=600)
    def get_profile(self, dataset: str, selector: Selector = "latest") -> Profile:
        """The profile of a table version: made at the first request, then stored with the version."""
        stored = self._stored_profile(dataset, selector)
        return from_json(self._base.objects.read(stored.digest), Profile)

    @operation(role=Role.VIEWER, deadline_s=600)
    def get_profile_object(self, dataset: str, selector: Selector = "latest") -> ObjectRef:
        """The object that holds the version's profile as JSON: what a model version names as its reference for drift."""
        return self._stored_profile(dataset, selector)

    @operation(role=Role.VIEWER, deadline_s=600)
    def diff(
        self, dataset: str, before: Selector, after: Selector = "latest", *, key: list[str] | None = None
    ) -> DatasetDiff:
        """What changed from one version to another: files, columns and rows (by ``key`` columns, or as a bag of rows)."""
        from mainspring.data.difference import tree_difference, type_changes

        base = self._base
        with base.store.read() as tx:
            selected = [rows.find_version(tx, base.project, dataset, s) for s in (before, after)]
            old, new = (rows.version_of(tx, base.project, r) for r in selected)
        trees = [base.objects.tree(v.tree) for v in (old, new)]
        same = old.id == new.id
        tables = old.kind == "table" and new.kind == "table"
        row_diff = None
        if tables and not same:
            row_diff = self._row_difference(selected[0], selected[1], key or [])
        elif tables:
            self._check_columns(key or [], old)
        return DatasetDiff(
            dataset=dataset, before=old.number, after=new.number, same=same, files=tree_difference(*trees), columns=type_changes(old.columns, new.columns), rows=row_diff
        )  # fmt: skip

    # --- tags and deletion -------------------------------------------------------------------------------------------

    @operation(role=Role.EDITOR, changes=True)
    def tag_version(self, dataset: str, selector: Selector, tag: str) -> DatasetVersion:
        """Name a version; a tag that names another one moves here."""
        base = self._base
        rows.check_tag(tag)
        with base.ledger.decision() as decision:
            row = rows.find_version(decision.tx, base.project, dataset, selector)
            rows.set_tag(base, decision, dataset, tag, str(row["id"]))
            return decision.done(rows.version_of(decision.tx, base.project, row))

    @operation(role=Role.OPERATOR, changes=True)
    def delete_version(
        self, dataset: str, selector: Selector, *, reason: str, force: bool = False
    ) -> DatasetVersion:
        """Delete a version: the next garbage collection removes its bytes; its row and its lineage are kept.

        Raises Conflict if something was made from it, unless ``force``.
        """
        base = self._base
        if not reason.strip():
            raise InvalidInput("say why", place="reason", next_step="The reason is kept in the audit log.")
        with base.store.freeing(), base.ledger.decision() as decision:
            tx = decision.tx
            row = rows.find_version(tx, base.project, dataset, selector)
            reference = ref("dataset_version", row["id"])
            uses = int(
                tx.scalar(
                    "SELECT COUNT(*) FROM edges WHERE project = ? AND source = ?", base.project, reference
                )
            )
            if uses and not force:
                raise Conflict(
                    f"{uses} things were made from this version",
                    value=reference,
                    place=f"dataset {dataset!r}",
                    next_step="Look at its blast radius first; force=True deletes it anyway.",
                )
            version = rows.version_of(tx, base.project, row)
            tx.execute(
                "DELETE FROM dataset_tags WHERE project = ? AND dataset = ? AND id = ?",
                base.project,
                dataset,
                version.id,
            )
            tx.execute(
                "UPDATE dataset_versions SET deleted_us = ?, profile = NULL WHERE project = ? AND dataset = ? AND id = ?",
                to_us(base.clock.now()),
                base.project,
                dataset,
                version.id,
            )
            decision.unrefer(rows.owner_of(dataset, version.id))
            decision.event(
                EventKind.DATASET_DELETED,
                reference,
                {"dataset": dataset, "number": version.number, "reason": reason, "uses": uses},
            )
            return decision.done(version)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _find_row(self, dataset: str, selector: Selector) -> Row:
        with self._base.store.read() as tx:
            return rows.find_version(tx, self._base.project, dataset, selector)

    def _find_table_row(self, dataset: str, selector: Selector) -> Row:
        row = self._find_row(dataset, selector)
        if row["kind"] != "table":
            raise InvalidInput(
                "this version holds files, not a table", value=str(selector), place=f"dataset {dataset!r}"
            )
        return row

    def _find_file(self, row: Row, path: str) -> ObjectRef:
        tree = self._base.objects.tree(str(row["tree"]))
        if path not in tree:
            raise NotFound(
                "no such file in this version",
                value=path,
                place=f"dataset {row['dataset']!r}, version {row['number']}",
                next_step=near(path, tree, what="file"),
            )
        return tree[path]

    @contextmanager
    def _open_source(self, row: Row) -> Iterator[ParquetSource]:
        """The table of a version, read from the object store in batches."""
        from mainspring.data.engines import ParquetSource
        from mainspring.data.tables import open_parquet

        with (
            self._base.objects.open(self._find_file(row, TABLE_PATH).digest) as stored,
            open_parquet(stored, place=f"dataset {row['dataset']!r}, version {row['number']}") as file,
        ):
            yield ParquetSource(file)

    def _row_difference(self, before: Row, after: Row, key: list[str]) -> RowDiff:
        from mainspring.data.difference import row_difference
        from mainspring.data.engines import open_engine
        from mainspring.data.intake import open_staging

        with (
            open_staging(self._base.home) as folder,
            self._open_source(before) as old,
            self._open_source(after) as new,
            open_engine(folder=folder) as engine,
        ):
            return row_difference(old, new, key, engine=engine)

    def _check_columns(self, names: list[str], version: DatasetVersion) -> None:
        known = [c.name for c in version.columns]
        for name in names:
            if name not in known:
                raise InvalidInput(
                    "no such column", value=name, place="key", next_step=near(name, known, what="column")
                )

    def _run_checks(self, source: Source, rules: list[CheckRule], folder: Path) -> list[Finding]:
        """Check a table; the engine spills data that does not fit into memory into ``folder``."""
        from mainspring.data.checks import run_checks
        from mainspring.data.engines import open_engine

        if len(rules) > MAX_RULES:
            raise InvalidInput("too many rules at once", value=len(rules), next_step=f"At most {MAX_RULES}.")
        with open_engine(folder=folder) as engine:
            return run_checks(source, rules, now=self._base.clock.now(), engine=engine)

    def _refuse_failed(self, dataset: str, row_count: int, findings: list[Finding]) -> None:
        report = reports.make_report(dataset, None, row_count, findings, at=self._base.clock.now())
        if not report.refused:
            return
        bad = [f for f in findings if not f.passed]
        with self._base.ledger.decision() as decision:
            event = decision.event(
                EventKind.DATASET_REFUSED,
                ref("dataset", dataset),
                reports.summarise(dataset, findings)
                | {"report": msgspec.to_builtins(reports.trim_report(report))},
            )
        raise CheckFailed(
            f"{len(bad)} of {len(findings)} checks failed, nothing was committed: "
            + "; ".join(reports.describe_finding(f) for f in bad[:5]),
            value=", ".join(f.rule.__struct_config__.tag for f in bad),  # type: ignore[misc]
            place=f"dataset {dataset!r}",
            next_step=f"Correct the data or the rule; event {event.id} keeps the failing rows.",
        )

    def _stored_profile(self, dataset: str, selector: Selector) -> ObjectRef:
        from mainspring.data.profile import ProfileBuilder

        base, row = self._base, self._find_table_row(dataset, selector)
        if row["profile"]:
            return ObjectRef(digest=row["profile"], size=len(base.objects.read(row["profile"])))
        builder = ProfileBuilder()
        with self._open_source(row) as table:
            for batch in table.batches(table.schema.names):
                builder.add(batch)
            if not table.rows:
                builder.add(table.schema.empty_table())
        with base.objects.writing() as writer:
            stored = writer.put(to_json(builder.build()))
            writer.flush()
            with base.ledger.decision() as decision:
                # Of concurrent calls the first profile is kept (profile IS NULL), because sketches of large tables are not reproducible
                # bit by bit, and every reader must get the same one.
                decision.tx.execute(
                    "UPDATE dataset_versions SET profile = ? WHERE project = ? AND dataset = ? AND id = ? AND profile IS NULL",
                    stored.digest, base.project, dataset, row["id"],
                )  # fmt: skip
                kept = str(
                    decision.tx.scalar(
                        "SELECT profile FROM dataset_versions WHERE project = ? AND dataset = ? AND id = ?",
                        base.project,
                        dataset,
                        row["id"],
                    )
                )
                decision.refer(kept, rows.owner_of(dataset, str(row["id"])))
        return stored if kept == stored.digest else ObjectRef(digest=kept, size=len(base.objects.read(kept)))
