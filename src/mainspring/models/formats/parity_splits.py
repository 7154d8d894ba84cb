"""Values on and next to the thresholds of trees, as values of the input columns.

A tree splits on a feature, not on a column. After scalers and imputers the feature is an affine function of one column: two values of
that column determine it, and a third checks it. Features made in another way (one-hot, bins) get no such values.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from mainspring.models.formats import fitted
from mainspring.models.formats.boosters import library_of
from mainspring.models.formats.columns import is_null
from mainspring.models.formats.estimators import NullText, estimator_input
from mainspring.records.models import Signature

_Steps = list[Any]


def split_values(
    estimator: Any,
    signature: Signature,
    base: dict[str, list[Any]],
    null_text: NullText,
    rng: Any,
    *,
    limit: int,
) -> Iterator[dict[str, Any]]:
    """Changes to a row, about ``limit`` at most: one column on or beside a threshold, then all such columns at once."""
    by_column: dict[str, list[float]] = {}
    for steps, thresholds in _find_splits(estimator):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                thresholds_by_column = _convert_thresholds(
                    estimator, steps, thresholds, signature, base, null_text
                )
        except Exception:  # noqa: BLE001, S112 - trees after a step that cannot be evaluated get no such rows
            continue
        for name, values in thresholds_by_column.items():
            by_column.setdefault(name, []).extend(values)
    if not by_column:
        return
    whole = {c.name: c.type == "int64" for c in signature.inputs}
    near: dict[str, list[float]] = {}
    share = max(1, limit // 2 // len(by_column) // 8)
    for name, values in by_column.items():
        distinct = np.unique([v for v in values if math.isfinite(v)])
        chosen = distinct if len(distinct) <= share else rng.choice(distinct, share, replace=False)
        near[name] = [v for t in chosen for v in (_whole(t) if whole[name] else _around(float(t)))]
    for name, values in near.items():
        for value in values:
            yield {name: int(value) if whole[name] else value}
    usable = {name: values for name, values in near.items() if values}
    for _ in range(limit // 2 if usable else 0):
        drawn = {name: values[int(rng.integers(len(values)))] for name, values in usable.items()}
        yield {name: int(value) if whole[name] else value for name, value in drawn.items()}


def _whole(threshold: float) -> list[float]:
    """Whole numbers beside the threshold; none near the ends of int64, where float64 is coarse."""
    if abs(threshold) >= 2.0**62:
        return []
    return [float(math.floor(threshold)), float(math.ceil(threshold)), float(math.floor(threshold) + 1)]


def _around(threshold: float) -> list[float]:
    """The threshold, its float64 and float32 neighbours, and the values where rounding to float32 crosses the threshold.

    Rounding to float32 crosses it at the middle between two neighbouring float32 values.
    """
    with np.errstate(over="ignore"):
        single = np.float32(threshold)
        low, high = (
            float(np.nextafter(single, np.float32(-np.inf))),
            float(np.nextafter(single, np.float32(np.inf))),
        )
    middle = (float(single) + (high if threshold >= float(single) else low)) / 2
    values = [
        threshold,
        math.nextafter(threshold, -math.inf),
        math.nextafter(threshold, math.inf),
        float(single),
        low,
        high,
        math.nextafter(middle, -math.inf),
        math.nextafter(middle, math.inf),
    ]
    return [v for v in values if math.isfinite(v)]


def _find_splits(estimator: Any) -> Iterator[tuple[_Steps, list[tuple[int, float]]]]:
    """Each tree model inside ``estimator``, scikit-learn's and others'."""
    parts = estimator.steps if type(estimator).__name__ == "Pipeline" else [("", estimator)]
    last = parts[-1][1]
    if library_of(getattr(last, "model", last)) is None:
        yield from _find_trees(estimator, [])
    else:
        before = [part for _, part in parts[:-1] if part is not None and part != "passthrough"]
        yield before, _booster_splits(last)


def _find_trees(estimator: Any, steps: _Steps) -> Iterator[tuple[_Steps, list[tuple[int, float]]]]:
    """Each tree model inside ``estimator``: the steps before it, and (feature, threshold) of its splits."""
    kind = type(estimator).__name__
    if kind == "Pipeline":
        parts = [part for _, part in estimator.steps[:-1] if part is not None and part != "passthrough"]
        yield from _find_trees(estimator.steps[-1][1], steps + parts)
    elif kind == "CalibratedClassifierCV":
        for calibrated in estimator.calibrated_classifiers_:
            yield from _find_trees(calibrated.estimator, steps)
    elif kind == "FrozenEstimator":
        yield from _find_trees(estimator.estimator, steps)
    elif kind.startswith(("Voting", "Stacking")):
        for member in estimator.estimators_:
            yield from _find_trees(member, steps)
    elif kind.startswith("HistGradientBoosting"):
        yield steps, _hist_splits(estimator)
    elif hasattr(estimator, "tree_"):
        yield steps, _tree_splits(estimator.tree_)
    elif hasattr(estimator, "estimators_") and not kind.startswith("Bagging"):
        splits: list[tuple[int, float]] = []
        for member in np.ravel(np.asarray(estimator.estimators_, dtype=object)):
            if hasattr(member, "tree_"):
                splits += _tree_splits(member.tree_)
        yield steps, splits


def _tree_splits(tree: Any) -> list[tuple[int, float]]:
    inner = tree.children_left >= 0
    return list(zip(tree.feature[inner].tolist(), tree.threshold[inner].tolist(), strict=True))


def _hist_splits(estimator: Any) -> list[tuple[int, float]]:
    order = np.arange(estimator.n_features_in_)
    if fitted.get_category_encoder(estimator) is not None:  # its trees see the categorical features first
        flags = np.asarray(estimator.is_categorical_)
        order = np.concatenate([np.flatnonzero(flags), np.flatnonzero(~flags)])
    splits: list[tuple[int, float]] = []
    for stage in fitted.get_stages(estimator):
        for predictor in stage:
            nodes = predictor.nodes
            inner = (nodes["is_leaf"] == 0) & (nodes["is_categorical"] == 0)
            features = order[nodes["feature_idx"][inner]].tolist()
            splits += zip(features, nodes["num_threshold"][inner].tolist(), strict=True)
    return splits


def _booster_splits(estimator: Any) -> list[tuple[int, float]]:
    """Of LightGBM, XGBoost or CatBoost; none of a model whose trees no graph repeats."""
    from mainspring.models.formats.onnx.graph import Unsupported
    from mainspring.models.formats.onnx.others import read_booster

    try:
        ensemble = read_booster(estimator)
    except Unsupported:
        return []
    splits: list[tuple[int, float]] = []
    for tree in ensemble.trees:
        inner = (tree.left >= 0) & np.isfinite(tree.threshold)
        inner[list(tree.members)] = False
        splits += zip(tree.feature[inner].tolist(), tree.threshold[inner].tolist(), strict=True)
    return splits


def _convert_thresholds(
    estimator: Any,
    steps: _Steps,
    splits: list[tuple[int, float]],
    signature: Signature,
    base: dict[str, list[Any]],
    null_text: NullText,
) -> dict[str, list[float]]:
    """Thresholds of splits by input column, in the column's own unit."""
    row = {name: next((v for v in values if not is_null(v)), values[0]) for name, values in base.items()}
    out: dict[str, list[float]] = {}
    for column in signature.inputs:
        if column.type not in ("float64", "int64"):
            continue
        pool = sorted({float(v) for v in base[column.name] if not is_null(v)})
        if len(pool) < 2:
            continue
        # Far apart, for a precise slope, and one between them for the check.
        at = [pool[0], pool[-1], pool[len(pool) // 2]]
        if column.type == "int64":
            at = [float(int(v)) for v in at]
        probe = {name: [value] * 3 for name, value in row.items()}
        probe[column.name] = [int(v) if column.type == "int64" else v for v in at]
        features = _features(estimator, steps, probe, signature, null_text)
        slope = (features[1] - features[0]) / (at[1] - at[0])
        line = features[0] + slope * (at[2] - at[0])
        affine = (slope != 0) & np.isclose(features[2], line, rtol=1e-6, atol=1e-9)
        out[column.name] = [
            at[0] + (threshold - float(features[0][f])) / float(slope[f])
            if slope[f] != 1 or features[0][f] != at[0]
            else threshold
            for f, threshold in splits
            if affine[f]
        ]
    return out


def _features(
    estimator: Any,
    steps: _Steps,
    columns: dict[str, list[Any]],
    signature: Signature,
    null_text: NullText,
) -> Any:
    """What a tree after ``steps`` sees of these rows, float64 ``(rows, features)``; NaN for what is no number."""
    values = estimator_input(estimator, columns, signature, null_text)
    for step in steps:
        values = step.transform(values)
    if hasattr(values, "toarray"):
        values = values.toarray()
    table = np.asarray(values)
    if table.dtype == object:  # numbers and texts in one array: a text has no threshold
        table = np.array([[v if isinstance(v, int | float) else np.nan for v in r] for r in table])
    return table.astype(np.float64)
