"""What the predictors of all formats have in common: the package, and the check of the values that the estimator knows."""

from __future__ import annotations

from abc import ABC, abstractmethod

from mainspring.models.formats.columns import Known
from mainspring.models.formats.predictor import Columns, Scores
from mainspring.records.models import Package, Signature


class PackagedPredictor(ABC):
    """A :class:`~mainspring.models.formats.predictor.Predictor` of one package. A format adds :meth:`_score`."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._known = Known(package.known)

    @property
    def package(self) -> Package:
        """The manifest."""
        return self._package

    @property
    def signature(self) -> Signature:
        """The manifest's signature."""
        return self._package.signature

    def compute_scores(self, columns: Columns) -> Scores:
        """See :meth:`Predictor.compute_scores`. NaN where the estimator itself would refuse the row."""
        if self._known:
            self._known.check(columns)
        return self._score(columns)

    @abstractmethod
    def _score(self, columns: Columns) -> Scores:
        """Score rows whose values are known, in the shape of :meth:`compute_scores`."""
