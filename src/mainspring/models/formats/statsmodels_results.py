"""Fitted results of statsmodels by their parameters: linear and generalised linear models, logit and multinomial logit.

``results.predict`` is what the stored model is compared with; what is stored are the coefficients of the columns, the constant and the link.
The library itself is never imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from mainspring.errors import InvalidInput
from mainspring.models.formats.answers import expand_binary

_IDENTITY = ("OLS", "WLS", "GLS", "GLSAR", "RLM")
_LINKS = {
    "Identity": "identity",
    "Log": "log",
    "Logit": "logit",
    "InversePower": "inverse",
    "CLogLog": "cloglog",
}


def is_results(value: Any) -> bool:
    """Whether this is a fitted result of statsmodels."""
    return (
        type(value).__module__.startswith("statsmodels.")
        and hasattr(value, "params")
        and hasattr(value, "model")
    )


class StatsModel(BaseEstimator):  # type: ignore[misc]
    """A result with the interface of scikit-learn: ``coef`` ``(columns, answers)``, ``intercept`` ``(answers,)`` and ``link``."""

    adapted = True

    def __init__(self, results: Any, names: Sequence[str]) -> None:
        self.results = results
        model = results.model
        self.link = _link_of(model)
        _refuse_offsets(model)
        own = [str(name) for name in model.exog_names]
        params = np.asarray(results.params, dtype=np.float64)
        params = params[: len(own)].reshape(len(own), -1)
        self._constant = _constant_of(model, own, names)
        kept = [i for i in range(len(own)) if i != self._constant]
        if hasattr(model.data.orig_exog, "columns") or hasattr(model, "formula"):
            self.feature_names_in_ = np.array([own[i] for i in kept], dtype=object)
            _refuse_computed(self.feature_names_in_, names)
        self.n_features_in_ = len(kept)
        self._value = (
            1.0 if self._constant is None or model.exog is None else float(model.exog[0, self._constant])
        )
        self.coef = params[kept]
        self.intercept = (
            np.zeros(params.shape[1]) if self._constant is None else params[self._constant] * self._value
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _ask(self, features: Any) -> Any:
        if hasattr(self.results.model, "formula"):
            return np.asarray(self.results.predict(features), dtype=np.float64)
        design = np.asarray(features, dtype=np.float64)
        if self._constant is not None:
            design = np.insert(design, self._constant, self._value, axis=1)
        return np.asarray(self.results.predict(design), dtype=np.float64)


class StatsRegressor(RegressorMixin, StatsModel):  # type: ignore[misc]
    """A result that answers a number."""

    def predict(self, features: Any) -> Any:
        """The numbers."""
        return self._ask(features)


class StatsClassifier(ClassifierMixin, StatsModel):  # type: ignore[misc]
    """A result that answers classes."""

    def __init__(self, results: Any, names: Sequence[str]) -> None:
        super().__init__(results, names)
        self.classes_ = _classes_of(results.model)

    def predict(self, features: Any) -> Any:
        """The most probable class; statsmodels itself has no labels."""
        return self.classes_[np.argmax(self.predict_proba(features), axis=1)]

    def predict_proba(self, features: Any) -> Any:
        """The probabilities of the classes."""
        return expand_binary(self._ask(features))


def adapt_results(results: Any, names: Sequence[str]) -> StatsModel:
    """A result with the interface of scikit-learn. ``names``: of the sample's columns."""
    model = results.model
    kind = type(model).__name__
    binomial = kind == "Logit" or (kind == "GLM" and type(model.family).__name__ == "Binomial")
    codes = binomial and np.isin(np.asarray(model.endog), [0, 1]).all()
    return StatsClassifier(results, names) if codes or kind == "MNLogit" else StatsRegressor(results, names)


def _link_of(model: Any) -> str:
    kind = type(model).__name__
    if kind in _IDENTITY:
        return "identity"
    if kind in ("Logit", "MNLogit", "Poisson"):
        return {"Logit": "logit", "MNLogit": "softmax", "Poisson": "log"}[kind]
    link = type(model.family.link).__name__ if kind == "GLM" else ""
    if link not in _LINKS:
        raise InvalidInput(
            f"statsmodels' {kind}{f' with the link {link}' if link else ''} is not stored by its parameters",
            value=kind,
            next_step="Fit OLS, WLS, GLS, RLM, Logit, MNLogit, Poisson, or GLM with a link of "
            + ", ".join(_LINKS)
            + ".",
        )
    return _LINKS[link]


def _refuse_offsets(model: Any) -> None:
    for name in ("offset", "exposure"):
        values = getattr(model, name, None)
        if values is not None and np.any(np.asarray(values) != 0):
            raise InvalidInput(
                f"the model has an {name}, which is no column of its design",
                value=name,
                next_step="Fit it without, and add the offset to the answer yourself.",
            )


def _constant_of(model: Any, own: Sequence[str], names: Sequence[str]) -> int | None:
    """The position of the constant, if the rows do not have it as a column."""
    at = getattr(model.data, "const_idx", None)
    if at is None or (len(names) >= len(own) and not hasattr(model.data.orig_exog, "columns")):
        return None
    return None if own[at] in names else int(at)


def _refuse_computed(columns: Any, names: Sequence[str]) -> None:
    computed = [str(name) for name in columns if name not in names]
    if computed:
        raise InvalidInput(
            "the design has columns that the rows do not have; a formula is not stored, only its coefficients",
            value=", ".join(computed)[:200],
            next_step="Compute these columns first and give them in the sample, or use a formula of plain columns.",
        )


def _classes_of(model: Any) -> Any:
    if type(model).__name__ != "MNLogit":
        return np.array([0, 1])
    given = np.unique(np.asarray(model.data.orig_endog))
    return given if len(given) == int(model.J) else np.arange(int(model.J))
