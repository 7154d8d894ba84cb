"""Metrics of the ranking of rows by their scores: areas under the ROC curve and the precision-recall curve."""

from __future__ import annotations

import numpy as np

from mainspring.metrics.metric import Floats, Ints, check_binary_labels, class_indices


def auc(y: Floats, p: Floats, weights: Floats) -> float | None:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count half. None with one class.

    >>> auc(np.array([0.0, 1.0, 1.0]), np.array([0.1, 0.1, 0.9]), np.ones(3))
    0.75
    """
    check_binary_labels(y)
    positive, negative = np.where(y == 1, weights, 0.0), np.where(y == 1, 0.0, weights)
    pairs = positive.sum() * negative.sum()
    if not pairs > 0:
        return None
    return float((positive * _weight_below(p, negative)).sum() / pairs)


def auc_leave_out(y: Floats, p: Floats, weights: Floats, index: Ints, count: int) -> Floats:
    """The AUC without each block, exactly, by three sorts; NaN where a class is missing then.

    Without block g the sum over pairs loses the pairs with a positive in g and those with a negative in g. The pairs with both in g
    were subtracted twice, so they are added once.
    """
    check_binary_labels(y)
    positive, negative = np.where(y == 1, weights, 0.0), np.where(y == 1, 0.0, weights)
    won = positive * _weight_below(p, negative)
    lost = negative * (positive.sum() - _weight_below(p, positive))
    inside = positive * _weight_below(p, negative, index)

    def by_block(values: Floats) -> Floats:
        return np.asarray(np.bincount(index, weights=values, minlength=count), dtype=np.float64)

    pairs = (positive.sum() - by_block(positive)) * (negative.sum() - by_block(negative))
    left = won.sum() - by_block(won) - by_block(lost) + by_block(inside)
    return np.asarray(np.where(pairs > 0, left / np.where(pairs > 0, pairs, 1.0), np.nan))


def _weight_below(p: Floats, weights: Floats, index: Ints | None = None) -> Floats:
    """For each row the total weight of the rows with a smaller score, ties counted half; with ``index`` only those of its own block."""
    order = np.argsort(p, kind="stable") if index is None else np.lexsort((p, index))
    ordered, w = p[order], weights[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]]
    before = np.cumsum(w) - w
    if index is not None:
        blocks = index[order]
        new_block = np.r_[True, blocks[1:] != blocks[:-1]]
        first |= new_block
        before -= before[np.flatnonzero(new_block)][np.cumsum(new_block) - 1]
    starts = np.flatnonzero(first)
    group = np.cumsum(first) - 1
    tied = np.add.reduceat(w, starts)
    out = np.empty(len(p))
    out[order] = before[starts][group] + tied[group] / 2
    return out


def one_versus_rest(y: Floats, p: Floats, weights: Floats) -> float | None:
    """Mean over the classes of the AUC of each against all others; None if a class does not occur."""
    return _mean_over_classes(y, p, weights, prevalence=False)


def one_versus_rest_weighted(y: Floats, p: Floats, weights: Floats) -> float | None:
    """As :func:`one_versus_rest`, with classes weighted by how often they occur."""
    return _mean_over_classes(y, p, weights, prevalence=True)


def _mean_over_classes(y: Floats, p: Floats, weights: Floats, *, prevalence: bool) -> float | None:
    truth = class_indices(y, p.shape[1])
    areas = [auc((truth == k).astype(np.float64), p[:, k], weights) for k in range(p.shape[1])]
    if any(a is None for a in areas):
        return None
    shares = np.bincount(truth, weights=weights, minlength=p.shape[1]) if prevalence else None
    return float(np.average(np.array(areas, dtype=np.float64), weights=shares))


def one_versus_rest_leave_out(y: Floats, p: Floats, weights: Floats, index: Ints, count: int) -> Floats:
    """:func:`one_versus_rest` without each block, shape ``(count,)``."""
    return np.asarray(_leave_out_classes(y, p, weights, index, count).mean(axis=1))


def one_versus_rest_weighted_leave_out(
    y: Floats, p: Floats, weights: Floats, index: Ints, count: int
) -> Floats:
    """:func:`one_versus_rest_weighted` without each block, shape ``(count,)``; the class shares are those of the rest."""
    truth = class_indices(y, p.shape[1])
    by_class = [
        np.bincount(truth, weights=weights, minlength=p.shape[1])[k]
        - np.bincount(index, weights=weights * (truth == k), minlength=count)
        for k in range(p.shape[1])
    ]
    shares = np.column_stack(by_class)
    areas = _leave_out_classes(y, p, weights, index, count)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((areas * shares).sum(axis=1) / shares.sum(axis=1))


def _leave_out_classes(y: Floats, p: Floats, weights: Floats, index: Ints, count: int) -> Floats:
    truth = class_indices(y, p.shape[1])
    return np.column_stack(
        [
            auc_leave_out((truth == k).astype(np.float64), p[:, k], weights, index, count)
            for k in range(p.shape[1])
        ]
    )


def pr_auc(y: Floats, p: Floats, weights: Floats) -> float | None:
    """Average precision: the sum over thresholds of precision times the gain in recall, ties as one threshold.

    As scikit-learn's ``average_precision_score``; no interpolation (Davis & Goadrich 2006). None without a positive.
    """
    return _Thresholds(y, p)(weights)


def pr_auc_leave_out(y: Floats, p: Floats, weights: Floats, index: Ints, count: int) -> Floats:
    """Average precision without each block in turn; the rows are sorted only once."""
    area = _Thresholds(y, p)
    areas = (area(np.where(index == g, 0.0, weights)) for g in range(count))
    return np.array([np.nan if v is None else v for v in areas])


class _Thresholds:
    """Average precision of fixed rows for many weightings."""

    def __init__(self, y: Floats, p: Floats) -> None:
        check_binary_labels(y)
        self._order = np.argsort(-p, kind="stable")
        ordered = p[self._order]
        self._positive = y[self._order] == 1
        self._ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])

    def __call__(self, weights: Floats) -> float | None:
        w = weights[self._order]
        hits = np.cumsum(np.where(self._positive, w, 0.0))[self._ends]
        predicted = np.cumsum(w)[self._ends]
        if not len(hits) or not hits[-1] > 0:
            return None
        gain = np.diff(hits, prepend=0.0)
        used = predicted > 0
        return float((gain[used] * hits[used] / predicted[used]).sum() / hits[-1])
