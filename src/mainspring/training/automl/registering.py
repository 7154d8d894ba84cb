"""From an unfitted estimator and two dataset versions to a registered, evaluated model version: all that the long way records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from mainspring.errors import InvalidInput
from mainspring.models.formats import infer_signature
from mainspring.records.data import DatasetVersion
from mainspring.records.models import ModelVersion, Signature, Task
from mainspring.records.training import Evaluation
from mainspring.training.automl.dates import is_date
from mainspring.training.automl.fitting import classes_of, fitted, scores_of, truth_of
from mainspring.training.automl.parts import blocks_of
from mainspring.training.automl.problem import inputs_of, labels_of
from mainspring.training.slices import evaluate

REPORTED = {
    Task.BINARY: ["log_loss", "auc", "brier", "accuracy"],
    Task.MULTICLASS: ["log_loss", "accuracy", "f1"],
    Task.REGRESSION: ["rmse", "mae", "r2"],
}
_SAMPLE = 200


class Rooms(Protocol):
    """What is needed of a workspace, here or on a server."""

    @property
    def data(self) -> Any: ...
    @property
    def tracking(self) -> Any: ...
    @property
    def models(self) -> Any: ...
    @property
    def training(self) -> Any: ...


@dataclass(frozen=True)
class Part:
    """A dataset version with its rows."""

    version: DatasetVersion
    table: pa.Table


def read_part(workspace: Rooms, dataset: str, version: str) -> Part:
    """A dataset version and its rows."""
    dataset_version = workspace.data.get_version(dataset, version)
    return Part(dataset_version, workspace.data.read(dataset, dataset_version.id))


def signature_of(training: Part, holdout: Part, inputs: Sequence[str], task: Task) -> Signature:
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
    Raises what :meth:`~mainspring.models.client.ModelsClient.save_and_register` raises for an estimator that cannot be stored.
    """
    task = Task(task)
    signature = signature_of(training, holdout, inputs, task)
    labels = labels_of(training.table, target, task)
    fitted(estimator, inputs_of(training.table, signature), labels)
    workspace.training.lock_holdout(dataset_version=holdout.version.id)
    workspace.training.use_holdout(
        dataset_version=holdout.version.id, purpose=f"evaluation of {model} after training", by="train"
    )
    result = _evaluate_holdout(
        estimator, holdout, signature, target, metric, classes_of(labels, task), time=time, group=group, seed=seed
    )  # fmt: skip
    metrics = _numbers(result)
    run.log_metrics(metrics)
    run.flush()
    timed = time is not None and is_date(training.table[time].type)
    version: ModelVersion = workspace.models.save_and_register(
        estimator,
        model=model,
        signature=signature,
        sample=holdout.table.select(inputs).slice(0, _SAMPLE),
        training=training.table.select(inputs),
        metrics=metrics,
        run=run.id,
        dataset_version=training.version.id,
        holdout=holdout.version.id,
        label=target,
        profile=workspace.data.get_profile_object(training.version.dataset, training.version.id).digest,
        tags={**(tags or {}), **({"time_column": str(time)} if timed else {})},
    )
    subject = f"model_version:{model}@{version.version}"
    workspace.training.record_evaluation(
        evaluation=msgspec.structs.replace(result, subject=subject, dataset_version=holdout.version.id)
    )
    return version


def _evaluate_holdout(
    estimator: Any, holdout: Part, signature: Signature, target: str, metric: str | None, classes: Any, *,
    time: str | None, group: str | None, seed: int,
) -> Evaluation:  # fmt: skip
    task = signature.task
    labels = labels_of(holdout.table, target, task)
    unknown = [] if task is Task.REGRESSION else sorted(set(labels.tolist()) - set(classes.tolist()))
    if unknown:
        raise InvalidInput(
            "the hold-out has a class that no training row has",
            value=unknown[0],
            place=f"column {target!r}",
            next_step="Give older rows of that class, or leave its rows out.",
        )
    scores = scores_of(estimator, inputs_of(holdout.table, signature), task, classes)
    names = list(dict.fromkeys([*([metric] if metric else []), *REPORTED[task]]))
    blocks = blocks_of(holdout.table, time=time, group=group)
    return evaluate(
        truth_of(labels, task, classes), scores, task=task, metrics=names, blocks=blocks, seed=seed
    )


def _numbers(result: Evaluation) -> dict[str, float]:
    """The metrics and the ends of their intervals, where there are any."""
    numbers: dict[str, float] = {}
    for name, interval in result.metrics.items():
        ends = {name: interval.value, f"{name}.low": interval.low, f"{name}.high": interval.high}
        numbers |= {k: float(v) for k, v in ends.items() if v is not None and np.isfinite(v)}
    return numbers
