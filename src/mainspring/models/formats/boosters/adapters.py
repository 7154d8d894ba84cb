"""A fitted booster with the interface that saving asks for, that of scikit-learn: the names of its columns, classes and probabilities.

Saved by itself, a booster is asked through this; inside of a pipeline scikit-learn asks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from mainspring.errors import InvalidInput
from mainspring.models.formats.answers import expand_binary
from mainspring.models.formats.boosters import library_of
from mainspring.models.formats.columns import is_null
from mainspring.records.models import Signature


def module_of(model: Any) -> Any:
    """The module that adapts the library of a booster."""
    return import_module(f"mainspring.models.formats.boosters.{library_of(model)}_model")


class Adapted(BaseEstimator):  # type: ignore[misc]
    """See the module. ``model`` is of the library's interface of scikit-learn's kind, or the bare booster."""

    adapted = True

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.model = model
        self._own = module_of(model).feature_names(model)
        if self._own is not None:
            # LightGBM writes a name with other characters than it was given.
            self.feature_names_in_ = np.array(_same_columns(names, self._own) or self._own, dtype=object)
        self.categorical: list[int] = []
        self.texts: dict[int, list[str]] = {}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def bind(self, signature: Signature, tables: Sequence[Mapping[str, Any]]) -> None:
        """Note which columns are categorical, and the texts that they have in these rows."""
        names = [str(n) for n in getattr(self, "feature_names_in_", [c.name for c in signature.inputs])]
        columns = {c.name: c for c in signature.inputs}
        self.categorical = [i for i, name in enumerate(names) if columns[name].categories]
        indices: list[int] = getattr(self.model, "get_cat_feature_indices", list)()
        self.texts = {i: _distinct(table[names[i]] for table in tables if names[i] in table) for i in indices}

    def dump(self) -> bytes:
        """The model in its library's own form."""
        adapter, library = module_of(self.model), library_of(self.model)
        if library == "lightgbm":
            data: bytes = adapter.dump(self.model, self.categorical)
        elif library == "catboost":
            data = adapter.dump(self.model, self.texts)
        elif adapter.missing_value(self.model) is not None:
            raise InvalidInput(
                "a number that means null is not in the form of the library", value=self.model.missing
            )
        else:
            data = adapter.dump(self.model)
        return data

    def predict(self, features: Any) -> Any:
        """The labels, or the numbers."""
        if hasattr(self.model, "classes_") and not _is_bare(self.model):
            return np.ravel(self.model.predict(self._named(features)))
        return np.ravel(self._ask(features))

    def _ask(self, features: Any) -> Any:
        if _is_bare(self.model):
            return module_of(self.model).predict(self.model, self._named(features))
        return self.model.predict(self._named(features))

    def _named(self, features: Any) -> Any:
        """The features under the names that the library gave the columns."""
        if self._own is None or not hasattr(features, "columns") or list(features.columns) == self._own:
            return features
        return features.set_axis(self._own, axis=1) if hasattr(features, "set_axis") else features


class AdaptedRegressor(RegressorMixin, Adapted):  # type: ignore[misc]
    """A booster that answers a number."""


class AdaptedClassifier(ClassifierMixin, Adapted):  # type: ignore[misc]
    """A booster that answers classes."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__(model, names)
        bare = _is_bare(model)
        own = getattr(model, "classes_", None)
        self.classes_ = np.asarray(own) if own is not None and len(own) else np.arange(_count_classes(model))
        self._bare = bare

    def predict(self, features: Any) -> Any:
        """The labels."""
        if not self._bare:
            return super().predict(features)
        return self.classes_[np.argmax(self.predict_proba(features), axis=1)]

    def predict_proba(self, features: Any) -> Any:
        """The probabilities of the classes."""
        if not self._bare:
            return self.model.predict_proba(self._named(features))
        return expand_binary(np.asarray(self._ask(features)))


def adapt_booster(model: Any, names: Sequence[str]) -> Adapted:
    """A booster that is saved by itself, with the interface of scikit-learn. ``names``: of the sample's columns."""
    kind = AdaptedClassifier if _count_classes(model) else AdaptedRegressor
    return kind(model, names)


def _is_bare(model: Any) -> bool:
    return type(model).__name__ in ("Booster", "CatBoost")


def _count_classes(model: Any) -> int:
    if _is_bare(model):
        count: int = module_of(model).classes_of(model)
        return count
    return len(model.classes_) if "Classifier" in type(model).__name__ else 0


def _same_columns(names: Sequence[str], own: Sequence[str]) -> list[str] | None:
    """The names of the sample, where LightGBM's differ from them by characters that it replaces."""
    if set(own) <= set(names):
        return None
    by_own = {name.replace(" ", "_"): name for name in names}
    return [by_own[name] for name in own] if all(name in by_own for name in own) else None


def _distinct(columns: Any) -> list[str]:
    seen: dict[str, None] = {}
    for values in columns:
        seen |= {str(v): None for v in np.asarray(values, dtype=object).tolist() if not is_null(v)}
    return list(seen)
