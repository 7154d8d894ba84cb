"""From scores to labels: one rule for all code that names a class.

Binary scores are P(positive), multiclass scores one probability per class. The label is the most probable class; where two
are equally probable the first wins, as scikit-learn's ``predict`` does (``numpy.argmax``). So a binary row is positive only
if its score is greater than 0.5: at exactly 0.5 both classes are equally probable, and the first is the negative one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

THRESHOLD = 0.5
"""A binary row is positive above it, not at it."""


def class_of(score: float | Sequence[float]) -> int:
    """The position of the class of one row: a binary score or one probability per class.

    >>> class_of(0.5), class_of(0.51), class_of([0.2, 0.4, 0.4])
    (0, 1, 1)
    """
    if isinstance(score, int | float):
        return int(score > THRESHOLD)
    return max(range(len(score)), key=score.__getitem__)


def classes_of(scores: Any) -> Any:
    """:func:`class_of` of every row: ``(n,)`` binary scores or ``(n, k)`` probabilities as int64 positions ``(n,)``."""
    import numpy as np

    array = np.asarray(scores, dtype=np.float64)
    if array.ndim == 1:
        return (array > THRESHOLD).astype(np.int64)
    return array.argmax(axis=1)


def labels_of_scores(scores: Any, classes: Sequence[str]) -> list[str]:
    """The label of every row; ``classes`` in the order of the signature (binary: negative, positive)."""
    return [classes[i] for i in classes_of(scores).tolist()]
