"""Writes scikit-learn's predictors in float64 ONNX: linear models, trees, networks, and predictors that combine others.

A classifier answers probabilities (two classes: one column, P(second)), and its decision function if it has one, which calibration
prefers. A regressor answers ``[n, 1]``. Where scikit-learn raises (an infinite input, or a NaN that the model does not take) the
answer is NaN, never a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mainspring.models.formats import fitted
from mainspring.models.formats.adapt import is_adapted
from mainspring.models.formats.boosters import library_of
from mainspring.models.formats.onnx import bayes, ensembles, kernels
from mainspring.models.formats.onnx import trees as onnx_trees
from mainspring.models.formats.onnx.columns import UFUNCS, encode_ordinal, sklearn_name, transform
from mainspring.models.formats.onnx.graph import Graph, Table, Unsupported, one_hot


@dataclass(frozen=True)
class Answer:
    """Names of tensors, empty if there is none. Of a regressor ``value`` ``[n, targets]``; of a classifier ``positive`` ``[n, 1]`` or
    ``wide`` ``[n, k]``, and ``decision`` (two classes: one column). ``label`` ``[n, k]`` of a classifier whose label follows from
    neither: 1 for its class."""

    value: str = ""
    positive: str = ""
    wide: str = ""
    decision: str = ""
    label: str = ""

    def by_class(self, graph: Graph) -> str:
        """Probabilities ``[n, k]``."""
        if self.wide:
            return self.wide
        if not self.positive:
            raise Unsupported("a classifier without probabilities")
        return graph.op("Concat", graph.op("Sub", graph.double(1.0), self.positive), self.positive, axis=1)

    def place(self, graph: Graph, classes: int) -> tuple[str, str]:
        """The position of the label in the classes, ``[n, 1]``, and the scores that it follows from."""
        if self.label or classes > 2:
            scores = self.label or self.decision or self.by_class(graph)
            return graph.op("ArgMax", scores, axis=1, keepdims=1), scores
        scores, threshold = (self.decision, 0.0) if self.decision else (self.positive, 0.5)
        if not scores:
            scores = graph.numbers(graph.matrix(self.by_class(graph), 2)[1:])
        return graph.cast(graph.op("Greater", scores, graph.double(threshold)), "INT64"), scores

    def one_hot(self, graph: Graph, classes: int, table: Table) -> str:
        """1 for the label and 0 for the other classes, ``[n, classes]``; NaN in rows of ``table`` without an answer."""
        place, scores = self.place(graph, classes)
        return graph.nan_without_answer(one_hot(graph, place, classes), scores, table)


Predict = Callable[[Graph, Any, Table], Answer]


def predict(graph: Graph, model: Any, table: Table) -> Answer:
    """Append the fitted predictor ``model`` to ``graph``, with ``table`` as its features; returns its answer."""
    if is_adapted(model) or library_of(model) is not None:
        from mainspring.models.formats.onnx.others import predict_other

        return predict_other(graph, model, table)
    kind = sklearn_name(model)
    if kind == "Pipeline":
        for _, step in model.steps[:-1]:
            table = transform(graph, step, table)
        return predict(graph, model.steps[-1][1], table)
    if kind not in PREDICTS:
        raise Unsupported(f"no exact form for {kind}")
    return PREDICTS[kind](graph, model, table)


# --- linear


def _decision(graph: Graph, model: Any, table: Table) -> str:
    x = graph.numbers(table)
    weights = np.atleast_2d(np.asarray(_dense(model.coef_), dtype=np.float64)).T
    if weights.shape[0] != len(table):
        raise Unsupported("several targets at once")
    bias = np.broadcast_to(np.asarray(model.intercept_, dtype=np.float64), (weights.shape[1],))
    return graph.gemm(x, weights, bias)


def _dense(values: Any) -> Any:
    return values.toarray() if hasattr(values, "toarray") else values


def _linear(graph: Graph, model: Any, table: Table) -> Answer:
    return Answer(value=_decision(graph, model, table))


def _glm(graph: Graph, model: Any, table: Table) -> Answer:
    link = fitted.get_link_name(model)
    raw = _decision(graph, model, table)
    if link not in ("LogLink", "IdentityLink"):
        raise Unsupported(f"a generalised linear model with {link}")
    return Answer(value=graph.op("Exp", raw) if link == "LogLink" else raw)


def _logistic(graph: Graph, model: Any, table: Table) -> Answer:
    raw = _decision(graph, model, table)
    if len(model.classes_) == 2:
        return Answer(positive=graph.op("Sigmoid", raw), decision=raw)
    if getattr(model, "solver", "") == "liblinear" or getattr(model, "multi_class", "") == "ovr":
        return Answer(wide=_one_versus_rest(graph, raw), decision=raw)
    return Answer(wide=graph.op("Softmax", raw, axis=1), decision=raw)


def _one_versus_rest(graph: Graph, raw: str) -> str:
    each = graph.op("Sigmoid", raw)
    return _normalize_rows(graph, each)


def _normalize_rows(graph: Graph, each: str) -> str:
    """Rows divided by their sums; a row of zeros becomes equal shares, as in scikit-learn."""
    total = graph.op("ReduceSum", each, graph.ints(1), keepdims=1)
    none = graph.op("Equal", total, graph.double(0.0))
    ones = graph.op("Where", none, graph.double(1.0), each)
    return graph.op("Div", ones, graph.op("ReduceSum", ones, graph.ints(1), keepdims=1))


def _sgd(graph: Graph, model: Any, table: Table) -> Answer:
    raw = _decision(graph, model, table)
    if model.loss != "log_loss":  # of modified_huber the probabilities are not used: most are 0 or 1
        return Answer(decision=raw)
    if len(model.classes_) == 2:
        return Answer(positive=graph.op("Sigmoid", raw), decision=raw)
    return Answer(wide=_one_versus_rest(graph, raw), decision=raw)


def _margin(graph: Graph, model: Any, table: Table) -> Answer:
    return Answer(decision=_decision(graph, model, table))


def _discriminant(graph: Graph, model: Any, table: Table) -> Answer:
    raw = _decision(graph, model, table)
    if len(model.classes_) == 2:
        return Answer(positive=graph.op("Sigmoid", raw), decision=raw)
    return Answer(wide=graph.op("Softmax", raw, axis=1), decision=raw)


# --- naive Bayes, quadratic and latent models, one classifier for each class


def _from_logarithms(write: Callable[[Graph, Any, Table], str]) -> Predict:
    """A classifier whose probabilities are the softmax of what ``write`` gives."""
    return lambda graph, model, table: Answer(wide=graph.op("Softmax", write(graph, model, table), axis=1))


def _latent(graph: Graph, model: Any, table: Table) -> Answer:
    x = graph.op("Sub", graph.numbers(table), graph.double(fitted.get_input_means(model)))
    return Answer(value=graph.gemm(x, np.asarray(model.coef_).T, np.asarray(model.intercept_)))


def _one_versus_rest_of(graph: Graph, model: Any, table: Table) -> Answer:
    if model.multilabel_ or not hasattr(model, "predict_proba"):
        raise Unsupported("one against the rest without probabilities, or with several labels")
    each = [graph.numbers(graph.matrix(_proba(graph, m, table), 2)[1:]) for m in model.estimators_]
    if len(model.classes_) == 2:
        return Answer(positive=each[0])
    return Answer(wide=_normalize_rows(graph, graph.op("Concat", *each, axis=1)))


# --- trees


def _forest_of(graph: Graph, estimators: list[Any], model: Any, table: Table) -> Answer:
    classes = _count_classes(model)
    out = onnx_trees.forest(graph, estimators, graph.numbers(table), classes=classes)
    return Answer(value=out) if not classes else Answer(positive=out) if classes == 2 else Answer(wide=out)


def _count_classes(model: Any) -> int:
    """The number of classes; 0 for a regressor."""
    classes = getattr(model, "classes_", None)
    if classes is None:
        return 0
    if isinstance(classes, list) or len(classes) < 2:
        raise Unsupported("several targets, or one class only")
    return len(classes)


def _tree(graph: Graph, model: Any, table: Table) -> Answer:
    return _forest_of(graph, [model], model, table)


def _forest(graph: Graph, model: Any, table: Table) -> Answer:
    return _forest_of(graph, list(model.estimators_), model, table)


def _boosted(graph: Graph, model: Any, table: Table) -> Answer:
    raw = onnx_trees.gradient_boosting(graph, model, graph.numbers(table))
    return _from_loss(graph, model, raw)


def _hist_boosted(graph: Graph, model: Any, table: Table) -> Answer:
    if (encoder := fitted.get_category_encoder(model)) is not None:
        flags = np.asarray(model.is_categorical_)
        codes = encode_ordinal(
            graph,
            [c for c, f in zip(table, flags, strict=True) if f],
            encoder.categories_,
            unknown=float("nan"),
            missing=float("nan"),
        )
        table = codes + [c for c, f in zip(table, flags, strict=True) if not f]
    raw = onnx_trees.hist_gradient_boosting(graph, model, graph.numbers(table))
    return _from_loss(graph, model, raw)


def _from_loss(graph: Graph, model: Any, raw: str) -> Answer:
    loss = fitted.get_loss_name(model)
    if loss == "HalfBinomialLoss":
        return Answer(positive=graph.op("Sigmoid", raw), decision=raw)
    if loss == "ExponentialLoss":
        return Answer(positive=graph.op("Sigmoid", graph.op("Mul", raw, graph.double(2.0))), decision=raw)
    if loss == "HalfMultinomialLoss":
        return Answer(wide=graph.op("Softmax", raw, axis=1), decision=raw)
    if loss in ("HalfPoissonLoss", "HalfGammaLoss"):
        return Answer(value=graph.op("Exp", raw))
    if loss in ("HalfSquaredError", "AbsoluteError", "PinballLoss", "HuberLoss"):
        return Answer(value=raw)
    raise Unsupported(f"boosting with {loss}")


def _ada_classifier(graph: Graph, model: Any, table: Table) -> Answer:
    raw, classes = ensembles.boosted_labels(graph, model, table), len(model.classes_)
    if classes == 2:
        return Answer(positive=graph.op("Sigmoid", raw), decision=raw)
    scaled = graph.op("Div", raw, graph.double(float(classes - 1)))
    return Answer(wide=graph.op("Softmax", scaled, axis=1), decision=raw)


def _ada_regressor(graph: Graph, model: Any, table: Table) -> Answer:
    return Answer(value=ensembles.weighted_median(graph, model, table))


# --- others


def _support_vectors(graph: Graph, model: Any, table: Table) -> Answer:
    classes = getattr(model, "classes_", None)
    if classes is None:
        return Answer(value=kernels.binary_decision(graph, model, table))
    if len(classes) == 2:
        return Answer(decision=kernels.binary_decision(graph, model, table))
    pairs = kernels.pair_decisions(graph, model, table)
    x, decision = graph.numbers(table), ""
    if model.decision_function_shape == "ovr":
        decision = kernels.confident_votes(graph, pairs, len(classes))
        decision = graph.nan_unless_finite(decision, x, always=True)
    votes = decision if model.break_ties else kernels.count_votes(graph, pairs, len(classes), strict=True)
    return Answer(decision=decision, label=kernels.most_votes(graph, votes, len(classes), x))


def _ransac(graph: Graph, model: Any, table: Table) -> Answer:
    return predict(graph, model.estimator_, table)


def network_output(graph: Graph, model: Any, table: Table) -> str:
    """What the last layer of a network gives, before its own function."""
    hidden = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": ""}[model.activation]
    start = x = graph.numbers(table)
    for i, (weights, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        x = graph.gemm(x, weights, bias)
        if i < len(model.coefs_) - 1 and hidden:
            x = graph.op(hidden, x)
    # Relu may turn a NaN into 0, but scikit-learn raises on a row that is not finite.
    return graph.nan_unless_finite(x, start, always=True)


def _network(graph: Graph, model: Any, table: Table) -> Answer:
    x = network_output(graph, model, table)
    if not hasattr(model, "classes_"):
        if model.out_activation_ not in ("identity", "exp"):
            raise Unsupported(f"a network with {model.out_activation_}")
        return Answer(value=graph.op("Exp", x) if model.out_activation_ == "exp" else x)
    if model.out_activation_ == "logistic" and model.n_outputs_ == 1:
        return Answer(positive=graph.op("Sigmoid", x))
    if model.out_activation_ == "softmax":
        return Answer(wide=graph.op("Softmax", x, axis=1))
    raise Unsupported("a network with several labels")


def _voting_classifier(graph: Graph, model: Any, table: Table) -> Answer:
    weights = fitted.get_voting_weights(model)
    if model.voting != "soft":
        count = len(model.classes_)
        votes = _mean(graph, [_label(graph, m, table) for m in model.estimators_], weights)
        return Answer(label=kernels.most_votes(graph, votes, count, votes))
    return Answer(wide=_mean(graph, [_proba(graph, m, table) for m in model.estimators_], weights))


def _voting_regressor(graph: Graph, model: Any, table: Table) -> Answer:
    values = [_value(graph, m, table) for m in model.estimators_]
    return Answer(value=_mean(graph, values, fitted.get_voting_weights(model)))


def _mean(graph: Graph, parts: list[str], weights: Any = None) -> str:
    scale = [1.0] * len(parts) if weights is None else [float(w) for w in weights]
    total = ""
    for part, weight in zip(parts, scale, strict=True):
        term = part if weights is None else graph.op("Mul", part, graph.double(weight))
        total = graph.op("Add", total, term) if total else term
    return graph.op("Div", total, graph.double(float(sum(scale))))


def _label(graph: Graph, model: Any, table: Table) -> str:
    return predict(graph, model, table).one_hot(graph, len(model.classes_), table)


def _proba(graph: Graph, model: Any, table: Table) -> str:
    return predict(graph, model, table).by_class(graph)


def _value(graph: Graph, model: Any, table: Table) -> str:
    value = predict(graph, model, table).value
    if not value:
        raise Unsupported("a classifier where a regressor is expected")
    return value


def _bagging(graph: Graph, model: Any, table: Table) -> Answer:
    classes = _count_classes(model)
    parts = []
    for estimator, features in zip(model.estimators_, model.estimators_features_, strict=True):
        if classes and len(estimator.classes_) != classes:
            raise Unsupported("a bagged estimator that has not seen every class")
        chosen = [table[i] for i in features]
        member = (_proba if hasattr(estimator, "predict_proba") else _label) if classes else _value
        parts.append(member(graph, estimator, chosen))
    result = _mean(graph, parts)
    return Answer(wide=result) if classes else Answer(value=result)


def _stacking(graph: Graph, model: Any, table: Table) -> Answer:
    features: Table = []
    for estimator, method in zip(model.estimators_, model.stack_method_, strict=True):
        answer = predict(graph, estimator, table)
        if method == "predict_proba":
            count = len(estimator.classes_)
            wide = graph.matrix(answer.by_class(graph), count)
            features += wide[1:] if count == 2 else wide
        elif method == "decision_function" and answer.decision:
            features += graph.matrix(
                answer.decision, 1 if len(estimator.classes_) == 2 else len(estimator.classes_)
            )
        elif method == "predict" and answer.value:
            features += graph.matrix(answer.value, 1)
        else:
            raise Unsupported(f"stacking on {method}")
    return predict(graph, model.final_estimator_, features + (table if model.passthrough else []))


def _transformed(graph: Graph, model: Any, table: Table) -> Answer:
    """TransformedTargetRegressor: the answer mapped back by a numpy function or an affine scaler."""
    value, back = _value(graph, model.regressor_, table), model.transformer_
    kind = sklearn_name(back)
    if kind == "FunctionTransformer":
        if back.inverse_func is None:
            return Answer(value=value)
        if not isinstance(back.inverse_func, np.ufunc) or back.inverse_func.__name__ not in UFUNCS:
            raise Unsupported("a target mapped back by a function of your own")
        return Answer(value=UFUNCS[back.inverse_func.__name__](graph, value))
    if kind == "StandardScaler":
        scale = back.scale_ if back.scale_ is not None else np.ones(1)
        mean = back.mean_ if back.mean_ is not None and back.with_mean else np.zeros(1)
        return Answer(value=graph.op("Add", graph.op("Mul", value, graph.double(scale)), graph.double(mean)))
    raise Unsupported(f"a target mapped back by {kind}")


def _thresholded(graph: Graph, model: Any, table: Table) -> Answer:
    return predict(graph, model.estimator_, table)  # the threshold is in the signature


def _frozen(graph: Graph, model: Any, table: Table) -> Answer:
    return predict(graph, model.estimator, table)


def _calibrated(graph: Graph, model: Any, table: Table) -> Answer:
    classes = len(model.classes_)
    parts = [_calibrate(graph, m, table, classes) for m in model.calibrated_classifiers_]
    result = _mean(graph, parts) if len(parts) > 1 else parts[0]
    return Answer(positive=result) if classes == 2 else Answer(wide=result)


def _calibrate(graph: Graph, model: Any, table: Table, classes: int) -> str:
    answer = predict(graph, model.estimator, table)
    if len(model.estimator.classes_) != classes:
        raise Unsupported("a calibrated estimator that has not seen every class")
    if model.method == "temperature":
        return _temperature(graph, model.calibrators[0], answer, classes)
    raw = answer.decision or answer.positive or answer.wide
    columns = graph.matrix(raw, 1 if classes == 2 else classes)
    curves = [
        _curve(graph, c, graph.numbers([column]))
        for c, column in zip(model.calibrators, columns, strict=True)
    ]
    if classes == 2:
        return curves[0]
    return _normalize_rows(graph, graph.op("Concat", *curves, axis=1))


def _curve(graph: Graph, calibrator: Any, x: str) -> str:
    if type(calibrator).__name__ == "_SigmoidCalibration":
        scaled = graph.op("Add", graph.op("Mul", x, graph.double(calibrator.a_)), graph.double(calibrator.b_))
        return graph.op("Sigmoid", graph.op("Neg", scaled))
    return _isotonic(graph, calibrator, x)


def _isotonic(graph: Graph, model: Any, x: str) -> str:
    """The piecewise linear curve of an IsotonicRegression, ``[n, 1]`` to ``[n, 1]``."""
    at, to = np.asarray(model.X_thresholds_, np.float64), np.asarray(model.y_thresholds_, np.float64)
    if model.out_of_bounds != "clip":
        raise Unsupported("isotonic regression that does not clip")
    if len(at) == 1:
        constant = graph.op("Add", graph.op("Mul", x, graph.double(0.0)), graph.double(to[0]))
        return graph.nan_unless_finite(constant, x, always=True)
    inside = graph.op("Min", graph.op("Max", x, graph.double(at[0])), graph.double(at[-1]))
    slopes = np.diff(to) / np.diff(at)
    if len(at) == 2:
        left, base, slope = (graph.double(v[0]) for v in (at, to, slopes))
    else:
        # The segment is how many inner thresholds x has passed.
        passed = graph.cast(graph.op("Greater", inside, graph.double(at[1:-1][None, :])), "INT64")
        place = graph.op("ReduceSum", passed, graph.ints(1), keepdims=1)
        left, base, slope = (graph.op("Gather", graph.double(v), place, axis=0) for v in (at, to, slopes))
    result = graph.op("Add", graph.op("Mul", slope, graph.op("Sub", inside, left)), base)
    return graph.nan_unless_finite(result, x, always=True)


def _temperature(graph: Graph, calibrator: Any, answer: Answer, classes: int) -> str:
    beta = graph.double(float(calibrator.beta_))
    if classes == 2 and answer.decision:
        return graph.op("Sigmoid", graph.op("Mul", graph.op("Mul", answer.decision, graph.double(2.0)), beta))
    if answer.decision:
        return graph.op("Softmax", graph.op("Mul", answer.decision, beta), axis=1)
    # scikit-learn takes the logarithm of probabilities plus the same epsilon.
    tiny = graph.double(float(np.finfo(np.float64).eps))
    logits = graph.op("Log", graph.op("Add", answer.by_class(graph), tiny))
    result = graph.op("Softmax", graph.op("Mul", logits, beta), axis=1)
    return graph.numbers(graph.matrix(result, 2)[1:]) if classes == 2 else result


PREDICTS: dict[str, Predict] = {
    **dict.fromkeys(
        [
            "LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "HuberRegressor",
            "SGDRegressor", "BayesianRidge", "ARDRegression", "TheilSenRegressor", "LinearSVR", "QuantileRegressor",
            "Lars", "LarsCV", "LassoLars", "LassoLarsCV", "LassoLarsIC", "OrthogonalMatchingPursuit",
            "OrthogonalMatchingPursuitCV", "PassiveAggressiveRegressor", "MultiTaskLasso", "MultiTaskLassoCV", "MultiTaskElasticNet",
            "MultiTaskElasticNetCV",
        ],
        _linear,
    ),
    **dict.fromkeys(["PoissonRegressor", "GammaRegressor", "TweedieRegressor"], _glm),
    **dict.fromkeys(["LogisticRegression", "LogisticRegressionCV"], _logistic),
    "SGDClassifier": _sgd,
    **dict.fromkeys(["LinearSVC", "RidgeClassifier", "RidgeClassifierCV", "Perceptron", "PassiveAggressiveClassifier"], _margin),
    "LinearDiscriminantAnalysis": _discriminant,
    **dict.fromkeys(
        ["DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"], _tree
    ),
    **dict.fromkeys(
        ["RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"], _forest
    ),
    **dict.fromkeys(["GradientBoostingClassifier", "GradientBoostingRegressor"], _boosted),
    **dict.fromkeys(["HistGradientBoostingClassifier", "HistGradientBoostingRegressor"], _hist_boosted),
    **dict.fromkeys(["MLPClassifier", "MLPRegressor"], _network),
    "GaussianNB": _from_logarithms(bayes.gaussian),
    **dict.fromkeys(["MultinomialNB", "BernoulliNB", "ComplementNB"], _from_logarithms(bayes.linear)),
    "QuadraticDiscriminantAnalysis": _from_logarithms(bayes.quadratic),
    **dict.fromkeys(["PLSRegression", "PLSCanonical", "CCA"], _latent),
    "OneVsRestClassifier": _one_versus_rest_of,
    "AdaBoostClassifier": _ada_classifier,
    "AdaBoostRegressor": _ada_regressor,
    **dict.fromkeys(["SVC", "NuSVC", "SVR", "NuSVR"], _support_vectors),
    "RANSACRegressor": _ransac,
    "VotingClassifier": _voting_classifier,
    "VotingRegressor": _voting_regressor,
    **dict.fromkeys(["BaggingClassifier", "BaggingRegressor"], _bagging),
    **dict.fromkeys(["StackingClassifier", "StackingRegressor"], _stacking),
    "TransformedTargetRegressor": _transformed,
    "FrozenEstimator": _frozen,
    **dict.fromkeys(["FixedThresholdClassifier", "TunedThresholdClassifierCV"], _thresholded),
    "CalibratedClassifierCV": _calibrated,
}  # fmt: skip
