"""Artifacts: the files of a run, each an object of the project under a path."""

from __future__ import annotations

import io
from collections.abc import Iterable

from mainspring.clock import from_us, to_us
from mainspring.errors import InvalidInput, NotFound
from mainspring.lineage import Foundation
from mainspring.lineage.uploads import check_owned
from mainspring.operations import GIB, Download, Kind, Role, operation
from mainspring.records.base import Digest, Id, check_path
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.objects import ObjectRef
from mainspring.records.tracking import Artifact, ArtifactPage
from mainspring.storage.sql import Row
from mainspring.streams import BodyStream
from mainspring.tracking.rows import Tables

_MAX_ARTIFACT = 64 * GIB


class Artifacts:
    """The operations on the artifacts of runs: a part of the room ``tracking``."""

    _base: Foundation
    _tables: Tables

    @operation(role=Role.EDITOR, changes=True)
    def log_artifact(self, run: Id, path: str, *, digest: Digest, size: int) -> Artifact:
        """Name an object that this project stores already as a file of the run; the same path again replaces it."""
        check_path(path, what="artifact path")
        stored = ObjectRef(digest=digest, size=size)
        check_owned(self._base, [stored], place="digest")
        return self._store_artifact_row(run, path, stored)

    @operation(role=Role.EDITOR, changes=True, kind=Kind.UPLOAD, max_body=_MAX_ARTIFACT, deadline_s=3600.0)
    def upload_artifact(self, run: Id, path: str, *, body: Iterable[bytes]) -> Artifact:
        """Store the bytes of a file of the run under ``path``; the same path again replaces it."""
        check_path(path, what="artifact path")
        with self._base.store.read() as tx:
            self._tables.num(tx, run)  # a run that does not exist fails before the upload, not after it
        with self._base.objects.writing() as writer:
            stored = writer.put(io.BufferedReader(BodyStream(body, limit=_MAX_ARTIFACT)))
            writer.flush()
            return self._store_artifact_row(run, path, stored)

    @operation(role=Role.VIEWER)
    def list_artifacts(
        self, run: Id, *, prefix: str = "", after: str | None = None, limit: int = 1000
    ) -> ArtifactPage:
        """Files of a run by path."""
        if not 1 <= limit <= 10_000:
            raise InvalidInput("limit must be 1 to 10,000", value=limit)
        with self._base.store.read() as tx:
            rows = tx.all(
                "SELECT * FROM run_artifacts WHERE run = ? AND path > ? AND substr(path, 1, ?) = ? ORDER BY path LIMIT ?",
                self._tables.num(tx, run), after or "", len(prefix), prefix, limit + 1,
            )  # fmt: skip
        items = [_artifact_of(row) for row in rows[:limit]]
        return ArtifactPage(items=items, next=items[-1].path if len(rows) > limit else None)

    @operation(role=Role.VIEWER, kind=Kind.DOWNLOAD)
    def download_artifact(self, run: Id, path: str) -> Download:
        """The bytes of a file of a run, verified as they are read."""
        with self._base.store.read() as tx:
            row = tx.first(
                "SELECT * FROM run_artifacts WHERE run = ? AND path = ?", self._tables.num(tx, run), path
            )
        if row is None:
            raise NotFound("the run has no such artifact", value=path, place=f"run {run}")
        return Download(
            chunks=self._base.objects.chunks(row["digest"]),
            name=path.rpartition("/")[2],
            size=int(row["size"]),
        )

    def _store_artifact_row(self, run: str, path: str, stored: ObjectRef) -> Artifact:
        with self._base.ledger.decision() as d:
            num = self._tables.num(d.tx, run)
            before = d.tx.first(
                "SELECT digest, size FROM run_artifacts WHERE run = ? AND path = ?", num, path
            )
            d.tx.execute(
                "INSERT INTO run_artifacts (project, run, path, digest, size, at_us) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (run, path) DO UPDATE SET digest = excluded.digest, size = excluded.size, at_us = excluded.at_us",
                self._base.project, num, path, stored.digest, stored.size, to_us(self._base.clock.now()),
            )  # fmt: skip
            d.refer(stored.digest, ref("run", run))
            d.edge(ref("run", run), ref("object", stored.digest), "artifact")
            if before is None or before["digest"] != stored.digest:
                d.event(
                    EventKind.RUN_ARTIFACT_LOGGED,
                    ref("run", run),
                    {"path": path, "digest": stored.digest, "size": stored.size},
                )
            return d.done(
                _artifact_of(d.tx.all("SELECT * FROM run_artifacts WHERE run = ? AND path = ?", num, path)[0])
            )


def _artifact_of(row: Row) -> Artifact:
    return Artifact(path=row["path"], digest=row["digest"], size=int(row["size"]), at=from_us(row["at_us"]))
