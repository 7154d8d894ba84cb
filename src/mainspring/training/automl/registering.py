"""Fits an estimator on one dataset version and registers it by another: what the search and its exported script call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from mainspring.models.formats import infer_signature
from mainspring.models.formats.saving import complete_signature
from mainspring.records.models import ModelVersion, Signature, Task
from mainspring.training.automl.fitting import fit_estimator
from mainspring.training.automl.problem import read_inputs, read_target
from mainspring.training.registering import Part, Registration, Rooms, read_part, register_estimator

__all__ = ["fit_and_register", "infer_input_signature", "read_part"]


def infer_input_signature(training: Part, holdout: Part, inputs: Sequence[str], task: Task) -> Signature:
    """Types and nullability of the inputs, as the rows of both parts have them."""
    both = pa.concat_tables([training.table.select(inputs), holdout.table.select(inputs)])
    return infer_signature(both, task=task)


def fit_and_register(
    workspace: Rooms,
    run: Any,
    estimator: Any,
    *,
    model: str,
    training: Part,
    holdout: Part,
    inputs: Sequence[str],
    target: str,
    task: Task | str,
    metric: str | None = None,
    time: str | None = None,
    group: str | None = None,
    tags: Mapping[str, str] | None = None,
    seed: int = 0,
) -> ModelVersion:
    """Fit on the training rows, evaluate on the hold-out (one counted use), register the next version of ``model``.

    ``run`` is the tracked run that this belongs to. ``time`` or ``group`` names the column by which rows depend on one another.
    Raises what :func:`~mainspring.training.registering.register_estimator` raises.
    """
    task = Task(task)
    signature = infer_input_signature(training, holdout, inputs, task)
    fit_estimator(
        estimator, read_inputs(training.table, signature), read_target(training.table, target, task)
    )
    registration = Registration(
        model=model, signature=complete_signature(signature, estimator), target=target, metrics=[metric] if metric else [],
        time=time, group=group, tags=tags or {}, by="train", seed=seed,
    )  # fmt: skip
    return register_estimator(workspace, run, estimator, training, holdout, registration)
