"""Boosters on columns that are not plain numbers: pandas categories, texts, names with spaces, and behind other steps."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mainspring.errors import InvalidInput
from mainspring.models import formats

_L: dict[str, Any] = {"n_estimators": 20, "verbose": -1, "n_jobs": 1}
_X: dict[str, Any] = {"n_estimators": 20, "n_jobs": 1}
_C: dict[str, Any] = {
    "iterations": 20,
    "depth": 4,
    "verbose": 0,
    "allow_writing_files": False,
    "thread_count": 1,
}
COLORS = ["violet", "red", "green", "blue", "amber"]


def make_frame(rows: int, seed: int) -> pd.DataFrame:
    """A number with nulls, a whole number, a column of categories in an order of its own with nulls, one of numbers."""
    rng = np.random.default_rng(seed)
    size = rng.normal(size=rows)
    size[rng.random(rows) < 0.1] = np.nan
    color = rng.integers(0, 5, rows)
    return pd.DataFrame(
        {
            "petal width (cm)": size,
            "count": rng.integers(0, 20, rows),
            "color": pd.Categorical.from_codes(
                np.where(rng.random(rows) < 0.05, -1, color), categories=COLORS
            ),
            "zone": pd.Categorical(rng.choice([30, 10, 20], rows), categories=[30, 10, 20]),
        }
    )


def make_labels(frame: pd.DataFrame) -> Any:
    """Depends on each column."""
    score = frame["petal width (cm)"].fillna(1.5) + frame["color"].isin(["red", "blue"]) * 1.5
    return np.where(score + (frame["zone"].astype(int) == 20) + frame["count"] / 20 > 1.4, "late", "fine")


def _codes(frame: pd.DataFrame) -> Any:
    return (make_labels(frame) == "late").astype(int)


BOOSTERS = {
    "lightgbm": lambda f: lightgbm.LGBMClassifier(min_child_samples=5, **_L).fit(f, make_labels(f)),
    "lightgbm.Booster": lambda f: lightgbm.train(
        {"objective": "binary", "verbose": -1, "min_data_per_group": 5, "max_cat_to_onehot": 1},
        lightgbm.Dataset(f.rename(columns={"petal width (cm)": "width"}), _codes(f)),
        20,
    ),
    "xgboost": lambda f: xgboost.XGBClassifier(enable_categorical=True, **_X).fit(f, _codes(f)),
    "xgboost, sets": lambda f: xgboost.XGBClassifier(enable_categorical=True, max_cat_to_onehot=1, **_X).fit(
        f, _codes(f)
    ),
}


@pytest.mark.parametrize("name", BOOSTERS)
def test_pandas_categories_are_what_they_were_in_training(name: str, tmp_path: Path) -> None:
    """Also from a sample whose categories stand in another order, and for a category that nobody has seen.

    Seen red with the booster's categories in another order.
    """
    frame = make_frame(800, 1)
    model = BOOSTERS[name](frame)
    renamed = {"petal width (cm)": "width"} if name == "lightgbm.Booster" else {}
    sample = frame.rename(columns=renamed).assign(color=frame["color"].cat.reorder_categories(COLORS[::-1]))
    package = formats.save(model, tmp_path / "p", sample=sample)
    assert package.format == "onnx"
    assert [c.categories for c in package.signature.inputs] == [[], [], COLORS[::-1], ["30", "10", "20"]]
    other = make_frame(10_000, 2).rename(columns=renamed)
    if name == "lightgbm.Booster":
        expected = model.predict(other)
    else:
        expected = model.predict_proba(other)[:, 1]
    loaded = formats.load(tmp_path / "p")
    plain = {c: [None if v is pd.NA or v != v else v for v in other[c].tolist()] for c in other}
    np.testing.assert_allclose(loaded.compute_scores(plain), expected, atol=1.2e-7, rtol=0)
    unseen = {c: v[:3] for c, v in plain.items()} | {"color": ["mauve", None, "none"]}
    alike = loaded.compute_scores(unseen | {"color": [None] * 3})
    np.testing.assert_array_equal(loaded.compute_scores(unseen), alike)


@pytest.mark.parametrize("depth", [2, 6])
def test_texts_of_catboost_are_stored_by_catboost(depth: int, tmp_path: Path) -> None:
    """Statistics of the target by category, also over pairs of columns."""
    frame = make_frame(800, 1).assign(
        color=lambda f: f["color"].astype(object).fillna("none"), zone=lambda f: f["zone"].astype(int)
    )
    model = catboost.CatBoostClassifier(cat_features=["color", "zone"], **_C | {"depth": depth})
    model.fit(frame, make_labels(make_frame(800, 1)))
    package = formats.save(model, tmp_path / "p", sample=frame)
    assert package.format == "catboost"
    other = make_frame(10_000, 2).assign(
        color=lambda f: f["color"].astype(object).fillna("none"), zone=lambda f: f["zone"].astype(int)
    )
    other.loc[other.index[:50], "color"] = "never seen"
    loaded = formats.load(tmp_path / "p")
    np.testing.assert_allclose(loaded.predict_proba(other), model.predict_proba(other), atol=1e-14, rtol=0)
    np.testing.assert_array_equal(loaded.predict(other), model.predict(other))
    with pytest.raises(InvalidInput, match="color"):
        loaded.predict(other.head(2).assign(color=[None, None]))


def test_few_texts_of_catboost_are_a_graph(tmp_path: Path) -> None:
    """Categories that the trees ask for one by one."""
    frame = (
        make_frame(800, 1)
        .assign(color=lambda f: f["color"].astype(object).fillna("none"))
        .drop(columns="zone")
    )
    model = catboost.CatBoostClassifier(cat_features=["color"], one_hot_max_size=10, **_C)
    model.fit(frame, make_labels(make_frame(800, 1)))
    assert formats.save(model, tmp_path / "p", sample=frame).format == "onnx"
    other = (
        make_frame(10_000, 2)
        .assign(color=lambda f: f["color"].astype(object).fillna("none"))
        .drop(columns="zone")
    )
    other.loc[other.index[:50], "color"] = "never seen"
    loaded = formats.load(tmp_path / "p")
    np.testing.assert_allclose(loaded.predict_proba(other), model.predict_proba(other), atol=1e-14, rtol=0)
    package = formats.save(model, tmp_path / "q", sample=frame[frame["color"] != "red"])
    assert package.format == "catboost"
    assert "none of the rows" in package.notes["refused"]["onnx (float64, exact)"]


INNER = {
    "lightgbm": lambda: lightgbm.LGBMClassifier(**_L),
    "xgboost": lambda: xgboost.XGBClassifier(**_X),
    "catboost": lambda: catboost.CatBoostClassifier(**_C),
}


def _pipeline(last: Any) -> Any:
    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    columns = ColumnTransformer(
        [
            ("numbers", numbers, make_column_selector(dtype_include="number")),
            ("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["color"]),
        ]
    )
    return Pipeline([("columns", columns), ("model", last)])


@pytest.mark.parametrize("name", INNER)
def test_a_booster_behind_other_steps_is_one_graph(name: str, tmp_path: Path) -> None:
    frame = (
        make_frame(800, 1)
        .assign(color=lambda f: f["color"].astype(object).fillna("none"))
        .drop(columns="zone")
    )
    y = _codes(make_frame(800, 1))
    pipeline = _pipeline(INNER[name]()).fit(frame, y)
    package = formats.save(pipeline, tmp_path / "p", sample=frame)
    assert package.format == "onnx"
    other = (
        make_frame(10_000, 2)
        .assign(color=lambda f: f["color"].astype(object).fillna("none"))
        .drop(columns="zone")
    )
    loaded = formats.load(tmp_path / "p")
    np.testing.assert_allclose(
        loaded.predict_proba(other), pipeline.predict_proba(other), atol=1.2e-7, rtol=0
    )
    np.testing.assert_array_equal(loaded.predict(other), pipeline.predict(other))


def test_boosters_vote_and_are_calibrated(tmp_path: Path) -> None:
    frame = make_frame(800, 1)[["petal width (cm)", "count"]].set_axis(["width", "count"], axis=1)
    y = _codes(make_frame(800, 1))
    members = [(n, make()) for n, make in INNER.items()] + [
        ("line", make_pipeline(SimpleImputer(), LogisticRegression()))
    ]
    other = make_frame(5_000, 2)[["petal width (cm)", "count"]].set_axis(["width", "count"], axis=1)
    for at, model in enumerate(
        [
            VotingClassifier(members, voting="soft"),
            CalibratedClassifierCV(lightgbm.LGBMClassifier(**_L), cv=2),
        ]
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(frame, y)
            assert formats.save(model, tmp_path / str(at), sample=frame).format == "onnx"
            expected = model.predict_proba(other)
        stored = formats.load(tmp_path / str(at)).predict_proba(other)
        np.testing.assert_allclose(stored, expected, atol=1.2e-7, rtol=0)


@pytest.mark.parametrize("name", INNER)
def test_names_of_columns_may_be_any(name: str, tmp_path: Path) -> None:
    """LightGBM writes other names than it is given. Seen red without the names of the sample."""
    frame = make_frame(800, 1)[["petal width (cm)", "count"]].rename(columns={"count": "1st x.y"})
    model = INNER[name]().fit(frame, _codes(make_frame(800, 1)))
    package = formats.save(model, tmp_path / "p", sample=frame)
    assert [c.name for c in package.signature.inputs] == list(frame.columns)
    expected = model.predict_proba(frame)
    np.testing.assert_allclose(
        formats.load(tmp_path / "p").predict_proba(frame), expected, atol=1.2e-7, rtol=0
    )
