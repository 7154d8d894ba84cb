"""Datasets: what is in this data, is it sound, what changed, who used it?"""

from __future__ import annotations

from mainspring.records.base import Record
from mainspring.records.data import CheckReport, DatasetDiff, DatasetInfo, DatasetVersion, FileEntry
from mainspring.records.lineage import Edge
from mainspring.records.profile import Profile
from mainspring.server.charts import Chart, Measured, over_time
from mainspring.server.pages.describe import Told, tell
from mainspring.server.pages.rendering import Ask, View
from mainspring.workspace import Workspace

_PROFILE_ROWS = 5_000_000
"""Larger tables are profiled on request only: a page must not start long work."""


class DataList(Record, frozen=True):
    items: list[DatasetInfo]


class DatasetPage(Record, frozen=True):
    """A dataset: versions, newest first, and what was refused."""

    info: DatasetInfo
    versions: list[DatasetVersion]
    next: str | None
    refusals: list[CheckReport]


class VersionPage(Record, frozen=True):
    """One version. ``profile`` None: not a table, or a large one without ``?profile=1``."""

    version: DatasetVersion
    files: list[FileEntry]
    profile: Profile | None
    used_by: list[Edge]
    made_from: list[Edge]
    events: list[Told]


class DiffPage(Record, frozen=True):
    diff: DatasetDiff


def listing(workspace: Workspace, _ask: Ask) -> DataList:
    return DataList(items=workspace.data.operations.list_datasets())


def gather(workspace: Workspace, ask: Ask) -> DatasetPage:
    ops, name = workspace.data.operations, ask.path["dataset"]
    found = ops.list_versions(dataset=name, after=ask.text("after"), limit=50)
    return DatasetPage(
        info=next(d for d in ops.list_datasets() if d.name == name),
        versions=found.items,
        next=found.next,
        refusals=ops.list_refusals(dataset=name, limit=5),
    )


def charts_of(page: DatasetPage) -> dict[str, Chart]:
    points = [
        Measured(v.created_at, v.rows, n=v.rows or 0, label=f"version {v.number}")
        for v in reversed(page.versions)
        if v.rows is not None
    ]
    if len(points) < 3:
        return {}
    return {"rows": over_time("Rows by version", points, axis="rows", zero=True)}


def version(workspace: Workspace, ask: Ask) -> VersionPage:
    return _version(
        workspace,
        workspace.data.operations.get_version(dataset=ask.path["dataset"], selector=ask.path["selector"]),
        ask,
    )


def by_id(workspace: Workspace, ask: Ask) -> VersionPage:
    return _version(workspace, workspace.data.operations.get_version_by_id(id=ask.path["id"]), ask)


def _version(workspace: Workspace, found: DatasetVersion, ask: Ask) -> VersionPage:
    ops = workspace.data.operations
    reference = f"dataset_version:{found.id}"
    wanted = found.kind == "table" and ((found.rows or 0) <= _PROFILE_ROWS or ask.text("profile") is not None)
    return VersionPage(
        version=found,
        files=ops.list_files(dataset=found.dataset, selector=found.id)[:200],
        profile=ops.get_profile(dataset=found.dataset, selector=found.id) if wanted else None,
        used_by=_edges(workspace, reference, forward=True),
        made_from=_edges(workspace, reference, forward=False),
        events=[tell(e) for e in workspace.lineage.list_events(subject=reference, limit=20).items],
    )


def _edges(workspace: Workspace, reference: str, *, forward: bool) -> list[Edge]:
    walk = workspace.lineage.get_blast_radius if forward else workspace.lineage.get_origin
    return walk(ref=reference, depth=1).edges[:50]


def difference(workspace: Workspace, ask: Ask) -> DiffPage:
    key = [k for k in ask.lists.get("key", []) if k]
    return DiffPage(
        diff=workspace.data.operations.diff(
            dataset=ask.path["dataset"], before=ask.path["before"], after=ask.path["after"], key=key or None
        )
    )


VIEWS = [
    View("/data", "datasets.html", lambda _p: "Data", listing, command=lambda _p: "mainspring data list"),
    View(
        "/data/{dataset}",
        "dataset.html",
        lambda p: p.info.name,
        gather,
        charts_of,
        lambda p: f"mainspring data log {p.info.name}",
    ),
    View(
        "/data/{dataset}/{before}..{after}",
        "diff.html",
        lambda p: f"{p.diff.dataset}: {p.diff.before} to {p.diff.after}",
        difference,
        command=lambda p: f"mainspring data diff {p.diff.dataset} {p.diff.before} {p.diff.after}",
    ),
    View(
        "/data/{dataset}/{selector}",
        "dataset_version.html",
        lambda p: f"{p.version.dataset} version {p.version.number}",
        version,
        command=lambda p: f"mainspring data profile {p.version.dataset} {p.version.number}",
    ),
    View(
        "/versions/{id}",
        "dataset_version.html",
        lambda p: f"{p.version.dataset} version {p.version.number}",
        by_id,
        command=lambda p: f"mainspring data profile {p.version.dataset} {p.version.number}",
    ),
]
