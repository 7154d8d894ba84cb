"""Evaluation over all rows and by slice: an average hides a group for which the model fails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mainspring.errors import InvalidInput
from mainspring.metrics.intervals import REPLICATES, Estimate, as_interval, check_confidence, estimate
from mainspring.metrics.metric import as_arrays, as_weights
from mainspring.metrics.registry import list_metrics, metric
from mainspring.records.models import Task
from mainspring.records.scores import PROBABILITIES, ScoreMeaning
from mainspring.records.training import Evaluation, Interval, SliceResult

MAX_SLICES = 100
"""Most values of a column that become slices; the rarer ones are combined as ``(other)``."""


def evaluate(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    task: Task,
    metrics: Sequence[str] | None = None,
    blocks: ArrayLike | None = None,
    slices: Mapping[str, Sequence[Any]] | None = None,
    min_rows: int = 50,
    confidence: float = 0.95,
    weights: ArrayLike | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    meaning: ScoreMeaning = PROBABILITIES,
) -> Evaluation:
    """Metrics with intervals, over all rows and by each value of each column in ``slices``.

    ``metrics`` defaults to all that the task has with scores of that ``meaning`` (``records.scores.meaning_of(signature)``). Slices are sorted by size, largest first; those under ``min_rows``
    have ``enough`` False and no intervals.
    """
    check_confidence(confidence)
    truth, predicted = as_arrays(y, scores)
    weight = as_weights(weights, len(truth))
    chosen = [metric(name, task, meaning) for name in metrics] if metrics else list_metrics(task, meaning)
    keys = None if blocks is None else np.asarray(blocks)

    def measure_rows(rows: Any, *, enough: bool) -> dict[str, Interval]:
        part = None if keys is None else keys[rows]
        intervals = {}
        for chosen_metric in chosen:
            checked = chosen_metric.checked(truth[rows], predicted[rows], weight[rows])
            if enough:
                estimated = estimate(chosen_metric, *checked, blocks=part, replicates=replicates, seed=seed)
            else:
                estimated = Estimate(
                    value=chosen_metric.value(*checked),
                    n=len(checked[0]),
                    reason=f"insufficient: {len(checked[0])} rows, {min_rows} are needed",
                )
            intervals[chosen_metric.name] = as_interval(chosen_metric, estimated, confidence)
        return intervals

    results: list[SliceResult] = []
    for column, values in (slices or {}).items():
        for value, rows in _group_rows(column, values, len(truth)):
            enough = len(rows) >= min_rows
            results.append(
                SliceResult(
                    column=column,
                    value=value,
                    n=len(rows),
                    metrics=measure_rows(rows, enough=enough),
                    enough=enough,
                )
            )
    return Evaluation(
        task=task, rows=len(truth), metrics=measure_rows(slice(None), enough=True), slices=results
    )


def _group_rows(column: str, values: Sequence[Any], rows: int) -> list[tuple[str, Any]]:
    if len(values) != rows:
        raise InvalidInput(
            "a slice column needs one value per row", value=f"{column}: {len(values)} values, {rows} rows"
        )
    labels = np.array(
        ["(missing)" if v is None or (isinstance(v, float) and math.isnan(v)) else str(v) for v in values],
        dtype=object,
    )
    names, index, sizes = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    order = [int(i) for i in np.lexsort((names, -sizes))]
    groups = [(str(names[i]), np.flatnonzero(index == i)) for i in order[:MAX_SLICES]]
    if len(order) > MAX_SLICES:
        groups.append(("(other)", np.flatnonzero(np.isin(index, order[MAX_SLICES:]))))
    return groups
