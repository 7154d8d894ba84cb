"""Writes support vector machines in float64 ONNX: the kernel of a row with each support vector, then a matrix product.

scikit-learn's own form (libsvm) follows indices unchecked when it is rebuilt from a file, so a graph is the only form that is stored.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from mainspring.models.formats import fitted
from mainspring.models.formats.onnx.graph import Graph, Table, Unsupported, one_hot

_HUGE = 1e100
"""Beyond it squares overflow; the RBF kernel of such a number with any support vector is 0."""


def binary_decision(graph: Graph, model: Any, table: Table) -> str:
    """The decision function of two classes, of a regression or of a detector, ``[n, 1]``."""
    weights = np.reshape(_dense(model.dual_coef_), (1, -1)).T
    kernel, x = _kernel(graph, model, table)
    return graph.nan_unless_finite(
        graph.op("Gemm", kernel, graph.double(weights), graph.double(np.reshape(model.intercept_, (1,)))),
        x,
        always=True,
    )


def pair_decisions(graph: Graph, model: Any, table: Table) -> str:
    """The decision of each pair of classes, ``[n, pairs]``; above 0 for the first of the two. Any number where ``table`` is not finite."""
    starts = np.concatenate([[0], np.cumsum(model.n_support_)])
    duals = np.asarray(_dense(model._dual_coef_))
    classes = len(model.classes_)
    weights = []
    for first, second in combinations(range(classes), 2):
        column = np.zeros(duals.shape[1])
        for one, other in ((first, second), (second, first)):
            part = slice(starts[one], starts[one + 1])
            column[part] = duals[other - (other > one), part]
        weights.append(column)
    kernel, _ = _kernel(graph, model, table)
    bias = graph.double(np.asarray(model._intercept_, dtype=np.float64))
    return graph.op("Gemm", kernel, graph.double(np.column_stack(weights)), bias)


def count_votes(graph: Graph, pairs: str, classes: int, *, strict: bool) -> str:
    """How many pairs each class wins, ``[n, classes]``; a pair at 0 is for the second class if ``strict``, else for the first."""
    first, second = _pair_matrices(classes)
    wins = graph.cast(graph.op("Greater" if strict else "GreaterOrEqual", pairs, graph.double(0.0)))
    # Votes of the second for every pair, and for each win one moves to the first.
    return graph.op("Gemm", wins, graph.double(first - second), graph.double(second.sum(axis=0)))


def confident_votes(graph: Graph, pairs: str, classes: int) -> str:
    """scikit-learn's decision function of several classes: the votes, and less than one half by the sums of the pairs' decisions."""
    first, second = _pair_matrices(classes)
    sums = graph.op("MatMul", pairs, graph.double(first - second))
    size = graph.op("Mul", graph.op("Add", graph.op("Abs", sums), graph.double(1.0)), graph.double(3.0))
    votes = count_votes(graph, pairs, classes, strict=False)
    return graph.op("Add", votes, graph.op("Div", sums, size))


def most_votes(graph: Graph, votes: str, classes: int, scores: str) -> str:
    """1 for the first class with the most ``votes`` and 0 for the others; NaN in rows where ``scores`` are."""
    place = graph.op("ArgMax", votes, axis=1, keepdims=1)
    return graph.nan_unless_finite(one_hot(graph, place, classes), scores, always=True)


def _pair_matrices(classes: int) -> tuple[Any, Any]:
    pairs = list(combinations(range(classes), 2))
    first, second = np.zeros((len(pairs), classes)), np.zeros((len(pairs), classes))
    for row, (i, j) in enumerate(pairs):
        first[row, i] = second[row, j] = 1.0
    return first, second


def _dense(values: Any) -> Any:
    return values.toarray() if hasattr(values, "toarray") else values


def _kernel(graph: Graph, model: Any, table: Table) -> tuple[str, str]:
    """The kernel with each support vector, ``[n, vectors]``, and the features."""
    if not isinstance(model.kernel, str) or model.kernel == "precomputed":
        raise Unsupported("a support vector machine with a kernel of your own")
    x = graph.numbers(table)
    vectors = np.asarray(_dense(model.support_vectors_), dtype=np.float64)
    gamma = graph.double(fitted.get_gamma(model))
    if model.kernel == "rbf":
        return _rbf(graph, x, vectors, gamma), x
    products = graph.op("MatMul", x, graph.double(vectors.T))
    if model.kernel == "linear":
        return products, x
    shifted = graph.op("Add", graph.op("Mul", products, gamma), graph.double(float(model.coef0)))
    if model.kernel == "sigmoid":
        return graph.op("Tanh", shifted), x
    if model.kernel == "poly" and float(model.degree).is_integer() and model.degree > 0:
        power = shifted
        for _ in range(int(model.degree) - 1):
            power = graph.op("Mul", power, shifted)
        return power, x
    raise Unsupported(f"a support vector machine with the kernel {model.kernel!r}")


def _rbf(graph: Graph, x: str, vectors: Any, gamma: str) -> str:
    # Around the middle of the vectors, so that squares of large numbers do not cancel each other.
    middle = vectors.mean(axis=0)
    around = vectors - middle
    far = graph.op("Greater", graph.op("ReduceMax", graph.op("Abs", x), graph.ints(1), keepdims=1), graph.double(_HUGE))  # fmt: skip
    near = graph.op("Where", far, graph.double(0.0), graph.op("Sub", x, graph.double(middle)))
    squares = graph.op("ReduceSum", graph.op("Mul", near, near), graph.ints(1), keepdims=1)
    products = graph.op("MatMul", near, graph.double(2.0 * around.T))
    distance = graph.op("Sub", graph.op("Add", squares, graph.double((around**2).sum(axis=1))), products)
    positive = graph.op("Max", distance, graph.double(0.0))
    kernel = graph.op("Exp", graph.op("Neg", graph.op("Mul", positive, gamma)))
    return graph.op("Where", far, graph.double(0.0), kernel)
