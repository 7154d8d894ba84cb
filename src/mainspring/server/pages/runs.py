"""Runs: which of my experiments is best, and what made it so?"""

from __future__ import annotations

import contextlib
import shlex

from mainspring.errors import InvalidInput, NotFound
from mainspring.records.base import Record
from mainspring.records.monitoring import PredictionRecord
from mainspring.records.pipelines import PipelineRun
from mainspring.records.tracking import Artifact, Experiment, HistoryPage, Run
from mainspring.server.charts import Chart, draw_by_step
from mainspring.server.pages.describe import EventText, describe_event
from mainspring.server.pages.rendering import PageRequest, View
from mainspring.workspace import Workspace


class RunsPage(Record, frozen=True):
    """Runs with the metrics shown as columns. ``next`` goes on as ``after``."""

    items: list[Run]
    next: str | None
    experiments: list[Experiment]
    """To choose from: the first thousand by name, and the one that is chosen."""
    metrics: list[str]
    filter: str | None
    experiment: str | None
    order: str | None


class RunPage(Record, frozen=True):
    run: Run
    histories: list[HistoryPage]
    """Of metrics with more than one point, thinned to about 200 points each."""
    artifacts: list[Artifact]
    children: list[Run]
    pipeline: PipelineRun | None
    events: list[EventText]


class Comparison(Record, frozen=True):
    """Params and metrics that differ first."""

    runs: list[Run]
    params: list[str]
    metrics: list[str]
    differing: list[str]


class PredictionPage(Record, frozen=True):
    prediction: PredictionRecord


def gather_runs(workspace: Workspace, request: PageRequest) -> RunsPage:
    ops = workspace.tracking.operations
    filter_, experiment, order = request.text("filter"), request.text("experiment"), request.text("order")
    page = ops.search_runs(
        filter=filter_ or "",
        experiments=[experiment] if experiment else [],
        order_by=[order] if order else [],
        after=request.text("after"),
        limit=request.integer("limit", 50, low=1, high=200),
    )
    choice = ops.list_experiments(limit=1000).items
    if experiment and experiment not in {e.name for e in choice}:
        with contextlib.suppress(NotFound):
            choice.insert(0, ops.get_experiment(name=experiment))
    chosen = request.lists.get("metric") or []
    metrics = [m for m in chosen if m] or [*dict.fromkeys(k for r in page.items for k in r.metrics)][:4]
    return RunsPage(
        items=page.items,
        next=page.next,
        experiments=choice,
        metrics=metrics[:8],
        filter=filter_,
        experiment=experiment,
        order=order,
    )


def gather_run(workspace: Workspace, request: PageRequest) -> RunPage:
    ops, ident = workspace.tracking.operations, request.path["run"]
    run = ops.get_run(run=ident)
    histories = [ops.get_metric_history(run=ident, key=key, thin_to=200) for key in list(run.metrics)[:12]]
    try:
        pipeline: PipelineRun | None = workspace.pipelines.get_run(id=ident)
    except NotFound:
        pipeline = None
    return RunPage(
        run=run,
        histories=[h for h in histories if h.total > 1],
        artifacts=ops.list_artifacts(run=ident, limit=200).items,
        children=ops.search_runs(filter=f"parent = '{ident}'", limit=50).items if _searchable(ident) else [],
        pipeline=pipeline,
        events=[
            describe_event(e) for e in workspace.lineage.list_events(subject=f"run:{ident}", limit=20).items
        ],
    )


def _searchable(ident: str) -> bool:
    return all(c in "0123456789abcdef-" for c in ident)


def draw_metrics(page: RunPage) -> dict[str, Chart]:
    return {
        f"metric-{i}": draw_by_step(
            h.key,
            {h.key: [(m.step, m.value) for m in h.items if m.value is not None]},
            axis=h.key,
            note=f"{h.total:,} points",
        )
        for i, h in enumerate(page.histories)
    }


def gather_comparison(workspace: Workspace, request: PageRequest) -> Comparison:
    idents = list(dict.fromkeys(i for i in request.lists.get("run", []) if i))
    if not 2 <= len(idents) <= 10:
        raise InvalidInput(
            "compare 2 to 10 runs", value=len(idents), next_step="Tick runs in the list, then press Compare."
        )
    runs = [workspace.tracking.get_run(run=i) for i in idents]
    params = [*dict.fromkeys(k for r in runs for k in r.params)]
    metrics = [*dict.fromkeys(k for r in runs for k in r.metrics)]
    differing = [k for k in params if len({r.params.get(k) for r in runs}) > 1]
    differing += [
        k for k in metrics if len({r.metrics[k].number if k in r.metrics else None for r in runs}) > 1
    ]
    return Comparison(
        runs=runs,
        params=sorted(params, key=lambda k: k not in differing),
        metrics=sorted(metrics, key=lambda k: k not in differing),
        differing=differing,
    )


def gather_prediction(workspace: Workspace, request: PageRequest) -> PredictionPage:
    return PredictionPage(prediction=workspace.monitoring.get_prediction(id=request.path["prediction"]))


def format_command(page: RunsPage) -> str:
    options = {"--experiment": page.experiment, "--filter": page.filter, "--sort": page.order}
    return shlex.join(["mainspring", "runs", "list", *(w for o, v in options.items() if v for w in (o, v))])


VIEWS = [
    View("/runs", "runs.html", lambda _p: "Runs", gather_runs, command=format_command),
    View(
        "/runs/compare",
        "compare.html",
        lambda _p: "Compare runs",
        gather_comparison,
        command=lambda p: "mainspring runs compare " + " ".join(r.id for r in p.runs),
    ),
    View(
        "/runs/{run}",
        "run.html",
        lambda p: p.run.name or "Run",
        gather_run,
        draw_metrics,
        lambda p: f"mainspring runs show {p.run.id}",
    ),
    View(
        "/predictions/{prediction:path}",
        "prediction.html",
        lambda _p: "Prediction",
        gather_prediction,
        command=lambda p: f"mainspring explain-origin prediction:{p.prediction.id}",
    ),
]
