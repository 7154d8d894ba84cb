"""What every loaded model offers, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from mainspring.records.models import Package, Signature

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Scores: TypeAlias = npt.NDArray[np.float64]
else:
    Scores: TypeAlias = Any

Columns: TypeAlias = Mapping[str, Any]
"""Inputs by column name: sequences or arrays of equal length."""


class Predictor(Protocol):
    """A loaded model. Safe to call from many threads; keeps no state between calls."""

    @property
    def package(self) -> Package: ...

    @property
    def signature(self) -> Signature: ...

    def compute_scores(self, columns: Columns) -> Scores:
        """Score ``n`` rows, float64: binary ``(n,)`` P(positive) or a decision value, multiclass ``(n, k)``, regression ``(n,)``,
        several values ``(n, outputs)``.

        None and NaN are null, which the model answers as the estimator did in training; a missing nullable column is all
        null, columns outside the signature are ignored. Where the estimator has no answer a score is NaN. Raises
        :class:`~mainspring.errors.InvalidInput` for a missing column, unequal lengths, a value of a wrong type or one that
        the estimator refuses.
        """
        ...
