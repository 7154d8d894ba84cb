"""Writes estimators that answer several numbers for a row: detectors, clusterings, transformers alone, and several targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from mainspring.models.formats.onnx import ensembles, kernels
from mainspring.models.formats.onnx import models as predictors
from mainspring.models.formats.onnx.columns import sklearn_name, transform
from mainspring.models.formats.onnx.graph import Graph, Table, Unsupported


def write_values(graph: Graph, model: Any, table: Table) -> str:
    """The numbers of ``model`` in the order of its outputs, ``[n, outputs]``."""
    kind = sklearn_name(model)
    if kind == "Pipeline":
        for _, step in model.steps[:-1]:
            table = transform(graph, step, table)
        return write_values(graph, model.steps[-1][1], table)
    if kind == "FrozenEstimator":
        return write_values(graph, model.estimator, table)
    if kind in _VALUES:
        return _VALUES[kind](graph, model, table)
    if not hasattr(model, "predict"):
        return graph.numbers(transform(graph, model, table))
    answer = predictors.predict(graph, model, table)
    if not answer.value:
        raise Unsupported(f"no exact form for several answers of {kind}")
    return answer.value


def _isolation(graph: Graph, model: Any, table: Table) -> str:
    decision = ensembles.isolation(graph, model, table)
    return _detector(graph, decision, graph.op("GreaterOrEqual", decision, graph.double(0.0)))


def _one_class(graph: Graph, model: Any, table: Table) -> str:
    decision = kernels.binary_decision(graph, model, table)
    return _detector(graph, decision, graph.op("Greater", decision, graph.double(0.0)))


def _detector(graph: Graph, decision: str, usual: str) -> str:
    label = graph.op("Where", usual, graph.double(1.0), graph.double(-1.0))
    return graph.op("Concat", graph.nan_unless_finite(label, decision, always=True), decision, axis=1)


def _nearest_centre(graph: Graph, model: Any, table: Table) -> str:
    """The cluster with the least distance; as in scikit-learn without the square of the row, which is the same for all."""
    x = graph.numbers(table)
    centres = np.asarray(model.cluster_centers_, dtype=np.float64)
    products = graph.op("MatMul", x, graph.double(-2.0 * centres.T))
    distance = graph.op("Add", products, graph.double((centres**2).sum(axis=1)))
    place = graph.cast(graph.op("ArgMin", distance, axis=1, keepdims=1))
    return graph.nan_unless_finite(place, x, always=True)


def _labels(graph: Graph, model: Any, table: Table) -> str:
    """The classes of each target, of trees."""
    members = list(getattr(model, "estimators_", [model]))
    scores = ensembles.label_scores(graph, members, graph.numbers(table))
    columns = [
        class_values(graph, graph.op("ArgMax", s, axis=1, keepdims=1), s, classes, [])
        for s, classes in zip(scores, model.classes_, strict=True)
    ]
    return graph.op("Concat", *columns, axis=1)


def class_values(graph: Graph, place: str, scores: str, classes: Any, table: Table) -> str:
    """The numeric class at ``place``, ``[n, 1]``; NaN in rows without an answer."""
    values = np.asarray(classes)
    if values.dtype.kind not in "biuf":
        raise Unsupported("several labels that are no numbers")
    picked = graph.op("Gather", graph.double(values), place, axis=0)
    return graph.nan_without_answer(picked, scores, table)


def _member_value(graph: Graph, member: Any, table: Table) -> str:
    """The number or the numeric class that a member answers, ``[n, 1]``."""
    answer = predictors.predict(graph, member, table)
    if answer.value:
        return answer.value
    place, scores = answer.place(graph, len(member.classes_))
    return class_values(graph, place, scores, member.classes_, table)


def _each(graph: Graph, model: Any, table: Table) -> str:
    return graph.op("Concat", *(_member_value(graph, m, table) for m in model.estimators_), axis=1)


def _chain(graph: Graph, model: Any, table: Table) -> str:
    if getattr(model, "chain_method_", "predict") != "predict":
        raise Unsupported("a chain of scores")
    if len(table) != len(set(table)):
        raise Unsupported("a column twice")
    made: dict[int, str] = {}
    grown = table
    for target, member in zip(model.order_, model.estimators_, strict=True):
        made[int(target)] = _member_value(graph, member, grown)
        grown = grown + graph.matrix(made[int(target)], 1)
    return graph.op("Concat", *(made[i] for i in sorted(made)), axis=1)


def _network_labels(graph: Graph, model: Any, table: Table) -> str:
    raw = predictors.network_output(graph, model, table)
    return graph.nan_unless_finite(graph.cast(graph.op("Greater", raw, graph.double(0.0))), raw, always=True)


def _network(graph: Graph, model: Any, table: Table) -> str:
    if hasattr(model, "classes_"):
        return _network_labels(graph, model, table)
    return predictors.predict(graph, model, table).value


def _tree(graph: Graph, model: Any, table: Table) -> str:
    if hasattr(model, "classes_"):
        return _labels(graph, model, table)
    return ensembles.targets(graph, list(getattr(model, "estimators_", [model])), graph.numbers(table))


_VALUES = {
    "IsolationForest": _isolation,
    "OneClassSVM": _one_class,
    **dict.fromkeys(["KMeans", "MiniBatchKMeans"], _nearest_centre),
    **dict.fromkeys(["MultiOutputRegressor", "MultiOutputClassifier"], _each),
    **dict.fromkeys(["RegressorChain", "ClassifierChain"], _chain),
    **dict.fromkeys(["MLPClassifier", "MLPRegressor"], _network),
    **dict.fromkeys(
        [
            "DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor",
            "RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor",
        ],
        _tree,
    ),
}  # fmt: skip
