"""What a fitted scikit-learn estimator answers: which of its methods is asked, and what its numbers mean."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from mainspring.errors import InvalidInput
from mainspring.models.formats import fitted
from mainspring.models.formats.predictor import Scores
from mainspring.records.models import Signature, Task

_SEARCHES = ("GridSearchCV", "RandomizedSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV")
_THRESHOLDS = ("FixedThresholdClassifier", "TunedThresholdClassifierCV")
_COUNT_VOTES = ("SVC", "NuSVC")


def unwrap_search(estimator: Any) -> Any:
    """The best estimator of a search, which is what it predicts with; any other estimator as it is."""
    if type(estimator).__name__ in _SEARCHES:
        if not hasattr(estimator, "best_estimator_"):
            raise InvalidInput(
                "the search kept no estimator",
                value=type(estimator).__name__,
                next_step="Fit it first, with refit=True.",
            )
        return unwrap_search(estimator.best_estimator_)
    if hasattr(estimator, "steps") and type(estimator.steps[-1][1]).__name__ in _SEARCHES:
        name, search = estimator.steps[-1]
        return type(estimator)([*estimator.steps[:-1], (name, unwrap_search(search))])
    return estimator


def find_meaning(estimator: Any) -> tuple[Literal["probability", "decision"], float | None]:
    """What a classifier's scores are, and the threshold of its own if it has one (see :class:`Signature`).

    Some of scikit-learn's classifiers decide by something else than the probabilities that they give: those do not count.
    """
    last = innermost(estimator)
    if type(last).__name__ in _THRESHOLDS:
        return _find_threshold(last)
    if hasattr(estimator, "predict_proba") and not _ignores_probabilities(last):
        return "probability", None
    # Of a classifier that gives labels alone, the score of its label is 1.
    return "decision", None if decides(estimator) else 0.5


def _ignores_probabilities(estimator: Any) -> bool:
    """Whether the label of a classifier may be another class than the most probable one."""
    kind = type(estimator).__name__
    return (
        kind in (*_COUNT_VOTES, "NearestCentroid")
        or (
            kind == "SGDClassifier" and estimator.loss == "modified_huber"
        )  # many probabilities are 0 or 1 exactly
        or (kind == "GaussianProcessClassifier" and len(estimator.classes_) == 2)
    )


def _find_threshold(estimator: Any) -> tuple[Literal["probability", "decision"], float]:
    """Of scikit-learn's classifiers with a threshold: the positive label is the answer from the threshold on, that is above the float before it."""
    methods = {"auto": ("predict_proba", "decision_function")}.get(
        estimator.response_method, (estimator.response_method,)
    )
    inner = estimator.estimator_
    probabilities = next(m for m in methods if hasattr(inner, m)) == "predict_proba"
    threshold = getattr(estimator, "best_threshold_", getattr(estimator, "threshold", "auto"))
    if threshold == "auto":
        threshold = 0.5 if probabilities else 0.0
    positive = getattr(estimator, "pos_label", None)
    if (tuned := fitted.get_positive_label(estimator)) is not None:
        positive = tuned
    kind: Literal["probability", "decision"] = "probability" if probabilities else "decision"
    if positive is not None and positive == estimator.classes_[0]:
        # It is the score of the first class that is compared: the second is the answer below the threshold.
        return kind, (1.0 if probabilities else 0.0) - float(threshold)
    return kind, math.nextafter(float(threshold), -math.inf)


def compute_class_scores(estimator: Any, features: Any, signature: Signature) -> Scores:
    """Probabilities; decision values; or 1 for the label and 0 for every other class, of an estimator that gives labels alone."""
    if signature.scores == "probability":
        return np.asarray(estimator.predict_proba(features), dtype=np.float64)
    if decides(estimator):
        return np.asarray(estimator.decision_function(features), dtype=np.float64)
    labels = np.asarray(estimator.predict(features))
    return np.asarray(labels[:, None] == np.asarray(estimator.classes_)[None, :], dtype=np.float64)


def expand_binary(probabilities: Any) -> Any:
    """The probabilities of both classes, ``(n, 2)``, from those of the second alone, ``(n,)``; wider ones as they are."""
    if probabilities.ndim != 1:
        return probabilities
    return np.column_stack([1 - probabilities, probabilities])


def decides(estimator: Any) -> bool:
    """Whether the label of a classifier follows from its decision function: the class with the largest value, or the sign.

    scikit-learn's SVC with several classes counts votes instead, and its decision values break ties in another way; NearestCentroid
    takes the least distance.
    """
    kind = type(innermost(estimator)).__name__
    if kind == "NearestCentroid" or (kind in _COUNT_VOTES and len(estimator.classes_) > 2):
        return False
    return hasattr(estimator, "decision_function")


def innermost(estimator: Any) -> Any:
    """The predictor at the end of pipelines, and inside of a frozen estimator."""
    while True:
        if hasattr(estimator, "steps"):
            estimator = estimator.steps[-1][1]
        elif type(estimator).__name__ == "FrozenEstimator":
            estimator = estimator.estimator
        else:
            return estimator


def missing_method(estimator: Any, signature: Signature) -> str | None:
    """The method that an estimator needs for a signature and does not have; None if it has it."""
    wanted = {Task.REGRESSION: "predict", Task.VALUES: "transform"}.get(signature.task, "predict_proba")
    if signature.task is Task.VALUES and hasattr(estimator, "predict"):
        return None
    if wanted == "predict_proba" and signature.scores == "decision":
        wanted = "predict"
    return None if hasattr(estimator, wanted) else wanted


# --- several numbers for a row -----------------------------------------------------------------------------------------


def compute_values(estimator: Any, features: Any) -> Scores:
    """The numbers of an estimator that answers several for a row, float64 ``(rows, outputs)``; see :func:`name_values`."""
    kind = _values_kind(estimator)
    if kind == "detector":
        columns = [estimator.predict(features), estimator.decision_function(features)]
        return np.column_stack([np.asarray(c, dtype=np.float64) for c in columns])
    answer = getattr(estimator, "transform" if kind == "transformer" else "predict")(features)
    if hasattr(answer, "toarray"):
        answer = answer.toarray()
    raw = np.asarray(answer, dtype=np.float64)
    return raw[:, None] if raw.ndim == 1 else raw


def name_values(estimator: Any, width: int) -> list[str]:
    """Names of the ``width`` numbers: of a detector ``label`` (1: usual, -1: outlier) and ``decision`` (below 0: outlier), of a clustering
    ``cluster``, of a transformer its own names for its columns, of several targets ``target_0``, ..."""
    kind = _values_kind(estimator)
    if kind == "detector":
        return ["label", "decision"]
    if kind == "clusterer" and width == 1:
        return ["cluster"]
    if kind == "transformer":
        try:
            names = [str(n) for n in estimator.get_feature_names_out()]
        except Exception:  # noqa: BLE001 - not every transformer knows names, and each fails in its own way
            names = []
        if len(names) == width and len(set(names)) == width:
            return names
        return [f"column_{i}" for i in range(width)]
    return [f"target_{i}" for i in range(width)]


def _values_kind(estimator: Any) -> str:
    from sklearn.base import is_clusterer, is_outlier_detector

    last = innermost(estimator)
    if is_outlier_detector(last) and hasattr(estimator, "decision_function"):
        return "detector"
    if is_clusterer(last) and hasattr(estimator, "predict"):
        return "clusterer"
    return "predictor" if hasattr(estimator, "predict") else "transformer"


def several_answers(estimator: Any) -> InvalidInput:
    """The error for an estimator that was fitted on several targets or labels at once."""
    return InvalidInput(
        "the estimator answers several targets at once; a model has one answer for a row",
        value=type(estimator).__name__,
        next_step="Give the signature the task 'values', which takes several numbers, or fit one model for each target.",
    )
