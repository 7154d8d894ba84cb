"""Which class scores say: the one rule for answers, accuracy, parity and windows.

It is scikit-learn's: the most probable class, the first one of equals. For binary scores P(positive) that means: positive
only above 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def predicted_class(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Class index of each row: (n,) binary scores, or (n, k) probabilities."""
    import numpy as np

    if scores.ndim == 2:
        return np.asarray(scores.argmax(axis=1), dtype=np.int64)
    return (scores > 0.5).astype(np.int64)


def predicted_index(score: float | Sequence[float]) -> int:
    """The same for one row."""
    if isinstance(score, Sequence):
        return max(range(len(score)), key=score.__getitem__)  # the first of equals
    return int(score > 0.5)
