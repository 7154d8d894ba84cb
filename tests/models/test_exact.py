"""What is stored answers as the estimator does, on rows that nobody has seen and the signature admits.

One table of estimators, each fitted on an array and on a DataFrame, with and without missing values. The sample never holds a
null; the fresh rows do wherever the signature says so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.models import formats
from mainspring.records.models import Column, Signature, Task
from mainspring.records.scores import classes_of

NAMES = ["bill length (mm)", "2nd", "größe", "numeric"]
ROWS, FRESH = 260, 400


def _data(rows: int, seed: int, *, nan: bool) -> Any:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4)) * [1.0, 30.0, 0.01, 1.0]
    x[:, 3] = rng.integers(0, 6, rows)
    if nan:
        x[:, :3][rng.random((rows, 3)) < 0.15] = np.nan
    return x


def _target(x: Any, task: str) -> Any:
    known = np.nan_to_num(x)
    score = known[:, 0] + known[:, 1] / 30 + (known[:, 3] % 2) - 0.5
    return {
        "binary": np.where(score > 0, "yes", "no"),
        "multiclass": np.digitize(score, [-0.7, 0.7]),
        "regression": 1000 + score * 10,
    }[task]


def _classifiers() -> dict[str, Callable[[], Any]]:
    from sklearn import calibration, discriminant_analysis, ensemble, linear_model, neural_network, svm, tree

    logistic = linear_model.LogisticRegression
    return {
        "logistic": lambda: logistic(max_iter=300),
        "sgd": lambda: linear_model.SGDClassifier(loss="log_loss", random_state=0),
        "lda": discriminant_analysis.LinearDiscriminantAnalysis,
        "mlp": lambda: neural_network.MLPClassifier((5,), max_iter=60, random_state=0),
        "tree": lambda: tree.DecisionTreeClassifier(random_state=0),
        "forest": lambda: ensemble.RandomForestClassifier(12, random_state=0),
        "extra_trees": lambda: ensemble.ExtraTreesClassifier(12, random_state=0),
        "gb": lambda: ensemble.GradientBoostingClassifier(n_estimators=8, random_state=0),
        "histgb": lambda: ensemble.HistGradientBoostingClassifier(max_iter=8, min_samples_leaf=5),
        "histgb_monotone": lambda: ensemble.HistGradientBoostingClassifier(max_iter=8, max_depth=3, l2_regularization=1.0),
        "histgb_categories": lambda: ensemble.HistGradientBoostingClassifier(
            max_iter=8, min_samples_leaf=5, categorical_features=[3]
        ),
        "bagging": lambda: ensemble.BaggingClassifier(tree.DecisionTreeClassifier(), 5, max_features=3, random_state=0),
        "voting": lambda: ensemble.VotingClassifier(
            [("a", logistic(max_iter=300)), ("b", ensemble.RandomForestClassifier(5, random_state=0))],
            voting="soft", weights=[1, 3],
        ),
        "stacking": lambda: ensemble.StackingClassifier(
            [("a", logistic(max_iter=300)), ("b", ensemble.HistGradientBoostingClassifier(max_iter=4))], cv=2
        ),
        "calibrated_isotonic": lambda: calibration.CalibratedClassifierCV(
            ensemble.RandomForestClassifier(5, random_state=0), method="isotonic", cv=2
        ),
        "calibrated_margin": lambda: calibration.CalibratedClassifierCV(svm.LinearSVC(random_state=0), cv=2),
    }  # fmt: skip


def _regressors() -> dict[str, Callable[[], Any]]:
    from sklearn import compose, ensemble, linear_model, neural_network, tree
    from sklearn.preprocessing import StandardScaler

    return {
        "linear": linear_model.LinearRegression,
        "lasso": lambda: linear_model.Lasso(0.1),
        "gamma": lambda: linear_model.GammaRegressor(max_iter=1000),
        "mlp": lambda: neural_network.MLPRegressor(hidden_layer_sizes=(5,), max_iter=60, random_state=0),
        "tree": lambda: tree.DecisionTreeRegressor(random_state=0),
        "forest": lambda: ensemble.RandomForestRegressor(12, random_state=0),
        "gb": lambda: ensemble.GradientBoostingRegressor(n_estimators=10, loss="huber", random_state=0),
        "histgb": lambda: ensemble.HistGradientBoostingRegressor(max_iter=10, min_samples_leaf=5),
        "histgb_poisson": lambda: ensemble.HistGradientBoostingRegressor(max_iter=10, loss="poisson"),
        "voting": lambda: ensemble.VotingRegressor(
            [("a", linear_model.Ridge()), ("b", ensemble.RandomForestRegressor(4, random_state=0))]
        ),
        "scaled_target": lambda: compose.TransformedTargetRegressor(linear_model.Ridge(), transformer=StandardScaler()),
        "log_target": lambda: compose.TransformedTargetRegressor(
            linear_model.Ridge(), func=np.log1p, inverse_func=np.expm1
        ),
    }  # fmt: skip


def _steps() -> dict[str, Callable[[], Any]]:
    """Preprocessing in front of boosted trees, which show every changed bit, or of a logistic regression."""
    from sklearn import preprocessing as pre
    from sklearn.decomposition import PCA
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_selection import SelectKBest
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    def boosted(*steps: Any) -> Any:
        return make_pipeline(*steps, HistGradientBoostingClassifier(max_iter=8, min_samples_leaf=5))

    def linear(*steps: Any) -> Any:
        return make_pipeline(*steps, pre.StandardScaler(), LogisticRegression(max_iter=300))

    return {
        "standard": lambda: boosted(pre.StandardScaler()),
        "robust": lambda: boosted(pre.RobustScaler()),
        "min_max": lambda: boosted(pre.MinMaxScaler(clip=True)),
        "max_abs": lambda: boosted(pre.MaxAbsScaler()),
        "imputed": lambda: boosted(SimpleImputer(strategy="median", add_indicator=True)),
        "bins": lambda: linear(SimpleImputer(), pre.KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf")),
        "polynomial": lambda: linear(SimpleImputer(), pre.PolynomialFeatures(3)),
        "pca": lambda: linear(SimpleImputer(), pre.StandardScaler(), PCA(2)),
        "chosen": lambda: linear(SimpleImputer(), SelectKBest(k=2)),
        "function": lambda: linear(SimpleImputer(), pre.FunctionTransformer(np.abs)),
        "union": lambda: linear(SimpleImputer(), make_union(pre.Normalizer(), pre.Binarizer())),
    }  # fmt: skip


TAKE_NAN = frozenset({
    "tree", "forest", "extra_trees", "histgb", "histgb_monotone", "histgb_categories", "histgb_poisson", "bagging",
    "calibrated_isotonic", "standard", "robust", "min_max", "max_abs", "imputed", "bins", "polynomial", "pca", "chosen", "function",
    "union",
})  # fmt: skip


def _cases() -> list[Any]:
    found = [
        ("binary", n)
        for n in (
            "logistic",
            "sgd",
            "lda",
            "mlp",
            "tree",
            "forest",
            "extra_trees",
            "gb",
            "histgb",
            "histgb_monotone",
            "histgb_categories",
            "bagging",
            "voting",
            "stacking",
            "calibrated_isotonic",
            "calibrated_margin",
        )
    ]
    found += [
        ("multiclass", n)
        for n in (
            "logistic",
            "forest",
            "gb",
            "histgb",
            "histgb_categories",
            "stacking",
            "calibrated_isotonic",
            "calibrated_margin",
        )
    ]
    found += [
        ("regression", n)
        for n in (
            "linear",
            "lasso",
            "gamma",
            "mlp",
            "tree",
            "forest",
            "gb",
            "histgb",
            "histgb_poisson",
            "voting",
            "scaled_target",
            "log_target",
        )
    ]
    found += [
        ("binary", f"after {n}")
        for n in (
            "standard",
            "robust",
            "min_max",
            "max_abs",
            "imputed",
            "bins",
            "polynomial",
            "pca",
            "chosen",
            "function",
            "union",
        )
    ]
    return found  # fmt: skip


def _estimator(task: str, name: str) -> Any:
    if name.startswith("after "):
        return _steps()[name.removeprefix("after ")]()
    return (_regressors() if task == "regression" else _classifiers())[name]()


def _fitted(estimator: Any, x: Any, y: Any, *, named: bool) -> Any:
    import warnings

    import pandas as pd

    with warnings.catch_warnings():  # early stops are wanted: the tests are about what is stored
        warnings.simplefilter("ignore")
        return estimator.fit(pd.DataFrame(x, columns=NAMES) if named else x, y)


@pytest.mark.parametrize(
    ("task", "name", "nan", "named"),
    [
        pytest.param(
            task,
            name,
            nan,
            named,
            id=f"{task}-{name}-{'NaN' if nan else 'whole'}-{'DataFrame' if named else 'array'}",
        )
        for at, (task, name) in enumerate(_cases())
        for nan in (False, True)
        for named in (False, True)
        # Whole rows and rows with NaN take turns between array and DataFrame; two families go all four ways.
        if (not nan or name.removeprefix("after ") in TAKE_NAN)
        and (named == (nan ^ (at % 2 == 0)) or (task == "binary" and name in ("forest", "histgb")))
    ],
)
def test_fresh_rows_are_answered_as_by_the_estimator(
    task: str, name: str, nan: bool, named: bool, tmp_path: Path
) -> None:
    """Seen red with tree thresholds rounded to float32 in ``Trees.add``: boosted trees and forests found no exact form any more."""
    import pandas as pd

    x = _data(ROWS, 1, nan=nan)
    estimator = _fitted(_estimator(task, name), x, _target(x, task), named=named)
    whole = x[~np.isnan(x).any(axis=1)][:50]
    signature = Signature(
        inputs=[Column(name=n, type="float64", nullable=nan and i < 3) for i, n in enumerate(NAMES)], task=Task(task)
    )  # fmt: skip
    package = formats.save(
        estimator, tmp_path / "p", signature=signature, sample=dict(zip(NAMES, whole.T, strict=True))
    )
    assert package.notes["onnx_form"] == "onnx (float64, exact)"
    loaded = formats.load(tmp_path / "p")
    fresh = _data(FRESH, 2, nan=nan)
    given = pd.DataFrame(fresh, columns=NAMES) if named else fresh
    scores = loaded.compute_scores(dict(zip(NAMES, fresh.T, strict=True)))
    if task == "regression":
        np.testing.assert_allclose(scores, estimator.predict(given), rtol=0, atol=1e-9)
        return
    expected = estimator.predict_proba(given)
    np.testing.assert_allclose(scores, expected[:, 1] if task == "binary" else expected, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(estimator.classes_[classes_of(scores)], estimator.predict(given))
    one = [float(v) for v in fresh[0]]
    scorer = loaded.predictor.row_scorer()  # type: ignore[attr-defined]
    np.testing.assert_allclose(scorer(one), scores[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("number", "text"),
    [("a", "größe"), ("sepal length (cm)", "b"), ("bill-length", "b"), ("1st", "b"), ("x.y", "x_y"), ("numeric", "text"),
     ("variable", "label"), ("scores", "t1"), ("c1", "ñ ")],
)  # fmt: skip
def test_column_names_are_nobodys_business(number: str, text: str, tmp_path: Path) -> None:
    """Seen red in 0.1: the converter's cleaned names met ours."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(3)
    frame = pd.DataFrame({number: rng.normal(size=200), text: rng.choice(["u", "v", "w"], 200)})
    inputs = ColumnTransformer(
        [("n", StandardScaler(), [number]), ("t", OneHotEncoder(handle_unknown="ignore"), [text])]
    )
    estimator = make_pipeline(inputs, LogisticRegression()).fit(
        frame, frame[number] + (frame[text] == "u") > 0
    )
    package = formats.save(
        estimator, tmp_path / "p", signature=formats.infer_signature(frame, task="binary"), sample=frame[:20]
    )
    assert package.notes["onnx_form"] == "onnx (float64, exact)"
    fresh = pd.DataFrame({number: rng.normal(size=50), text: rng.choice(["u", "v", "never seen"], 50)})
    np.testing.assert_allclose(
        formats.load(tmp_path / "p").compute_scores({c: fresh[c].tolist() for c in fresh}),
        estimator.predict_proba(fresh)[:, 1], rtol=0, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["onnx", "skops"])
def test_columns_that_are_passed_through_by_name_reach_the_model(form: str, tmp_path: Path) -> None:
    """Seen red in 0.1: the estimator was handed an Arrow table, and scikit-learn raised."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    rng = np.random.default_rng(4)
    frame = pd.DataFrame(
        {"a": rng.normal(size=300), "t": rng.choice(["u", "v"], 300), "n": rng.integers(0, 9, 300)}
    )
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    inputs = ColumnTransformer([("t", encode, ["t"])], remainder="passthrough")
    estimator = make_pipeline(inputs, HistGradientBoostingClassifier(max_iter=10)).fit(
        frame, frame.a * frame.n > 0
    )
    signature = formats.infer_signature(frame, task="binary")
    if form == "skops":
        from sklearn.linear_model import LogisticRegression

        estimator = make_pipeline(inputs, LogisticRegression(max_iter=500)).fit(frame, frame.a * frame.n > 0)
    formats.save(estimator, tmp_path / "p", signature=signature, sample=frame[:30], format=form)
    np.testing.assert_allclose(
        formats.load(tmp_path / "p").compute_scores({c: frame[c].tolist() for c in frame}),
        estimator.predict_proba(frame)[:, 1], rtol=0, atol=1e-12,
    )  # fmt: skip


def test_text_through_tfidf_is_stored(tmp_path: Path) -> None:
    """Seen red in 0.1: no format took it."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    frame = pd.DataFrame({"review": ["good thing", "bad thing", "awfully good", "so bad"] * 30})
    estimator = make_pipeline(ColumnTransformer([("t", TfidfVectorizer(), "review")]), LogisticRegression())
    estimator.fit(frame, frame.review.str.contains("good"))
    package = formats.save(
        estimator, tmp_path / "p", signature=formats.infer_signature(frame, task="binary"), sample=frame[:8]
    )
    assert package.format == "skops"
    fresh = ["good", "", "words nobody knows", "thing " * 1000]
    np.testing.assert_array_equal(
        formats.load(tmp_path / "p").compute_scores({"review": fresh}),
        estimator.predict_proba(pd.DataFrame({"review": fresh}))[:, 1],
    )


def test_trees_of_hundreds_repeat_on_twenty_thousand_rows(tmp_path: Path) -> None:
    """Bit by bit: the same comparisons and the same sums in the same order."""
    from sklearn.ensemble import RandomForestClassifier

    x = _data(1500, 5, nan=True)
    forest = RandomForestClassifier(100, max_depth=9, random_state=0).fit(x, _target(x, "binary"))
    signature = Signature(
        inputs=[Column(name=n, type="float64", nullable=True) for n in NAMES], task=Task.BINARY
    )
    formats.save(forest, tmp_path / "p", signature=signature, sample=dict(zip(NAMES, x[:50].T, strict=True)))
    fresh = _data(20_000, 6, nan=True)
    np.testing.assert_array_equal(
        formats.load(tmp_path / "p").compute_scores(dict(zip(NAMES, fresh.T, strict=True))),
        forest.predict_proba(fresh)[:, 1],
    )
