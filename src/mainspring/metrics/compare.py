"""Two models on the same rows: the difference, its interval, and what it shows.

Comparing two averages throws away that both models met the same easy and hard rows; the paired difference does not. The
difference of the metrics is computed again without each block; interval and tests are those of ``intervals``, for every metric.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from mainspring.errors import InvalidInput
from mainspring.metrics.intervals import (
    REPLICATES,
    Estimate,
    block_index,
    check_confidence,
    jackknife,
    lacking,
    least_error,
    leave_out,
    undefined,
)
from mainspring.metrics.metric import Floats, Metric
from mainspring.metrics.registry import metric
from mainspring.records.models import Task
from mainspring.records.training import Comparison, Interval


def compare(
    y: ArrayLike,
    candidate: ArrayLike,
    baseline: ArrayLike,
    *,
    task: Task,
    name: str = "log_loss",
    weights: ArrayLike | None = None,
    blocks: ArrayLike | None = None,
    margin: float = 0.0,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Comparison:
    """How much worse ``candidate`` is than ``baseline`` on the same rows.

    ``blocks`` groups rows that are not independent (give the day). ``margin`` is in the metric's unit and not negative.
    The interval is two-sided at ``confidence``; the p-values are one-sided. With too few rows or blocks there is a
    difference, but neither interval nor p-values, and ``worse_by.reason`` says what is missing.
    """
    chosen = metric(name, task)
    truth, first, weight = chosen.checked(y, candidate, weights)
    _, second, _ = chosen.checked(y, baseline, weights)
    check_confidence(confidence)
    _check_margin(margin)
    index, count = block_index(blocks, len(truth))
    sign = -1.0 if chosen.higher_is_better else 1.0
    values = chosen.value(truth, first, weight), chosen.value(truth, second, weight)
    found = Estimate(value=None, n=len(truth), blocks=count, reason=undefined(chosen, truth))
    if values[0] is not None and values[1] is not None:
        worse = sign * (values[0] - values[1])
        short = lacking(chosen, truth, count)
        if short:
            found = Estimate(value=worse, n=len(truth), blocks=count, reason=short)
        else:
            one, sizes = leave_out(
                chosen, truth, first, weight, index, count, replicates=replicates, seed=seed
            )
            two, _ = leave_out(chosen, truth, second, weight, index, count, replicates=replicates, seed=seed)
            found = jackknife(worse, sign * (one - two), sizes, n=len(truth), blocks=count)
            found = _floored(found, chosen, values, truth, same=np.array_equal(first, second))
    return _comparison(found, chosen.name, values, margin, confidence)


def paired_difference(
    differences: ArrayLike,
    *,
    blocks: ArrayLike | None = None,
    margin: float = 0.0,
    confidence: float = 0.95,
    name: str = "log_loss",
) -> Comparison:
    """The same for per-row differences (candidate minus baseline, positive: worse) that are already known."""
    values = np.asarray(differences, dtype=np.float64)
    check_confidence(confidence)
    _check_margin(margin)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InvalidInput("differences are one finite number per row", value=str(values.shape))
    index, count = block_index(blocks, len(values))
    if not len(values):
        found = Estimate(value=None, reason="insufficient: 0 rows")
    else:
        sums = np.asarray(np.bincount(index, weights=values, minlength=count), dtype=np.float64)
        sizes = np.bincount(index, minlength=count).astype(np.float64)
        found = mean_of_blocks(sums, sizes)
    return _comparison(found, name, (None, None), margin, confidence)


def mean_of_blocks(sums: Floats, sizes: Floats) -> Estimate:
    """The mean of rows of which only the blocks' sums and numbers of rows are known."""
    n, value = int(sizes.sum()), float(sums.sum() / sizes.sum())
    short = lacking(_MEAN, np.empty(n), len(sizes))
    if short:
        return Estimate(value=value, n=n, blocks=len(sizes), reason=short)
    left = sizes.sum() - sizes
    with np.errstate(divide="ignore", invalid="ignore"):
        without = np.where(left > 0, (sums.sum() - sums) / left, np.nan)
    return jackknife(value, without, sizes, n=n, blocks=len(sizes))


_MEAN = Metric(
    name="mean", tasks=frozenset(), unit="", higher_is_better=False, row_loss=lambda _, values: values
)


def _floored(
    found: Estimate, chosen: Metric, values: tuple[float | None, float | None], y: Floats, *, same: bool
) -> Estimate:
    """A difference of counts or orders is not known better than one contrary row would change it, unless scores are equal."""
    if found.error is None or same:
        return found
    if chosen.interval == "share" and not chosen.least_per_class:
        # Bonett & Price (2012): one row each way is added to the rows on which the two differ.
        floor = math.sqrt(2.0) / (len(y) + 2)
    else:
        floor = max(least_error(chosen, v, y) for v in values if v is not None)
    if found.error >= floor:
        return found
    return Estimate(value=found.value, error=floor, df=found.df, n=found.n, blocks=found.blocks)


def _comparison(
    found: Estimate, name: str, values: tuple[float | None, float | None], margin: float, confidence: float
) -> Comparison:
    low, high = found.ends(confidence) or (None, None)
    worse, mirrored = found.p_above(margin), None
    if worse is not None and found.value is not None:
        mirrored = found.mirrored().p_above(-margin)
    return Comparison(
        metric=name,
        candidate=values[0],
        baseline=values[1],
        worse_by=Interval(
            value=found.value,
            low=low,
            high=high,
            confidence=confidence,
            n=found.n,
            blocks=found.blocks,
            method=found.method,
            reason=found.reason,
        ),
        margin=margin,
        p_harm=worse,
        p_non_inferior=mirrored,
    )


def _check_margin(margin: float) -> None:
    if not margin >= 0:
        raise InvalidInput(
            "a margin cannot be negative", value=margin, next_step="Give how much worse is still acceptable."
        )
