"""What is asked of a fitted LightGBM model, and LightGBM's own predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mainspring.errors import InvalidInput
from mainspring.models.formats.boosters import lightgbm_text
from mainspring.models.formats.boosters.ensemble import Category


def booster_of(model: Any) -> Any:
    """The Booster inside a model of the scikit-learn interface."""
    return model.booster_ if hasattr(model, "booster_") else model


def dump(model: Any, categorical: Sequence[int] = ()) -> bytes:
    """The canonical text; ``categorical``: positions of the columns that were categorical in pandas."""
    text: str = booster_of(model).model_to_string()
    names = lightgbm_text.pandas_categories(text)
    if len(names) != len(categorical):
        raise InvalidInput(
            "the categorical columns of training are not known",
            value=len(names),
            next_step="Give a sample with these columns as pandas categories.",
        )
    return lightgbm_text.canonical(text, dict(zip(categorical, names, strict=True)))


def feature_names(model: Any) -> list[str] | None:
    """The names of the columns in training; None where LightGBM made them up for an array."""
    names: list[str] = booster_of(model).feature_name()
    return None if names == [f"Column_{i}" for i in range(len(names))] else names


def classes_of(model: Any) -> int:
    """How many classes a bare Booster answers; 0: a number."""
    text = booster_of(model).model_to_string(num_iteration=1)
    _, objective = lightgbm_text.describe(lightgbm_text.canonical(text, {}))
    classes: int = booster_of(model).num_model_per_iteration()
    return 2 if objective == "binary" else classes if objective.startswith("multiclass") else 0


def predict(model: Any, rows: Any) -> Any:
    """What a bare Booster answers, float64."""
    return np.asarray(model.predict(rows), dtype=np.float64)


def opened(data: bytes) -> tuple[Any, Mapping[int, Sequence[Category]]]:
    """A function from rows (float64, categories as codes) to answers, and the categories; ``data`` was checked."""
    import lightgbm

    booster = lightgbm.Booster(model_str=lightgbm_text.native(data))
    return lambda rows: booster.predict(rows, num_threads=1), lightgbm_text.categories_of(data)
