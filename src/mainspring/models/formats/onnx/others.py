"""Writes models of other libraries as ONNX: the trees of LightGBM, XGBoost and CatBoost, from the arrays that
:mod:`mainspring.models.formats.boosters` reads, and the linear models of statsmodels.

LightGBM compares and adds up in float64. CatBoost compares in float32 and adds up in float64. XGBoost does both in float32, and so
does the graph: the sums of a few hundred trees differ by more than rounding otherwise, and a probability of just 0.5 has one side.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mainspring.errors import InvalidInput
from mainspring.models.formats.boosters import library_of
from mainspring.models.formats.boosters.ensemble import Ensemble
from mainspring.models.formats.onnx.columns import encode_ordinal
from mainspring.models.formats.onnx.graph import Graph, Table, Unsupported
from mainspring.models.formats.onnx.models import Answer
from mainspring.models.formats.onnx.trees import Trees, as_float32

_MOST_NODES = 4_000_000


def read_booster(model: Any) -> Ensemble:
    """The trees of a booster, adapted or not. Raises Unsupported where it has none that a graph repeats."""
    inner = getattr(model, "model", model)
    library = library_of(inner)
    categorical, texts = getattr(model, "categorical", ()), getattr(model, "texts", None)
    try:
        if library == "lightgbm":
            from mainspring.models.formats.boosters import lightgbm_model, lightgbm_text

            return lightgbm_text.read(lightgbm_model.dump(inner, categorical))
        if library == "xgboost":
            from mainspring.models.formats.boosters import xgboost_json, xgboost_model

            read = xgboost_json.read(xgboost_model.dump(inner))
            refuses = type(inner).__name__ == "Booster"  # a DMatrix takes no infinite number
            return replace(read, missing=xgboost_model.missing_value(inner), finite=refuses)
        from mainspring.models.formats.boosters import catboost_json, catboost_model

        return catboost_json.read(catboost_model.dump(inner, texts))
    except InvalidInput as error:
        raise Unsupported(error.message) from None
    except ValueError as error:
        raise Unsupported(f"no exact form for {error}") from None


def predict_other(graph: Graph, model: Any, table: Table) -> Answer:
    """Append a model of another library to ``graph``; returns its answer."""
    return _linear(graph, model, table) if hasattr(model, "intercept") else _booster(graph, model, table)


def _linear(graph: Graph, model: Any, table: Table) -> Answer:
    if len(table) != len(model.coef):
        raise Unsupported(f"{len(model.coef)} columns in the design, and {len(table)} in the rows")
    raw = graph.gemm(graph.numbers(table), model.coef, model.intercept)
    one = graph.double(1.0)
    if model.link == "softmax":
        # As statsmodels has it: 1 for the first class, which has no parameters; no answer where an exponential overflows.
        null = graph.op("IsNaN", graph.numbers(graph.matrix(raw, model.coef.shape[1])[:1]))
        ones = graph.cast(graph.op("Or", null, graph.op("Not", null)))
        each = graph.op("Concat", ones, graph.op("Exp", raw), axis=1)
        return Answer(wide=graph.op("Div", each, graph.op("ReduceSum", each, graph.ints(1), keepdims=1)))
    if model.link == "logit":
        value = graph.op("Sigmoid", raw)
    elif model.link == "log":
        value = graph.op("Exp", raw)
    elif model.link == "inverse":
        value = graph.op("Div", one, raw)
    elif model.link == "cloglog":
        value = graph.op("Sub", one, graph.op("Exp", graph.op("Neg", graph.op("Exp", raw))))
    else:
        value = raw
    return Answer(positive=value) if hasattr(model, "classes_") else Answer(value=value)


def _booster(graph: Graph, model: Any, table: Table) -> Answer:
    ensemble = read_booster(model)
    if len(table) != ensemble.features:
        raise Unsupported(f"{ensemble.features} features, and {len(table)} columns")
    raw = _sums(graph, ensemble, _features(graph, ensemble, table))
    classes = len(getattr(model, "classes_", ()))
    answer = _answer(graph, ensemble, raw)
    if ensemble.single:  # XGBoost answers float32
        answer = graph.cast(graph.cast(answer, "FLOAT"))
    if not classes:
        if ensemble.outputs != 1:
            raise Unsupported("several targets at once")
        return Answer(value=answer)
    if ensemble.link not in ("sigmoid", "softmax", "sigmoid of each"):
        raise Unsupported("a classifier whose answers are no probabilities")
    # Calibration prefers a decision function; LightGBM has one, which answers the sums.
    decision = raw if hasattr(model, "decision_function") else ""
    if ensemble.link == "sigmoid":
        return Answer(positive=answer, decision=decision)
    return Answer(wide=answer, decision=decision)


def _features(graph: Graph, ensemble: Ensemble, table: Table) -> str:
    """The features as the trees compare them: categories as their codes."""
    columns: Table = []
    for feature, column in enumerate(table):
        if feature in ensemble.categories:
            known = list(ensemble.categories[feature])
            nan = float("nan")
            columns += (
                encode_ordinal(graph, [column], [known], unknown=nan, missing=nan) if known else [column]
            )
            continue
        if feature in ensemble.coded:
            x = graph.numbers([column])
            whole = (
                graph.op("Floor", x)
                if ensemble.whole == "floor"
                else graph.op("Mul", graph.op("Sign", x), graph.op("Floor", graph.op("Abs", x)))
            )
            columns += graph.matrix(whole, 1)
            continue
        columns.append(column)
    x = graph.numbers(columns)
    if ensemble.zero is not None:
        small = graph.op("LessOrEqual", graph.op("Abs", x), graph.double(ensemble.zero))
        x = graph.op("Where", small, graph.double(0.0), x)
    if ensemble.missing is not None:
        x = graph.cast(x, "FLOAT")
        null = graph.op("Equal", x, graph.constant(np.float32(ensemble.missing)))
        x = graph.cast(graph.op("Where", null, graph.constant(np.float32("nan")), x))
    if ensemble.single:
        return graph.cast(x, "FLOAT")
    return as_float32(graph, x) if ensemble.narrow else x


def _sums(graph: Graph, ensemble: Ensemble, x: str) -> str:
    """The sums of the leaves, ``[n, outputs]`` float64."""
    if sum(len(tree.left) for tree in ensemble.trees) > _MOST_NODES:
        raise Unsupported("trees too large for a graph")
    trees = _SingleTrees(ensemble.outputs) if ensemble.single else Trees(ensemble.outputs)
    for target, start in enumerate(ensemble.start):
        if ensemble.single or not ensemble.trees:
            trees.constant(start, target)
    for tree in ensemble.trees:
        # No code is 0.5: a set needs a member.
        members = {node: codes if len(codes) else [0.5] for node, codes in tree.members.items()}
        trees.add(
            left=tree.left, right=tree.right, feature=tree.feature, threshold=tree.threshold, missing_left=tree.missing_left,
            value=tree.value, target=tree.target, members=members,
        )  # fmt: skip
    if ensemble.finite:
        trees.refuse_infinite(ensemble.features, nan=False)
    raw = trees.write(graph, x)
    if ensemble.single:
        return graph.cast(raw)
    if ensemble.scale != 1:
        raw = graph.op("Mul", raw, graph.double(ensemble.scale))
    return graph.op("Add", raw, graph.double(list(ensemble.start))) if any(ensemble.start) else raw


def _answer(graph: Graph, ensemble: Ensemble, raw: str) -> str:
    link = ensemble.link
    if link in ("sigmoid", "sigmoid of each"):
        scaled = raw if ensemble.sigmoid == 1 else graph.op("Mul", raw, graph.double(ensemble.sigmoid))
        return graph.op("Sigmoid", scaled)
    if link == "softmax":
        return graph.op("Softmax", raw, axis=1)
    if link == "exp":
        return graph.op("Exp", raw)
    if link == "log1p of exp":
        return graph.op("Log", graph.op("Add", graph.op("Exp", raw), graph.double(1.0)))
    return (
        graph.op("Mul", graph.op("Sign", raw), graph.op("Mul", raw, raw)) if link == "signed square" else raw
    )


class _SingleTrees(Trees):
    """Trees whose thresholds and leaves are float32, and added up as such."""

    def write(self, graph: Graph, x: str) -> str:
        with np.errstate(over="ignore"):
            for name in ("splits", "weights"):
                self._parts[name] = [part.astype(np.float32) for part in self._parts[name]]
        self._members = [np.float32(v) for v in self._members]  # type: ignore[misc]
        return super().write(graph, x)
