"""Confidence intervals of metrics: few blocks make them wide, too few make none.

Rows of one day share their weather and their jams: treating them as independent makes intervals far too narrow. So give
``blocks`` (one key per row, e.g. the day) wherever there is such a group.

The method. Each metric is computed again without each block in turn. The jackknife variance of these values (Efron & Stein
1981; for a regression it is the CR3 estimator of Bell & McCaffrey 2002, on the safe side when blocks are few) goes into Student's
t. Its degrees of freedom are Satterthwaite's for the sizes of the blocks (Bell & McCaffrey 2002; Hansen 2025): blocks - 1 for
equal ones, fewer if some blocks hold most rows; the smaller of two values is taken, for effects of blocks and for independent
rows. Losses of blocks are skewed (a few days are terrible), and t is then too sure: so the interval is the union of the one of t
and the one of t corrected for skewness (Johnson 1978 in the cubic form of Hall 1992), and a test takes the larger of the two
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
"""Below this many blocks no interval is given: it would pretend to know."""

REPLICATES = 100
"""A metric without a closed form is computed again this often at most: more blocks are put together."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate, its standard error and degrees of freedom; without them, ``reason`` says what is missing."""

    value: float | None
    error: float | None = None
    df: float = math.inf
    skew: float = 0.0
    """Skewness of the blocks' influence, divided by the root of their number."""
    n: int = 0
    blocks: int = 0
    reason: str = ""

    @property
    def method(self) -> str:
        return "" if self.error is None else f"jackknife by block, t with {self.df:.3g} degrees of freedom"

    def mirrored(self) -> Estimate:
        """The estimate of the negative."""
        value = None if self.value is None else -self.value
        return replace(self, value=value, skew=-self.skew)

    def ends(self, confidence: float) -> tuple[float, float] | None:
        """The interval; None without a standard error."""
        if self.value is None or self.error is None:
            return None
        if self.error == 0:
            return self.value, self.value
        q = t_quantile((1 + confidence) / 2, self.df)
        below, above = max(q, self._unskewed(q)), max(q, -self._unskewed(-q))
        return self.value - below * self.error, self.value + above * self.error

    def p_above(self, limit: float) -> float | None:
        """P(an estimate this large or larger | the truth is ``limit``): small shows that the truth is above it."""
        if self.value is None or self.error is None:
            return None
        gap = self.value - limit
        if self.error == 0:  # the same in every block: equal to the limit is no evidence
            return 1.0 if gap < 0 else (0.5 if gap == 0 else 0.0)
        t = gap / self.error
        return t_cdf(-min(t, self._skewed(t)), self.df)

    def _skewed(self, t: float) -> float:
        """Hall's monotone transformation: of a t value from skewed blocks to one that is about Student's."""
        c = self.skew
        return t + c * t * t / 3 + c * c * t**3 / 27 + c / 6

    def _unskewed(self, t: float) -> float:
        """Its inverse."""
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

    ``replicates`` and ``seed`` matter only for a metric without a closed form (``pr_auc``): it is computed again that often at
    most, more blocks than that being put together, dealt by ``seed``.
    """
    check_confidence(confidence)
    chosen = metric(name, task)
    truth, predicted, weight = chosen.checked(y, scores, weights)
    found = estimate(chosen, truth, predicted, weight, blocks=blocks, replicates=replicates, seed=seed)
    return as_interval(chosen, found, confidence)


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
    short = lacking(chosen, y, count) if value is not None else undefined(chosen, y)
    if value is None or short:
        return Estimate(value=value, n=len(y), blocks=count, reason=short)
    without, sizes = leave_out(chosen, y, scores, weights, index, count, replicates=replicates, seed=seed)
    found = jackknife(value, without, sizes, n=len(y), blocks=count)
    return _at_least(found, least_error(chosen, value, y))


def undefined(chosen: Metric, y: Floats) -> str:
    """Why a metric has no value on these rows."""
    if not len(y):
        return "insufficient: 0 rows"
    if chosen.least_per_class and (y == y[0]).all():
        binary = Task.BINARY in chosen.tasks
        return f"all labels are {('positive' if y[0] else 'negative') if binary else f'class {int(y[0])}'}"
    return "undefined on these rows"


def lacking(chosen: Metric, y: Floats, blocks: int) -> str:
    """What an interval of this metric lacks, or nothing."""
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
        assert chosen.leave_out is not None  # noqa: S101 - it stands beside ``whole`` (tests/metrics)
        return chosen.leave_out(y, scores, weights, index, count), sizes


def jackknife(value: float, without: Floats, sizes: Floats, *, n: int, blocks: int) -> Estimate:
    """An estimate from its values without each block."""
    used = sizes > 0
    without, sizes = without[used], sizes[used]
    count = len(sizes)
    bare = Estimate(value=value, n=n, blocks=blocks, reason="insufficient: it hangs on a single block")
    if count < MIN_BLOCKS or not np.isfinite(without).all():
        return bare
    df = degrees_of_freedom(sizes)
    with np.errstate(over="ignore", invalid="ignore"):
        error = math.sqrt((count - 1) / count) * float(np.linalg.norm(without - value))
    if df < 1.0 or not math.isfinite(error):
        return bare
    # What is left of equal values after rounding is no variation.
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


def least_error(chosen: Metric, value: float, y: Floats) -> float:
    """What one more row of the contrary kind would change: no metric of counts or order is known better than that.

    Without it, a perfect separation of ten rows would have no error at all.
    """
    if not chosen.least_per_class:
        return 0.0
    fewest = int(np.unique(y, return_counts=True)[1].min())
    return max(abs(chosen.high - value), abs(value - chosen.low)) / (fewest + 1)


def _at_least(found: Estimate, error: float) -> Estimate:
    if found.error is None or found.error >= error:
        return found
    return Estimate(value=found.value, error=error, df=found.df, n=found.n, blocks=found.blocks)


def as_interval(chosen: Metric, found: Estimate, confidence: float) -> Interval:
    """The interval of an estimate, within the metric's range."""
    ends = found.ends(confidence)
    method = found.method
    if ends is not None and chosen.interval == "share":
        ends, method = (
            share_ends(found, confidence),
            f"exact binomial at the effective number of rows, {found.blocks} blocks",
        )
    low, high = ends if ends is not None else (None, None)
    return Interval(
        value=found.value,
        low=None if low is None else max(low, chosen.low),
        high=None if high is None else min(high, chosen.high),
        confidence=confidence,
        n=found.n,
        blocks=found.blocks,
        method=method,
        reason=found.reason,
    )


def share_ends(found: Estimate, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval at the effective number of rows (Korn & Graubard 1998)."""
    assert found.value is not None  # noqa: S101 - the caller has an interval
    assert found.error is not None  # noqa: S101
    share = min(1.0, max(0.0, found.value))
    rows = float(found.n)
    spread = share * (1 - share)
    if found.error > 0 and spread > 0:
        rows = min(rows, spread / found.error**2)
    tail = (1 - confidence) / 2
    if found.df < found.n - 1:
        rows *= (t_quantile(1 - tail, found.n - 1) / t_quantile(1 - tail, found.df)) ** 2
    hits = share * rows
    return beta_quantile(tail, hits, rows - hits + 1), beta_quantile(1 - tail, hits + 1, rows - hits)


def check_confidence(confidence: float) -> None:
    if not 0.5 < confidence < 1.0:
        raise InvalidInput(
            "confidence must lie between 0.5 and 1", value=confidence, next_step="Use 0.95, for example."
        )


def block_index(blocks: ArrayLike | None, rows: int) -> tuple[Ints, int]:
    """``(block of each row as 0..k-1, k)``; without ``blocks`` every row is its own."""
    if blocks is None:
        return np.arange(rows, dtype=np.int64), rows
    keys = np.asarray(blocks)
    if keys.shape != (rows,):
        raise InvalidInput("one block key per row is needed", value=f"{keys.shape} for {rows} rows")
    unique, index = np.unique(keys, return_inverse=True)
    return index.astype(np.int64).reshape(-1), len(unique)
