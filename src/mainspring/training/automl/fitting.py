"""Fitting one estimator and asking it for scores, in one way for the search, the refit and the exported script."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyarrow as pa

from mainspring.metrics.metric import Floats
from mainspring.records.models import Task


def fit_estimator(estimator: Any, inputs: pa.Table, labels: Any, **options: Any) -> Any:
    """``estimator`` fitted, on one thread: threads that wait for one another cost more than they give on a busy machine."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a network that has not converged shows in its score
        return estimator.fit(inputs, labels, **options)


def compute_scores(estimator: Any, inputs: pa.Table, task: Task, classes: Any) -> Floats:
    """A number per row, P(positive), or one probability for each of ``classes``; 0 for one that the estimator never met."""
    if task is Task.REGRESSION:
        return np.asarray(estimator.predict(inputs), dtype=np.float64).reshape(inputs.num_rows)
    probabilities = np.asarray(estimator.predict_proba(inputs), dtype=np.float64)
    wide = np.zeros((inputs.num_rows, len(classes)))
    wide[:, np.searchsorted(classes, estimator.classes_)] = probabilities
    positive: Floats = np.ascontiguousarray(wide[:, 1])
    return positive if task is Task.BINARY else wide


def encode_labels(labels: Any, task: Task, classes: Any) -> Floats:
    """Labels as metrics take them: numbers, or positions in ``classes``."""
    if task is Task.REGRESSION:
        return np.asarray(labels, dtype=np.float64)
    positions: Floats = np.searchsorted(classes, labels).astype(np.float64)
    return positions


def list_classes(labels: Any, task: Task) -> Any:
    """The classes in the order that an estimator gives them; none for a regression."""
    return np.zeros(0) if task is Task.REGRESSION else np.unique(labels)
