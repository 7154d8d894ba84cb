"""Evaluation as a whole and by slice: an average hides the carrier that the model fails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mainspring.errors import InvalidInput
from mainspring.records.models import Task
from mainspring.records.training import Evaluation, Interval, SliceResult
from mainspring.training.intervals import interval
from mainspring.training.metrics import METRICS, as_arrays

MAX_SLICES = 100
"""Most values of a column that become slices; the rarer ones are put together as ``(other)``."""


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
    replicates: int = 300,
    seed: int = 0,
) -> Evaluation:
    """Metrics with intervals, over all rows and by each value of each column in ``slices``.

    ``metrics`` defaults to all that the task knows. Slices are sorted by size, largest first; those under ``min_rows``
    have ``enough`` False and no intervals.
    """
    truth, predicted = as_arrays(y, scores)
    names = list(metrics) if metrics else [m.name for m in METRICS.values() if task in m.tasks]
    keys = None if blocks is None else np.asarray(blocks)

    def measured(rows: Any, *, draws: int) -> dict[str, Interval]:
        part = None if keys is None else keys[rows]
        return {
            name: interval(
                name,
                truth[rows],
                predicted[rows],
                task=task,
                blocks=part,
                confidence=confidence,
                replicates=draws,
                seed=seed,
            )
            for name in names
        }

    found: list[SliceResult] = []
    for column, values in (slices or {}).items():
        for value, rows in _groups(column, values, len(truth)):
            enough = len(rows) >= min_rows
            found.append(
                SliceResult(
                    column=column,
                    value=value,
                    n=len(rows),
                    metrics=measured(rows, draws=replicates if enough else 0),
                    enough=enough,
                )
            )
    return Evaluation(
        task=task, rows=len(truth), metrics=measured(slice(None), draws=replicates), slices=found
    )


def _groups(column: str, values: Sequence[Any], rows: int) -> list[tuple[str, Any]]:
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
