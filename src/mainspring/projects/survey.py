"""A look at a table before a model is written for it: what would be predicted, from what, how well one can guess, and what to beware of."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from mainspring.metrics.registry import metric as metric_of
from mainspring.records.base import counted
from mainspring.records.models import Task
from mainspring.training.automl.engine import DEFAULT_METRIC
from mainspring.training.automl.fitting import encode_labels, list_classes
from mainspring.training.automl.leakage import SUSPECT, leave_out_leaks
from mainspring.training.automl.parts import divide
from mainspring.training.automl.problem import Problem, read_problem, read_target
from mainspring.training.dates import is_date, parse_times

FEW_ROWS = 1000
_RARE = 0.1
_SHOWN = 12


@dataclass(frozen=True)
class Survey:
    """What was found. ``lines`` are for people, in the order of what matters; ``guessing`` is what the dummy scores by ``metric``."""

    problem: Problem
    rows: int
    metric: str
    guessing: float
    holdout_rows: int
    timed: bool
    """Whether the rows have a time that can be compared with the moment of a decision."""
    lines: list[str]
    cautions: list[str]


def survey(
    table: pa.Table,
    *,
    target: str,
    time: str | None = None,
    group: str | None = None,
    task: str | None = None,
    keep: Sequence[str] = (),
) -> Survey:
    """Look at a table as the search would. Raises :class:`InvalidInput` for what cannot be predicted, naming the column."""
    dates = [n for n in table.column_names if n != target and parse_times(table[n]) is not None]
    problem = read_problem(table, target=target, time=time, group=group, task=task, keep=keep)
    parts = divide(problem, seed=0)
    labels = read_target(problem.table, target, problem.task)
    classes = list_classes(labels[parts.train], problem.task)
    truth = encode_labels(labels[parts.train], problem.task, classes)
    training = problem.table.take(parts.train)
    shares = leave_out_leaks(problem, training, truth, parts.folds, keep, seed=0)
    metric = DEFAULT_METRIC[problem.task]
    cautions = _list_cautions(problem, dates, len(parts.holdout))
    cautions += _list_suspects(problem, shares)
    return Survey(
        problem=problem,
        rows=table.num_rows,
        metric=metric,
        guessing=_score_of_guessing(labels[parts.train], labels[parts.holdout], problem.task, metric),
        holdout_rows=len(parts.holdout),
        timed=time is not None and is_date(problem.table[time].type),
        lines=_describe(problem, parts.kind, len(parts.holdout)),
        cautions=cautions,
    )


def _list_suspects(problem: Problem, shares: Mapping[str, float]) -> list[str]:
    """Columns that explain much of the target alone, and too little to be left out: a good column, or one that is known too late."""
    return [
        f"{name!r} alone explains {share:.1%} of {problem.target!r}: if it becomes known only together with it, remove the column from the file"
        for name, share in shares.items()
        if share >= SUSPECT and name in problem.inputs
    ]


def _score_of_guessing(train: Any, holdout: Any, task: Task, name: str) -> float:
    """What the shares of the classes, or the mean, score on the hold-out."""
    if task is Task.REGRESSION:
        scores: Any = np.full(len(holdout), float(np.mean(train)))
        truth: Any = holdout
    else:
        classes, counts = np.unique(train, return_counts=True)
        shares = counts / counts.sum()
        scores = (
            np.full(len(holdout), shares[1]) if task is Task.BINARY else np.tile(shares, (len(holdout), 1))
        )
        truth = encode_labels(holdout, task, classes)
    value = metric_of(name, task)(truth, scores)
    return float(value) if value is not None else 0.0


# --- in words --------------------------------------------------------------------------------------------------------


def _describe(problem: Problem, kind: str, holdout: int) -> list[str]:
    lines = list(problem.assumed)
    if problem.task is not Task.REGRESSION:
        lines.append(f"{problem.target!r}: {_describe_shares(problem.table[problem.target])}")
    truths = [n for n in problem.numbers if pt.is_boolean(problem.table[n].type)]
    for what, names in (
        ("number", [n for n in problem.numbers if n not in truths]),
        ("truth value", truths),
        ("text", problem.texts),
        ("date", list(problem.dates)),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"predicted from {counted(len(names), what)}: {', '.join(names[:_SHOWN])}{more}")
    lines += [f"{name!r} is left out: {why}" for name, why in problem.left_out.items()]
    lines.append(f"{holdout} rows are held out to judge by ({kind})")
    return lines


def _describe_shares(column: Any) -> str:
    counted = sorted(pc.value_counts(column).to_pylist(), key=lambda c: -c["counts"])
    total = sum(c["counts"] for c in counted)
    return ", ".join(f"{c['values']} {c['counts'] / total:.1%}" for c in counted[:_SHOWN])


def _list_cautions(problem: Problem, dates: Sequence[str], holdout: int) -> list[str]:
    cautions = []
    rows = problem.table.num_rows
    if rows < FEW_ROWS:
        cautions.append(f"{rows} rows are few: {holdout} judge, so figures have wide intervals")
    if problem.task is not Task.REGRESSION:
        counted = pc.value_counts(problem.table[problem.target]).to_pylist()
        rarest = min(counted, key=lambda c: c["counts"])
        if rarest["counts"] / rows < _RARE:
            cautions.append(
                f"only {rarest['counts'] / rows:.1%} of the rows are {rarest['values']!r}: accuracy would be high for a model that never "
                f"says so; {DEFAULT_METRIC[problem.task]} judges"
            )
    if dates and problem.time is None:
        cautions.append(
            f"{dates[0]!r} is a date: if rows to come are newer than these, add --time {shlex.quote(dates[0])}, since rows held out at random make a "
            "model look better than it will be"
        )
    return cautions
