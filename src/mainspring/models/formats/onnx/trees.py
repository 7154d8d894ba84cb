"""Tree ensembles of scikit-learn as ``TreeEnsemble`` of ai.onnx.ml, opset 5, with float64 thresholds and leaf weights.

Written from the estimators' own arrays, so nothing is rounded. Forests, trees and gradient boosting cast their inputs to float32 first
and compare those with float64 thresholds; histogram boosting does not. scikit-learn adds up the
trees in their order, and so does ONNX Runtime. A leaf of the operator has one target: with ``k`` classes each tree is written ``k`` times.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mainspring.models.formats import fitted
from mainspring.models.formats.onnx.graph import Graph, Unsupported

_LEQ, _MEMBER = 0, 6
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Trees:
    """The arrays of one ``TreeEnsemble`` node, filled tree by tree."""

    def __init__(self, targets: int) -> None:
        self._targets = targets
        self._parts: dict[str, list[Any]] = {name: [] for name in _NODE + _LEAF}
        self._members: list[float] = []
        self._nodes = self._leaves = 0
        self._roots: list[int] = []

    def constant(self, value: float, target: int) -> None:
        """A tree that answers ``value`` for every row."""
        self.add(
            left=np.array([-1]),
            right=np.array([-1]),
            feature=np.array([0]),
            threshold=np.array([0.0]),
            missing_left=np.array([False]),
            value=np.array([value]),
            target=target,
        )

    def add(
        self,
        *,
        left: Any,
        right: Any,
        feature: Any,
        threshold: Any,
        missing_left: Any,
        value: Any,
        target: int,
        members: dict[int, Any] | None = None,
    ) -> None:
        """One tree of nodes ``0..m-1``, the root first; ``left`` is -1 at a leaf.

        A row goes left if its feature is ``<= threshold``, or NaN and ``missing_left``. ``members``: nodes that split on a
        set of values instead; a row in the set goes left.
        """
        left, right = np.asarray(left, dtype=np.int64), np.asarray(right, dtype=np.int64)
        inner = np.flatnonzero(left >= 0)
        if not len(inner):  # the operator needs a root that splits: both leaves get the one value
            weight = float(np.asarray(value)[0])
            left, right = np.array([1, -1, -1]), np.array([2, -1, -1])
            feature, threshold = np.zeros(3, dtype=np.int64), np.zeros(3)
            missing_left, value = np.zeros(3, dtype=bool), np.array([0.0, weight, weight])
            inner = np.array([0])
        is_leaf = left < 0
        place = np.where(
            is_leaf, np.cumsum(is_leaf) - 1 + self._leaves, np.cumsum(~is_leaf) - 1 + self._nodes
        )
        leaves = np.flatnonzero(is_leaf)
        modes = np.full(len(left), _LEQ, dtype=np.uint8)
        for node in sorted(members or {}):
            modes[node] = _MEMBER
            self._members += [float(v) for v in (members or {})[node]] + [float("nan")]
        arrays = {
            "featureids": np.asarray(feature)[inner],
            "splits": np.asarray(threshold, dtype=np.float64)[inner],
            "modes": modes[inner],
            "truenodeids": place[left[inner]],
            "falsenodeids": place[right[inner]],
            "trueleafs": is_leaf[left[inner]],
            "falseleafs": is_leaf[right[inner]],
            "missing_value_tracks_true": np.asarray(missing_left)[inner],
            "weights": np.asarray(value, dtype=np.float64)[leaves],
            "targetids": np.full(len(leaves), target),
        }
        for name, values in arrays.items():
            self._parts[name].append(values)
        self._roots.append(self._nodes)
        self._nodes += len(inner)
        self._leaves += len(leaves)

    def refuse_infinite(self, features: int, *, nan: bool) -> None:
        """Add a tree that adds 0, and NaN to rows with an infinite feature (``nan``: or a NaN), on which scikit-learn raises."""
        count = 2 * features
        nodes = count + 2  # two nodes for each feature, then the leaf of good rows and that of bad ones
        left, right = np.full(nodes, -1), np.full(nodes, -1)
        good, bad = count, count + 1
        feature, threshold = np.zeros(nodes, dtype=np.int64), np.zeros(nodes)
        missing = np.zeros(nodes, dtype=bool)
        for j in range(features):
            upper, lower = 2 * j, 2 * j + 1
            left[upper], right[upper] = lower, bad
            left[lower], right[lower] = bad, lower + 1 if j < features - 1 else good
            feature[[upper, lower]] = j
            threshold[upper], threshold[lower] = _FLOAT32_MAX, -1.5 * _FLOAT32_MAX
            missing[upper], missing[lower] = not nan, False
        for target in range(self._targets):
            # Each branch to the bad leaf gets a leaf of its own: the operator takes trees, and a node has one parent.
            self._add_chain(left, right, feature, threshold, missing, bad, target)

    def _add_chain(
        self, left: Any, right: Any, feature: Any, threshold: Any, missing: Any, bad: int, target: int
    ) -> None:
        """Add a chain in which several branches lead to leaf ``bad``, after copying that leaf for each."""
        lefts, rights = left.copy(), right.copy()
        extra = 0
        for side in (lefts, rights):
            for node in np.flatnonzero(side == bad):
                side[node] = bad + extra
                extra += 1
        grow = extra - 1
        value = np.zeros(len(left) + grow)
        value[bad:] = np.nan
        self.add(
            left=np.append(lefts, np.full(grow, -1)),
            right=np.append(rights, np.full(grow, -1)),
            feature=np.append(feature, np.zeros(grow, dtype=np.int64)),
            threshold=np.append(threshold, np.zeros(grow)),
            missing_left=np.append(missing, np.zeros(grow, dtype=bool)),
            value=value,
            target=target,
        )

    def write(self, graph: Graph, x: str) -> str:
        """Append the ensemble to ``graph``; returns the sums ``[n, targets]`` for features ``x``."""
        from onnx import numpy_helper

        parts = {name: np.concatenate(values) for name, values in self._parts.items()}
        extra = {}
        if self._members:
            extra["membership_values"] = numpy_helper.from_array(np.array(self._members))
        return graph.op(
            "TreeEnsemble",
            x,
            domain="ai.onnx.ml",
            aggregate_function=1,
            post_transform=0,
            n_targets=self._targets,
            tree_roots=self._roots,
            leaf_targetids=_as_ints(parts["targetids"]),
            leaf_weights=numpy_helper.from_array(parts["weights"]),
            nodes_splits=numpy_helper.from_array(parts["splits"]),
            nodes_modes=numpy_helper.from_array(parts["modes"]),
            **{f"nodes_{name}": _as_ints(parts[name]) for name in _NODE if name not in ("splits", "modes")},
            **extra,
        )


_NODE = [
    "featureids", "splits", "modes", "truenodeids", "falsenodeids", "trueleafs", "falseleafs",
    "missing_value_tracks_true",
]  # fmt: skip
_LEAF = ["weights", "targetids"]


def _as_ints(values: Any) -> list[int]:
    listed: list[int] = np.asarray(values, dtype=np.int64).tolist()
    return listed


def as_float32(graph: Graph, x: str) -> str:
    """Features as scikit-learn's trees see them: rounded to float32, infinite beyond its range."""
    return graph.cast(graph.cast(x, "FLOAT"))


def _add_sklearn(trees: Trees, tree: Any, weights: Any, target: int) -> None:
    trees.add(
        left=tree.children_left,
        right=tree.children_right,
        feature=tree.feature,
        threshold=tree.threshold,
        missing_left=np.asarray(tree.missing_go_to_left) != 0,
        value=weights,
        target=target,
    )


def forest(graph: Graph, estimators: list[Any], x: str, *, classes: int) -> str:
    """The mean of decision trees, ``[n, classes]``; two classes: ``[n, 1]`` P(second); regression (0): ``[n, 1]``."""
    kept = [0] if classes == 0 else [1] if classes == 2 else list(range(classes))
    trees = Trees(len(kept))
    for estimator in estimators:
        tree = estimator.tree_
        if tree.n_outputs != 1:
            raise Unsupported("several targets at once")
        for target, column in enumerate(kept):
            _add_sklearn(trees, tree, tree.value[:, 0, column], target)
    trees.refuse_infinite(estimators[0].tree_.n_features, nan=False)
    total = trees.write(graph, as_float32(graph, x))
    return graph.op("Div", total, graph.double([float(len(estimators))])) if len(estimators) > 1 else total


def gradient_boosting(graph: Graph, estimator: Any, x: str) -> str:
    """Raw predictions ``[n, trees per iteration]`` of GradientBoosting*."""
    stages = estimator.estimators_
    features = estimator.n_features_in_
    init = estimator.init_
    if not (isinstance(init, str) and init == "zero") and type(init).__name__ not in (
        "DummyClassifier",
        "DummyRegressor",
    ):
        raise Unsupported(f"gradient boosting that starts from a {type(init).__name__}")
    start = fitted.compute_first_sums(estimator)
    trees = Trees(stages.shape[1])
    for target, value in enumerate(start):
        trees.constant(float(value), target)
    for stage in stages:
        for target, tree in enumerate(stage):
            _add_sklearn(trees, tree.tree_, estimator.learning_rate * tree.tree_.value[:, 0, 0], target)
    trees.refuse_infinite(features, nan=True)
    return trees.write(graph, as_float32(graph, x))


def hist_gradient_boosting(graph: Graph, estimator: Any, x: str) -> str:
    """Raw predictions ``[n, trees per iteration]`` of HistGradientBoosting*; categories already encoded as 0, 1, ..."""
    start = fitted.get_baseline(estimator)
    trees = Trees(estimator.n_trees_per_iteration_)
    for target in range(estimator.n_trees_per_iteration_):
        trees.constant(float(start[target]), target)
    for stage in fitted.get_stages(estimator):
        for target, predictor in enumerate(stage):
            _add_hist(trees, predictor, target)
    return trees.write(graph, x)


def _add_hist(trees: Trees, predictor: Any, target: int) -> None:
    nodes = predictor.nodes
    leaf = nodes["is_leaf"] != 0
    members = {}
    for node in np.flatnonzero((nodes["is_categorical"] != 0) & ~leaf):
        words = predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]]
        # An empty set sends only missing values left; the operator needs a member, and no category is -1.
        members[int(node)] = [v for v in range(256) if int(words[v // 32]) >> (v % 32) & 1] or [-1]
    trees.add(
        left=np.where(leaf, -1, nodes["left"].astype(np.int64)),
        right=np.where(leaf, -1, nodes["right"].astype(np.int64)),
        feature=nodes["feature_idx"].astype(np.int64),
        threshold=np.where(_mask_members(nodes, members), 0.0, nodes["num_threshold"]),
        missing_left=nodes["missing_go_to_left"] != 0,
        value=nodes["value"],
        target=target,
        members=members,
    )


def _mask_members(nodes: Any, members: dict[int, Any]) -> Any:
    mask = np.zeros(len(nodes), dtype=bool)
    mask[list(members)] = True
    return mask
