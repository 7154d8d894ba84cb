"""Columns that give the target away are found, and good columns are not taken for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mainspring.records.models import Task
from mainspring.training.automl.leakage import find_leaks, measure_shares
from mainspring.training.splits import stratified_folds

N = 300
RNG = np.random.default_rng(11)
TRUTH = (RNG.random(N) < 0.3).astype(float)
NUMBERS = RNG.gamma(2.0, size=N)


def suspects(task: Task, **columns: Any) -> set[str]:
    truth = NUMBERS if task is Task.REGRESSION else TRUTH
    folds = stratified_folds(TRUTH, folds=5)
    return set(find_leaks(measure_shares(pa.table(columns), truth, folds, task, seed=0), task))


def test_codes_gaps_and_copies_of_a_class_are_found() -> None:
    """A gap where the outcome is false (a date of leaving, a reason) tells as much as the outcome itself."""
    found = suspects(
        Task.BINARY,
        code=np.where(TRUTH == 1, "left", "here"),
        reason=pa.array([("price" if i % 2 else "moved") if t else None for i, t in enumerate(TRUTH)]),
        days=pa.array([float(i) if t else None for i, t in enumerate(TRUTH)]),
        copy=TRUTH * 5 + 1,
        good=TRUTH + RNG.normal(size=N),
        noise=RNG.normal(size=N),
    )
    assert found == {"code", "reason", "days", "copy"}


def test_a_target_in_another_unit_is_found() -> None:
    found = suspects(
        Task.REGRESSION,
        cents=np.log1p(NUMBERS * 100),
        negative=-NUMBERS,
        good=NUMBERS + 0.2 * RNG.normal(size=N),
        noise=RNG.normal(size=N),
    )
    assert found == {"cents", "negative"}


@pytest.mark.parametrize("name", ["load_iris", "load_wine", "load_breast_cancer", "load_diabetes"])
def test_columns_of_real_datasets_are_not_suspected(name: str) -> None:
    from sklearn import datasets

    data = getattr(datasets, name)(as_frame=True)
    inputs = pa.Table.from_pandas(data.data, preserve_index=False)
    truth = data.target.to_numpy().astype(float)
    task = Task.REGRESSION if name == "load_diabetes" else Task.MULTICLASS
    keys = np.zeros(len(truth)) if task is Task.REGRESSION else truth
    assert (
        find_leaks(measure_shares(inputs, truth, stratified_folds(keys, folds=5), task, seed=0), task) == {}
    )
