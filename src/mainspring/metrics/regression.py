"""Metrics of predicted numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mainspring.metrics.metric import Floats, Ints


def absolute_rows(y: Floats, p: Floats) -> Floats:
    """Absolute error per row, in the unit of the label."""
    return np.asarray(np.abs(y - p))


def squared_rows(y: Floats, p: Floats) -> Floats:
    """Squared error per row."""
    return np.asarray((y - p) ** 2)


def difference_rows(y: Floats, p: Floats) -> Floats:
    """Prediction minus label per row: positive where the prediction is too high."""
    return np.asarray(p - y)


def relative_rows(y: Floats, p: Floats) -> Floats:
    """Absolute error as a share of the truth; NaN (so that the metric is undefined) where the truth is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(y != 0, np.abs(y - p) / np.abs(y), np.nan))


def symmetric_rows(y: Floats, p: Floats) -> Floats:
    """Absolute error as a share of the mean of both sizes, 0 to 2; 0 where both are 0."""
    size = np.abs(y) + np.abs(p)
    return np.asarray(np.where(size > 0, 2 * np.abs(y - p) / np.where(size > 0, size, 1.0), 0.0))


def pinball_rows(quantile: float) -> Callable[[Floats, Floats], Floats]:
    """Quantile loss (Koenker & Bassett 1978): too low costs ``quantile``, too high the rest, per unit of the label."""

    def rows(y: Floats, p: Floats) -> Floats:
        gap = y - p
        return np.asarray(np.maximum(quantile * gap, (quantile - 1) * gap))

    return rows


def variance_rows(y: Floats, p: Floats) -> Floats:
    """(n, 4): label and its square, measured from the mean of all labels; squared error; 1.

    Sums of squares far from zero would lose the digits of the variance (labels such as 1.7e9 ± 60).
    """
    centred = y - y.mean()
    return np.column_stack([centred, centred**2, (y - p) ** 2, np.ones(len(y))])


def r2(t: Floats) -> Floats:
    """Share of the labels' variance that is explained."""
    spread = t[..., 1] - t[..., 0] ** 2 / t[..., 3]
    # A spread below the rounding error of the sums counts as none: r2 is undefined then.
    spread = np.where(spread > 1e-12 * np.abs(t[..., 1]), spread, np.nan)
    return np.asarray(1 - t[..., 2] / spread)


def median_absolute(y: Floats, p: Floats, weights: Floats) -> float | None:
    """Median of the absolute errors; with weights, the middle of the lower and the upper weighted median."""
    errors, _, share = _ordered(y, p, weights)
    return _quantile(errors, share, 0.5)


def median_leave_out(y: Floats, p: Floats, weights: Floats, index: Ints, count: int) -> Floats:
    """The median without each block, to first order.

    The delete-one jackknife is inconsistent for a median (Efron 1982, section 3.4), so this uses the influence
    ``(1/2 - [error <= median]) / f``; the density f comes from the width of the binomial interval around the median
    (Woodruff 1952).
    """
    errors, order, share = _ordered(y, p, weights)
    median = _quantile(errors, share, 0.5)
    if median is None:
        return np.full(count, np.nan)
    effective = weights.sum() ** 2 / (weights**2).sum()
    half = min(0.45, 1.0 / math.sqrt(effective))
    upper, lower = _quantile(errors, share, 0.5 + half), _quantile(errors, share, 0.5 - half)
    width = (upper or 0.0) - (lower or 0.0)
    steps = np.where(errors < median, 1.0, np.where(errors == median, 0.5, 0.0))
    influence = np.empty(len(y))
    influence[order] = (0.5 - steps) * width / (2 * half)
    sums = np.bincount(index, weights=weights * influence, minlength=count)
    left = weights.sum() - np.bincount(index, weights=weights, minlength=count)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(left > 0, median - sums / left, np.nan))


def _ordered(y: Floats, p: Floats, weights: Floats) -> tuple[Floats, Ints, Floats]:
    errors = np.abs(y - p)
    order = np.argsort(errors, kind="stable")
    return errors[order], order, np.cumsum(weights[order])


def _quantile(errors: Floats, share: Floats, q: float) -> float | None:
    """Middle of the lower and the upper weighted quantile of sorted errors with cumulative weights."""
    if not len(errors) or not share[-1] > 0:
        return None
    target = q * share[-1]
    slack = 1e-12 * share[-1]
    lower = int(np.searchsorted(share, target - slack))
    upper = int(np.searchsorted(share, target + slack, side="right"))
    top = len(errors) - 1
    return float((errors[min(lower, top)] + errors[min(upper, top)]) / 2)
