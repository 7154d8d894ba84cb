"""Confidence intervals of metrics: wide for few blocks, none for too few.

Rows of one day share their weather and their traffic: intervals that treat them as independent are far too narrow. So give
``blocks`` (one key per row, e.g. the day) wherever there is such a group.

The method. Each metric is computed again without each block in turn. The jackknife variance of these values (Efron & Stein
1981; for a regression it is the CR3 estimator of Bell & McCaffrey 2002, on the safe side when blocks are few) goes into Student's
t. Its degrees of freedom are Satterthwaite's for the sizes of the blocks (Bell & McCaffrey 2002; Hansen 2025): blocks - 1 for
equal ones, fewer if some blocks hold most rows; the smaller of two values is taken, for effects of blocks and for independent
rows. Losses of blocks are skewed (a few days are much worse), and the interval of t is then too narrow: so the interval is the union of
the one of t and the one of t corrected for skewness (Johnson 1978 in the cubic form of Hall 1992), and a test takes the larger of the two
p-values. Shares of rows (accuracy, precision, recall) get the exact binomial interval at the effective number of rows (Korn &
Graubard 1998), so that 20 hits of 20 are not certainty. ``docs/rooms/metrics.md`` has the coverage that this reaches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from mainspring.errors import InvalidInput
from mainspring.metrics.distributions import beta_quantile, t_cdf, t_quantile
from mainspring.metrics.metric import Floats, Ints, Metric
from mainspring.metrics.registry import metric
from mainspring.records.models import Task
from mainspring.records.training import Interval

MIN_BLOCKS = 3
"""With fewer blocks no interval is given, because the variance between blocks cannot be estimated."""

REPLICATES = 100
"""A metric without a closed form is computed again at most this often: more blocks than that are merged."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate, its standard error and degrees of freedom; without a standard error, ``reason`` says what is missing."""

    value: float | None
    error: float | None = None
    df: float = math.inf
    skew: float = 0.0
    """Skewness of the influence of the blocks, divided by the square root of their number."""
    n: int = 0
    blocks: int = 0
    reason: str = ""

    @property
    def method(self) -> str:
        """How the standard error was computed, as text; empty without one."""
        return "" if self.error is None else f"jackknife by block, t with {self.df:.3g} degrees of freedom"

    def mirrored(self) -> Estimate:
        """The estimate of the negative."""
        value = None if self.value is None else -self.value
        return replace(self, value=value, skew=-self.skew)

    def ends(self, confidence: float) -> tuple[float, float] | None:
        """The two-sided interval ``(low, high)``; None without a standard error."""
        if self.value is None or self.error is None:
            return None
        if self.error == 0:
            return self.value, self.value
        q = t_quantile((1 + confidence) / 2, self.df)
        below, above = max(q, self._invert_skew(q)), max(q, -self._invert_skew(-q))
        return self.value - below * self.error, self.value + above * self.error

    def p_above(self, limit: float) -> float | None:
        """P(an estimate this large or larger | the truth is ``limit``): small shows that the truth is above it."""
        if self.value is None or self.error is None:
            return None
        gap = self.value - limit
        if self.error == 0:  # every block gives the same value: equality with the limit is no evidence
            return 1.0 if gap < 0 else (0.5 if gap == 0 else 0.0)
        t = gap / self.error
        return t_cdf(-min(t, self._correct_skew(t)), self.df)

    def _correct_skew(self, t: float) -> float:
        """Hall's monotone transformation (1992): a t value from skewed blocks becomes one that is approximately Student's."""
        c = self.skew
        return t + c * t * t / 3 + c * c * t**3 / 27 + c / 6

    def _invert_skew(self, t: float) -> float:
        """The inverse of :meth:`_correct_skew`."""
        c = self.skew
        if abs(c) < 1e-9:
            return t
        return 3 / c * (math.cbrt(1 + c * (t - c / 6)) - 1)


def interval(
    name: str,
    y: ArrayLike,
    scores: ArrayLike,
    *,
    task: Task,
    weights: ArrayLike | None = None,
    blocks: ArrayLike | None = None,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """The metric with its interval; ``low`` and ``high`` are None with a ``reason`` where the evidence is insufficient.

    ``replicates`` and ``seed`` matter only for a metric without a closed form (``pr_auc``): it is computed again at
    most that often, and more blocks than that are merged at random by ``seed``.
    """
    check_confidence(confidence)
    chosen = metric(name, task)
    truth, predicted, weight = chosen.checked(y, scores, weights)
    result = estimate(chosen, truth, predicted, weight, blocks=blocks, replicates=replicates, seed=seed)
    return as_interval(chosen, result, confidence)


def estimate(
    chosen: Metric,
    y: Floats,
    scores: Floats,
    weights: Floats,
    *,
    blocks: ArrayLike | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Estimate:
    """A metric on arrays that ``chosen.checked`` returned."""
    index, count = block_index(blocks, len(y))
    value = chosen.value(y, scores, weights)
    lack = missing_evidence(chosen, y, count) if value is not None else undefined_reason(chosen, y)
    if value is None or lack:
        return Estimate(value=value, n=len(y), blocks=count, reason=lack)
    without, sizes = leave_out(chosen, y, scores, weights, index, count, replicates=replicates, seed=seed)
    result = jackknife(value, without, sizes, n=len(y), blocks=count)
    return _with_error_floor(result, smallest_error(chosen, value, y))


def undefined_reason(chosen: Metric, y: Floats) -> str:
    """Why a metric has no value on these rows."""
    if not len(y):
        return "insufficient: 0 rows"
    if chosen.least_per_class and (y == y[0]).all():
        binary = Task.BINARY in chosen.tasks
        return f"all labels are {('positive' if y[0] else 'negative') if binary else f'class {int(y[0])}'}"
    return "undefined on these rows"


def missing_evidence(chosen: Metric, y: Floats, blocks: int) -> str:
    """What is missing for an interval of this metric; empty if nothing is."""
    if len(y) < chosen.least:
        return f"insufficient: {len(y)} rows, {chosen.least} are needed"
    if blocks < MIN_BLOCKS:
        return f"insufficient: {blocks} blocks, {MIN_BLOCKS} are needed"
    if chosen.least_per_class:
        counts = np.unique(y, return_counts=True)[1]
        if len(counts) < 2 or counts.min() < chosen.least_per_class:
            few = int(counts.min()) if len(counts) > 1 else 0
            return f"insufficient: {few} rows of a class, {chosen.least_per_class} are needed"
    return ""


def leave_out(
    chosen: Metric,
    y: Floats,
    scores: Floats,
    weights: Floats,
    index: Ints,
    count: int,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """The metric without each block (NaN: undefined then), and the weight of each block."""
    if chosen.regroup and count > max(MIN_BLOCKS, replicates):
        groups = max(MIN_BLOCKS, replicates)
        index = (np.random.default_rng(seed).permutation(count) % groups)[index]
        count = groups
    sizes = np.asarray(np.bincount(index, weights=weights, minlength=count), dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if chosen.additive:
            rows = weights[:, None] * chosen.contributions(y, scores)
            sums = np.column_stack([np.bincount(index, weights=c, minlength=count) for c in rows.T])
            return chosen.finished(sums.sum(axis=0) - sums), sizes
        assert chosen.leave_out is not None  # noqa: S101 - every metric with ``whole`` has it (tests/metrics)
        return chosen.leave_out(y, scores, weights, index, count), sizes


def jackknife(value: float, without: Floats, sizes: Floats, *, n: int, blocks: int) -> Estimate:
    """An estimate from the metric's values without each block, ``without`` and ``sizes`` of shape ``(blocks,)``.

    Without a standard error if a block carries almost all rows, or the metric is undefined without some block.
    """
    used = sizes > 0
    without, sizes = without[used], sizes[used]
    count = len(sizes)
    without_error = Estimate(
        value=value, n=n, blocks=blocks, reason="insufficient: it depends on a single block"
    )
    if count < MIN_BLOCKS or not np.isfinite(without).all():
        return without_error
    df = degrees_of_freedom(sizes)
    with np.errstate(over="ignore", invalid="ignore"):
        error = math.sqrt((count - 1) / count) * float(np.linalg.norm(without - value))
    if df < 1.0 or not math.isfinite(error):
        return without_error
    # Differences as small as the rounding of equal values are no variation.
    tiny = 64 * np.finfo(np.float64).eps * abs(value) * math.sqrt(count)
    if error <= tiny:
        return Estimate(value=value, error=0.0, df=df, n=n, blocks=blocks)
    scaled = (value - without) / np.linalg.norm(value - without)
    skew = float((scaled**3).sum()) * math.sqrt(count * (count - 1)) / (count - 2)
    return Estimate(value=value, error=error, df=df, skew=skew, n=n, blocks=blocks)


def degrees_of_freedom(sizes: Floats) -> float:
    """Satterthwaite's degrees of freedom of the jackknife variance of a mean over blocks of these sizes.

    With shares w and jackknife factors d = (w / (1 - w))^2 the variance is the quadratic form m'Am of the blocks' means,
    A = (I - 1w')' diag(d) (I - 1w'); its degrees of freedom are tr(AS)^2 / tr(ASAS) for means of variance S.
    """
    if sizes.min() == sizes.max():
        return len(sizes) - 1.0
    w = sizes / sizes.sum()
    d = (w / (1 - w)) ** 2
    return min(_satterthwaite(w, d, np.ones_like(w)), _satterthwaite(w, d, 1 / w))


def _satterthwaite(w: Floats, d: Floats, v: Floats) -> float:
    s = d.sum()
    a, b, c = (v * d * d).sum(), (v * w * w).sum(), (v * d * w).sum()
    trace = (v * (d - 2 * d * w + s * w * w)).sum()
    square = (v * v * d * (d - 4 * d * w + 2 * s * w * w)).sum()
    square += 2 * a * b + s * s * b * b + 2 * c * c - 4 * s * c * b
    return float(trace * trace / square)


def smallest_error(chosen: Metric, value: float, y: Floats) -> float:
    """The change that one more contrary row would make: the smallest standard error of a metric of counts or ranks.

    Without it, a perfect separation of ten rows would have no error at all.
    """
    if not chosen.least_per_class:
        return 0.0
    fewest = int(np.unique(y, return_counts=True)[1].min())
    return max(abs(chosen.high - value), abs(value - chosen.low)) / (fewest + 1)


def _with_error_floor(result: Estimate, error: float) -> Estimate:
    if result.error is None or result.error >= error:
        return result
    return Estimate(value=result.value, error=error, df=result.df, n=result.n, blocks=result.blocks)


def as_interval(chosen: Metric, result: Estimate, confidence: float) -> Interval:
    """The interval of an estimate, within the metric's range."""
    ends = result.ends(confidence)
    method = result.method
    if ends is not None and chosen.interval == "share":
        ends, method = (
            share_ends(result, confidence),
            f"exact binomial at the effective number of rows, {result.blocks} blocks",
        )
    low, high = ends if ends is not None else (None, None)
    return Interval(
        value=result.value,
        low=None if low is None else max(low, chosen.low),
        high=None if high is None else min(high, chosen.high),
        confidence=confidence,
        n=result.n,
        blocks=result.blocks,
        method=method,
        reason=result.reason,
    )


def share_ends(result: Estimate, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval at the effective number of rows (Korn & Graubard 1998): the number of independent rows that would
    have the same standard error. The ratio of t quantiles accounts for the degrees of freedom of that error."""
    assert result.value is not None  # noqa: S101 - the caller has an interval
    assert result.error is not None  # noqa: S101
    share = min(1.0, max(0.0, result.value))
    rows = float(result.n)
    spread = share * (1 - share)
    if result.error > 0 and spread > 0:
        rows = min(rows, spread / result.error**2)
    tail = (1 - confidence) / 2
    if result.df < result.n - 1:
        rows *= (t_quantile(1 - tail, result.n - 1) / t_quantile(1 - tail, result.df)) ** 2
    hits = share * rows
    return beta_quantile(tail, hits, rows - hits + 1), beta_quantile(1 - tail, hits + 1, rows - hits)


def check_confidence(confidence: float) -> None:
    """Refuse a confidence outside of (0.5, 1). Raises :class:`InvalidInput`."""
    if not 0.5 < confidence < 1.0:
        raise InvalidInput(
            "confidence must lie between 0.5 and 1", value=confidence, next_step="Use 0.95, for example."
        )


def block_index(blocks: ArrayLike | None, rows: int) -> tuple[Ints, int]:
    """``(block of each row as 0..k-1, k)``; without ``blocks`` every row is a block."""
    if blocks is None:
        return np.arange(rows, dtype=np.int64), rows
    keys = np.asarray(blocks)
    if keys.shape != (rows,):
        raise InvalidInput("one block key per row is needed", value=f"{keys.shape} for {rows} rows")
    unique, index = np.unique(keys, return_inverse=True)
    return index.astype(np.int64).reshape(-1), len(unique)
