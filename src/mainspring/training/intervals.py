"""Confidence intervals of metrics by bootstrap, whole rows or whole blocks.

Rows of one day share their weather and their jams: treating them as independent makes intervals far too narrow. So give
``blocks`` (one key per row, e.g. the day) wherever there is such a group: blocks are then resampled, not rows
(cluster bootstrap: Davison & Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mainspring.errors import InvalidInput
from mainspring.records.models import Task
from mainspring.records.training import Interval
from mainspring.training.metrics import AucOrder, Floats, Metric, as_arrays, metric

Ints = NDArray[np.int64]
_NORMAL = NormalDist()

MIN_BLOCKS = 5
"""Below this many rows or blocks no interval is given: it would pretend to know."""

JACKKNIFE_GROUPS = 200
"""BCa's acceleration comes from a jackknife over at most this many groups of rows."""


def interval(
    name: str,
    y: ArrayLike,
    scores: ArrayLike,
    *,
    task: Task,
    blocks: ArrayLike | None = None,
    confidence: float = 0.95,
    replicates: int = 500,
    method: Literal["percentile", "bca"] = "percentile",
    seed: int = 0,
) -> Interval:
    """The metric with its bootstrap interval.

    ``bca`` corrects bias and skew (Efron 1987) and costs one more evaluation per jackknife group. Replicates in which the
    metric is undefined are left out; if more than half are, no interval is given.
    """
    chosen = metric(name, task)
    truth, predicted = as_arrays(y, scores)
    check_confidence(confidence)
    index, count = block_index(blocks, len(truth))
    statistic = BlockStatistic(chosen, truth, predicted, index, count)
    value = chosen(truth, predicted)
    empty = Interval(value=value, confidence=confidence, n=len(truth), blocks=count, method=method)
    if value is None or count < MIN_BLOCKS:
        return empty
    draws = resample(statistic, count, replicates=replicates, seed=seed)
    if len(draws) == 0 or len(draws) < replicates / 2:
        return empty
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    if method == "bca":
        tails = _bca_tails(value, draws, _jackknife(statistic, count), confidence)
    low, high = (float(q) for q in np.quantile(draws, tails))
    return Interval(
        value=value, low=low, high=high, confidence=confidence, n=len(truth), blocks=count, method=method
    )


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


class BlockStatistic:
    """A metric as a function of how often each block was drawn."""

    def __init__(self, chosen: Metric, y: Floats, p: Floats, index: Ints, count: int) -> None:
        self._metric, self._y, self._p, self._index = chosen, y, p, index
        self._sums = self._sizes = None
        self._auc = None
        if chosen.row_loss is not None:
            self._sums = np.bincount(index, weights=chosen.row_loss(y, p), minlength=count)
            self._sizes = np.bincount(index, minlength=count).astype(np.float64)
        elif chosen.name == "auc":
            self._auc = AucOrder(y, p)

    def __call__(self, drawn: Floats) -> float | None:
        if self._sums is not None and self._sizes is not None:
            total = float(drawn @ self._sizes)
            if total <= 0:
                return None
            mean = float(drawn @ self._sums) / total
            return self._metric.finish(mean) if self._metric.finish else mean
        weights = drawn[self._index]
        return (
            self._auc(weights) if self._auc is not None else self._metric(self._y, self._p, weights=weights)
        )


def resample(statistic: BlockStatistic, count: int, *, replicates: int, seed: int) -> Floats:
    """The statistic over bootstrap draws of ``count`` blocks; undefined replicates are left out."""
    rng = np.random.default_rng(seed)
    even = np.full(count, 1.0 / count)
    drawn = (statistic(rng.multinomial(count, even).astype(np.float64)) for _ in range(replicates))
    return np.array([value for value in drawn if value is not None])


def _jackknife(statistic: BlockStatistic, count: int) -> Floats:
    groups = np.arange(count) % min(count, JACKKNIFE_GROUPS)
    values = (statistic((groups != g).astype(np.float64)) for g in range(int(groups.max()) + 1))
    return np.array([value for value in values if value is not None])


def _bca_tails(value: float, draws: Floats, jackknife: Floats, confidence: float) -> tuple[float, float]:
    below = (float((draws < value).sum()) + 0.5 * float((draws == value).sum())) / len(draws)
    bias = _NORMAL.inv_cdf(min(max(below, 1e-6), 1 - 1e-6))
    spread = jackknife.mean() - jackknife
    denominator = 6.0 * float((spread**2).sum()) ** 1.5
    acceleration = float((spread**3).sum()) / denominator if denominator > 0 else 0.0
    edge = _NORMAL.inv_cdf((1 + confidence) / 2)

    def tail(z: float) -> float:
        return _NORMAL.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))

    return tail(-edge), tail(edge)
