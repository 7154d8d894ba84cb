"""Two models on the same rows: the difference, its interval, and what it shows.

Comparing two averages throws away that both models met the same easy and hard rows; the paired difference does not.
Where the metric is a mean over rows, the interval is Student's t with standard errors clustered by block (Liang & Zeger
1986; degrees of freedom: blocks - 1), which stays honest with few days; other metrics (AUC, RMSE) use the paired block
bootstrap.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from mainspring.errors import InvalidInput
from mainspring.records.models import Task
from mainspring.records.training import Comparison, Interval
from mainspring.training.distributions import t_cdf, t_quantile
from mainspring.training.intervals import MIN_BLOCKS, BlockStatistic, Ints, block_index, check_confidence
from mainspring.training.metrics import Floats, Metric, as_arrays, metric


def compare(
    y: ArrayLike,
    candidate: ArrayLike,
    baseline: ArrayLike,
    *,
    task: Task,
    name: str = "log_loss",
    blocks: ArrayLike | None = None,
    margin: float = 0.0,
    confidence: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Comparison:
    """How much worse ``candidate`` is than ``baseline`` on the same rows.

    ``blocks`` groups rows that are not independent (give the day). ``margin`` is in the metric's unit and not negative.
    The interval is two-sided at ``confidence``; the p-values are one-sided. Fewer than 5 blocks (rows, without ``blocks``)
    give the difference but neither interval nor p-values.
    """
    chosen = metric(name, task)
    truth, first = as_arrays(y, candidate)
    _, second = as_arrays(y, baseline)
    check_confidence(confidence)
    if not margin >= 0:
        raise InvalidInput(
            "a margin cannot be negative", value=margin, next_step="Give how much worse is still acceptable."
        )
    index, count = block_index(blocks, len(truth))
    values = chosen(truth, first), chosen(truth, second)
    if chosen.row_loss is not None and chosen.finish is None:
        sign = -1.0 if chosen.higher_is_better else 1.0
        difference = sign * (chosen.row_loss(truth, first) - chosen.row_loss(truth, second))
        return _from_differences(
            difference, index, count, chosen=chosen, values=values, margin=margin, confidence=confidence
        )
    models = (
        BlockStatistic(chosen, truth, first, index, count),
        BlockStatistic(chosen, truth, second, index, count),
    )
    return _bootstrap(
        models,
        len(truth),
        count,
        chosen=chosen,
        values=values,
        margin=margin,
        confidence=confidence,
        replicates=replicates,
        seed=seed,
    )


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
    index, count = block_index(blocks, len(values))
    return _from_differences(
        values,
        index,
        count,
        chosen=None,
        values=(None, None),
        margin=margin,
        confidence=confidence,
        name=name,
    )


def _from_differences(
    difference: Floats,
    index: Ints,
    count: int,
    *,
    chosen: Metric | None,
    values: tuple[float | None, float | None],
    margin: float,
    confidence: float,
    name: str = "",
) -> Comparison:
    rows = len(difference)
    mean = float(difference.mean()) if rows else None
    low = high = harm = fine = None
    if mean is not None and count >= MIN_BLOCKS:
        error = _clustered_error(difference - mean, index, count)
        degrees = count - 1
        half = t_quantile((1 + confidence) / 2, degrees) * error
        low, high = mean - half, mean + half
        harm = _upper_tail(mean - margin, error, degrees)
        fine = _upper_tail(margin - mean, error, degrees)
    return Comparison(
        metric=chosen.name if chosen else name,
        candidate=values[0],
        baseline=values[1],
        worse_by=Interval(
            value=mean,
            low=low,
            high=high,
            confidence=confidence,
            n=rows,
            blocks=count,
            method="t, clustered by block",
        ),
        margin=margin,
        p_harm=harm,
        p_non_inferior=fine,
    )


def _clustered_error(residual: Floats, index: Ints, count: int) -> float:
    """Standard error of a mean of rows that come in ``count`` blocks of unequal size."""
    sums = np.bincount(index, weights=residual, minlength=count)
    return math.sqrt(float((sums**2).sum()) * count / (count - 1)) / len(residual)


def _upper_tail(effect: float, error: float, degrees: int) -> float:
    """P(an effect this large or larger | the true one is 0). Identical models have no error: an effect of 0 is no evidence."""
    if error == 0:
        return 1.0 if effect < 0 else (0.5 if effect == 0 else 0.0)
    return 1.0 - t_cdf(effect / error, degrees)


def _bootstrap(
    models: tuple[BlockStatistic, BlockStatistic],
    rows: int,
    count: int,
    *,
    chosen: Metric,
    values: tuple[float | None, float | None],
    margin: float,
    confidence: float,
    replicates: int,
    seed: int,
) -> Comparison:
    sign = -1.0 if chosen.higher_is_better else 1.0
    first, second = values
    value = None if first is None or second is None else sign * (first - second)
    low = high = harm = fine = None
    if value is not None and count >= MIN_BLOCKS:
        draws = _paired_draws(models, count, sign=sign, replicates=replicates, seed=seed)
        if len(draws) > 0 and len(draws) >= replicates / 2:
            low, high = (float(q) for q in np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2]))
            # The +1 keeps a p-value from being 0 (Davison & Hinkley 1997, 4.2.2).
            harm = (float((draws <= margin).sum()) + 1) / (len(draws) + 1)
            fine = (float((draws >= margin).sum()) + 1) / (len(draws) + 1)
    return Comparison(
        metric=chosen.name,
        candidate=first,
        baseline=second,
        worse_by=Interval(
            value=value,
            low=low,
            high=high,
            confidence=confidence,
            n=rows,
            blocks=count,
            method="paired bootstrap of blocks",
        ),
        margin=margin,
        p_harm=harm,
        p_non_inferior=fine,
    )


def _paired_draws(
    models: tuple[BlockStatistic, BlockStatistic], count: int, *, sign: float, replicates: int, seed: int
) -> Floats:
    rng = np.random.default_rng(seed)
    even = np.full(count, 1.0 / count)
    draws = []
    for _ in range(replicates):
        drawn = rng.multinomial(count, even).astype(
            np.float64
        )  # the same blocks for both: that is what pairs them
        first, second = models[0](drawn), models[1](drawn)
        if first is not None and second is not None:
            draws.append(sign * (first - second))
    return np.array(draws)
