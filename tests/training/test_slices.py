from __future__ import annotations

import numpy as np
import pytest

from mainspring.errors import InvalidInput
from mainspring.records.base import from_json, to_json
from mainspring.records.models import Task
from mainspring.records.training import Evaluation
from mainspring.training.metrics import metric
from mainspring.training.slices import MAX_SLICES, evaluate


def test_slices_hold_their_rows_and_say_when_there_are_too_few() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(600) < 0.3).astype(float)
    p = rng.random(600)
    carrier = ["UA"] * 400 + ["AA"] * 190 + ["OO"] * 9 + [None]
    found = evaluate(
        y, p, task=Task.BINARY, metrics=["log_loss", "auc"], slices={"carrier": carrier}, replicates=50
    )
    assert [(s.value, s.n, s.enough) for s in found.slices] == [
        ("UA", 400, True),
        ("AA", 190, True),
        ("OO", 9, False),
        ("(missing)", 1, False),
    ]
    assert found.slices[1].metrics["log_loss"].value == pytest.approx(
        metric("log_loss", Task.BINARY)(y[400:590], p[400:590])
    )
    assert found.slices[2].metrics["log_loss"].low is None
    assert from_json(to_json(found), Evaluation) == found  # no NaN on the way


def test_rare_values_are_put_together() -> None:
    values = [f"v{i:03d}" for i in range(MAX_SLICES + 50)]
    found = evaluate(
        np.zeros(len(values)),
        np.full(len(values), 0.1),
        task=Task.BINARY,
        metrics=["brier"],
        slices={"dest": values},
        replicates=0,
    )
    assert len(found.slices) == MAX_SLICES + 1
    assert (found.slices[-1].value, found.slices[-1].n) == ("(other)", 50)


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidInput):
        evaluate([0, 1], [0.1, 0.2], task=Task.BINARY, slices={"x": ["a"]})
