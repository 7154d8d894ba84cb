"""Pipelines: what ran, what was cached and why, what failed and where is its log?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from mainspring.clock import SystemClock
from mainspring.errors import NotFound
from mainspring.records.base import Record
from mainspring.records.pipelines import PipelineRun, StepExecution
from mainspring.server.pages.rendering import Action, PageRequest, View
from mainspring.server.pages.text import duration
from mainspring.workspace import Workspace

_LOG_BYTES = 64 * 1024
TONES = {
    "finished": "good",
    "cached": "idle",
    "failed": "bad",
    "running": "busy",
    "waiting": "idle",
    "skipped": "idle",
    "lost": "bad",
    "cancelled": "warn",
    "interrupted": "warn",
}


class PipelinesPage(Record, frozen=True):
    items: list[PipelineRun]
    next: str | None
    pipeline: str | None


class PipelineRunPage(Record, frozen=True):
    """A run with the latest execution of each step. ``log`` is of the chosen step, its first 64 KiB."""

    run: PipelineRun
    steps: list[StepExecution]
    step: str | None
    log: str | None
    log_cut: bool
    has_run: bool
    """Whether a tracked run with this id exists."""


def gather_runs(workspace: Workspace, request: PageRequest) -> PipelinesPage:
    pipeline = request.text("pipeline")
    runs = workspace.pipelines.list_runs(
        pipeline=pipeline, after=request.text("after"), limit=request.integer("limit", 50, low=1, high=200)
    )
    return PipelinesPage(items=runs.items, next=runs.next, pipeline=pipeline)


def gather_run(workspace: Workspace, request: PageRequest) -> PipelineRunPage:
    run = workspace.pipelines.get_run(id=request.path["id"])
    steps = workspace.pipelines.list_steps(run=run.id)
    chosen = request.text("step") or next((s.step for s in steps if s.state == "failed"), None)
    log, cut = _read_log(workspace, run.id, chosen) if chosen else (None, False)
    try:
        workspace.tracking.get_run(run=run.id)
        tracked = True
    except NotFound:
        tracked = False
    return PipelineRunPage(run=run, steps=steps, step=chosen, log=log, log_cut=cut, has_run=tracked)


def _read_log(workspace: Workspace, run: str, step: str) -> tuple[str | None, bool]:
    try:
        download = workspace.pipelines.download_log(run=run, step=step)
    except NotFound:
        return None, False
    data = b""
    for piece in download.chunks:
        data += piece
        if len(data) > _LOG_BYTES:
            return data[:_LOG_BYTES].decode(errors="replace"), True
    return data.decode(errors="replace"), False


@dataclass(frozen=True)
class Bar:
    """A step on the time axis, in per cent of the run's length."""

    step: StepExecution
    left: float
    width: float
    words: str


def layout_bars(page: PipelineRunPage) -> list[Bar]:
    """Steps over time; a step that took no time still shows as a tick."""
    ends = [s.ended for s in page.steps if s.ended]
    start: datetime = min([page.run.started, *(s.started for s in page.steps)])
    end = max([*ends, page.run.ended or SystemClock().now()])
    total = max((end - start).total_seconds(), 1e-6)
    drawn = []
    for s in page.steps:
        start_of_step = s.started if s.state != "cached" else max(start, s.started)
        took = ((s.ended or end) - start_of_step).total_seconds()
        left = min(99.0, (start_of_step - start).total_seconds() / total * 100)
        drawn.append(
            Bar(
                s,
                left,
                max(0.6, min(100 - left, took / total * 100)),
                duration(took) if s.state != "cached" else "cached",
            )
        )
    return drawn


def cancel(workspace: Workspace, path: Mapping[str, str], fields: Mapping[str, str]) -> str:
    run = workspace.pipelines.get_run(id=path["id"])
    workspace.pipelines.cancel_run(run=run.id, reason=fields.get("reason", "")[:500])
    return f"/pipelines/{run.id}"


VIEWS = [
    View(
        "/pipelines",
        "pipelines.html",
        lambda _p: "Pipelines",
        gather_runs,
        command=lambda _p: "mainspring runs list",
        extras=lambda _p: {"tones": TONES},
    ),
    View(
        "/pipelines/{id}",
        "pipeline.html",
        lambda p: p.run.pipeline,
        gather_run,
        command=lambda p: f"mainspring runs steps {p.run.id}",
        extras=lambda p: {"bars": layout_bars(p), "tones": TONES},
    ),
]
ACTIONS = [Action("/pipelines/{id}/cancel", "pipelines.cancel_run", cancel)]
