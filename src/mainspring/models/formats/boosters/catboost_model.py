"""What is asked of a fitted CatBoost model, and CatBoost's own predictor."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mainspring.errors import InvalidInput
from mainspring.models.formats.boosters import catboost_json
from mainspring.models.formats.boosters.ensemble import Link
from mainspring.models.formats.boosters.xgboost_model import softmax

_LINKS: dict[str, Link] = {
    **dict.fromkeys(["Logloss", "CrossEntropy"], "sigmoid"),
    "MultiClass": "softmax",
    "MultiClassOneVsAll": "sigmoid of each",
    **dict.fromkeys(["Poisson", "Tweedie"], "exp"),
    **dict.fromkeys(
        ["RMSE", "MAE", "MAPE", "Quantile", "Expectile", "Huber", "LogLinQuantile", "Lq", "LogCosh", "QueryRMSE", "PairLogit", "YetiRank",
         "PairLogitPairwise", "YetiRankPairwise"], "identity"
    ),
}  # fmt: skip


def loss_of(model: Any) -> str:
    """The name of the loss, without its parameters."""
    return str(model.get_all_params()["loss_function"]).partition(":")[0]


def dump(model: Any, texts: Mapping[int, Sequence[str]] | None = None) -> bytes:
    """The canonical JSON; ``texts``: the values of the columns of texts, by position, whose names CatBoost does not keep."""
    link = _LINKS.get(loss_of(model))
    if link is None:
        raise InvalidInput("a loss whose answers are not known here", value=loss_of(model))
    if link == "identity" and loss_of(model) == "LogLinQuantile":
        link = "exp"
    pool = None
    if columns := model.get_cat_feature_indices():
        if not texts or set(texts) != set(columns):
            raise InvalidInput("columns of texts inside a pipeline", value=type(model).__name__)
        pool = _make_pool(len(model.feature_names_), texts)
    with tempfile.TemporaryDirectory(prefix="mainspring-catboost-") as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json", pool=pool)
        return catboost_json.canonical(json.loads(path.read_bytes()), link)


def _make_pool(width: int, texts: Mapping[int, Sequence[str]]) -> Any:
    import catboost

    rows = max(1, *(len(values) for values in texts.values()))
    table = np.zeros((rows, width), dtype=object)
    for column, values in texts.items():
        table[:, column] = [values[i % len(values)] if values else "" for i in range(rows)]
    return catboost.Pool(table, cat_features=sorted(texts))


def feature_names(model: Any) -> list[str] | None:
    """The names of the columns in training; None where CatBoost made them up for an array."""
    names: list[str] = list(model.feature_names_)
    return None if names == [str(i) for i in range(len(names))] else names


def classes_of(model: Any) -> int:
    """How many classes a bare CatBoost answers; 0: a number."""
    return len(model.classes_)


def predict(model: Any, rows: Any) -> Any:
    """What a bare CatBoost answers: probabilities by class, or the number after its link."""
    if len(model.classes_):
        return model.predict(rows, prediction_type="Probability")
    kind = "Exponent" if _LINKS.get(loss_of(model)) == "exp" else "RawFormulaVal"
    return model.predict(rows, prediction_type=kind)


def opened(data: bytes) -> tuple[Any, Sequence[int]]:
    """A function from rows (objects: numbers, and texts in their columns) to answers, and the columns of texts; ``data`` was checked."""
    import catboost

    _, link, texts = catboost_json.describe(data)
    model = catboost.CatBoost()
    # CatBoost reads JSON from a file only: this one is in memory, and nothing is written to a disk.
    descriptor = os.memfd_create("booster", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(catboost_json.native(data))
        file.flush()
        model.load_model(f"/proc/self/fd/{descriptor}", format="json")

    def answer(rows: Any) -> Any:
        pool = catboost.Pool(rows, cat_features=texts) if texts else rows
        raw = np.asarray(
            model.predict(pool, prediction_type="RawFormulaVal", thread_count=1), dtype=np.float64
        )
        return _apply(link, raw)

    return answer, texts


def _apply(link: Link, raw: Any) -> Any:
    if link == "softmax":
        return softmax(raw)
    if link == "exp":
        return np.exp(raw)
    return 1 / (1 + np.exp(-raw)) if link.startswith("sigmoid") else raw
