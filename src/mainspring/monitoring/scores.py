"""Performance of the windows whose labels have arrived."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from mainspring.errors import InvalidInput
from mainspring.metrics.intervals import MIN_BLOCKS, Estimate, estimate
from mainspring.metrics.metric import Metric as Formula
from mainspring.monitoring.performance import as_metric, formula_of, from_windows, metrics_of
from mainspring.monitoring.references import References
from mainspring.monitoring.spans import Span, length_us, span_of
from mainspring.monitoring.statistics import Floats, OnlineControl
from mainspring.records.base import from_json, to_json
from mainspring.records.classes import LabelReader
from mainspring.records.models import Task
from mainspring.records.monitoring import DecayReport, MonitorPolicy, Performance, Verdict
from mainspring.records.scores import PROBABILITIES, ScoreMeaning, default_metric, meaning_of
from mainspring.storage.sql import Reader, Row, Writer

MAX_ROWS = 200_000
"""Most labelled rows of a window that are read, newest first; a window with more says so (``Performance.truncated``)."""


WINDOWS_AS_BLOCKS = 7
"""With a lookback of at least this many windows, the windows are the blocks of the estimate, since so many show how much windows
differ by themselves. With fewer, rows count one by one and the estimate is about these windows only."""


@dataclass
class Scored:
    """Labelled rows of one scorer."""

    model: str
    version: int
    rows: list[Row] = field(default_factory=list)
    truncated: bool = False


def scorer_of(row: Row) -> str:
    return f"shadow:{row['name']}" if row.get("name") else str(row["version"])


def score_array(rows: list[Row]) -> Floats | None:
    """Scores of shape (n,), or (n, k) for k classes; None if rows have scores of different shapes."""
    if all(r["score"] is not None for r in rows):
        return np.array([r["score"] for r in rows], dtype=np.float64)
    values = [from_json(r["scores"]) if r["scores"] else None for r in rows]
    lengths = {len(v) if v is not None else -1 for v in values}
    if len(lengths) != 1 or -1 in lengths:
        return None
    return np.array(values, dtype=np.float64)


def split_readable(rows: list[Row], reader: LabelReader) -> tuple[list[Row], Floats, int]:
    """Rows with a score and a label of this task, their labels as numbers, and how many labels could not be read."""
    usable, ys, invalid = [], [], 0
    for row in rows:
        if row["score"] is None and not row["scores"]:
            continue
        y = reader.read(from_json(row["value"]))
        if y is None:
            invalid += 1
        else:
            usable.append(row)
            ys.append(y)
    return usable, np.array(ys, dtype=np.float64), invalid


def reader_of(references: References, scored: Scored) -> LabelReader:
    """The reader of labels by the registered signature; for an unregistered version the task is inferred from its scores and labels."""
    known = references.version(scored.model, scored.version)
    if known is not None:
        return LabelReader.of(known.signature)
    if any(r["scores"] for r in scored.rows):
        return LabelReader(Task.MULTICLASS)  # of unknown classes: no label can be matched
    unit = all(r["score"] is None or 0 <= r["score"] <= 1 for r in scored.rows)
    binary = LabelReader(Task.BINARY)
    zero_one = all(binary.read(from_json(r["value"])) is not None for r in scored.rows)
    return binary if unit and zero_one else LabelReader(Task.REGRESSION)


def meaning_for(references: References, model: str, version: int) -> ScoreMeaning:
    """What a version's scores mean, by its registered signature; an unregistered version's are taken for probabilities."""
    known = references.version(model, version)
    return PROBABILITIES if known is None else meaning_of(known.signature)


def revise_performance(tx: Writer, project: str, span: Span, references: References) -> list[Performance]:
    """Compute the performance of every scorer in a window again; one that changed gets the next revision."""
    where = "project = ? AND deployment = ? AND at_us >= ? AND at_us < ?"
    values = (project, span.deployment, span.start_us, span.end_us)
    groups: dict[str, Scored] = {}
    for view, columns in (("labelled_predictions", ""), ("labelled_shadows", "name, ")):
        rows = tx.all(
            f"SELECT {columns}model, version, score, scores, value FROM {view} WHERE {where} ORDER BY at_us DESC, request, row_no LIMIT ?",
            *values,
            MAX_ROWS + 1,  # one more shows that rows are left out
        )
        truncated = len(rows) > MAX_ROWS
        for row in rows[:MAX_ROWS]:
            scored = groups.setdefault(
                scorer_of(row), Scored(row["model"], row["version"], truncated=truncated)
            )
            scored.rows.append(row)
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
        report = _compute_performance(
            scorer,
            scored,
            totals.get(scorer, len(scored.rows)),
            references,
            int(before["revision"]) + 1 if before else 1,
        )
        if (
            before is not None
            and before["report"] == to_json(_with_revision(report, int(before["revision"]))).decode()
        ):
            out.append(_with_revision(report, int(before["revision"])))
            continue
        tx.execute(
            "INSERT INTO window_performance (project, window_id, scorer, revision, rows_n, labelled, report) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (project, window_id, scorer) DO UPDATE SET revision = excluded.revision, rows_n = excluded.rows_n, labelled = excluded.labelled, report = excluded.report",
            project, span.id, scorer, report.revision, report.rows, report.labelled, to_json(report).decode(),
        )  # fmt: skip
        out.append(report)
    return out


def _with_revision(report: Performance, revision: int) -> Performance:
    return msgspec.structs.replace(report, revision=revision)


def _compute_performance(
    scorer: str, scored: Scored, total: int, references: References, revision: int
) -> Performance:
    reader = reader_of(references, scored)
    task = reader.task
    usable, y, invalid = split_readable(scored.rows, reader)
    scores = score_array(usable)
    fits = scores is not None and scores.ndim == (2 if task is Task.MULTICLASS else 1)
    meaning = meaning_for(references, scored.model, scored.version)
    metrics, sums = metrics_of(scores, y, task, meaning) if fits and scores is not None else ({}, {})
    return Performance(
        scorer=scorer,
        model=scored.model,
        version=scored.version,
        task=task,
        rows=total,
        labelled=len(usable),
        unlabelled=0 if scored.truncated else max(0, total - len(scored.rows)),
        invalid=invalid,
        revision=revision,
        metrics=metrics,
        sums=sums,
        truncated=scored.truncated,
    )


def measure_decay(
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
    meaning = meaning_for(references, model, version)
    name = policy.metric or default_metric(task, meaning)
    rows = tx.all(
        "SELECT p.report FROM window_performance p JOIN windows w ON w.project = p.project AND w.id = p.window_id"
        " WHERE p.project = ? AND w.deployment = ? AND w.end_us > ? AND w.end_us <= ? AND p.scorer = ? ORDER BY w.end_us",
        project, span.deployment, span.end_us - lookback_us, span.end_us, str(version),
    )  # fmt: skip
    every: list[Performance] = [from_json(row["report"], Performance) for row in rows]
    reports = [r for r in every if r.model == model and r.labelled]
    n = sum(r.labelled for r in reports)
    reference = references.reference_level(model, version, name, policy)
    common: dict[str, Any] = {
        "metric": name,
        "version": version,
        "n": n,
        "reference": reference,
        "tolerance": policy.tolerance,
    }

    def make_report(verdict: Verdict, reason: str, **numbers: Any) -> DecayReport:
        return DecayReport(verdict=verdict, reason=reason, **numbers, **common)

    if n < policy.min_labels:
        return make_report(Verdict.INSUFFICIENT_DATA, f"{n} labelled rows, {policy.min_labels} are needed")
    blocks = lookback_us // length_us(policy.window) >= WINDOWS_AS_BLOCKS
    if blocks and len(reports) < MIN_BLOCKS:
        return make_report(
            Verdict.INSUFFICIENT_DATA, f"{len(reports)} labelled windows, {MIN_BLOCKS} are needed"
        )
    formula = formula_of(name, task, meaning)
    if formula is None:
        return make_report(Verdict.NOT_COMPUTABLE, f"no {name} is computed for this task")
    pooled = _estimate_from_sums(reports, formula, n, blocks=blocks)
    if pooled is None:
        rows = _read_labelled(tx, project, span, champion, lookback_us)
        pooled = _estimate_from_rows(
            rows, Scored(*champion, rows), span, references, policy, formula, blocks=blocks
        )
    metric = as_metric(formula, pooled)
    if metric.value is None or metric.low is None or metric.high is None:
        insufficient = metric.reason.startswith("insufficient")
        return make_report(
            Verdict.INSUFFICIENT_DATA if insufficient else Verdict.NOT_COMPUTABLE,
            metric.reason or f"{name} cannot be computed",
        )
    numbers: dict[str, Any] = {"value": metric.value, "low": metric.low, "high": metric.high}
    if reference is None:
        return make_report(Verdict.NOT_COMPUTABLE, "no reference level is recorded", **numbers)
    p = _p_worse(pooled, formula, reference, policy.tolerance)
    level = control.level() if control is not None else policy.alpha
    decayed = control.test(p) if control is not None else p <= level
    return make_report(Verdict.DECAY if decayed else Verdict.OK, "", p_value=p, level=level, **numbers)


def _p_worse(estimated: Estimate, formula: Formula, reference: float, tolerance: float) -> float:
    """The probability of a figure this bad or worse if the true figure is exactly at the tolerance: a one-sided p-value."""
    toward = estimated.mirrored() if formula.higher_is_better else estimated
    sign = -1.0 if formula.higher_is_better else 1.0
    p = toward.p_above(sign * reference + tolerance)
    return 1.0 if p is None or (estimated.error == 0 and p == 0.5) else p


def _estimate_from_sums(
    reports: list[Performance], formula: Formula, n: int, *, blocks: bool
) -> Estimate | None:
    """Estimate from the windows' sums; None if the metric is not a mean over rows, or a window has no sums of it."""
    if formula.row_loss is None:
        return None
    name = "mse" if formula.name == "rmse" else formula.name
    parts = [(*r.sums[name], r.labelled) for r in reports if name in r.sums]
    if sum(p[2] for p in parts) != n:
        return None
    return from_windows(formula, [(p[0], p[1], int(p[2])) for p in parts], blocks=blocks)


def _read_labelled(
    tx: Reader, project: str, span: Span, champion: tuple[str, int], lookback_us: int
) -> list[Row]:
    return tx.all(
        "SELECT model, version, score, scores, value, at_us FROM labelled_predictions WHERE project = ? AND deployment = ? AND at_us >= ? AND at_us < ?"
        " AND model = ? AND version = ? ORDER BY at_us DESC LIMIT ?",
        project, span.deployment, span.end_us - lookback_us, span.end_us, *champion, MAX_ROWS,
    )  # fmt: skip


def _estimate_from_rows(
    rows: list[Row],
    scored: Scored,
    span: Span,
    references: References,
    policy: MonitorPolicy,
    formula: Formula,
    *,
    blocks: bool,
) -> Estimate:
    """Estimate from the labelled rows themselves, for metrics that are not a mean over rows."""
    reader = reader_of(references, scored)
    usable, y, _ = split_readable(rows, reader)
    scores = score_array(usable)
    if scores is None or scores.ndim != (2 if reader.task is Task.MULTICLASS else 1):
        return Estimate(value=None, n=len(usable), reason="the scores do not fit together")
    starts = [span_of(span.deployment, int(r["at_us"]), policy.window).start_us for r in usable]
    try:
        return estimate(formula, *formula.checked(y, scores), blocks=starts if blocks else None)
    except InvalidInput as error:
        return Estimate(value=None, n=len(usable), reason=error.message)
