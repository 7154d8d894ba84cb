"""Small real models: fitted once per session, saved many times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.lineage import Foundation
from mainspring.models import Models, ModelsClient, formats
from mainspring.records.models import Signature


@dataclass(frozen=True)
class Fitted:
    """An estimator with the rows it was fitted on."""

    estimator: Any
    columns: dict[str, Any]
    signature: Signature
    expected: Any = field(repr=False, default=None)


@pytest.fixture(scope="session")
def mixed_columns() -> dict[str, Any]:
    """300 rows: numbers with nulls, whole numbers, truth values, strings with nulls."""
    rng = np.random.default_rng(7)
    n = 300
    number = rng.normal(size=n).round(3)
    number[::17] = np.nan
    carrier = rng.choice(["AA", "UA", "B6"], n).astype(object)
    carrier[::23] = None
    return {
        "temp": number,
        "wind": rng.gamma(2.0, size=n).round(2),
        "hour": rng.integers(0, 24, n),
        "rain": rng.random(n) < 0.3,
        "carrier": carrier,
        "origin": rng.choice(["EWR", "JFK", "LGA"], n).astype(object),
    }


@pytest.fixture(scope="session")
def fitted(mixed_columns: dict[str, Any]) -> Callable[..., Fitted]:
    """``fitted("binary", LogisticRegression())``: a pipeline over the mixed columns, fitted on an Arrow table."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from mainspring.models.formats.columns import clean, frame

    def make(task: str, model: Any, *, scale: bool = True) -> Fitted:
        signature = formats.infer_signature(mixed_columns, task=task)
        cleaned = clean(mixed_columns, signature)
        score = (
            np.nan_to_num(cleaned["temp"])
            + cleaned["rain"]
            - (cleaned["carrier"] == "AA")
            + cleaned["wind"] / 2
        )
        target = {
            "binary": np.where(score > 1, "late", "fine"),
            "multiclass": np.digitize(score, [0.5, 1.5]),
            "regression": score * 10,
        }[task]
        numbers = [SimpleImputer(), StandardScaler()] if scale else [SimpleImputer()]
        steps = ColumnTransformer(
            [
                (
                    "numbers",
                    Pipeline([(type(s).__name__, s) for s in numbers]),
                    ["temp", "wind", "hour", "rain"],
                ),
                ("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["carrier", "origin"]),
            ]
        )
        estimator = Pipeline([("columns", steps), ("model", model)]).fit(
            frame(mixed_columns, signature), target
        )
        return Fitted(estimator=estimator, columns=mixed_columns, signature=signature)

    return make


@pytest.fixture(scope="session")
def logistic(fitted: Callable[..., Fitted]) -> Fitted:
    from sklearn.linear_model import LogisticRegression

    return fitted("binary", LogisticRegression(max_iter=500))


@pytest.fixture(scope="session")
def saved_logistic(logistic: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package nobody may change: copy it first."""
    folder = tmp_path_factory.mktemp("packages") / "logistic"
    formats.save(
        logistic.estimator,
        folder,
        signature=logistic.signature,
        sample=logistic.columns,
        run="run-1",
        metrics={"auc": 0.8},
    )
    return folder


MakeClient = Callable[[Foundation], ModelsClient]


@pytest.fixture
def client_of() -> MakeClient:
    from mainspring.lineage.uploads import Uploads

    return lambda base: ModelsClient(Models(base), Uploads(base))
