"""Metrics of classifiers that are means or functions of counts. ``records.scores.classes_of`` gives the predicted class."""

from __future__ import annotations

import numpy as np

from mainspring.metrics.metric import Floats, check_binary_labels, class_indices
from mainspring.records.scores import classes_of

EPSILON = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to [EPSILON, 1 - EPSILON] before a logarithm, as scikit-learn does in float64: one mistake with
certainty costs at most 36.04 nats."""

BINS = 10
"""Equal-width bins of the calibration error."""


def log_loss_rows(y: Floats, p: Floats) -> Floats:
    """Negative log-likelihood in nats, per row."""
    if p.ndim == 2:
        chosen = p[np.arange(len(y)), class_indices(y, p.shape[1])]
    else:
        check_binary_labels(y)
        chosen = np.where(y == 1, p, 1 - p)
    nats: Floats = -np.log(np.clip(chosen, EPSILON, 1 - EPSILON))
    return nats


def brier_rows(y: Floats, p: Floats) -> Floats:
    """Squared distance to the outcome (binary: of P(positive); multiclass: summed over the classes, 0 to 2)."""
    if p.ndim == 2:
        hot = np.zeros_like(p)
        hot[np.arange(len(y)), class_indices(y, p.shape[1])] = 1.0
        return np.asarray(((p - hot) ** 2).sum(axis=1))
    check_binary_labels(y)
    squares: Floats = (p - y) ** 2
    return squares


def hit_rows(y: Floats, p: Floats) -> Floats:
    """1 where the predicted class is the true one, else 0."""
    if p.ndim == 2:
        truth = class_indices(y, p.shape[1])
    else:
        check_binary_labels(y)
        truth = y.astype(np.int64)
    return np.asarray(classes_of(p) == truth, dtype=np.float64)


def confusion_rows(y: Floats, p: Floats) -> Floats:
    """Binary: (n, 4) of true positive, false positive, false negative, true negative."""
    check_binary_labels(y)
    predicted = classes_of(p) == 1
    true = y == 1
    return np.column_stack(
        [predicted & true, predicted & ~true, ~predicted & true, ~predicted & ~true]
    ).astype(np.float64)


def precision(t: Floats) -> Floats:
    """Binary: the share of true positives among the predicted positives, from sums of :func:`confusion_rows`, ``(..., 4)``."""
    return np.asarray(t[..., 0] / (t[..., 0] + t[..., 1]))


def recall(t: Floats) -> Floats:
    """Binary: the share of true positives among the positives."""
    return np.asarray(t[..., 0] / (t[..., 0] + t[..., 2]))


def f1(t: Floats) -> Floats:
    """Binary: the harmonic mean of precision and recall."""
    return np.asarray(2 * t[..., 0] / (2 * t[..., 0] + t[..., 1] + t[..., 2]))


def balanced_accuracy(t: Floats) -> Floats:
    """Mean of the recalls of both classes."""
    return np.asarray((t[..., 0] / (t[..., 0] + t[..., 2]) + t[..., 3] / (t[..., 3] + t[..., 1])) / 2)


def mcc(t: Floats) -> Floats:
    """Matthews correlation coefficient (Matthews 1975)."""
    tp, fp, fn, tn = (t[..., i] for i in range(4))
    spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.asarray((tp * tn - fp * fn) / spread)


# --- more than two classes ---------------------------------------------------------------------------------------------


def tally_rows(y: Floats, p: Floats) -> Floats:
    """Multiclass: (n, 3k), three indicators per class: true and predicted, predicted, true."""
    if p.ndim == 1:
        p = np.column_stack([1 - p, p])
    classes = p.shape[1]
    truth, predicted = class_indices(y, classes), classes_of(p)
    rows = np.arange(len(y))
    out = np.zeros((len(y), 3, classes))
    out[rows, 1, predicted] = out[rows, 2, truth] = 1.0
    hit = predicted == truth
    out[rows[hit], 0, truth[hit]] = 1.0
    return out.reshape(len(y), 3 * classes)


def _split(t: Floats) -> tuple[Floats, Floats, Floats]:
    k = t.shape[-1] // 3
    return t[..., :k], t[..., k : 2 * k], t[..., 2 * k :]


def _macro(parts: Floats, whole: Floats, present: Floats) -> Floats:
    """Mean of ``parts / whole`` over the present classes (predicted or true); a class that was never predicted or never true counts as 0."""
    ratio = np.where(whole > 0, parts / np.where(whole > 0, whole, 1.0), 0.0)
    counted = present > 0
    return np.asarray(np.where(counted, ratio, 0.0).sum(axis=-1) / counted.sum(axis=-1))


def macro_precision(t: Floats) -> Floats:
    """Mean of the precisions of all present classes, from sums of :func:`tally_rows`, ``(..., 3k)``."""
    hit, predicted, true = _split(t)
    return _macro(hit, predicted, predicted + true)


def macro_recall(t: Floats) -> Floats:
    """Mean of the recalls of all present classes."""
    hit, predicted, true = _split(t)
    return _macro(hit, true, predicted + true)


def macro_f1(t: Floats) -> Floats:
    """Mean of the F1 scores of all present classes."""
    hit, predicted, true = _split(t)
    return _macro(2 * hit, predicted + true, predicted + true)


def multiclass_balanced_accuracy(t: Floats) -> Floats:
    """Mean recall of the classes that occur."""
    hit, _, true = _split(t)
    return _macro(hit, true, true)


def multiclass_mcc(t: Floats) -> Floats:
    """Gorodkin's generalisation to k classes (2004)."""
    hit, predicted, true = _split(t)
    n = true.sum(axis=-1)
    cross = hit.sum(axis=-1) * n - (predicted * true).sum(axis=-1)
    spread = np.sqrt((n * n - (predicted * predicted).sum(axis=-1)) * (n * n - (true * true).sum(axis=-1)))
    return np.asarray(cross / spread)


# --- calibration -------------------------------------------------------------------------------------------------------


def calibration_rows(y: Floats, p: Floats) -> Floats:
    """(n, BINS + 1): outcome minus score in the column of the score's bin, and 1. Multiclass: of the predicted class (Guo et al. 2017)."""
    if p.ndim == 2:
        y, p = hit_rows(y, p), p.max(axis=1)
    check_binary_labels(y)
    out = np.zeros((len(y), BINS + 1))
    out[np.arange(len(y)), np.minimum((p * BINS).astype(np.int64), BINS - 1)] = y - p
    out[:, BINS] = 1.0
    return out


def calibration_error(t: Floats) -> Floats:
    """Expected calibration error: mean distance of observed rate and mean score over the bins (Naeini et al. 2015)."""
    return np.asarray(np.abs(t[..., :BINS]).sum(axis=-1) / t[..., BINS])
