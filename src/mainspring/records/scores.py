"""From scores to labels: one rule for all code that names a class.

A binary score says how much speaks for the positive class, and a row is positive if its score is greater than a threshold: 0.5 for
probabilities, 0 for decision values, or the estimator's own. Multiclass scores are one number per class, and the label is the class
with the largest; where two are equal the first wins, as in scikit-learn's ``predict`` (``numpy.argmax``). So a binary probability of
exactly 0.5 is negative: both classes are equally probable, and the first is the negative one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mainspring.records.base import Record

if TYPE_CHECKING:
    from mainspring.records.models import Signature, Task

THRESHOLD = 0.5
"""A binary row is positive above this probability, not at it."""


class ScoreMeaning(Record, frozen=True, kw_only=True):
    """What the scores of a classifier mean. ``probabilities``: they are; else decision values, which can only be ranked and compared
    with ``threshold``. A binary row is positive if its score is greater than ``threshold``."""

    probabilities: bool = True
    threshold: float = THRESHOLD


PROBABILITIES = ScoreMeaning()
"""Probabilities, and the label is the most probable class."""


def meaning_of(signature: Signature) -> ScoreMeaning:
    """What the scores of a model with this signature mean."""
    probabilities = signature.scores == "probability"
    threshold = signature.threshold
    if threshold is None:
        threshold = THRESHOLD if probabilities else 0.0
    return ScoreMeaning(probabilities=probabilities, threshold=threshold)


def default_metric(task: Task, meaning: ScoreMeaning) -> str:
    """The metric by which a model is followed unless a policy names one."""
    if task == "regression":
        return "rmse"
    return "log_loss" if meaning.probabilities else "accuracy"


def class_of(score: float | Sequence[float], threshold: float = THRESHOLD) -> int:
    """The position of the class of one row: a binary score, or one score per class.

    >>> class_of(0.5), class_of(0.51), class_of(0.3, 0.2), class_of([0.2, 0.4, 0.4])
    (0, 1, 1, 1)
    """
    if isinstance(score, int | float):
        return int(score > threshold)
    return max(range(len(score)), key=score.__getitem__)


def classes_of(scores: Any, threshold: float = THRESHOLD) -> Any:
    """:func:`class_of` of every row: ``(n,)`` binary scores or ``(n, k)`` scores by class as int64 positions ``(n,)``."""
    import numpy as np

    array = np.asarray(scores, dtype=np.float64)
    if array.ndim == 1:
        return (array > threshold).astype(np.int64)
    return array.argmax(axis=1)
