"""One fitted example of every common scikit-learn estimator, for the test that saves them and for the page that lists them.

Each case is a name and a function that returns a fitted estimator with the rows it was trained on and rows that it has not seen. The
fresh rows hold nulls and unknown categories where the estimator takes them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

NAMES = ["sepal length (cm)", "1st", "x.y", "label"]
TRAIN = 240


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator, its training rows, and rows that it has not seen."""

    estimator: Any
    rows: Any
    fresh: Any


Case = Callable[[int], Fitted]
"""Given the number of fresh rows."""


def numbers(rows: int, seed: int, *, nan: bool = False, positive: bool = False) -> Any:
    """A DataFrame of four numbers of different size; the last one is a whole number from 0 to 5."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4)) * [1.0, 3.0, 0.5, 1.0]
    if positive:
        x = np.abs(x)
    x[:, 3] = rng.integers(0, 6, rows)
    if nan:
        x[:, :3][rng.random((rows, 3)) < 0.15] = np.nan
    return pd.DataFrame(x, columns=NAMES)


def mixed(rows: int, seed: int, *, unseen: bool = False) -> Any:
    """A DataFrame of numbers with nulls, whole numbers, truth values, texts with nulls and categories; ``unseen``: also others."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    age = rng.normal(40, 12, rows).round(2)
    age[rng.random(rows) < 0.1] = np.nan
    plans = ["basic", "plus", "pro"] + (["never seen"] if unseen else [])
    plan = rng.choice(plans, rows).astype(object)
    plan[rng.random(rows) < 0.08] = np.nan
    color = rng.choice(["red", "green", "blue"], rows)
    return pd.DataFrame(
        {
            "age": age,
            "visits": rng.integers(0, 20, rows),
            "member": rng.random(rows) < 0.4,
            "plan": plan,
            "text": rng.choice(["a", "b", "c"], rows),
            "color": pd.Categorical(color, categories=["red", "green", "blue"]),
        }
    )


def reviews(rows: int, seed: int) -> Any:
    """A DataFrame with a column of short texts."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    words = ["good", "bad", "fine", "Slow", "fast", "don't", "größe", "a", "42"]
    return pd.DataFrame({"review": [" ".join(rng.choice(words, rng.integers(1, 8))) for _ in range(rows)]})


def target(rows: Any, task: str) -> Any:
    """What the estimators learn: classes, a number, or two numbers."""
    x = np.nan_to_num(np.asarray(rows, dtype=np.float64))
    score = x[:, 0] + x[:, 1] / 3 + (x[:, 3] % 2) - 0.5 + np.random.default_rng(5).normal(size=len(x)) / 3
    if task == "binary":
        return np.where(score > 0, "yes", "no")
    if task == "codes":
        return (score > 0).astype(int)
    if task == "multiclass":
        return np.digitize(score, [-0.7, 0.7]) + 5
    if task == "positive":
        return np.exp(score / 2)
    if task == "several":
        return np.column_stack([score * 10, x[:, 2] - score])
    if task == "labels":
        return np.column_stack([score > 0, x[:, 2] > 0, x[:, 3] > 2]).astype(int)
    return 100 + score * 10


def case(
    make: Callable[[], Any],
    task: str = "regression",
    *,
    nan: bool = False,
    positive: bool = False,
    on: str = "pandas",
) -> Case:
    """A case on the table of numbers."""

    def fit(fresh: int) -> Fitted:
        rows = numbers(TRAIN, 1, nan=nan, positive=positive)
        new = numbers(fresh, 2, nan=nan, positive=positive)
        y = None if task == "none" else target(rows, task)
        return Fitted(_fit(make(), _as(rows, on), y), _as(rows, on), _as(new, on))

    return fit


def case_mixed(make: Callable[[], Any], task: str = "binary", *, unseen: bool = True) -> Case:
    """A case on the table of several types."""

    def fit(fresh: int) -> Fitted:
        rows, new = mixed(TRAIN, 3), mixed(fresh, 4, unseen=unseen)
        score = rows["age"].fillna(30) / 10 + rows["member"] + (rows["plan"] == "pro") + rows["visits"] / 10
        y = {"binary": score > 5.2, "multiclass": np.digitize(score, [4.5, 6]), "regression": score * 10}[
            task
        ]
        return Fitted(_fit(make(), rows, np.asarray(y)), rows, new)

    return fit


def case_text(make: Callable[[], Any]) -> Case:
    """A case on a column of texts."""

    def fit(fresh: int) -> Fitted:
        rows = reviews(TRAIN, 5)
        y = np.where(rows["review"].str.count("good") >= rows["review"].str.count("bad"), "up", "down")
        return Fitted(_fit(make(), rows, y), rows, reviews(fresh, 6))

    return fit


def _as(rows: Any, kind: str) -> Any:
    if kind == "array":
        return rows.to_numpy()
    if kind == "polars":
        import polars as pl

        return pl.DataFrame({name: rows[name].to_numpy() for name in rows})
    return rows


def _fit(estimator: Any, rows: Any, y: Any) -> Any:
    with warnings.catch_warnings():  # early stops are wanted: this is about what is stored
        warnings.simplefilter("ignore")
        return estimator.fit(rows) if y is None else estimator.fit(rows, y)


def expected(estimator: Any, rows: Any) -> Any:
    """What the estimator itself answers: labels or numbers, of a transformer its columns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = estimator.predict(rows) if hasattr(estimator, "predict") else estimator.transform(rows)
    if hasattr(answer, "toarray"):
        answer = answer.toarray()
    return np.asarray(answer)


def cases() -> dict[str, Case]:
    """All cases by name."""
    return {
        **_linear_regressors(),
        **_linear_classifiers(),
        **_trees(),
        **_neighbours(),
        **_kernels(),
        **_probabilistic(),
        **_combined(),
        **_several(),
        **_alone(),
        **_preprocessed(),
        **_tables(),
    }


# fmt: off
# One line for each case.

def _linear_regressors() -> dict[str, Case]:
    from sklearn import cross_decomposition, dummy, isotonic, svm  # noqa: F401
    from sklearn import linear_model as lm

    plain: dict[str, Callable[[], Any]] = {
        "LinearRegression": lm.LinearRegression,
        "Ridge": lm.Ridge,
        "RidgeCV": lm.RidgeCV,
        "Lasso": lambda: lm.Lasso(0.1),
        "LassoCV": lambda: lm.LassoCV(cv=3),
        "ElasticNet": lambda: lm.ElasticNet(0.1),
        "ElasticNetCV": lambda: lm.ElasticNetCV(cv=3),
        "Lars": lm.Lars,
        "LarsCV": lambda: lm.LarsCV(cv=3),
        "LassoLars": lambda: lm.LassoLars(0.01),
        "LassoLarsCV": lambda: lm.LassoLarsCV(cv=3),
        "LassoLarsIC": lm.LassoLarsIC,
        "OrthogonalMatchingPursuit": lm.OrthogonalMatchingPursuit,
        "OrthogonalMatchingPursuitCV": lambda: lm.OrthogonalMatchingPursuitCV(cv=3),
        "BayesianRidge": lm.BayesianRidge,
        "ARDRegression": lm.ARDRegression,
        "HuberRegressor": lambda: lm.HuberRegressor(max_iter=500),
        "TheilSenRegressor": lambda: lm.TheilSenRegressor(random_state=0, max_subpopulation=200),
        "RANSACRegressor": lambda: lm.RANSACRegressor(random_state=0),
        "QuantileRegressor": lambda: lm.QuantileRegressor(quantile=0.8, alpha=0.01),
        "SGDRegressor": lambda: lm.SGDRegressor(random_state=0, max_iter=50),
        "SGDRegressor(huber)": lambda: lm.SGDRegressor(loss="huber", random_state=0, max_iter=50),
        "PassiveAggressiveRegressor": lambda: _passive(lm.PassiveAggressiveRegressor),
        "LinearSVR": lambda: svm.LinearSVR(random_state=0),
        "PLSRegression": cross_decomposition.PLSRegression,
        "DummyRegressor": lambda: dummy.DummyRegressor(strategy="median"),
    }
    positive: dict[str, Callable[[], Any]] = {
        "PoissonRegressor": lambda: lm.PoissonRegressor(max_iter=500),
        "GammaRegressor": lambda: lm.GammaRegressor(max_iter=500),
        "TweedieRegressor": lambda: lm.TweedieRegressor(power=1.5, max_iter=500),
    }
    return {
        **{name: case(make) for name, make in plain.items()},
        **{name: case(make, "positive") for name, make in positive.items()},
        "LinearRegression on an array": case(lm.LinearRegression, on="array"),
        "LinearRegression on Polars": case(lm.LinearRegression, on="polars"),
    }


def _passive(kind: Any) -> Any:
    with warnings.catch_warnings():  # deprecated, and still used
        warnings.simplefilter("ignore")
        return kind(random_state=0, max_iter=50)


def _linear_classifiers() -> dict[str, Case]:
    from sklearn import discriminant_analysis as da
    from sklearn import dummy, multiclass, svm
    from sklearn import linear_model as lm

    out: dict[str, Case] = {}
    makes: dict[str, Callable[[], Any]] = {
        "LogisticRegression": lambda: lm.LogisticRegression(max_iter=500),
        "LogisticRegressionCV": lambda: lm.LogisticRegressionCV(cv=3, max_iter=500, use_legacy_attributes=False, l1_ratios=(0.0,), scoring="neg_log_loss"),
        "RidgeClassifier": lm.RidgeClassifier,
        "RidgeClassifierCV": lm.RidgeClassifierCV,
        "Perceptron": lambda: lm.Perceptron(random_state=0),
        "PassiveAggressiveClassifier": lambda: _passive(lm.PassiveAggressiveClassifier),
        "LinearSVC": lambda: svm.LinearSVC(random_state=0),
        "LinearDiscriminantAnalysis": da.LinearDiscriminantAnalysis,
        "LinearDiscriminantAnalysis(lsqr)": lambda: da.LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        "QuadraticDiscriminantAnalysis": lambda: da.QuadraticDiscriminantAnalysis(reg_param=0.1),
        "DummyClassifier": lambda: dummy.DummyClassifier(strategy="prior"),
        "DummyClassifier(most_frequent)": lambda: dummy.DummyClassifier(strategy="most_frequent"),
        "OneVsRestClassifier": lambda: multiclass.OneVsRestClassifier(lm.LogisticRegression()),
    }  # fmt: skip
    for loss in ("hinge", "log_loss", "modified_huber", "squared_hinge", "perceptron", "squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive"):  # fmt: skip
        makes[f"SGDClassifier({loss})"] = lambda loss=loss: lm.SGDClassifier(loss=loss, random_state=0, max_iter=50)  # type: ignore[misc]
    for name, make in makes.items():
        out[f"{name}, 2 classes"] = case(make, "binary")
        out[f"{name}, 3 classes"] = case(make, "multiclass")
    out["LogisticRegression(liblinear)"] = case(lambda: lm.LogisticRegression(solver="liblinear"), "codes")
    out["OneVsOneClassifier"] = case(lambda: multiclass.OneVsOneClassifier(svm.LinearSVC(random_state=0)), "multiclass")
    out["OutputCodeClassifier"] = case(lambda: multiclass.OutputCodeClassifier(lm.LogisticRegression(), random_state=0), "multiclass")
    out["LogisticRegression on Polars"] = case(lm.LogisticRegression, "binary", on="polars")
    out["LogisticRegression on an array"] = case(lm.LogisticRegression, "codes", on="array")
    return out


def _trees() -> dict[str, Case]:
    from sklearn import ensemble as en
    from sklearn import tree

    out: dict[str, Case] = {}
    for kind in ("DecisionTree", "ExtraTree"):
        regressor, classifier = getattr(tree, f"{kind}Regressor"), getattr(tree, f"{kind}Classifier")
        out[f"{kind}Regressor"] = case(lambda k=regressor: k(random_state=0), nan=True)  # type: ignore[misc]
        out[f"{kind}Classifier"] = case(lambda k=classifier: k(random_state=0), "multiclass", nan=True)  # type: ignore[misc]
    for kind in ("RandomForest", "ExtraTrees"):
        regressor, classifier = getattr(en, f"{kind}Regressor"), getattr(en, f"{kind}Classifier")
        out[f"{kind}Regressor"] = case(lambda k=regressor: k(20, random_state=0), nan=True)  # type: ignore[misc]
        out[f"{kind}Classifier, 2 classes"] = case(lambda k=classifier: k(20, random_state=0), "binary", nan=True)  # type: ignore[misc]
        out[f"{kind}Classifier, 3 classes"] = case(lambda k=classifier: k(20, random_state=0), "multiclass", on="array")  # type: ignore[misc]
    gb, hist = en.GradientBoostingRegressor, en.HistGradientBoostingRegressor
    gbc, histc = en.GradientBoostingClassifier, en.HistGradientBoostingClassifier
    for loss in ("squared_error", "absolute_error", "huber", "quantile"):
        out[f"GradientBoostingRegressor({loss})"] = case(lambda loss=loss: gb(loss=loss, n_estimators=15))  # type: ignore[misc]
    for loss in ("squared_error", "absolute_error", "poisson", "gamma"):
        task = "positive" if loss in ("poisson", "gamma") else "regression"
        out[f"HistGradientBoostingRegressor({loss})"] = case(lambda loss=loss: hist(loss=loss, max_iter=15), task, nan=True)  # type: ignore[misc]
    out["HistGradientBoostingRegressor(quantile)"] = case(lambda: hist(loss="quantile", quantile=0.9, max_iter=15), nan=True)
    out["GradientBoostingClassifier, 2 classes"] = case(lambda: gbc(n_estimators=15), "binary")
    out["GradientBoostingClassifier(exponential)"] = case(lambda: gbc(loss="exponential", n_estimators=15), "binary")
    out["GradientBoostingClassifier, 3 classes"] = case(lambda: gbc(n_estimators=15), "multiclass")
    out["GradientBoostingClassifier(init)"] = case(lambda: gbc(n_estimators=5, init=en.RandomForestClassifier(4, random_state=0)), "binary")
    out["HistGradientBoostingClassifier, 2 classes"] = case(lambda: histc(max_iter=15), "binary", nan=True)
    out["HistGradientBoostingClassifier, 3 classes"] = case(lambda: histc(max_iter=15), "multiclass", nan=True)
    out["HistGradientBoostingClassifier(early_stopping)"] = case(lambda: histc(max_iter=15, early_stopping=True, random_state=0), "binary", nan=True)
    out["HistGradientBoostingClassifier(scoring)"] = case(lambda: histc(max_iter=15, early_stopping=True, scoring="roc_auc", random_state=0), "binary", nan=True)
    out["AdaBoostClassifier, 2 classes"] = case(lambda: en.AdaBoostClassifier(n_estimators=10, random_state=0), "binary")
    out["AdaBoostClassifier, 3 classes"] = case(lambda: en.AdaBoostClassifier(n_estimators=10, random_state=0), "multiclass")
    out["AdaBoostRegressor"] = case(lambda: en.AdaBoostRegressor(n_estimators=10, random_state=0))
    out["RandomForestClassifier(class_weight, n_jobs)"] = case(lambda: en.RandomForestClassifier(20, class_weight="balanced_subsample", oob_score=True, n_jobs=2, random_state=np.random.RandomState(3)), "binary")  # fmt: skip
    return out


def _neighbours() -> dict[str, Case]:
    from sklearn import neighbors as nb

    out: dict[str, Case] = {}
    for algorithm in ("auto", "brute", "kd_tree", "ball_tree"):
        for weights in ("uniform", "distance"):
            settings: dict[str, Any] = {"algorithm": algorithm, "weights": weights}
            out[f"KNeighborsClassifier({algorithm}, {weights})"] = case(lambda s=settings: nb.KNeighborsClassifier(**s), "multiclass")  # type: ignore[misc]
            out[f"KNeighborsRegressor({algorithm}, {weights})"] = case(lambda s=settings: nb.KNeighborsRegressor(**s))  # type: ignore[misc]
    out["KNeighborsClassifier(manhattan)"] = case(lambda: nb.KNeighborsClassifier(metric="manhattan"), "binary")
    out["KNeighborsClassifier(p=3)"] = case(lambda: nb.KNeighborsClassifier(p=3), "binary")
    out["KNeighborsClassifier on an array"] = case(nb.KNeighborsClassifier, "codes", on="array")
    out["RadiusNeighborsClassifier"] = case(lambda: nb.RadiusNeighborsClassifier(radius=20.0), "binary")
    out["RadiusNeighborsRegressor"] = case(lambda: nb.RadiusNeighborsRegressor(radius=20.0))
    out["NearestCentroid"] = case(nb.NearestCentroid, "multiclass")
    out["NeighborhoodComponentsAnalysis"] = case(lambda: _pipe(nb.NeighborhoodComponentsAnalysis(n_components=2, max_iter=5, random_state=0), nb.KNeighborsClassifier()), "multiclass")
    out["LocalOutlierFactor"] = case(lambda: nb.LocalOutlierFactor(novelty=True), "none")
    return out


def _pipe(*steps: Any) -> Any:
    from sklearn.pipeline import make_pipeline

    return make_pipeline(*steps)


def _kernels() -> dict[str, Case]:
    from sklearn import gaussian_process as gp
    from sklearn import kernel_approximation as ka
    from sklearn import kernel_ridge, linear_model, svm
    from sklearn.gaussian_process import kernels
    from sklearn.preprocessing import StandardScaler

    out: dict[str, Case] = {}
    for kernel in ("rbf", "linear", "poly", "sigmoid"):
        out[f"SVC({kernel}), 2 classes"] = case(lambda k=kernel: _pipe(StandardScaler(), svm.SVC(kernel=k)), "binary")  # type: ignore[misc]
        out[f"SVC({kernel}), 3 classes"] = case(lambda k=kernel: _pipe(StandardScaler(), svm.SVC(kernel=k)), "multiclass")  # type: ignore[misc]
        out[f"SVR({kernel})"] = case(lambda k=kernel: _pipe(StandardScaler(), svm.SVR(kernel=k)))  # type: ignore[misc]
    out["SVC alone"] = case(svm.SVC, "codes", on="array")
    out["SVC(decision_function_shape='ovo')"] = case(lambda: svm.SVC(decision_function_shape="ovo"), "multiclass")
    out["SVC(break_ties)"] = case(lambda: svm.SVC(break_ties=True), "multiclass")
    out["SVC(class_weight)"] = case(lambda: svm.SVC(class_weight="balanced", gamma=0.3), "binary")
    out["NuSVC, 2 classes"] = case(lambda: svm.NuSVC(nu=0.2), "binary")
    out["NuSVC, 3 classes"] = case(lambda: svm.NuSVC(nu=0.2), "multiclass")
    out["NuSVR"] = case(svm.NuSVR)
    out["OneClassSVM"] = case(lambda: svm.OneClassSVM(nu=0.1), "none")
    out["SVC in CalibratedClassifierCV"] = case(lambda: _calibrated(svm.SVC(), method="sigmoid"), "binary")
    out["GaussianProcessRegressor"] = case(lambda: gp.GaussianProcessRegressor(kernels.ConstantKernel() * kernels.RBF() + kernels.WhiteKernel(), normalize_y=True))
    out["GaussianProcessRegressor(Matern)"] = case(lambda: gp.GaussianProcessRegressor(kernels.Matern(nu=1.5) + kernels.DotProduct(), alpha=1e-2))
    out["GaussianProcessClassifier, 2 classes"] = case(lambda: gp.GaussianProcessClassifier(kernels.RBF()), "binary")
    out["GaussianProcessClassifier, 3 classes"] = case(lambda: gp.GaussianProcessClassifier(kernels.RBF(), optimizer=None), "multiclass")
    for kernel in ("linear", "rbf", "polynomial", "laplacian"):
        out[f"KernelRidge({kernel})"] = case(lambda k=kernel: kernel_ridge.KernelRidge(kernel=k, gamma=0.1))  # type: ignore[misc]
    out["Nystroem"] = case(lambda: _pipe(ka.Nystroem(n_components=20, random_state=0), linear_model.LogisticRegression()), "binary")
    out["RBFSampler"] = case(lambda: _pipe(ka.RBFSampler(n_components=20, random_state=0), linear_model.Ridge()))
    return out


def _calibrated(inner: Any, **settings: Any) -> Any:
    from sklearn.calibration import CalibratedClassifierCV

    return CalibratedClassifierCV(inner, **{"cv": 2, **settings})


def _probabilistic() -> dict[str, Case]:
    from sklearn import naive_bayes as nb
    from sklearn import neural_network as nn
    from sklearn import semi_supervised  # noqa: F401 - not common

    out: dict[str, Case] = {}
    for name in ("GaussianNB", "BernoulliNB", "MultinomialNB", "ComplementNB"):
        out[f"{name}, 2 classes"] = case(getattr(nb, name), "binary", positive=True)
        out[f"{name}, 3 classes"] = case(getattr(nb, name), "multiclass", positive=True)
    out["CategoricalNB"] = case(lambda: _pipe(_bins(), nb.CategoricalNB(min_categories=4)), "binary")
    for activation in ("relu", "tanh", "logistic", "identity"):
        out[f"MLPRegressor({activation})"] = case(lambda a=activation: nn.MLPRegressor(hidden_layer_sizes=(6,), activation=a, max_iter=60, random_state=0))  # type: ignore[misc]
    out["MLPClassifier, 2 classes"] = case(lambda: nn.MLPClassifier((6, 4), max_iter=60, random_state=0), "binary")
    out["MLPClassifier, 3 classes"] = case(lambda: nn.MLPClassifier((6,), max_iter=60, random_state=0, early_stopping=True), "multiclass")
    out["MLPRegressor(poisson)"] = case(lambda: nn.MLPRegressor(hidden_layer_sizes=(6,), loss="poisson", max_iter=60, random_state=0), "positive")
    return out


def _bins() -> Any:
    from sklearn.preprocessing import KBinsDiscretizer

    return KBinsDiscretizer(4, encode="ordinal", quantile_method="averaged_inverted_cdf")


def _combined() -> dict[str, Case]:
    from sklearn import calibration, compose, frozen, naive_bayes, neighbors, preprocessing, svm, tree  # noqa: F401
    from sklearn import ensemble as en
    from sklearn import linear_model as lm
    from sklearn import model_selection as ms

    logistic, forest, ridge = lm.LogisticRegression, en.RandomForestClassifier, lm.Ridge

    def members(*, soft: bool = True) -> list[tuple[str, Any]]:
        last = naive_bayes.GaussianNB() if soft else svm.LinearSVC(random_state=0)
        return [("a", logistic(max_iter=500)), ("b", forest(5, random_state=0)), ("c", last)]

    def regressors() -> list[tuple[str, Any]]:
        return [("a", ridge()), ("b", en.RandomForestRegressor(4, random_state=0)), ("c", neighbors.KNeighborsRegressor())]

    out: dict[str, Case] = {}
    for task in ("binary", "multiclass"):
        k = 2 if task == "binary" else 3
        out[f"VotingClassifier(soft), {k} classes"] = case(lambda: en.VotingClassifier(members(), voting="soft", weights=[1, 3, 2]), task)
        out[f"VotingClassifier(hard), {k} classes"] = case(lambda: en.VotingClassifier(members(soft=False), voting="hard"), task)
        out[f"StackingClassifier, {k} classes"] = case(lambda: en.StackingClassifier(members(), cv=2), task)
        out[f"StackingClassifier(decision values), {k} classes"] = case(lambda: en.StackingClassifier(members(soft=False), cv=2, passthrough=True), task)
        out[f"BaggingClassifier, {k} classes"] = case(lambda: en.BaggingClassifier(tree.DecisionTreeClassifier(), 6, max_features=3, random_state=0), task)
        out[f"BaggingClassifier(LogisticRegression), {k} classes"] = case(lambda: en.BaggingClassifier(logistic(), 4, random_state=0), task)
        out[f"BaggingClassifier(LinearSVC), {k} classes"] = case(lambda: en.BaggingClassifier(svm.LinearSVC(), 4, random_state=0), task)
        for method in ("sigmoid", "isotonic", "temperature"):
            out[f"CalibratedClassifierCV({method}), {k} classes"] = case(lambda m=method: _calibrated(forest(8, random_state=0), method=m), task)  # type: ignore[misc]
            if method == "temperature":
                continue  # scikit-learn 1.9 now and then fails to fit it on decision values: "NaN result encountered"
            out[f"CalibratedClassifierCV({method}) of LinearSVC, {k} classes"] = case(lambda m=method: _calibrated(_pipe(preprocessing.StandardScaler(), svm.LinearSVC(random_state=0)), method=m), task)  # type: ignore[misc]
    out["CalibratedClassifierCV(ensemble=False)"] = case(lambda: _calibrated(naive_bayes.GaussianNB(), ensemble=False), "binary")
    out["CalibratedClassifierCV of FrozenEstimator"] = _frozen_case
    out["FrozenEstimator"] = case(lambda: frozen.FrozenEstimator(_fit(forest(5, random_state=0), numbers(TRAIN, 1), target(numbers(TRAIN, 1), "binary"))), "binary")
    out["FixedThresholdClassifier"] = case(lambda: ms.FixedThresholdClassifier(logistic(), threshold=0.3), "codes")
    out["FixedThresholdClassifier(pos_label)"] = case(lambda: ms.FixedThresholdClassifier(logistic(), threshold=0.3, pos_label="no"), "binary")
    out["FixedThresholdClassifier(decision_function)"] = case(lambda: ms.FixedThresholdClassifier(svm.LinearSVC(), threshold=0.4), "codes")
    out["TunedThresholdClassifierCV"] = case(lambda: ms.TunedThresholdClassifierCV(forest(6, random_state=0), scoring="balanced_accuracy", cv=2), "codes")
    out["VotingRegressor"] = case(lambda: en.VotingRegressor(regressors()))
    out["StackingRegressor"] = case(lambda: en.StackingRegressor(regressors(), cv=2))
    out["BaggingRegressor"] = case(lambda: en.BaggingRegressor(n_estimators=5, random_state=0))
    out["GridSearchCV"] = case(lambda: ms.GridSearchCV(logistic(), {"C": [0.1, 1.0]}, cv=2), "binary")
    out["RandomizedSearchCV"] = case(lambda: ms.RandomizedSearchCV(forest(5, random_state=0), {"max_depth": [2, 4]}, n_iter=2, cv=2), "multiclass")
    out["GridSearchCV of a pipeline"] = case(lambda: ms.GridSearchCV(_pipe(preprocessing.StandardScaler(), svm.SVC()), {"svc__C": [0.1, 1.0]}, cv=2), "binary")
    out["TransformedTargetRegressor(log1p)"] = case(lambda: compose.TransformedTargetRegressor(ridge(), func=np.log1p, inverse_func=np.expm1), "positive")
    out["TransformedTargetRegressor(StandardScaler)"] = case(lambda: compose.TransformedTargetRegressor(ridge(), transformer=preprocessing.StandardScaler()))
    out["TransformedTargetRegressor(QuantileTransformer)"] = case(lambda: compose.TransformedTargetRegressor(ridge(), transformer=preprocessing.QuantileTransformer(n_quantiles=50)))
    out["TransformedTargetRegressor(PowerTransformer)"] = case(lambda: compose.TransformedTargetRegressor(ridge(), transformer=preprocessing.PowerTransformer()))
    return out


def _frozen_case(fresh: int) -> Fitted:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.frozen import FrozenEstimator

    rows = numbers(TRAIN, 1)
    y = target(rows, "binary")
    inner = RandomForestClassifier(6, max_depth=4, random_state=0).fit(rows[:120], y[:120])
    return Fitted(_fit(CalibratedClassifierCV(FrozenEstimator(inner)), rows[120:], y[120:]), rows, numbers(fresh, 2))


def _several() -> dict[str, Case]:
    from sklearn import ensemble as en
    from sklearn import linear_model as lm
    from sklearn import multioutput, neighbors, neural_network, tree

    return {
        "LinearRegression, 2 targets": case(lm.LinearRegression, "several"),
        "Ridge, 2 targets": case(lm.Ridge, "several"),
        "MultiTaskLasso": case(lambda: lm.MultiTaskLasso(0.1), "several"),
        "RandomForestRegressor, 2 targets": case(lambda: en.RandomForestRegressor(8, random_state=0), "several"),
        "DecisionTreeRegressor, 2 targets": case(lambda: tree.DecisionTreeRegressor(random_state=0), "several"),
        "MLPRegressor, 2 targets": case(lambda: neural_network.MLPRegressor(hidden_layer_sizes=(5,), max_iter=50, random_state=0), "several"),
        "KNeighborsRegressor, 2 targets": case(neighbors.KNeighborsRegressor, "several"),
        "MultiOutputRegressor": case(lambda: multioutput.MultiOutputRegressor(en.GradientBoostingRegressor(n_estimators=5)), "several"),
        "RegressorChain": case(lambda: multioutput.RegressorChain(lm.Ridge()), "several"),
        "MultiOutputClassifier": case(lambda: multioutput.MultiOutputClassifier(lm.LogisticRegression()), "labels"),
        "ClassifierChain": case(lambda: multioutput.ClassifierChain(lm.LogisticRegression()), "labels"),
        "RandomForestClassifier, 3 targets": case(lambda: en.RandomForestClassifier(8, random_state=0), "labels"),
        "DecisionTreeClassifier, 3 targets": case(lambda: tree.DecisionTreeClassifier(random_state=0), "labels"),
        "KNeighborsClassifier, 3 targets": case(neighbors.KNeighborsClassifier, "labels"),
        "MLPClassifier, 3 targets": case(lambda: neural_network.MLPClassifier((5,), max_iter=50, random_state=0), "labels"),
    }  # fmt: skip


def _alone() -> dict[str, Case]:
    from sklearn import (  # noqa: F401  # noqa: F401
        cluster,
        covariance,
        cross_decomposition,
        kernel_approximation,
        mixture,
        random_projection,
        svm,
    )
    from sklearn import decomposition as de
    from sklearn import ensemble as en
    from sklearn import preprocessing as pre

    makes: dict[str, Callable[[], Any]] = {
        "IsolationForest": lambda: en.IsolationForest(n_estimators=20, random_state=0),
        "IsolationForest(contamination, max_features)": lambda: en.IsolationForest(n_estimators=20, contamination=0.1, max_features=3, max_samples=100, random_state=0),
        "EllipticEnvelope": lambda: covariance.EllipticEnvelope(random_state=0),
        "KMeans": lambda: cluster.KMeans(3, n_init=1, random_state=0),
        "MiniBatchKMeans": lambda: cluster.MiniBatchKMeans(3, n_init=1, random_state=0),
        "GaussianMixture": lambda: mixture.GaussianMixture(3, random_state=0),
        "GaussianMixture(diag)": lambda: mixture.GaussianMixture(3, covariance_type="diag", random_state=0),
        "BayesianGaussianMixture": lambda: mixture.BayesianGaussianMixture(n_components=2, max_iter=20, random_state=0),
        "PCA": lambda: de.PCA(2),
        "PCA(whiten)": lambda: de.PCA(2, whiten=True),
        "IncrementalPCA": lambda: de.IncrementalPCA(2),
        "KernelPCA": lambda: de.KernelPCA(2, kernel="rbf"),
        "TruncatedSVD": lambda: de.TruncatedSVD(2, random_state=0),
        "FastICA": lambda: de.FastICA(2, random_state=0, whiten="unit-variance"),
        "FactorAnalysis": lambda: de.FactorAnalysis(2, random_state=0),
        "GaussianRandomProjection": lambda: random_projection.GaussianRandomProjection(2, random_state=0),
        "StandardScaler": pre.StandardScaler,
        "RobustScaler": pre.RobustScaler,
        "MaxAbsScaler": pre.MaxAbsScaler,
        "PolynomialFeatures": lambda: pre.PolynomialFeatures(2),
        "SplineTransformer": lambda: pre.SplineTransformer(n_knots=4),
        "QuantileTransformer": lambda: pre.QuantileTransformer(n_quantiles=50),
        "QuantileTransformer(normal)": lambda: pre.QuantileTransformer(n_quantiles=50, output_distribution="normal"),
        "PowerTransformer": pre.PowerTransformer,
    }
    out = {name: case(make, "none") for name, make in makes.items()}
    out["NMF"] = case(lambda: de.NMF(2, init="random", random_state=0, max_iter=300), "none", positive=True)
    out["PowerTransformer(box-cox)"] = case(lambda: _pipe(pre.FunctionTransformer(np.exp, feature_names_out="one-to-one"), pre.PowerTransformer(method="box-cox")), "none")
    out["KMeans after StandardScaler"] = case(lambda: _pipe(pre.StandardScaler(), cluster.KMeans(3, n_init=1, random_state=0)), "none")
    return out


def _preprocessed() -> dict[str, Case]:
    from sklearn import decomposition, impute
    from sklearn import feature_selection as fs
    from sklearn import linear_model as lm
    from sklearn import preprocessing as pre
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    def linear(*steps: Any) -> Any:
        return _pipe(*steps, pre.StandardScaler(), lm.LogisticRegression(max_iter=500))

    def boosted(*steps: Any) -> Any:
        return _pipe(*steps, HistGradientBoostingClassifier(max_iter=8, min_samples_leaf=5))

    steps: dict[str, Callable[[], Any]] = {
        "StandardScaler": lambda: boosted(pre.StandardScaler()),
        "MinMaxScaler(clip)": lambda: boosted(pre.MinMaxScaler(clip=True)),
        "QuantileTransformer": lambda: linear(impute.SimpleImputer(), pre.QuantileTransformer(n_quantiles=100)),
        "QuantileTransformer(normal)": lambda: linear(impute.SimpleImputer(), pre.QuantileTransformer(n_quantiles=100, output_distribution="normal")),
        "PowerTransformer": lambda: linear(impute.SimpleImputer(), pre.PowerTransformer()),
        "SplineTransformer": lambda: linear(impute.SimpleImputer(), pre.SplineTransformer(n_knots=4)),
        "SplineTransformer(linear)": lambda: linear(impute.SimpleImputer(), pre.SplineTransformer(n_knots=4, extrapolation="linear")),
        "PolynomialFeatures": lambda: linear(impute.SimpleImputer(), pre.PolynomialFeatures(3)),
        "KBinsDiscretizer": lambda: linear(impute.SimpleImputer(), pre.KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf")),
        "KNNImputer": lambda: linear(impute.KNNImputer(n_neighbors=3)),
        "KNNImputer(distance)": lambda: linear(impute.KNNImputer(weights="distance", add_indicator=True)),
        "SimpleImputer(indicator)": lambda: linear(impute.SimpleImputer(strategy="most_frequent", add_indicator=True)),
        "SelectKBest": lambda: linear(impute.SimpleImputer(), fs.SelectKBest(k=2)),
        "SelectKBest(mutual_info)": lambda: linear(impute.SimpleImputer(), fs.SelectKBest(fs.mutual_info_classif, k=2)),
        "SelectPercentile": lambda: linear(impute.SimpleImputer(), fs.SelectPercentile(percentile=60)),
        "SelectFromModel": lambda: linear(impute.SimpleImputer(), fs.SelectFromModel(RandomForestClassifier(5, random_state=0))),
        "RFE": lambda: linear(impute.SimpleImputer(), fs.RFE(lm.LogisticRegression(max_iter=500), n_features_to_select=2)),
        "RFECV": lambda: linear(impute.SimpleImputer(), fs.RFECV(lm.LogisticRegression(max_iter=500), cv=2)),
        "SequentialFeatureSelector": lambda: linear(impute.SimpleImputer(), fs.SequentialFeatureSelector(lm.LogisticRegression(), n_features_to_select=2, cv=2)),
        "VarianceThreshold": lambda: linear(impute.SimpleImputer(), fs.VarianceThreshold(0.3)),
        "FactorAnalysis": lambda: linear(impute.SimpleImputer(), decomposition.FactorAnalysis(2)),
    }
    out = {f"{name} in a pipeline": case(make, "binary", nan=True) for name, make in steps.items()}
    for name in ("log1p", "sqrt", "abs", "square", "cbrt", "expm1", "sign", "arctan", "log2", "exp2", "sin"):
        function = getattr(np, name)
        positive = name in ("log1p", "sqrt", "log2")
        before = [pre.FunctionTransformer(np.abs), pre.FunctionTransformer(np.exp)] if positive else []
        out[f"FunctionTransformer(np.{name})"] = case(
            lambda f=function, b=before: linear(*b, pre.FunctionTransformer(f)), "binary"
        )  # type: ignore[misc]
    out["FunctionTransformer(None)"] = case(lambda: linear(pre.FunctionTransformer()), "binary")
    return out


def _tables() -> dict[str, Case]:
    from sklearn import ensemble as en
    from sklearn import impute
    from sklearn import linear_model as lm
    from sklearn import preprocessing as pre
    from sklearn.compose import ColumnTransformer, make_column_selector
    from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer

    one_hot, ordinal = pre.OneHotEncoder, pre.OrdinalEncoder
    hist = en.HistGradientBoostingClassifier

    def columns(encoder: Any, *, selector: bool = False) -> Any:
        texts: Any = make_column_selector(dtype_exclude=["number", "bool"]) if selector else ["plan", "text", "color"]
        numeric: Any = make_column_selector(dtype_include=["number"]) if selector else ["age", "visits", "member"]
        return ColumnTransformer(
            [("t", encoder, texts), ("n", _pipe(impute.SimpleImputer(), pre.StandardScaler()), numeric)]
        )

    def linear(first: Any) -> Any:
        return _pipe(first, lm.LogisticRegression(max_iter=500))

    unknown = {"handle_unknown": "use_encoded_value", "unknown_value": -1}
    some = [("n", impute.SimpleImputer(), ["age"]), ("d", "drop", ["plan", "text", "color"])]
    return {
        "OneHotEncoder(ignore)": case_mixed(lambda: linear(columns(one_hot(handle_unknown="ignore")))),
        "OneHotEncoder(infrequent)": case_mixed(lambda: linear(columns(one_hot(handle_unknown="infrequent_if_exist", min_frequency=90)))),
        "OneHotEncoder(error)": case_mixed(lambda: linear(columns(one_hot(drop="if_binary"))), unseen=False),
        "OrdinalEncoder(unknown)": case_mixed(lambda: _pipe(columns(ordinal(**unknown)), en.RandomForestClassifier(8, random_state=0)), "multiclass"),
        "OrdinalEncoder(infrequent)": case_mixed(lambda: linear(columns(ordinal(**unknown, encoded_missing_value=-2, min_frequency=90)))),
        "TargetEncoder": case_mixed(lambda: linear(columns(pre.TargetEncoder(random_state=0)))),
        "TargetEncoder, 3 classes": case_mixed(lambda: linear(columns(pre.TargetEncoder(random_state=0))), "multiclass"),
        "TargetEncoder, regression": case_mixed(lambda: _pipe(columns(pre.TargetEncoder(random_state=0)), lm.Ridge()), "regression"),
        "make_column_selector": case_mixed(lambda: linear(columns(one_hot(handle_unknown="ignore"), selector=True))),
        "remainder='passthrough'": case_mixed(lambda: linear(ColumnTransformer(some, remainder="passthrough"))),
        "set_output(pandas)": case_mixed(lambda: linear(columns(one_hot(handle_unknown="ignore", sparse_output=False)).set_output(transform="pandas"))),
        "HistGradientBoostingClassifier(from_dtype)": case_mixed(lambda: _pipe(_only(["age", "visits", "color"]), hist(max_iter=10, min_samples_leaf=5, categorical_features="from_dtype"))),
        "HistGradientBoostingClassifier(categories of an OrdinalEncoder)": case_mixed(lambda: _pipe(
            ColumnTransformer([("t", ordinal(**unknown), ["plan", "text"])], remainder="drop"), hist(max_iter=10, min_samples_leaf=5, categorical_features=[0, 1]))),
        "HistGradientBoostingClassifier on a table with categories": _categories_case,
        "SimpleImputer of texts": case_mixed(lambda: linear(columns(_pipe(impute.SimpleImputer(strategy="most_frequent"), one_hot(handle_unknown="ignore"))))),
        "TfidfVectorizer": case_text(lambda: linear(ColumnTransformer([("t", TfidfVectorizer(), "review")]))),
        "TfidfVectorizer(ngrams)": case_text(lambda: linear(ColumnTransformer([("t", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=40), "review")]))),
        "CountVectorizer": case_text(lambda: linear(ColumnTransformer([("t", CountVectorizer(), "review")]))),
        "CountVectorizer(char_wb)": case_text(lambda: linear(ColumnTransformer([("t", CountVectorizer(analyzer="char_wb", ngram_range=(1, 3)), "review")]))),
        "HashingVectorizer": case_text(lambda: linear(ColumnTransformer([("t", HashingVectorizer(n_features=64), "review")]))),
    }  # fmt: skip


def _only(names: list[str]) -> Any:
    from sklearn.compose import ColumnTransformer

    made = ColumnTransformer([("c", "passthrough", names)], verbose_feature_names_out=False)
    return made.set_output(transform="pandas")


def _categories_case(fresh: int) -> Fitted:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows, new = mixed(TRAIN, 3)[["age", "visits", "color"]], mixed(fresh, 4)[["age", "visits", "color"]]
    y = (rows["age"].fillna(30) / 10 + (rows["color"] == "red") > 4.2).to_numpy()
    return Fitted(_fit(HistGradientBoostingClassifier(max_iter=10, min_samples_leaf=5), rows, y), rows, new)


# fmt: on


def describe_form(package: Any) -> str:
    """The form of a package in a few words."""
    form = str(package.notes.get("onnx_form", package.format))
    return "ONNX, exact" if "exact" in form else form.replace("onnx (", "ONNX (")
