"""How good predictions were, from rows whose label has arrived. Pure functions on arrays; finite or absent, never NaN.

Additive metrics (log_loss, brier, accuracy, mae, mse) carry their sums, so windows add up. Their intervals are normal
(95 %); rmse is the root of the interval of mse; AUC has DeLong's variance (E. DeLong, D. DeLong, D. Clarke-Pearson,
Biometrics 44 (1988); computed by midranks as X. Sun and W. Xu, IEEE Signal Process. Lett. 21 (2014)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mainspring.monitoring.statistics import Floats, mean_interval
from mainspring.records.models import Task
from mainspring.records.monitoring import Metric

CLIP = 1e-15
"""Probabilities are kept this far from 0 and 1, so that log-loss stays finite."""

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "mae", "mse", "rmse"})
_Z = 1.959963984540054


def truth(value: Any, task: Task, classes: Sequence[str]) -> float | None:
    """A label as a number: class index, or the value itself for regression; None if it cannot be one of this task."""
    if task is Task.REGRESSION:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)
    if isinstance(value, str) or (classes and str(value) in classes):
        name = str(value)
        if name in classes:
            return float(list(classes).index(name))
        return float(name) if name in {"0", "1"} and task is Task.BINARY else None
    if task is Task.BINARY and value in (0, 1):
        return float(value)
    if task is Task.MULTICLASS and not isinstance(value, bool) and isinstance(value, int | float):
        inside = float(value).is_integer() and 0 <= value < max(len(classes), 1 if classes else 2**31)
        return float(value) if inside else None
    return None


def losses(scores: Floats, y: Floats, task: Task) -> dict[str, Floats]:
    """Per-row values of the additive metrics. ``scores``: (n,), multiclass (n, k)."""
    if task is Task.REGRESSION:
        with np.errstate(over="ignore"):
            gap = np.clip(scores - y, -1e150, 1e150)
            return {"mae": np.abs(gap), "mse": gap * gap}
    if task is Task.BINARY:
        p = np.clip(scores, CLIP, 1 - CLIP)
        return {
            "log_loss": -np.where(y > 0.5, np.log(p), np.log1p(-p)),
            "brier": (np.clip(scores, 0, 1) - y) ** 2,
            "accuracy": ((scores >= 0.5) == (y > 0.5)).astype(np.float64),
        }
    picked = scores[np.arange(len(y)), np.minimum(y.astype(np.int64), scores.shape[1] - 1)]
    return {
        "log_loss": -np.log(np.clip(picked, CLIP, 1.0)),
        "accuracy": (scores.argmax(axis=1) == y).astype(np.float64),
    }


def auc(scores: Floats, y: Floats) -> tuple[float, float] | None:
    """Area under the ROC curve and DeLong's standard error; None with a single class."""
    positive, negative = scores[y > 0.5], scores[y <= 0.5]
    m, n = positive.size, negative.size
    if not m or not n:
        return None
    together = _midranks(np.concatenate([positive, negative]))
    tx, ty = _midranks(positive), _midranks(negative)
    area = (together[:m].sum() - m * (m + 1) / 2) / (m * n)
    v10 = (together[:m] - tx) / n
    v01 = 1 - (together[m:] - ty) / m
    variance = (v10.var(ddof=1) / m if m > 1 else 0.25) + (v01.var(ddof=1) / n if n > 1 else 0.25)
    return float(area), math.sqrt(max(0.0, float(variance)))


def _midranks(values: Floats) -> Floats:
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], ordered.size]
    ranks = np.empty(values.size)
    ranks[order] = np.repeat((starts + ends + 1) / 2, ends - starts)
    return ranks


def sums_of(values: dict[str, Floats]) -> dict[str, list[float]]:
    """[sum, sum of squares] per metric, finite."""
    out = {}
    for name, v in values.items():
        with np.errstate(over="ignore"):
            pair = [float(v.sum()), float((v * v).sum())]
        if all(math.isfinite(p) for p in pair):
            out[name] = pair
    return out


def metrics_of(scores: Floats, y: Floats, task: Task) -> tuple[dict[str, Metric], dict[str, list[float]]]:
    """All metrics of these rows, and the sums of the additive ones."""
    n = len(y)
    if n == 0:
        return {}, {}
    sums = sums_of(losses(scores, y, task))
    metrics = from_sums(sums, n)
    if task is Task.BINARY:
        rate = float(y.mean())
        metrics["positive_rate"] = _bounded(*mean_interval(float(y.sum()), float(y.sum()), n), n)
        metrics["mean_score"] = Metric(value=float(scores.mean()), n=n)
        area = auc(scores, y)
        if area is None:
            metrics["auc"] = Metric(
                value=None, n=n, reason=f"all labels are {'positive' if rate > 0.5 else 'negative'}"
            )
        else:
            value, error = area
            metrics["auc"] = _bounded(value, value - _Z * error, value + _Z * error, n)
    return metrics, sums


def from_sums(sums: dict[str, list[float]], n: int, effect: float = 1.0) -> dict[str, Metric]:
    """Additive metrics (and rmse) with intervals, from sums over ``n`` rows."""
    out: dict[str, Metric] = {}
    if n <= 0:
        return out
    for name, (total, squares) in sums.items():
        mean, low, high = mean_interval(total, squares, n, effect=effect)
        if not all(math.isfinite(v) for v in (mean, low, high)):
            out[name] = Metric(value=None, n=n, reason="too large to compute")
        elif name == "accuracy":
            out[name] = _bounded(mean, low, high, n)
        else:
            out[name] = Metric(value=mean, low=max(0.0, low), high=high, n=n)
    mse = out.pop("mse", None)
    if mse is not None and mse.value is not None:
        out["rmse"] = Metric(
            value=math.sqrt(mse.value), low=math.sqrt(mse.low or 0.0), high=math.sqrt(mse.high or 0.0), n=n
        )
    elif mse is not None:
        out["rmse"] = mse
    return out


def _bounded(value: float, low: float, high: float, n: int) -> Metric:
    return Metric(value=value, low=max(0.0, low), high=min(1.0, high), n=n)


def clustered_effect(parts: Sequence[tuple[float, float, int]]) -> float:
    """Design effect of a mean over windows: observed variance of the window means over the expected one, at least 1.

    ``parts`` is (sum, sum of squares, n) per window; 1.0 with fewer than three windows.
    """
    used = [(s / n, n, max(0.0, (q - s * s / n) / (n - 1))) for s, q, n in parts if n > 1]
    if len(used) < 3:
        return 1.0
    total = sum(n for _, n, _ in used)
    mean = sum(m * n for m, n, _ in used) / total
    within = sum(v * (n - 1) for _, n, v in used) / max(1, total - len(used))
    if within <= 0:
        return 1.0
    between = sum(n * (m - mean) ** 2 for m, n, _ in used) / (len(used) - 1)
    return max(1.0, between / within)
