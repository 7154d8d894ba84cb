"""The quality of predictions, from rows whose label has arrived. No data raises; figures are finite or absent, never NaN.

Formulas and intervals are those of :mod:`mainspring.metrics`. Metrics that are means over rows also leave their sums, so
windows add up. Inside one window rows count one by one; over several windows the windows are the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mainspring.errors import InvalidInput
from mainspring.metrics.intervals import Estimate, as_interval, estimate, jackknife
from mainspring.metrics.metric import Floats
from mainspring.metrics.metric import Metric as Formula
from mainspring.metrics.registry import list_metrics, metric
from mainspring.records.classes import LabelReader
from mainspring.records.models import Task
from mainspring.records.monitoring import Metric
from mainspring.records.scores import PROBABILITIES, ScoreMeaning

CONFIDENCE = 0.95


def truth(value: Any, task: Task, classes: Sequence[str]) -> float | None:
    """A label as a number, matched by value (records.classes): class index, or the value itself; None if it is not a label of the task."""
    return LabelReader(task, classes).read(value)


def losses(scores: Floats, y: Floats, task: Task, meaning: ScoreMeaning = PROBABILITIES) -> dict[str, Floats]:
    """Per-row values of the metrics that are means over rows. ``scores``: (n,), multiclass (n, k)."""
    out = {}
    for formula in list_metrics(task, meaning):
        if formula.row_loss is not None and formula.finish is None:
            checked = formula.checked(y, scores)
            with np.errstate(over="ignore", invalid="ignore"):
                out[formula.name] = formula.row_loss(checked[0], checked[1])
    return out


def sums_of(values: dict[str, Floats]) -> dict[str, list[float]]:
    """[sum, sum of squares] per metric, finite."""
    out = {}
    for name, v in values.items():
        with np.errstate(over="ignore", invalid="ignore"):
            pair = [float(v.sum()), float((v * v).sum())]
        if all(math.isfinite(p) for p in pair):
            out[name] = pair
    return out


def metrics_of(
    scores: Floats, y: Floats, task: Task, meaning: ScoreMeaning = PROBABILITIES
) -> tuple[dict[str, Metric], dict[str, list[float]]]:
    """All metrics of these rows with their intervals, and the sums of those that are means over rows."""
    n = len(y)
    if n == 0:
        return {}, {}
    metrics = {formula.name: _estimate_metric(formula, scores, y) for formula in list_metrics(task, meaning)}
    if task is Task.BINARY:
        metrics["positive_rate"] = _estimate_metric(_POSITIVE_RATE, y, y)
        metrics["mean_score"] = Metric(value=float(scores.mean()), n=n)
    try:
        sums = sums_of(losses(scores, y, task, meaning))
    except InvalidInput:  # each metric says why in its reason
        sums = {}
    return metrics, sums


_POSITIVE_RATE = Formula(
    name="positive_rate", tasks=frozenset({Task.BINARY}), unit="share", higher_is_better=True, interval="share",
    row_loss=lambda y, _: y, low=0.0, high=1.0,
)  # fmt: skip


def _estimate_metric(formula: Formula, scores: Floats, y: Floats) -> Metric:
    try:
        checked = formula.checked(y, scores)
        return as_metric(formula, estimate(formula, *checked))
    except InvalidInput as error:
        return Metric(value=None, n=len(y), reason=error.message)


def as_metric(formula: Formula, estimated: Estimate) -> Metric:
    """An estimate as windows and pages show it."""
    interval = as_interval(formula, estimated, CONFIDENCE)
    ends = [v if v is not None and math.isfinite(v) else None for v in (interval.low, interval.high)]
    return Metric(value=interval.value, low=ends[0], high=ends[1], n=interval.n, reason=interval.reason)


def from_windows(formula: Formula, parts: Sequence[tuple[float, float, int]], *, blocks: bool) -> Estimate:
    """A mean over rows (and what ``finish`` makes of it) from the windows' (sum, sum of squares, rows).

    With ``blocks`` the windows are the blocks; without, rows count one by one, and the estimate is about these windows only.
    """
    used = [p for p in parts if p[2] > 0]
    n = sum(p[2] for p in used)
    if n < formula.least:
        return Estimate(value=None, n=n, reason=f"insufficient: {n} rows, {formula.least} are needed")
    totals = np.array([[s, float(rows)] for s, _, rows in used])
    value = float(formula.finished(totals.sum(axis=0)))
    if not math.isfinite(value):
        return Estimate(value=None, n=n, reason="too large to compute")
    if blocks:
        without = formula.finished(totals.sum(axis=0) - totals)
        return jackknife(value, without, totals[:, 1], n=n, blocks=len(used))
    mean, squares = totals[:, 0].sum() / n, sum(q for _, q, _ in used)
    error = math.sqrt(max(0.0, squares - n * mean * mean) / (n - 1) / n)
    slope = 1.0
    if formula.finish is not None:  # the delta method: the error times the slope, which is taken numerically
        step = max(error, abs(mean) * 1e-6)
        ends = formula.finish(np.array([max(0.0, mean - step / 2), mean + step / 2]))
        slope = float(ends[1] - ends[0]) / step if step > 0 else 0.0
    return Estimate(value=value, error=abs(slope) * error, df=n - 1.0, n=n, blocks=n)


def formula_of(name: str, task: Task, meaning: ScoreMeaning = PROBABILITIES) -> Formula | None:
    """The metric, or None if the task has none of this name, or none for scores of this meaning."""
    try:
        formula = metric(name, task, meaning)
        return formula if meaning.probabilities or not formula.probabilities else None
    except InvalidInput:
        return None
