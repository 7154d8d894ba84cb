"""The candidates: families of scikit-learn, and LightGBM where it is installed, with spaces of params, each behind the same preparation of columns.

Families are listed from simple to complex: of equals, the first is chosen. Every one of them can be stored as data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from mainspring.errors import InvalidInput, MissingExtra, near
from mainspring.records.models import Task
from mainspring.training.search import Dimension, OneOf, Real, Whole

DUMMY = "dummy"

SPACES: Mapping[str, tuple[Mapping[str, Dimension], Mapping[str, Any]]] = {
    "linear": ({"strength": Real(0.001, 1000.0, log=True)}, {"strength": 1.0}),
    "forest": (
        {
            "kind": OneOf(("random", "extra")),
            "min_samples_leaf": Whole(1, 20, log=True),
            "max_features": Real(0.2, 1.0),
        },
        {"kind": "random", "min_samples_leaf": 3, "max_features": 0.5},
    ),
    "boosting": (
        {
            "learning_rate": Real(0.03, 0.3, log=True),
            "max_iter": Whole(40, 200, log=True),
            "max_leaf_nodes": Whole(4, 31, log=True),
            "min_samples_leaf": Whole(5, 40, log=True),
            "l2_regularization": Real(0.001, 10.0, log=True),
        },
        {"learning_rate": 0.1, "max_iter": 60, "max_leaf_nodes": 15, "min_samples_leaf": 20, "l2_regularization": 1.0},
    ),
    "lgbm": (
        {
            "learning_rate": Real(0.03, 0.3, log=True),
            "n_estimators": Whole(40, 300, log=True),
            "num_leaves": Whole(4, 63, log=True),
            "min_child_samples": Whole(5, 40, log=True),
            "reg_lambda": Real(0.001, 10.0, log=True),
            "colsample_bytree": Real(0.4, 1.0),
        },
        {
            "learning_rate": 0.1, "n_estimators": 80, "num_leaves": 15, "min_child_samples": 20, "reg_lambda": 1.0,
            "colsample_bytree": 1.0,
        },
    ),
    "knn": ({"n_neighbors": Whole(3, 60, log=True)}, {"n_neighbors": 15}),
    "mlp": (
        {
            "width": OneOf((16, 32, 64)),
            "alpha": Real(0.0001, 1.0, log=True),
            "learning_rate_init": Real(0.001, 0.01, log=True),
        },
        {"width": 32, "alpha": 0.01, "learning_rate_init": 0.003},
    ),
}  # fmt: skip
"""By family: the space and the point that is tried first. ``strength`` is how much a linear model is held back."""

LIBRARIES = {"lgbm": "lightgbm.sklearn"}
"""Where the estimators are of a family that is tried only where it is installed (extra ``boosting``)."""

MOST_ROWS = {"knn": 20_000}
"""Training rows above which a family is not tried: a model of neighbours carries them all with it."""


@dataclass(frozen=True)
class Candidate:
    """A family with params. ``name`` is unique in a search; ``number`` is the order in which they were proposed."""

    name: str
    family: str
    params: Mapping[str, Any]
    number: int

    @property
    def rank(self) -> int:
        """The position of its family, from simple (0) to complex."""
        return list(SPACES).index(self.family) if self.family in SPACES else -1


def propose(count: int, *, seed: int, families: Sequence[str] | None = None) -> list[Candidate]:
    """The dummy, each family's own start, then points at random in turn: ``count`` without the dummy."""
    chosen = [f for f in SPACES if (_is_installed(f) if families is None else f in families)]
    for family in families or ():
        if family not in SPACES:
            raise InvalidInput("no such family", value=family, next_step=near(family, SPACES, what="family"))
        if not _is_installed(family):
            raise MissingExtra.for_library(LIBRARIES[family].partition(".")[0], extra="boosting")
    if count < 1:
        raise InvalidInput("a search needs at least one trial", value=count, place="max_trials")
    rng = np.random.default_rng(seed)
    candidates = [Candidate(DUMMY, DUMMY, {}, 0)]
    for number in range(count):
        family = chosen[number % len(chosen)]
        space, default = SPACES[family]
        turn = number // len(chosen)
        params = dict(default) if turn == 0 else {name: _draw(d, rng) for name, d in space.items()}
        candidates.append(Candidate(f"{family}-{turn + 1}", family, params, number + 1))
    return candidates


def _is_installed(family: str) -> bool:
    return family not in LIBRARIES or find_spec(LIBRARIES[family].partition(".")[0]) is not None


def _draw(dimension: Dimension, rng: np.random.Generator) -> Any:
    if isinstance(dimension, OneOf):
        return dimension.options[int(rng.integers(len(dimension.options)))]
    low, high = float(dimension.low), float(dimension.high)
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if dimension.log else rng.uniform(low, high)
    # Few digits: they are read by people, in the leaderboard and in the script.
    return round(value) if isinstance(dimension, Whole) else float(f"{value:.3g}")


def build(
    candidate: Candidate,
    *,
    task: Task,
    numbers: Sequence[str],
    texts: Sequence[str],
    dates: Mapping[str, Sequence[str]],
    seed: int,
) -> Any:
    """The unfitted pipeline of a candidate. Raises :class:`MissingExtra` without scikit-learn."""
    try:
        from sklearn.compose import ColumnTransformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler
    except ImportError:
        raise MissingExtra.for_library("scikit-learn", extra="ml") from None
    from mainspring.models.formats.dates import DateParts

    # "Is missing" is a column of its own wherever training had gaps.
    ready: list[tuple[str, Any]] = [("fill", SimpleImputer(strategy="median", add_indicator=True))]
    if candidate.family in {"linear", "knn", "mlp"}:
        ready.append(("scale", StandardScaler()))
    steps: list[tuple[str, Any, list[str]]] = []
    if numbers:
        steps.append(("numbers", Pipeline(ready) if len(ready) > 1 else ready[0][1], list(numbers)))
    for number, parts in enumerate(dict.fromkeys(tuple(p) for p in dates.values()), start=1):
        named = [name for name, own in dates.items() if tuple(own) == parts]
        taken = Pipeline([("parts", DateParts(list(parts))), *_clone_steps(ready)])
        steps.append((f"dates{number}", taken, named))
    if texts:
        # A text that training had not seen is none of the known ones.
        known = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        steps.append(("texts", known, list(texts)))
    return Pipeline([("columns", ColumnTransformer(steps)), ("model", _make_model(candidate, task, seed))])


def _clone_steps(steps: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The same steps, unfitted and by themselves."""
    from sklearn.base import clone

    return [(name, clone(step)) for name, step in steps]


def _make_model(candidate: Candidate, task: Task, seed: int) -> Any:
    numbers = task is Task.REGRESSION
    return _MODELS[candidate.family](dict(candidate.params), numbers, seed)


def _make_dummy(_params: dict[str, Any], numbers: bool, _seed: int) -> Any:
    from sklearn.dummy import DummyClassifier, DummyRegressor

    return DummyRegressor() if numbers else DummyClassifier(strategy="prior")


def _make_linear(params: dict[str, Any], numbers: bool, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    strength = params["strength"]
    if numbers:
        return Ridge(alpha=strength)
    return LogisticRegression(C=float(f"{1 / strength:.3g}"), max_iter=1000, random_state=seed)


def _make_forest(params: dict[str, Any], numbers: bool, seed: int) -> Any:
    from sklearn import ensemble

    random = params.pop("kind") == "random"
    if numbers:
        kind = ensemble.RandomForestRegressor if random else ensemble.ExtraTreesRegressor
    else:
        kind = ensemble.RandomForestClassifier if random else ensemble.ExtraTreesClassifier
    return kind(n_estimators=100, random_state=seed, **params)


def _make_boosting(params: dict[str, Any], numbers: bool, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if numbers else HistGradientBoostingClassifier
    return kind(early_stopping=False, random_state=seed, **params)


def _make_lightgbm(params: dict[str, Any], numbers: bool, seed: int) -> Any:
    import lightgbm

    kind = lightgbm.LGBMRegressor if numbers else lightgbm.LGBMClassifier
    # One thread, and columns one after the other: the script must repeat it exactly.
    return kind(random_state=seed, n_jobs=1, deterministic=True, force_col_wise=True, verbose=-1, **params)


def _make_knn(params: dict[str, Any], numbers: bool, _seed: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    kind = KNeighborsRegressor if numbers else KNeighborsClassifier
    return kind(algorithm="brute", **params)  # trees of neighbours cannot be stored as data


def _make_mlp(params: dict[str, Any], numbers: bool, seed: int) -> Any:
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.preprocessing import StandardScaler

    options = {"hidden_layer_sizes": (params.pop("width"),), "max_iter": 200, "random_state": seed, **params}
    if not numbers:
        return MLPClassifier(**options)
    return TransformedTargetRegressor(regressor=MLPRegressor(**options), transformer=StandardScaler())


_MODELS = {DUMMY: _make_dummy, "linear": _make_linear, "forest": _make_forest, "boosting": _make_boosting, "lgbm": _make_lightgbm, "knn": _make_knn, "mlp": _make_mlp}  # fmt: skip
