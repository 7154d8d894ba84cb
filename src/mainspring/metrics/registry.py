"""All metrics, by name."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from mainspring.errors import InvalidInput, near
from mainspring.metrics import classes, ranking, regression
from mainspring.metrics.metric import Metric
from mainspring.records.models import Task
from mainspring.records.scores import PROBABILITIES, ScoreMeaning

_BINARY, _MULTI, _NUMBER = (frozenset({t}) for t in (Task.BINARY, Task.MULTICLASS, Task.REGRESSION))
_CLASSES = _BINARY | _MULTI
_PINBALL = re.compile(r"pinball_(0\.\d{1,4})", re.ASCII)


def _share_metric(name: str, tasks: frozenset[Task], **how: object) -> Metric:
    how = {"unit": "share", "low": 0.0, "high": 1.0, **how}
    return Metric(name=name, tasks=tasks, higher_is_better=True, **how)  # type: ignore[arg-type]


def _error_metric(name: str, *, unit: str = "unit of the label", **how: object) -> Metric:
    how = {"low": 0.0, **how}
    return Metric(name=name, tasks=_NUMBER, unit=unit, higher_is_better=False, **how)  # type: ignore[arg-type]


def _loss_metric(name: str, tasks: frozenset[Task], unit: str, **how: object) -> Metric:
    return Metric(
        name=name,
        tasks=tasks,
        unit=unit,
        higher_is_better=False,
        probabilities=True,
        low=0.0,
        **how,  # type: ignore[arg-type]
    )


_BOTH = {"totals": classes.confusion_rows, "least_per_class": 5}
_EACH = {"totals": classes.tally_rows, "least_per_class": 5}
_ALL = (
    _loss_metric("log_loss", _CLASSES, "nats", row_loss=classes.log_loss_rows),
    _loss_metric("brier", _CLASSES, "squared probability", row_loss=classes.brier_rows, high=2.0),
    _loss_metric(
        "calibration_error", _CLASSES, "probability",
        totals=classes.calibration_rows, of_totals=classes.calibration_error, high=1.0, least=50,
    ),
    _share_metric("accuracy", _CLASSES, labels=True, row_loss=classes.hit_rows, interval="share"),
    _share_metric("precision", _BINARY, labels=True, of_totals=classes.precision, interval="share", **_BOTH),
    _share_metric("recall", _BINARY, labels=True, of_totals=classes.recall, interval="share", **_BOTH),
    _share_metric("f1", _BINARY, labels=True, of_totals=classes.f1, **_BOTH),
    _share_metric("balanced_accuracy", _BINARY, labels=True, of_totals=classes.balanced_accuracy, **_BOTH),
    _share_metric("mcc", _BINARY, labels=True, of_totals=classes.mcc, unit="correlation", low=-1.0, **_BOTH),
    _share_metric("precision", _MULTI, labels=True, of_totals=classes.macro_precision, **_EACH),
    _share_metric("recall", _MULTI, labels=True, of_totals=classes.macro_recall, **_EACH),
    _share_metric("f1", _MULTI, labels=True, of_totals=classes.macro_f1, **_EACH),
    _share_metric("balanced_accuracy", _MULTI, labels=True, of_totals=classes.multiclass_balanced_accuracy, **_EACH),
    _share_metric("mcc", _MULTI, labels=True, of_totals=classes.multiclass_mcc, unit="correlation", low=-1.0, **_EACH),
    _share_metric("auc", _BINARY, unit="probability", whole=ranking.auc, leave_out=ranking.auc_leave_out, least_per_class=5),
    _share_metric("pr_auc", _BINARY, whole=ranking.pr_auc, leave_out=ranking.pr_auc_leave_out, regroup=True, least_per_class=10),
    _share_metric(
        "auc", _MULTI, unit="probability",
        whole=ranking.one_versus_rest, leave_out=ranking.one_versus_rest_leave_out, least_per_class=5,
    ),
    _share_metric(
        "auc_weighted", _MULTI, unit="probability",
        whole=ranking.one_versus_rest_weighted, leave_out=ranking.one_versus_rest_weighted_leave_out, least_per_class=5,
    ),
    _error_metric("mae", row_loss=regression.absolute_rows),
    _error_metric("mse", unit="squared unit of the label", row_loss=regression.squared_rows),
    _error_metric("rmse", row_loss=regression.squared_rows, finish=np.sqrt),
    _error_metric("bias", row_loss=regression.difference_rows, finish=np.abs),
    _error_metric("median_absolute_error", whole=regression.median_absolute, leave_out=regression.median_leave_out, least=20),
    _error_metric("mape", unit="share of the label", row_loss=regression.relative_rows),
    _error_metric("smape", unit="share of the size", row_loss=regression.symmetric_rows, high=2.0),
    _error_metric("pinball", row_loss=regression.pinball_rows(0.5)),
    Metric(
        name="r2", tasks=_NUMBER, unit="share of variance", higher_is_better=True,
        totals=regression.variance_rows, of_totals=regression.r2, high=1.0, least=20,
    ),
)  # fmt: skip

METRICS: dict[Task, dict[str, Metric]] = {task: {m.name: m for m in _ALL if task in m.tasks} for task in Task}
"""By task and name. ``pinball_0.9`` and the like are made on demand; ``pinball`` is that of the median."""


def metric(name: str, task: Task, meaning: ScoreMeaning = PROBABILITIES) -> Metric:
    """Look up a metric for a task, and for scores of that meaning. Raises :class:`InvalidInput` naming near ones."""
    known = METRICS[task].get(name)
    if known is not None:
        return known if meaning == PROBABILITIES else replace(known, meaning=meaning)
    pinball = _PINBALL.fullmatch(name)
    if pinball and task is Task.REGRESSION and float(pinball[1]) > 0:
        return _error_metric(name, row_loss=regression.pinball_rows(float(pinball[1])))
    raise InvalidInput(
        f"no metric of this name for {task.value} models",
        value=name,
        next_step=near(name, list(METRICS[task]), what="metric"),
    )


def list_metrics(task: Task, meaning: ScoreMeaning = PROBABILITIES) -> list[Metric]:
    """All metrics that a task has with scores of that meaning: decision values have no log-loss, for example."""
    return [
        metric(m.name, task, meaning)
        for m in METRICS[task].values()
        if meaning.probabilities or not m.probabilities
    ]


def measure(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    task: Task,
    names: list[str] | None = None,
    weights: ArrayLike | None = None,
    meaning: ScoreMeaning = PROBABILITIES,
) -> dict[str, float | None]:
    """Several metrics at once; by default all that the task has with scores of that ``meaning``. Undefined ones are None.

    >>> measure([0, 1], [0.25, 0.75], task=Task.BINARY, names=["accuracy", "brier"])
    {'accuracy': 1.0, 'brier': 0.0625}
    """
    chosen = list_metrics(task, meaning) if names is None else [metric(n, task, meaning) for n in names]
    return {m.name: m(y, scores, weights=weights) for m in chosen}
