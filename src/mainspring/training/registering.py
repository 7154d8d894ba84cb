"""From a fitted estimator and its rows to a registered, evaluated model version: the one way of ``ms.train``, ``ms.log_model`` and steps.

What it records: the rows as dataset versions, the profile of the training rows, the locked hold-out with its use, the evaluation,
the version with label, run, source code and environment, and the edges between all of these.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mainspring.errors import InvalidInput
from mainspring.metrics.intervals import REPLICATES
from mainspring.metrics.registry import list_metrics
from mainspring.models.formats.answers import unwrap_search
from mainspring.models.formats.estimators import estimator_scores, fitted_names, learned_null
from mainspring.models.formats.frames import read_table
from mainspring.models.formats.saving import complete_signature
from mainspring.models.formats.signature import find_task, infer_for_estimator
from mainspring.records.base import check_name
from mainspring.records.classes import LabelReader
from mainspring.records.data import DatasetVersion
from mainspring.records.models import ModelVersion, Signature, Task
from mainspring.records.scores import meaning_of
from mainspring.records.training import Evaluation
from mainspring.training.blocks import make_blocks
from mainspring.training.dates import is_date
from mainspring.training.fitted import Fitted, StepLike
from mainspring.training.slices import evaluate
from mainspring.training.tables import read_labels, require_column, select_inputs

REPORTED = {
    Task.BINARY: ["log_loss", "auc", "brier", "accuracy"],
    Task.MULTICLASS: ["log_loss", "accuracy", "f1"],
    Task.REGRESSION: ["rmse", "mae", "r2"],
    Task.VALUES: [],
}
"""What is measured where nothing is asked for, as far as the scores of a model allow it."""
_SAMPLE = 200
CAPTURE_S = 120.0
"""So long may the capture of a run that has just begun take on a busy machine: a version does not get its code and environment later."""
_ID = re.compile(r"[0-9a-f]{64}")


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


class RunLog(Protocol):
    """What is needed of the run that a version belongs to: a tracked run, or the run of a pipeline (:class:`StepRun`)."""

    @property
    def id(self) -> str: ...
    def log_metrics(self, metrics: Mapping[str, float]) -> None: ...
    def log_inputs(self, *inputs: str) -> None: ...
    def flush(self, timeout_s: float = ...) -> bool: ...


class StepRun:
    """The run of the pipeline that a step belongs to."""

    def __init__(self, context: StepLike) -> None:
        self._context = context

    @property
    def id(self) -> str:
        return self._context.run

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Keep them with the execution of the step."""
        for name, value in metrics.items():
            self._context.log_metric(name, value)

    def log_inputs(self, *inputs: str) -> None:
        """An edge from each to the execution of the step."""
        for reference in inputs:
            self._context.used(reference)

    def flush(self, timeout_s: float = 0.0) -> bool:  # noqa: ARG002 - nothing to wait for
        """Nothing waits: what a step logs is stored when it ends."""
        return True


@dataclass(frozen=True)
class Part:
    """A dataset version with its rows."""

    version: DatasetVersion
    table: pa.Table


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What is registered, beside the estimator and its rows."""

    model: str
    signature: Signature
    target: str | None = None
    metrics: Sequence[str] = ()
    slices: Sequence[str] = ()
    time: str | None = None
    group: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    by: str = "training"
    """What used the hold-out, in the record of that use."""
    format: str = "auto"
    seed: int = 0
    replicates: int = REPLICATES


def read_part(workspace: Rooms, dataset: str, version: str) -> Part:
    """A dataset version and its rows."""
    dataset_version = workspace.data.get_version(dataset, version)
    return Part(dataset_version, workspace.data.read(dataset, dataset_version.id))


# --- from rows -----------------------------------------------------------------------------------------------------------


def register_rows(workspace: Rooms, run: RunLog, fitted: Fitted) -> ModelVersion:
    """Commit the rows of ``fitted`` as ``<name>-train`` and ``<name>-holdout``, and register its estimator with them.

    Raises :class:`InvalidInput` for rows that do not fit one another or the estimator, before anything is committed; and for an
    estimator that no format stores, when the rows are committed.
    """
    model = check_name(fitted.name, what="model")
    estimator = unwrap_search(fitted.estimator)
    _check_labels_given(find_task(estimator), fitted)
    train, targets = _join_labels(estimator, fitted, fitted.train, fitted.target, what="training rows")
    holdout = None if fitted.holdout is None else _read_holdout(estimator, fitted, targets)
    inputs = _find_inputs(estimator, train, fitted, targets)
    given = [select_inputs(fitted.train, train, inputs)]
    if holdout is not None:
        for name in inputs:
            require_column(holdout, name, what="rows of the hold-out")
        given.append(select_inputs(_without_labels(fitted.holdout), holdout, inputs))
    signature = infer_for_estimator(estimator, *given, outputs=[])
    signature = complete_signature(_declare(signature, fitted), estimator)
    target = targets[0] if targets and signature.task is not Task.VALUES else None
    if signature.task is not Task.VALUES:
        score_rows(
            estimator, train.slice(0, 1), signature
        )  # what does not run at all says so before anything is recorded
    registration = Registration(
        model=model, signature=signature, target=target, metrics=fitted.metrics, slices=fitted.slices, time=fitted.time,
        group=fitted.group, tags=fitted.tags, format=fitted.format, seed=fitted.seed, replicates=fitted.replicates or REPLICATES,
    )  # fmt: skip
    training, judging = _commit_parts(workspace, run, fitted, train, holdout)
    return register_estimator(workspace, run, estimator, training, judging, registration)


def _check_labels_given(task: Task, fitted: Fitted) -> None:
    """Raise :class:`InvalidInput` for labels that are missing, and for a hold-out that could judge nothing."""
    if task is not Task.VALUES and fitted.target is None:
        raise InvalidInput(
            f"a {task.value} model needs the labels of its rows",
            place=f"model {fitted.name!r}",
            next_step="Give y: the labels, or the name of their column in the rows.",
        )
    if task is Task.VALUES and fitted.holdout is not None:
        raise InvalidInput(
            "answers of several values are compared with no label, so there is nothing that a hold-out could judge",
            value=task.value,
            next_step="Leave holdout out.",
        )


def _join_labels(
    estimator: Any, fitted: Fitted, rows: Any, labels: Any, *, what: str
) -> tuple[pa.Table, list[str]]:
    """The rows with their labels as columns of one table, and the names of these columns."""
    table = read_table(rows, what=what)
    if not table.num_rows:
        raise InvalidInput(f"there are no {what}")
    for name in (fitted.time, fitted.group, *fitted.slices):
        if name is not None:
            require_column(table, name, what=what)
    if labels is None:
        return table, []
    if isinstance(labels, str):
        require_column(table, labels, what=what)
        _require_labels(table, labels, what=what)
        return table, [labels]
    others = [n for n in (fitted.time, fitted.group, *fitted.slices) if n is not None]
    used = [*(fitted_names(estimator) or table.column_names), *others]
    columns = read_labels(labels, rows=table.num_rows, taken=used)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, values)
        _require_labels(table, name, what=what)
    return table, list(columns)


def _require_labels(table: pa.Table, name: str, *, what: str) -> None:
    missing = int(pc.sum(pc.is_null(table[name], nan_is_null=True)).as_py() or 0)
    if missing:
        raise InvalidInput(
            f"{missing} of the {what} have no label",
            place=f"column {name!r}",
            next_step="Leave these rows out.",
        )


def _read_holdout(estimator: Any, fitted: Fitted, targets: Sequence[str]) -> pa.Table:
    rows, labels = fitted.holdout, fitted.target
    if isinstance(rows, tuple) and len(rows) == 2:
        rows, labels = rows
    elif not isinstance(labels, str):
        raise InvalidInput(
            "the hold-out needs labels of its own",
            value=type(rows).__name__,
            next_step="Give holdout=(rows, labels), or name the column of the labels in both tables.",
        )
    table, names = _join_labels(estimator, fitted, rows, labels, what="rows of the hold-out")
    if len(names) != len(targets):
        raise InvalidInput(
            "the hold-out has another number of targets", value=len(names), place=f"expected {len(targets)}"
        )
    renamed = {n: t for n, t in zip(names, targets, strict=True) if n != t}
    table = table.drop_columns([t for t in renamed.values() if t in table.column_names])
    return table.rename_columns([renamed.get(n, n) for n in table.column_names])


def _without_labels(holdout: Any) -> Any:
    return holdout[0] if isinstance(holdout, tuple) else holdout


def _find_inputs(estimator: Any, train: pa.Table, fitted: Fitted, targets: Sequence[str]) -> list[str]:
    """The columns that the estimator was fitted on: those that it names, else all that have no other purpose."""
    named = fitted_names(estimator)
    if named is not None:
        for name in named:
            require_column(train, name, what="training rows")
        return named
    inputs = [n for n in train.column_names if n not in (*targets, fitted.time, fitted.group)]
    wanted = getattr(estimator, "n_features_in_", len(inputs))
    if wanted != len(inputs):
        raise InvalidInput(
            f"the estimator was fitted on {wanted} columns",
            value=f"{len(inputs)}: {', '.join(inputs)}"[:300],
            next_step="Give the rows as the estimator had them, without other columns.",
        )
    return inputs


def _declare(signature: Signature, fitted: Fitted) -> Signature:
    names = [c.name for c in signature.inputs]
    for name in fitted.nullable:
        if name not in names:
            raise InvalidInput("a column that may be null is an input", value=name, place="nullable")
    inputs = [
        msgspec.structs.replace(c, nullable=c.nullable or c.name in fitted.nullable) for c in signature.inputs
    ]
    return msgspec.structs.replace(signature, inputs=inputs, classes=list(fitted.classes))


def _commit_parts(
    workspace: Rooms, run: RunLog, fitted: Fitted, train: pa.Table, holdout: pa.Table | None
) -> tuple[Part, Part | None]:
    inputs = [f"run:{run.id}"]
    if fitted.source is not None:
        inputs.append(f"dataset_version:{_find_source(workspace, fitted.source)}")
        run.log_inputs(inputs[-1])
    # The run that the versions lead to must be known before they are; and its code and environment, which the model version takes over.
    run.flush(CAPTURE_S)

    def commit(suffix: str, table: pa.Table) -> Part:
        message = f"rows of {fitted.name}"
        return Part(
            workspace.data.commit(f"{fitted.name}-{suffix}", table, message=message, inputs=inputs), table
        )

    training = commit("train", train)
    judging = None if holdout is None else commit("holdout", holdout)
    run.log_inputs(f"dataset_version:{training.version.id}")
    return training, judging


def _find_source(workspace: Rooms, source: DatasetVersion | str) -> str:
    """The id of the dataset version that rows come from: it was given, or its id was, or a name (``churn``, ``churn@3``)."""
    if isinstance(source, DatasetVersion):
        return source.id
    if _ID.fullmatch(source):
        return str(workspace.data.get_version_by_id(source).id)
    name, _, selector = source.partition("@")
    return str(workspace.data.get_version(name, selector or "latest").id)


# --- from dataset versions -----------------------------------------------------------------------------------------------


def register_estimator(
    workspace: Rooms, run: RunLog, estimator: Any, training: Part, holdout: Part | None, wanted: Registration
) -> ModelVersion:
    """Evaluate a fitted estimator on its hold-out (one counted use) and register it as the next version of the model.

    Without a hold-out the metrics of the training rows are kept as ``train.<metric>``, and a warning says that no gate can judge
    the version. Raises what :meth:`~mainspring.models.client.ModelsClient.save_and_register` raises.
    """
    result: Evaluation | None = None
    metrics: dict[str, float] = {}
    if holdout is not None:
        workspace.training.lock_holdout(dataset_version=holdout.version.id)
        workspace.training.use_holdout(
            dataset_version=holdout.version.id,
            purpose=f"evaluation of {wanted.model} after training",
            by=wanted.by,
        )
        result = evaluate_estimator(estimator, holdout.table, wanted, what="hold-out")
        metrics = _list_numbers(result)
    elif wanted.target is not None:
        fit = evaluate_estimator(estimator, training.table, wanted, what="training rows")
        metrics = {
            f"train.{k}": v.value
            for k, v in fit.metrics.items()
            if v.value is not None and np.isfinite(v.value)
        }
        warnings.warn(
            f"{wanted.model} has no hold-out: its metrics are those of the training rows, and no gate can judge it. Give holdout=(rows, labels).",
            stacklevel=2,
        )
    run.log_metrics(metrics)
    run.flush()
    inputs = [c.name for c in wanted.signature.inputs]
    timed = wanted.time is not None and is_date(training.table[wanted.time].type)
    version: ModelVersion = workspace.models.save_and_register(
        estimator,
        model=wanted.model,
        signature=wanted.signature,
        sample=(holdout or training).table.select(inputs).slice(0, _SAMPLE),
        training=training.table.select(inputs),
        format=wanted.format,
        metrics=metrics,
        run=run.id,
        dataset_version=training.version.id,
        holdout=None if holdout is None else holdout.version.id,
        label=wanted.target,
        profile=workspace.data.get_profile_object(training.version.dataset, training.version.id).digest,
        tags={**wanted.tags, **({"time_column": str(wanted.time)} if timed else {})},
    )
    if result is not None and holdout is not None:
        subject = f"model_version:{wanted.model}@{version.version}"
        workspace.training.record_evaluation(
            evaluation=msgspec.structs.replace(result, subject=subject, dataset_version=holdout.version.id)
        )
    return version


def evaluate_estimator(estimator: Any, table: pa.Table, wanted: Registration, *, what: str) -> Evaluation:
    """The metrics of a fitted estimator on rows with labels, with intervals, over all rows and by slices."""
    signature, target = wanted.signature, str(wanted.target)
    meaning = meaning_of(signature)
    known = [m.name for m in list_metrics(signature.task, meaning)]
    usual = [name for name in REPORTED[signature.task] if name in known]
    return evaluate(
        read_truth(table, target, signature, what=what),
        score_rows(estimator, table, signature),
        task=signature.task,
        metrics=list(dict.fromkeys([*wanted.metrics, *usual])),
        slices={name: table[name].to_pylist() for name in wanted.slices} or None,
        blocks=make_blocks(table, time=wanted.time, group=wanted.group),
        replicates=wanted.replicates,
        seed=wanted.seed,
        meaning=meaning,
    )


def score_rows(estimator: Any, table: pa.Table, signature: Signature) -> Any:
    """What a fitted estimator answers to rows, given to it as a server gives them."""
    columns = {c.name: table[c.name] for c in signature.inputs}
    return estimator_scores(estimator, columns, signature, learned_null(estimator))


def read_truth(table: pa.Table, target: str, signature: Signature, *, what: str) -> Any:
    """The labels as metrics take them: numbers, or positions among the classes. Raises :class:`InvalidInput` for one that is neither."""
    encoded = table[target].combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values = encoded.dictionary.to_pylist()
    reader = LabelReader.of(signature)
    numbers = [reader.read(v) for v in values]
    if None in numbers:
        raise InvalidInput(
            f"the {what} have a class that the estimator does not know"
            if signature.task is not Task.REGRESSION
            else f"the {what} have a label that is no finite number",
            value=values[numbers.index(None)],
            place=f"column {target!r}",
            next_step="Train on rows of that class too, or leave its rows out."
            if signature.task is not Task.REGRESSION
            else "Leave these rows out.",
        )
    return np.asarray(numbers, dtype=np.float64)[encoded.indices.to_numpy()]


def _list_numbers(result: Evaluation) -> dict[str, float]:
    """The metrics and the ends of their intervals, where there are any."""
    numbers: dict[str, float] = {}
    for name, interval in result.metrics.items():
        ends = {name: interval.value, f"{name}.low": interval.low, f"{name}.high": interval.high}
        numbers |= {k: float(v) for k, v in ends.items() if v is not None and np.isfinite(v)}
    return numbers
