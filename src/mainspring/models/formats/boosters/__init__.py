"""Models of LightGBM, XGBoost and CatBoost: as ONNX where that repeats them (:mod:`mainspring.models.formats.onnx.boosters`), else in a
form of the library's own, checked before the library sees it.

A library is imported only by the module that adapts it (``lightgbm_model``, ``xgboost_model``, ``catboost_model``), and only to make
or to open a package.
"""

from __future__ import annotations

from typing import Any

_CLASSES = {
    "lightgbm.sklearn": ("lightgbm", {"LGBMClassifier", "LGBMRegressor", "LGBMRanker"}),
    "lightgbm.basic": ("lightgbm", {"Booster"}),
    "xgboost.sklearn": (
        "xgboost",
        {"XGBClassifier", "XGBRegressor", "XGBRanker", "XGBRFClassifier", "XGBRFRegressor"},
    ),
    "xgboost.core": ("xgboost", {"Booster"}),
    "catboost.core": ("catboost", {"CatBoostClassifier", "CatBoostRegressor", "CatBoostRanker", "CatBoost"}),
}


def library_of(model: Any) -> str | None:
    """The library of a model: ``lightgbm``, ``xgboost`` or ``catboost``; None for any other, subclasses too, which may answer anything."""
    library, names = _CLASSES.get(type(model).__module__, ("", set()))
    return library if type(model).__qualname__ in names else None
