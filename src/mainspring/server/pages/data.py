"""Datasets: what is in this data, is it sound, what changed, who used it?"""

from __future__ import annotations

from mainspring.records.base import Record
from mainspring.records.data import CheckReport, DatasetDiff, DatasetInfo, DatasetVersion, FileEntry
from mainspring.records.lineage import Edge
from mainspring.records.profile import Profile
from mainspring.server.charts import Chart, Measured, draw_over_time
from mainspring.server.pages.describe import EventText, describe_event
from mainspring.server.pages.rendering import PageRequest, View
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
    events: list[EventText]


class DiffPage(Record, frozen=True):
    diff: DatasetDiff


def gather_datasets(workspace: Workspace, _request: PageRequest) -> DataList:
    return DataList(items=workspace.data.operations.list_datasets())


def gather_dataset(workspace: Workspace, request: PageRequest) -> DatasetPage:
    ops, name = workspace.data.operations, request.path["dataset"]
    versions = ops.list_versions(dataset=name, after=request.text("after"), limit=50)
    return DatasetPage(
        info=next(d for d in ops.list_datasets() if d.name == name),
        versions=versions.items,
        next=versions.next,
        refusals=ops.list_refusals(dataset=name, limit=5),
    )


def draw_dataset(page: DatasetPage) -> dict[str, Chart]:
    points = [
        Measured(v.created_at, v.rows, n=v.rows or 0, label=f"version {v.number}")
        for v in reversed(page.versions)
        if v.rows is not None
    ]
    if len(points) < 3:
        return {}
    return {"rows": draw_over_time("Rows by version", points, axis="rows", zero=True)}


def gather_version(workspace: Workspace, request: PageRequest) -> VersionPage:
    return _version_page(
        workspace,
        workspace.data.operations.get_version(
            dataset=request.path["dataset"], selector=request.path["selector"]
        ),
        request,
    )


def gather_version_by_id(workspace: Workspace, request: PageRequest) -> VersionPage:
    return _version_page(
        workspace, workspace.data.operations.get_version_by_id(id=request.path["id"]), request
    )


def _version_page(workspace: Workspace, record: DatasetVersion, request: PageRequest) -> VersionPage:
    ops = workspace.data.operations
    reference = f"dataset_version:{record.id}"
    profiled = record.kind == "table" and (
        (record.rows or 0) <= _PROFILE_ROWS or request.text("profile") is not None
    )
    return VersionPage(
        version=record,
        files=ops.list_files(dataset=record.dataset, selector=record.id)[:200],
        profile=ops.get_profile(dataset=record.dataset, selector=record.id) if profiled else None,
        used_by=_list_edges(workspace, reference, forward=True),
        made_from=_list_edges(workspace, reference, forward=False),
        events=[describe_event(e) for e in workspace.lineage.list_events(subject=reference, limit=20).items],
    )


def _list_edges(workspace: Workspace, reference: str, *, forward: bool) -> list[Edge]:
    walk = workspace.lineage.get_blast_radius if forward else workspace.lineage.get_origin
    return walk(ref=reference, depth=1).edges[:50]


def gather_difference(workspace: Workspace, request: PageRequest) -> DiffPage:
    key = [k for k in request.lists.get("key", []) if k]
    return DiffPage(
        diff=workspace.data.operations.diff(
            dataset=request.path["dataset"],
            before=request.path["before"],
            after=request.path["after"],
            key=key or None,
        )
    )


VIEWS = [
    View(
        "/data",
        "datasets.html",
        lambda _p: "Data",
        gather_datasets,
        command=lambda _p: "mainspring data list",
    ),
    View(
        "/data/{dataset}",
        "dataset.html",
        lambda p: p.info.name,
        gather_dataset,
        draw_dataset,
        lambda p: f"mainspring data log {p.info.name}",
    ),
    View(
        "/data/{dataset}/{before}..{after}",
        "diff.html",
        lambda p: f"{p.diff.dataset}: {p.diff.before} to {p.diff.after}",
        gather_difference,
        command=lambda p: f"mainspring data diff {p.diff.dataset} {p.diff.before} {p.diff.after}",
    ),
    View(
        "/data/{dataset}/{selector}",
        "dataset_version.html",
        lambda p: f"{p.version.dataset} version {p.version.number}",
        gather_version,
        command=lambda p: f"mainspring data profile {p.version.dataset} {p.version.number}",
    ),
    View(
        "/versions/{id}",
        "dataset_version.html",
        lambda p: f"{p.version.dataset} version {p.version.number}",
        gather_version_by_id,
        command=lambda p: f"mainspring data profile {p.version.dataset} {p.version.number}",
    ),
]
