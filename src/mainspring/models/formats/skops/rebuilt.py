"""Parts of an estimator that are left out of a skops file and made again from its plain data when it is loaded.

Trees of neighbours and splines: their compiled code follows indices that a file could make up, so the file holds the rows and the knots
alone, and scikit-learn's and SciPy's own constructors, which check what they get, build the same tree and the same spline from them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from mainspring.errors import UnsafeFormat
from mainspring.models.formats import fitted

_TREES = ("kd_tree", "ball_tree")
_METRICS = frozenset({"euclidean", "manhattan", "chebyshev", "minkowski", "seuclidean", "mahalanobis", "hamming", "canberra", "braycurtis", "haversine", "l1", "l2", "p", "cityblock", "infinity"})  # fmt: skip
_METRIC_SETTINGS = frozenset({"p", "w", "V", "VI"})


def without_rebuilt(estimator: Any) -> Any:
    """The estimator, or where it holds such parts a copy with ``None`` for a tree and the knots of each spline in its place."""
    memo: dict[int, Any] = {}
    for part in list_objects(estimator):
        if (tree := getattr(part, "_tree", None)) is not None and hasattr(part, "_fit_method"):
            memo[id(tree)] = None
        for spline in _list_splines(part):
            memo[id(spline)] = (np.asarray(spline.t), np.asarray(spline.c), int(spline.k), spline.extrapolate)
    return copy.deepcopy(estimator, memo) if memo else estimator


def rebuild(estimator: Any) -> None:
    """Make the parts that :func:`without_rebuilt` left out. Raises UnsafeFormat for data that they cannot be made of."""
    for part in list_objects(estimator):
        try:
            if hasattr(part, "_fit_method"):
                _rebuild_tree(part)
            if hasattr(part, "bsplines_"):
                _rebuild_splines(part)
        except UnsafeFormat:
            raise
        except Exception as error:  # noqa: BLE001 - data that the constructor refuses is not a fitted estimator
            raise UnsafeFormat(
                f"a part of {type(part).__name__} cannot be made of its data: {str(error)[:200]}",
                place="model.skops",
            ) from None


def _rebuild_tree(part: Any) -> None:
    kind = fitted.get_neighbor_method(part)
    if (
        kind not in _TREES or fitted.get_neighbor_tree(part) is not None
    ):  # one that is there, the operator of the loader allowed
        return
    from sklearn.neighbors import BallTree, KDTree

    metric, settings = part.effective_metric_, dict(part.effective_metric_params_)
    if metric not in _METRICS or not settings.keys() <= _METRIC_SETTINGS:
        raise UnsafeFormat(
            "a tree of neighbours with an unknown distance", value=str(metric), place="model.skops"
        )
    make = KDTree if kind == "kd_tree" else BallTree
    fitted.set_neighbor_tree(
        part, make(fitted.get_neighbor_rows(part), part.leaf_size, metric=metric, **settings)
    )


def _rebuild_splines(part: Any) -> None:
    from scipy.interpolate import BSpline

    part.bsplines_ = [BSpline(t, c, int(k), extrapolate) for t, c, k, extrapolate in part.bsplines_]


def _list_splines(part: Any) -> list[Any]:
    found = getattr(part, "bsplines_", None)
    return list(found) if isinstance(found, list) else []


def list_objects(value: Any) -> Iterator[Any]:
    """Every object with attributes that ``value`` holds, in containers and arrays too, each once."""
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str | bytes | int | float | type(None)) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            stack += item
        elif isinstance(item, np.ndarray):
            stack += item.ravel().tolist() if item.dtype == object else []
        else:
            yield item
            stack += list(getattr(item, "__dict__", {}).values())
