"""A fitted estimator for the contract of model formats: a forest on numbers, nulls and texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mainspring.models import formats
from mainspring.models.formats.columns import clean, frame


def _columns() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    temperature = rng.normal(size=200).round(3)
    temperature[::11] = np.nan
    return {
        "temperature": temperature,
        "wind": rng.gamma(2.0, size=200).round(2),
        "carrier": rng.choice(["AA", "UA", "B6"], 200).astype(object),
    }


@pytest.fixture(scope="module")
def columns() -> dict[str, Any]:
    return _columns()


@pytest.fixture(scope="module")
def estimator(columns: dict[str, Any]) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    signature = formats.infer_signature(columns, task="binary")
    cleaned = clean(columns, signature)
    target = np.where(np.nan_to_num(cleaned["temperature"]) + cleaned["wind"] > 2, "late", "fine")
    steps = ColumnTransformer(
        [
            ("numbers", SimpleImputer(), ["temperature", "wind"]),
            ("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["carrier"]),
        ]
    )
    return make_pipeline(steps, RandomForestClassifier(10, random_state=0)).fit(
        frame(columns, signature), target
    )


@pytest.fixture(scope="module")
def expected(estimator: Any, columns: dict[str, Any]) -> Any:
    rows = frame(columns, formats.infer_signature(columns, task="binary"))
    return estimator.predict_proba(rows)[:, 1]
