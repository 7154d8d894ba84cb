"""Two models on the same rows: the difference, its interval, and what it shows.

Both models scored the same easy and hard rows. A comparison of two separate averages ignores that; the paired difference uses it.
The difference of the metrics is computed again without each block; interval and tests are those of ``intervals``, for every metric.
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
    leave_out,
    missing_evidence,
    smallest_error,
    undefined_reason,
)
from mainspring.metrics.metric import Floats, Metric
from mainspring.metrics.registry import metric
from mainspring.records.models import Task
from mainspring.records.scores import PROBABILITIES, ScoreMeaning
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
    meanings: tuple[ScoreMeaning, ScoreMeaning] = (PROBABILITIES, PROBABILITIES),
) -> Comparison:
    """How much worse ``candidate`` is than ``baseline`` on the same rows, in the unit of the metric.

    ``meanings``: what the scores of the candidate and of the baseline mean.

    ``y``, ``candidate`` and ``baseline`` have shapes as in :class:`Metric`; raises :class:`InvalidInput` where they do not fit.

    ``blocks`` groups rows that are not independent (give the day). ``margin`` is in the metric's unit and not negative.
    The interval is two-sided at ``confidence``; the p-values are one-sided. With too few rows or blocks there is a
    difference, but neither interval nor p-values, and ``worse_by.reason`` says what is missing.
    """
    chosen = metric(name, task, meanings[0])
    truth, candidate_scores, weight = chosen.checked(y, candidate, weights)
    _, baseline_scores, _ = metric(name, task, meanings[1]).checked(y, baseline, weights)
    check_confidence(confidence)
    _check_margin(margin)
    index, count = block_index(blocks, len(truth))
    sign = -1.0 if chosen.higher_is_better else 1.0
    values = chosen.value(truth, candidate_scores, weight), chosen.value(truth, baseline_scores, weight)
    difference = Estimate(value=None, n=len(truth), blocks=count, reason=undefined_reason(chosen, truth))
    if values[0] is not None and values[1] is not None:
        worse = sign * (values[0] - values[1])
        lack = missing_evidence(chosen, truth, count)
        if lack:
            difference = Estimate(value=worse, n=len(truth), blocks=count, reason=lack)
        else:
            candidate_without, sizes = leave_out(
                chosen, truth, candidate_scores, weight, index, count, replicates=replicates, seed=seed
            )
            baseline_without, _ = leave_out(
                chosen, truth, baseline_scores, weight, index, count, replicates=replicates, seed=seed
            )
            difference = jackknife(
                worse, sign * (candidate_without - baseline_without), sizes, n=len(truth), blocks=count
            )
            difference = _apply_error_floor(
                difference, chosen, values, truth, same=np.array_equal(candidate_scores, baseline_scores)
            )
    return _make_comparison(difference, chosen.name, values, margin, confidence)


def paired_difference(
    differences: ArrayLike,
    *,
    blocks: ArrayLike | None = None,
    margin: float = 0.0,
    confidence: float = 0.95,
    name: str = "log_loss",
) -> Comparison:
    """The comparison for per-row differences that are already known (candidate minus baseline, positive: worse), shape ``(n,)``."""
    values = np.asarray(differences, dtype=np.float64)
    check_confidence(confidence)
    _check_margin(margin)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InvalidInput("differences are one finite number per row", value=str(values.shape))
    index, count = block_index(blocks, len(values))
    if not len(values):
        difference = Estimate(value=None, reason="insufficient: 0 rows")
    else:
        sums = np.asarray(np.bincount(index, weights=values, minlength=count), dtype=np.float64)
        sizes = np.bincount(index, minlength=count).astype(np.float64)
        difference = mean_of_blocks(sums, sizes)
    return _make_comparison(difference, name, (None, None), margin, confidence)


def mean_of_blocks(sums: Floats, sizes: Floats) -> Estimate:
    """The mean over rows, from the sum and the number of rows of each block, both of shape ``(blocks,)``."""
    n, value = int(sizes.sum()), float(sums.sum() / sizes.sum())
    lack = missing_evidence(_MEAN, np.empty(n), len(sizes))
    if lack:
        return Estimate(value=value, n=n, blocks=len(sizes), reason=lack)
    left = sizes.sum() - sizes
    with np.errstate(divide="ignore", invalid="ignore"):
        without = np.where(left > 0, (sums.sum() - sums) / left, np.nan)
    return jackknife(value, without, sizes, n=n, blocks=len(sizes))


_MEAN = Metric(
    name="mean", tasks=frozenset(), unit="", higher_is_better=False, row_loss=lambda _, values: values
)


def _apply_error_floor(
    difference: Estimate, chosen: Metric, values: tuple[float | None, float | None], y: Floats, *, same: bool
) -> Estimate:
    """Raise the error of a difference of counts or ranks to the change that one contrary row would make, unless all scores are equal.

    Without it, two models that agree on all sampled rows would have a difference without any error.
    """
    if difference.error is None or same:
        return difference
    if chosen.interval == "share" and not chosen.least_per_class:
        # Bonett & Price (2012): one row each way is added to the rows on which the two differ.
        floor = math.sqrt(2.0) / (len(y) + 2)
    else:
        floor = max(smallest_error(chosen, v, y) for v in values if v is not None)
    if difference.error >= floor:
        return difference
    return Estimate(
        value=difference.value, error=floor, df=difference.df, n=difference.n, blocks=difference.blocks
    )


def _make_comparison(
    difference: Estimate,
    name: str,
    values: tuple[float | None, float | None],
    margin: float,
    confidence: float,
) -> Comparison:
    low, high = difference.ends(confidence) or (None, None)
    p_harm, p_non_inferior = difference.p_above(margin), None
    if p_harm is not None and difference.value is not None:
        p_non_inferior = difference.mirrored().p_above(-margin)
    return Comparison(
        metric=name,
        candidate=values[0],
        baseline=values[1],
        worse_by=Interval(
            value=difference.value,
            low=low,
            high=high,
            confidence=confidence,
            n=difference.n,
            blocks=difference.blocks,
            method=difference.method,
            reason=difference.reason,
        ),
        margin=margin,
        p_harm=p_harm,
        p_non_inferior=p_non_inferior,
    )


def _check_margin(margin: float) -> None:
    if not margin >= 0:
        raise InvalidInput(
            "a margin cannot be negative", value=margin, next_step="Give how much worse is still acceptable."
        )
