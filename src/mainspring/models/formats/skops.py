"""skops: the estimator itself, rebuilt from plain data through our allow-list. Needs scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np

from mainspring.errors import Corrupt, InvalidInput, MissingExtra, UnsafeFormat
from mainspring.models.formats.columns import as_estimator_input, pick
from mainspring.models.formats.predictor import Columns, Scores
from mainspring.models.formats.skops_schema import check_skops
from mainspring.models.formats.trust import TrustPolicy
from mainspring.records.models import Package, Signature, Task


def dump(estimator: Any) -> bytes:
    """The estimator as skops bytes; raises InvalidInput for what skops cannot write."""
    io = _library()
    try:
        data: bytes = io.dumps(estimator)
    except Exception as error:  # noqa: BLE001 - any failure of the writer means the same to the caller
        raise InvalidInput(
            f"this estimator cannot be written as skops: {str(error)[:300]}", value=type(estimator).__name__
        ) from None
    return data


class SkopsPredictor:
    """A rebuilt scikit-learn estimator behind the same contract as every other format."""

    def __init__(self, package: Package, data: bytes, *, trust: TrustPolicy) -> None:
        io = _library()
        trusted = check_skops(data, trust=trust)
        try:
            estimator = io.loads(data, trusted=trusted)
        except Exception as error:  # noqa: BLE001 - a payload that does not rebuild is not the declared format
            raise UnsafeFormat(f"skops refuses the model: {str(error)[:300]}", place="model.skops") from None
        method = "predict" if package.signature.task is Task.REGRESSION else "predict_proba"
        if not hasattr(estimator, method):
            raise InvalidInput(
                f"the model has no {method}", value=type(estimator).__name__, place="model.skops"
            )
        self._package = package
        self._estimator = estimator

    @property
    def package(self) -> Package:
        return self._package

    @property
    def signature(self) -> Signature:
        return self._package.signature

    def predict(self, columns: Columns) -> Scores:
        """See :meth:`Predictor.predict`."""
        return estimator_scores(self._estimator, columns, self._package.signature)


def estimator_scores(estimator: Any, columns: Columns, signature: Signature) -> Scores:
    """What a fitted estimator answers, in the shape of :meth:`Predictor.predict`."""
    rows = pick(columns, signature.inputs)[0]
    if rows == 0:
        return np.empty((0, len(signature.classes)) if signature.task is Task.MULTICLASS else 0)
    names = getattr(estimator, "feature_names_in_", None)
    table = as_estimator_input(columns, signature, None if names is None else [str(n) for n in names])
    if signature.task is Task.REGRESSION:
        return np.asarray(estimator.predict(table), dtype=np.float64).reshape(rows)
    raw = np.asarray(estimator.predict_proba(table), dtype=np.float64)
    if raw.shape != (rows, len(signature.classes)):
        raise Corrupt(
            "the model answers in another shape than its signature says",
            value=raw.shape,
            place=f"expected {(rows, len(signature.classes))}",
        )
    return raw[:, 1] if signature.task is Task.BINARY else raw


def _library() -> Any:
    try:
        import skops.io
    except ImportError:
        raise MissingExtra.for_library("skops", extra="ml") from None
    return skops.io
