"""Writes naive Bayes and quadratic discriminants in float64 ONNX: for each class a logarithm, ``[n, classes]``, of which the softmax is the
probability."""

from __future__ import annotations

from typing import Any

import numpy as np

from mainspring.models.formats.onnx.columns import sklearn_name
from mainspring.models.formats.onnx.graph import Graph, Table


def gaussian(graph: Graph, model: Any, table: Table) -> str:
    """Of GaussianNB."""
    x = graph.numbers(table)
    columns = []
    for mean, variance, prior in zip(model.theta_, model.var_, model.class_prior_, strict=True):
        away = graph.op("Sub", x, graph.double(mean))
        terms = graph.op("Div", graph.op("Mul", away, away), graph.double(variance))
        total = graph.op("ReduceSum", terms, graph.ints(1), keepdims=1)
        start = np.log(prior) - 0.5 * np.sum(np.log(2.0 * np.pi * variance))
        columns.append(graph.op("Add", graph.op("Mul", total, graph.double(-0.5)), graph.double([[start]])))
    return graph.op("Concat", *columns, axis=1)


def linear(graph: Graph, model: Any, table: Table) -> str:
    """Of MultinomialNB, BernoulliNB and ComplementNB: sums of logarithms of probabilities."""
    x, weights = graph.numbers(table), np.asarray(model.feature_log_prob_, dtype=np.float64).T
    bias = np.asarray(model.class_log_prior_, dtype=np.float64)
    if sklearn_name(model) == "BernoulliNB":
        if model.binarize is not None:
            given = graph.cast(graph.op("Greater", x, graph.double(float(model.binarize))))
            x = graph.nan_unless_finite(given, x, always=True)
        none = np.log(1 - np.exp(weights))
        weights, bias = weights - none, bias + none.sum(axis=0)
    elif sklearn_name(model) == "ComplementNB" and len(model.classes_) > 1:
        bias = np.zeros(len(bias))
    return graph.gemm(x, weights, bias)


def quadratic(graph: Graph, model: Any, table: Table) -> str:
    """Of QuadraticDiscriminantAnalysis."""
    x = graph.numbers(table)
    columns = []
    for mean, turn, scale, prior in zip(
        model.means_, model.rotations_, model.scalings_, model.priors_, strict=True
    ):
        turned = graph.op("MatMul", graph.op("Sub", x, graph.double(mean)), graph.double(turn * scale**-0.5))
        total = graph.op("ReduceSum", graph.op("Mul", turned, turned), graph.ints(1), keepdims=1)
        start = -0.5 * np.sum(np.log(scale)) + np.log(prior)
        columns.append(graph.op("Add", graph.op("Mul", total, graph.double(-0.5)), graph.double([[start]])))
    return graph.op("Concat", *columns, axis=1)
