"""Performance of the windows whose labels have arrived."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from mainspring.monitoring.performance import (
    LOWER_IS_BETTER,
    auc,
    clustered_effect,
    from_sums,
    metrics_of,
    truth,
)
from mainspring.monitoring.references import References
from mainspring.monitoring.spans import Span
from mainspring.monitoring.statistics import Floats, OnlineControl, normal_sf
from mainspring.records.base import from_json, to_json
from mainspring.records.models import Task
from mainspring.records.monitoring import DecayReport, Metric, MonitorPolicy, Performance, Verdict
from mainspring.storage.sql import Reader, Row, Writer

_MAX_ROWS = 200_000


@dataclass
class Scored:
    """Labelled rows of one scorer."""

    model: str
    version: int
    rows: list[Row] = field(default_factory=list)


def scorer_of(row: Row) -> str:
    return f"shadow:{row['name']}" if row.get("name") else str(row["version"])


def score_array(rows: list[Row]) -> Floats | None:
    """(n,) or (n, k) scores; None if they do not fit together."""
    if all(r["score"] is not None for r in rows):
        return np.array([r["score"] for r in rows], dtype=np.float64)
    values = [from_json(r["scores"]) if r["scores"] else None for r in rows]
    lengths = {len(v) if v is not None else -1 for v in values}
    if len(lengths) != 1 or -1 in lengths:
        return None
    return np.array(values, dtype=np.float64)


def readable(rows: list[Row], task: Task, classes: list[str]) -> tuple[list[Row], Floats, int]:
    """Rows with a score and a label of this task, their truth, and how many labels were unreadable."""
    good, ys, invalid = [], [], 0
    for row in rows:
        if row["score"] is None and not row["scores"]:
            continue
        y = truth(from_json(row["value"]), task, classes)
        if y is None:
            invalid += 1
        else:
            good.append(row)
            ys.append(y)
    return good, np.array(ys, dtype=np.float64), invalid


def task_of(references: References, scored: Scored) -> tuple[Task, list[str]]:
    """The task as registered; for an unregistered version guessed from the scores."""
    known = references.task(scored.model, scored.version)
    if known is not None:
        return known
    if any(r["scores"] for r in scored.rows):
        return Task.MULTICLASS, []
    unit = all(r["score"] is None or 0 <= r["score"] <= 1 for r in scored.rows)
    zero_one = all(from_json(r["value"]) in (0, 1) for r in scored.rows)
    return (Task.BINARY if unit and zero_one else Task.REGRESSION), []


def revise(tx: Writer, project: str, span: Span, references: References) -> list[Performance]:
    """Compute the performance of every scorer in a window anew; a changed one gets the next revision."""
    where = "project = ? AND deployment = ? AND at_us >= ? AND at_us < ?"
    values = (project, span.deployment, span.start_us, span.end_us)
    groups: dict[str, Scored] = {}
    columns = "model, version, score, scores, value"
    for row in [
        *tx.all(
            f"SELECT {columns} FROM labelled_predictions WHERE {where} ORDER BY at_us LIMIT ?",
            *values,
            _MAX_ROWS,
        ),
        *tx.all(
            f"SELECT name, {columns} FROM labelled_shadows WHERE {where} ORDER BY at_us LIMIT ?",
            *values,
            _MAX_ROWS,
        ),
    ]:
        groups.setdefault(scorer_of(row), Scored(row["model"], row["version"])).rows.append(row)
    totals: dict[str, int] = {
        str(r["version"]): int(r["n"])
        for r in tx.all(
            f"SELECT version, count(*) AS n FROM predictions WHERE {where} AND status = 'ok' GROUP BY version",
            *values,
        )
    }
    for r in tx.all(
        f"SELECT name, count(*) AS n FROM shadow_predictions WHERE {where} AND status = 'ok' GROUP BY name",
        *values,
    ):
        totals[f"shadow:{r['name']}"] = int(r["n"])
    old = {
        r["scorer"]: r
        for r in tx.all(
            "SELECT scorer, revision, report FROM window_performance WHERE project = ? AND window_id = ?",
            project,
            span.id,
        )
    }
    out = []
    for scorer, scored in groups.items():
        before = old.get(scorer)
        report = _performance(
            scorer,
            scored,
            totals.get(scorer, len(scored.rows)),
            references,
            int(before["revision"]) + 1 if before else 1,
        )
        if (
            before is not None
            and before["report"] == to_json(_numbered(report, int(before["revision"]))).decode()
        ):
            out.append(_numbered(report, int(before["revision"])))
            continue
        tx.execute(
            "INSERT INTO window_performance (project, window_id, scorer, revision, rows_n, labelled, report) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (project, window_id, scorer) DO UPDATE SET revision = excluded.revision, rows_n = excluded.rows_n, labelled = excluded.labelled, report = excluded.report",
            project, span.id, scorer, report.revision, report.rows, report.labelled, to_json(report).decode(),
        )  # fmt: skip
        out.append(report)
    return out


def _numbered(report: Performance, revision: int) -> Performance:
    return msgspec.structs.replace(report, revision=revision)


def _performance(
    scorer: str, scored: Scored, total: int, references: References, revision: int
) -> Performance:
    task, classes = task_of(references, scored)
    good, y, invalid = readable(scored.rows, task, classes)
    scores = score_array(good)
    fits = scores is not None and scores.ndim == (2 if task is Task.MULTICLASS else 1)
    metrics, sums = metrics_of(scores, y, task) if fits and scores is not None else ({}, {})
    return Performance(
        scorer=scorer,
        model=scored.model,
        version=scored.version,
        task=task,
        rows=total,
        labelled=len(good),
        unlabelled=max(0, total - len(scored.rows)),
        invalid=invalid,
        revision=revision,
        metrics=metrics,
        sums=sums,
    )


def decay(
    tx: Reader,
    project: str,
    span: Span,
    champion: tuple[str, int],
    references: References,
    policy: MonitorPolicy,
    lookback_us: int,
    control: OnlineControl | None,
) -> DecayReport:
    """The champion's performance over the lookback that ends with ``span``, against its reference level."""
    model, version = champion
    task = (references.task(model, version) or (Task.BINARY, []))[0]
    metric = policy.metric or ("rmse" if task is Task.REGRESSION else "log_loss")
    rows = tx.all(
        "SELECT p.report FROM window_performance p JOIN windows w ON w.project = p.project AND w.id = p.window_id"
        " WHERE p.project = ? AND w.deployment = ? AND w.end_us > ? AND w.end_us <= ? AND p.scorer = ? ORDER BY w.end_us",
        project, span.deployment, span.end_us - lookback_us, span.end_us, str(version),
    )  # fmt: skip
    every: list[Performance] = [from_json(row["report"], Performance) for row in rows]
    reports = [r for r in every if r.model == model]
    n = sum(r.labelled for r in reports)
    reference = references.level(model, version, metric, policy)
    base: dict[str, Any] = {
        "metric": metric,
        "version": version,
        "n": n,
        "reference": reference,
        "tolerance": policy.tolerance,
    }
    if n < policy.min_labels:
        return DecayReport(
            verdict=Verdict.INSUFFICIENT_DATA,
            reason=f"{n} labelled rows, {policy.min_labels} are needed",
            **base,
        )
    if metric == "auc":
        got = _auc(tx, project, span, champion, references, lookback_us)
    else:
        got = _pooled(reports, metric, n)
    if got.value is None or got.low is None or got.high is None:
        return DecayReport(
            verdict=Verdict.NOT_COMPUTABLE,
            reason=got.reason or f"no {metric} is computed for this task",
            **base,
        )
    numbers: dict[str, Any] = {"value": got.value, "low": got.low, "high": got.high}
    if reference is None:
        return DecayReport(
            verdict=Verdict.NOT_COMPUTABLE, reason="no reference level is recorded", **numbers, **base
        )
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    half = (got.high - got.low) / 2
    error = half / 1.959963984540054
    gap = sign * (got.value - reference) - policy.tolerance
    p = normal_sf(gap / error) if error > 0 else (0.0 if gap > 0 else 1.0)
    level = control.level() if control is not None else policy.alpha
    found = control.test(p) if control is not None else p <= level
    return DecayReport(
        verdict=Verdict.DECAY if found else Verdict.OK, p_value=p, level=level, **numbers, **base
    )


def _pooled(reports: list[Performance], metric: str, n: int) -> Metric:
    name = "mse" if metric == "rmse" else metric
    parts = [(*r.sums[name], r.labelled) for r in reports if name in r.sums and r.labelled]
    if not parts or sum(p[2] for p in parts) != n:
        return Metric(value=None)
    total, squares = sum(p[0] for p in parts), sum(p[1] for p in parts)
    effect = clustered_effect([(p[0], p[1], int(p[2])) for p in parts])
    return from_sums({name: [total, squares]}, n, effect)[metric]


def _auc(
    tx: Reader, project: str, span: Span, champion: tuple[str, int], references: References, lookback_us: int
) -> Metric:
    rows = tx.all(
        "SELECT model, version, score, scores, value FROM labelled_predictions WHERE project = ? AND deployment = ? AND at_us >= ? AND at_us < ?"
        " AND model = ? AND version = ? ORDER BY at_us DESC LIMIT ?",
        project, span.deployment, span.end_us - lookback_us, span.end_us, *champion, _MAX_ROWS,
    )  # fmt: skip
    scored = Scored(*champion, rows)
    task, classes = task_of(references, scored)
    good, y, _ = readable(rows, task, classes)
    scores = score_array(good)
    found = auc(scores, y) if task is Task.BINARY and scores is not None and scores.ndim == 1 else None
    if found is None:
        return Metric(value=None, reason="AUC needs labels of both classes")
    value, error = found
    return Metric(
        value=value,
        low=value - 1.959963984540054 * error,
        high=value + 1.959963984540054 * error,
        n=len(good),
    )
