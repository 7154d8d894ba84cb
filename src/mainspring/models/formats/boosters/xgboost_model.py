"""What is asked of a fitted XGBoost model, and XGBoost's own predictor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mainspring.models.formats.boosters import xgboost_json
from mainspring.models.formats.boosters.ensemble import Category


def booster_of(model: Any) -> Any:
    """The Booster inside a model of the scikit-learn interface, with the trees that it predicts with."""
    if not hasattr(model, "get_booster"):
        return model
    booster = model.get_booster()
    try:
        best = int(model.best_iteration)  # after early stopping it predicts with the trees up to here
    except AttributeError:
        return booster
    return booster[: best + 1]


def dump(model: Any) -> bytes:
    """The canonical JSON."""
    return xgboost_json.canonical(json.loads(booster_of(model).save_raw("json")))


def feature_names(model: Any) -> list[str] | None:
    """The names of the columns in training."""
    names = booster_of(model).feature_names
    return None if names is None else list(names)


def missing_value(model: Any) -> float | None:
    """The number that means null besides NaN."""
    value = getattr(model, "missing", None)
    return None if value is None or np.isnan(value) else float(value)


def classes_of(model: Any) -> int:
    """How many classes a bare Booster answers; 0: a number."""
    learner = json.loads(booster_of(model).save_config())["learner"]
    objective = learner["objective"]["name"]
    if objective == "binary:logistic":
        return 2
    return int(learner["learner_model_param"]["num_class"]) if objective.startswith("multi:") else 0


def predict(model: Any, rows: Any) -> Any:
    """What a bare Booster answers; of several classes the probabilities, whatever its objective."""
    import xgboost

    matrix = xgboost.DMatrix(rows, enable_categorical=True)
    if classes_of(model) > 2:
        return softmax(model.predict(matrix, output_margin=True))
    return model.predict(matrix)


def softmax(raw: Any) -> Any:
    """Shares of the exponentials of each row."""
    each = np.exp(np.asarray(raw, dtype=np.float64) - np.max(raw, axis=1, keepdims=True))
    return each / each.sum(axis=1, keepdims=True)


def opened(data: bytes) -> tuple[Any, Mapping[int, Sequence[Category]]]:
    """A function from rows (float64, categories as codes) to answers, and the categories; ``data`` was checked."""
    import xgboost

    link, categories, trees = xgboost_json.describe(data)
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(data))

    def ask(rows: Any, *, margin: bool) -> Any:
        if trees:  # as XGBClassifier and XGBRegressor ask them
            kind = "margin" if margin else "value"
            return booster.inplace_predict(rows, predict_type=kind, validate_features=False)
        matrix = xgboost.DMatrix(rows, nthread=1)
        return booster.predict(matrix, output_margin=margin, validate_features=False)

    def answer(rows: Any) -> Any:
        lost = (
            np.zeros(len(rows), dtype=bool) if trees else np.isinf(rows).any(axis=1)
        )  # a DMatrix takes none of these
        rows = np.where(lost[:, None], 0, rows)
        raw = softmax(ask(rows, margin=True)) if link == "softmax" else ask(rows, margin=False)
        raw = np.array(raw, dtype=np.float64)
        raw[lost] = np.nan
        return raw

    return answer, categories
