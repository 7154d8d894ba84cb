"""Prediction from skops: the estimator itself, rebuilt from plain data of trusted types. Needs scikit-learn."""

from __future__ import annotations

from typing import Any

from mainspring.errors import InvalidInput, UnsafeFormat
from mainspring.models.formats.answers import missing_method
from mainspring.models.formats.estimators import estimator_scores
from mainspring.models.formats.packaged import PackagedPredictor
from mainspring.models.formats.predictor import Columns, Scores
from mainspring.models.formats.skops.arrays import check_objects
from mainspring.models.formats.skops.rebuilt import rebuild, without_rebuilt
from mainspring.models.formats.skops.schema import check_skops
from mainspring.models.formats.trust import DEFAULT, TrustPolicy
from mainspring.records.models import Package


def dump(estimator: Any) -> bytes:
    """The estimator as skops bytes; raises InvalidInput for what skops cannot write."""
    from skops import io

    try:
        data: bytes = io.dumps(without_rebuilt(estimator))
    except Exception as error:  # noqa: BLE001 - any failure of the writer means the same to the caller
        raise InvalidInput(
            f"this estimator cannot be written as skops: {str(error)[:300]}", value=type(estimator).__name__
        ) from None
    return data


def restore(data: bytes, *, trust: TrustPolicy = DEFAULT) -> Any:
    """The estimator of skops bytes. Raises :class:`UnsafeFormat` for anything but plain data of trusted types."""
    from skops import io

    # Checked here too, not by check_payload alone: skops must never see bytes that this check has not.
    trusted = check_skops(data, trust=trust)
    try:
        estimator = io.loads(data, trusted=trusted)
    except Exception as error:  # noqa: BLE001 - a payload that does not rebuild is not the declared format
        raise UnsafeFormat(f"skops refuses the model: {str(error)[:300]}", place="model.skops") from None
    check_objects(estimator)
    rebuild(estimator)
    return estimator


class SkopsPredictor(PackagedPredictor):
    """A scikit-learn estimator, rebuilt from its payload. Safe to call from many threads, as scikit-learn's ``predict`` is."""

    def __init__(self, package: Package, data: bytes, *, trust: TrustPolicy) -> None:
        super().__init__(package)
        estimator = restore(data, trust=trust)
        if (missing := missing_method(estimator, package.signature)) is not None:
            raise InvalidInput(
                f"the model has no {missing}", value=type(estimator).__name__, place="model.skops"
            )
        self._estimator = estimator

    def _score(self, columns: Columns) -> Scores:
        return estimator_scores(self._estimator, columns, self._package.signature, self._package.null_text)
