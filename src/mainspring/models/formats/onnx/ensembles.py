"""Writes ensembles whose trees do not simply add up: AdaBoost, isolation forests, and trees with several targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from mainspring.models.formats import fitted
from mainspring.models.formats.onnx.graph import Graph, Table, Unsupported
from mainspring.models.formats.onnx.trees import Trees, as_float32


def add_tree(trees: Trees, tree: Any, weights: Any, target: int, features: Any = None) -> None:
    """A tree of scikit-learn with other values in its leaves; ``features``: the columns that it was fitted on, by position."""
    feature = np.maximum(tree.feature, 0)
    trees.add(
        left=tree.children_left,
        right=tree.children_right,
        feature=feature if features is None else np.asarray(features)[feature],
        threshold=tree.threshold,
        missing_left=np.asarray(tree.missing_go_to_left) != 0,
        value=weights,
        target=target,
    )


def boosted_labels(graph: Graph, model: Any, table: Table) -> str:
    """The decision function of AdaBoostClassifier over trees: each adds its weight to the class that it names. Two classes: one column."""
    classes = len(model.classes_)
    trees = Trees(1 if classes == 2 else classes)
    for member, weight in zip(model.estimators_, model.estimator_weights_, strict=False):
        tree = _tree_of(member)
        if len(member.classes_) != classes:
            raise Unsupported("a boosted tree that has not seen every class")
        named = np.argmax(tree.value[:, 0, :], axis=1)
        if classes == 2:
            # scikit-learn adds up one column for each class and takes their difference.
            add_tree(trees, tree, np.where(named == 1, 2.0, -2.0) * weight, 0)
            continue
        for target in range(classes):
            add_tree(trees, tree, np.where(named == target, weight, -1 / (classes - 1) * weight), target)
    trees.refuse_infinite(model.n_features_in_, nan=True)
    total = trees.write(graph, as_float32(graph, graph.numbers(table)))
    return graph.op("Div", total, graph.double(float(np.sum(model.estimator_weights_))))


def weighted_median(graph: Graph, model: Any, table: Table) -> str:
    """The answer of AdaBoostRegressor over trees, ``[n, 1]``: the median of its trees' answers by their weights."""
    count = len(model.estimators_)
    trees = Trees(count)
    for target, member in enumerate(model.estimators_):
        add_tree(trees, _tree_of(member), _tree_of(member).value[:, 0, 0], target)
    trees.refuse_infinite(model.n_features_in_, nan=True)
    answers = trees.write(graph, as_float32(graph, graph.numbers(table)))
    places = graph.smallest_first(answers, count)
    ordered = graph.op("GatherElements", answers, places, axis=1)
    weights = np.asarray(model.estimator_weights_, dtype=np.float64)[:count]
    sums = graph.op(
        "CumSum", graph.op("Gather", graph.double(weights), places, axis=0), graph.constant(np.int64(1))
    )
    half = graph.op("Mul", graph.numbers(graph.matrix(sums, count)[-1:]), graph.double(0.5))
    reached = graph.cast(graph.op("GreaterOrEqual", sums, half), "INT64")
    first = graph.op("ArgMax", reached, axis=1, keepdims=1)
    # A row with an infinite number has NaN from every tree.
    return graph.nan_unless_finite(graph.op("GatherElements", ordered, first, axis=1), answers, always=True)


def _tree_of(member: Any) -> Any:
    if type(member).__name__ not in ("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"):  # fmt: skip
        raise Unsupported(f"boosting of {type(member).__name__}")
    return member.tree_


def isolation(graph: Graph, model: Any, table: Table) -> str:
    """The decision function of an IsolationForest, ``[n, 1]``: below 0 for an outlier."""
    trees = Trees(1)
    for member, features, lengths in zip(
        model.estimators_, model.estimators_features_, fitted.get_path_lengths(model), strict=True
    ):
        add_tree(trees, member.tree_, lengths - 1.0, 0, features)
    depth = trees.write(graph, as_float32(graph, graph.numbers(table)))
    whole = len(model.estimators_) * fitted.compute_usual_path_length(model)
    if not whole:
        raise Unsupported("an isolation forest of single rows")
    power = graph.op("Neg", graph.op("Div", depth, graph.double(whole)))
    scores = graph.op("Pow", graph.double([2.0]), power)
    return graph.op("Sub", graph.op("Neg", scores), graph.double(float(model.offset_)))


def targets(graph: Graph, estimators: list[Any], x: str) -> str:
    """The mean of regression trees with several targets, ``[n, targets]``."""
    count = estimators[0].tree_.n_outputs
    trees = Trees(count)
    for estimator in estimators:
        for target in range(count):
            add_tree(trees, estimator.tree_, estimator.tree_.value[:, target, 0], target)
    trees.refuse_infinite(estimators[0].tree_.n_features, nan=False)
    total = trees.write(graph, as_float32(graph, x))
    return graph.op("Div", total, graph.double([float(len(estimators))])) if len(estimators) > 1 else total


def label_scores(graph: Graph, estimators: list[Any], x: str) -> list[str]:
    """For each target of classification trees the mean probabilities of its classes, ``[n, classes]``."""
    tree = estimators[0].tree_
    widths = [int(n) for n in tree.n_classes]
    trees = Trees(sum(widths))
    for estimator in estimators:
        at = 0
        for output, width in enumerate(widths):
            for place in range(width):
                add_tree(trees, estimator.tree_, estimator.tree_.value[:, output, place], at)
                at += 1
    trees.refuse_infinite(tree.n_features, nan=False)
    total = trees.write(graph, as_float32(graph, x))
    if len(estimators) > 1:
        total = graph.op("Div", total, graph.double([float(len(estimators))]))
    columns = graph.matrix(total, sum(widths))
    ends = np.cumsum(widths)
    return [graph.numbers(columns[end - width : end]) for end, width in zip(ends, widths, strict=True)]
