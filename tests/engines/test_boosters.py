"""LightGBM, XGBoost and CatBoost, saved as they are: labels, probabilities and numbers beside the library's own on 10,000 other rows."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pytest
import xgboost
from tests.engines.conftest import make_numbers, make_target

from mainspring.models import formats

ROWS = 10_000
_L = {"n_estimators": 30, "verbose": -1, "n_jobs": 1}
_X = {"n_estimators": 30, "n_jobs": 1}
_C = {"iterations": 30, "depth": 4, "verbose": 0, "allow_writing_files": False, "thread_count": 1}
_ML, _MX = lightgbm.LGBMClassifier, xgboost.XGBClassifier
_YES = np.array(["no", "yes"])


class _Rows:
    """Rows and targets of each kind: two classes, three, a number far from zero, a positive one."""

    def __init__(self, rows: int, seed: int) -> None:
        self.x = make_numbers(rows, seed)
        self.t = make_target(self.x)
        self.y = (self.t > 0.5).astype(int)
        self.k = np.digitize(self.t, [-0.5, 1])
        self.far = 1e5 + 10 * self.t
        self.positive = np.abs(self.t) + 0.1
        self.full = np.nan_to_num(self.x)


def _xgb_early(r: _Rows) -> Any:
    model = xgboost.XGBClassifier(n_estimators=60, n_jobs=1, learning_rate=1.0, early_stopping_rounds=3)
    return model.fit(r.x[:800], r.y[:800], eval_set=[(r.x[800:], r.y[800:])], verbose=False)


def _lgb_early(r: _Rows) -> Any:
    model = lightgbm.LGBMClassifier(**_L | {"n_estimators": 60, "learning_rate": 1.0})
    stop = lightgbm.early_stopping(3, verbose=False)
    return model.fit(r.x[:800], r.y[:800], eval_set=[(r.x[800:], r.y[800:])], callbacks=[stop])


MODELS: dict[str, tuple[str, Callable[[_Rows], Any]]] = {
    "LGBMClassifier": ("onnx", lambda r: _ML(**_L).fit(r.x, r.y)),
    "LGBMClassifier, texts": ("onnx", lambda r: _ML(**_L).fit(r.x, _YES[r.y])),
    "LGBMClassifier, 3 classes": ("onnx", lambda r: _ML(**_L).fit(r.x, r.k + 7)),
    "LGBMClassifier, one versus all": ("onnx", lambda r: _ML(objective="multiclassova", **_L).fit(r.x, r.k)),
    "LGBMClassifier, early stopping": ("onnx", _lgb_early),
    "LGBMClassifier, dart": ("onnx", lambda r: _ML(boosting_type="dart", **_L).fit(r.x, r.y)),
    "LGBMClassifier, codes": ("onnx", lambda r: _ML(**_L).fit(r.x, r.y, categorical_feature=[4])),
    "LGBMClassifier, zeros are null": ("lightgbm", lambda r: _ML(zero_as_missing=True, **_L).fit(r.x, r.y)),
    "LGBMRegressor": ("onnx", lambda r: lightgbm.LGBMRegressor(**_L).fit(r.x, r.far)),
    "LGBMRegressor, poisson": (
        "onnx",
        lambda r: lightgbm.LGBMRegressor(objective="poisson", **_L).fit(r.x, r.positive),
    ),
    "LGBMRegressor, random forest": (
        "onnx",
        lambda r: lightgbm.LGBMRegressor(boosting_type="rf", bagging_freq=1, bagging_fraction=0.5, **_L).fit(
            r.x, r.far
        ),
    ),
    "LGBMRegressor, linear leaves": (
        "lightgbm",
        lambda r: lightgbm.LGBMRegressor(linear_tree=True, **_L).fit(r.full, r.t),
    ),
    "lightgbm.Booster": (
        "onnx",
        lambda r: lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(r.x, r.y), 20),
    ),
    "XGBClassifier": ("onnx", lambda r: _MX(**_X).fit(r.x, r.y)),
    "XGBClassifier, 3 classes": ("onnx", lambda r: _MX(**_X).fit(r.x, r.k)),
    "XGBClassifier, early stopping": ("onnx", _xgb_early),
    "XGBClassifier, dart": ("onnx", lambda r: _MX(booster="dart", rate_drop=0.2, **_X).fit(r.x, r.y)),
    "XGBClassifier, zero is null": ("onnx", lambda r: _MX(missing=0.0, **_X).fit(r.x, r.y)),
    "XGBRFClassifier": ("onnx", lambda r: xgboost.XGBRFClassifier(**_X).fit(r.x, r.y)),
    "XGBRegressor": ("onnx", lambda r: xgboost.XGBRegressor(**_X).fit(r.x, r.far)),
    "XGBRegressor, gamma": (
        "onnx",
        lambda r: xgboost.XGBRegressor(objective="reg:gamma", **_X).fit(r.x, 100 + r.positive),
    ),
    "XGBRegressor, linear": (
        "xgboost",
        lambda r: xgboost.XGBRegressor(booster="gblinear", **_X).fit(r.x, r.t),
    ),
    "xgboost.Booster": (
        "onnx",
        lambda r: xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(r.x, r.y), 20),
    ),
    "xgboost.Booster, softmax": (
        "onnx",
        lambda r: xgboost.train(
            {"objective": "multi:softmax", "num_class": 3}, xgboost.DMatrix(r.x, r.k), 20
        ),
    ),
    "CatBoostClassifier": ("onnx", lambda r: catboost.CatBoostClassifier(**_C).fit(r.x, r.y)),
    "CatBoostClassifier, truth values": (
        "onnx",
        lambda r: catboost.CatBoostClassifier(**_C).fit(r.x, r.y.astype(bool)),
    ),
    "CatBoostClassifier, 3 classes": ("onnx", lambda r: catboost.CatBoostClassifier(**_C).fit(r.x, r.k)),
    "CatBoostClassifier, lossguide": (
        "onnx",
        lambda r: catboost.CatBoostClassifier(grow_policy="Lossguide", **_C).fit(r.x, _YES[r.y]),
    ),
    "CatBoostRegressor": ("onnx", lambda r: catboost.CatBoostRegressor(**_C).fit(r.x, r.far)),
    "CatBoostRegressor, null is largest": (
        "onnx",
        lambda r: catboost.CatBoostRegressor(nan_mode="Max", **_C).fit(r.x, r.t),
    ),
    "CatBoostRegressor, poisson": (
        "onnx",
        lambda r: catboost.CatBoostRegressor(loss_function="Poisson", **_C).fit(r.x, r.positive),
    ),
    "catboost.CatBoost": (
        "onnx",
        lambda r: catboost.CatBoost({**_C, "loss_function": "Logloss"}).fit(r.x, r.y),
    ),
}


@pytest.fixture(scope="module")
def fitted() -> _Rows:
    return _Rows(1500, 1)


@pytest.fixture(scope="module")
def other() -> _Rows:
    return _Rows(ROWS, 2)


@pytest.mark.parametrize("name", MODELS)
def test_a_stored_booster_answers_as_the_booster(
    name: str, fitted: _Rows, other: _Rows, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """On rows that nobody saw, and in ``save`` on values beside the thresholds.

    Seen red: LightGBM's thresholds rounded to float32; XGBoost's ``<`` written as ``<=``.
    """
    form, make = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make(fitted)
        full = "linear leaves" in name
        package = formats.save(model, tmp_path / "p", sample=fitted.full if full else fitted.x)
        assert package.format == form
        rows = other.full if full else other.x
        labels, numbers = _ask(model, rows)
    loaded = formats.load(tmp_path / "p")
    start = time.perf_counter()
    answered = loaded.predict(rows)
    micros = (time.perf_counter() - start) / ROWS * 1e6
    if loaded.classes:
        np.testing.assert_array_equal(answered, labels)
        assert answered.dtype.kind == np.asarray(labels).dtype.kind or answered.dtype == object
        worst = float(np.abs(loaded.predict_proba(rows) - numbers).max())
        assert worst <= 1.2e-7 if "XGB" in name or "xgboost" in name else worst < 1e-14
    else:
        worst = float((np.abs(answered - numbers) / np.abs(numbers).clip(1e-3)).max())
        assert worst <= 2.5e-7 if "gamma" in name or "linear" in name else worst < 1e-12
    record_property("line", f"{name} | {form} | {worst:.1e} | {micros:.1f}")
    print(f"{name} | {form} | {worst:.1e} | {micros:.1f}")


def test_what_lightgbm_takes_for_zero(fitted: _Rows, tmp_path: Path) -> None:
    """LightGBM reads a number of 1e-35 or less as 0, and splits beside it. Seen red with such numbers compared as they are."""
    x = np.where(fitted.x > 0, fitted.x, np.where(fitted.x < -0.5, fitted.x, 0.0))
    model = lightgbm.LGBMClassifier(**_L).fit(x, (x[:, 0] == 0) ^ (x[:, 3] > 0))
    formats.save(model, tmp_path / "p", sample=x, format="onnx")
    tiny = float(np.float32(1e-35))
    values = [
        v for t in (tiny, 1e-35, 1e-36, 1.1e-35) for v in (t, -t, np.nextafter(t, 1), np.nextafter(-t, -1))
    ]
    rows = np.repeat(x[:50], len(values), axis=0)
    for column in range(x.shape[1]):
        rows[:, column] = np.random.default_rng(column).choice(values, len(rows))
    stored = formats.load(tmp_path / "p").predict_proba(rows)
    np.testing.assert_allclose(stored, model.predict_proba(rows), atol=1e-14, rtol=0)


def _ask(model: Any, rows: Any) -> tuple[Any, Any]:
    """The labels, and probabilities by class or numbers, from the library itself."""
    if isinstance(model, catboost.CatBoost) and type(model) is catboost.CatBoost:
        numbers = model.predict(rows, prediction_type="Probability")
        return numbers.argmax(axis=1), numbers
    if isinstance(model, lightgbm.Booster | xgboost.Booster):
        matrix = rows if isinstance(model, lightgbm.Booster) else xgboost.DMatrix(rows)
        if isinstance(model, xgboost.Booster) and "softmax" in model.save_config():
            raw = model.predict(matrix, output_margin=True).astype(np.float64)
            each = np.exp(raw - raw.max(axis=1, keepdims=True))
            return model.predict(matrix).astype(int), each / each.sum(axis=1, keepdims=True)
        positive = model.predict(matrix)
        return (positive > 0.5).astype(int), np.column_stack([1 - positive, positive])
    labels = np.ravel(model.predict(rows))
    return labels, model.predict_proba(rows) if hasattr(model, "classes_") and len(model.classes_) else labels
