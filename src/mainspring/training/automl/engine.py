"""``ms.train``: one tracked run that leads from a dataset version to a registered model version.

Read and split the rows, commit both parts, lock the hold-out; try the candidates on folds of the training rows; choose; fit the
chosen one on all training rows, evaluate it once on the hold-out, register it; keep the leaderboard and the script with the run.
"""

from __future__ import annotations

import sys
import time as clocks
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import msgspec

from mainspring.errors import InvalidInput, MainspringError, NothingPredicts
from mainspring.metrics.metric import Metric
from mainspring.metrics.registry import metric as metric_of
from mainspring.records.base import check_name, seconds
from mainspring.records.data import DatasetVersion
from mainspring.records.models import ModelVersion, Task
from mainspring.training.automl.board import Leaderboard, TrainedVersion
from mainspring.training.automl.families import Candidate, build, propose
from mainspring.training.automl.fitting import encode_labels, list_classes
from mainspring.training.automl.leakage import leave_out_leaks
from mainspring.training.automl.options import TrainOptions, complete_options
from mainspring.training.automl.parts import Parts, divide, limit_folds
from mainspring.training.automl.problem import (
    Problem,
    read_inputs,
    read_problem,
    read_target,
)
from mainspring.training.automl.registering import fit_and_register, infer_input_signature
from mainspring.training.automl.rungs import OnProgress, Outcome, Progress, Search
from mainspring.training.automl.script import write_script
from mainspring.training.automl.selection import Selection, select
from mainspring.training.blocks import make_blocks
from mainspring.training.registering import Part, Rooms

EXPERIMENT = "automl"
DEFAULT_METRIC = {Task.BINARY: "log_loss", Task.MULTICLASS: "log_loss", Task.REGRESSION: "rmse"}
_FOR_SEARCH = 0.8
"""Share of the budget for the search; the rest is for the refit, the evaluation and the package."""


def train(
    workspace: Rooms,
    dataset: DatasetVersion,
    *,
    target: str,
    clock: Callable[[], float] = clocks.monotonic,
    **options: Unpack[TrainOptions],
) -> TrainedVersion:
    """Search for a model of ``target`` and register the one that is chosen as the next version of ``name``.

    Raises :class:`~mainspring.errors.NothingPredicts`, with the leaderboard, if no candidate leads the dummy beyond noise;
    :class:`~mainspring.errors.InvalidInput` for a table, target or option that cannot be right.
    """
    began = clock()
    chosen = complete_options(options)
    time, group, task = chosen["time"], chosen["group"], chosen["task"]
    seed, keep, budget, on_progress = chosen["seed"], chosen["keep"], chosen["budget"], chosen["on_progress"]
    model = check_name(chosen["name"] or dataset.dataset, what="model")
    budget_seconds = float(budget) if isinstance(budget, int | float) else float(seconds(budget))
    if not budget_seconds > 0:
        raise InvalidInput(
            "a budget is a length of time", value=budget, next_step="For example '60s' or '5m'."
        )
    candidates = propose(chosen["max_trials"], seed=seed, families=chosen["families"])
    table = workspace.data.read(dataset.dataset, dataset.id)
    problem = read_problem(table, target=target, time=time, group=group, task=task, keep=keep)
    scoring = _require_metric(chosen["metric"] or DEFAULT_METRIC[problem.task], problem.task)
    parts = divide(problem, seed=seed)
    params = {"target": target, "time": time, "group": group, "task": problem.task.value, "metric": scoring.name,
             "budget_s": budget_seconds, "seed": seed, "max_trials": len(candidates) - 1}  # fmt: skip
    with workspace.tracking.start_run(
        experiment=EXPERIMENT,
        name=model,
        params={k: v for k, v in params.items() if v is not None},
        tags={"model": model},
        seeds={"automl": seed},
    ) as run:
        run.log_inputs(f"dataset_version:{dataset.id}")
        run.flush()
        work = _Work(workspace, run, dataset, model, problem, parts, scoring, seed)
        work.commit_parts()
        work.leave_out_leaks(keep)
        report_progress = on_progress or _make_terminal_line()
        left = budget_seconds * _FOR_SEARCH - (clock() - began)
        outcome = work.search(candidates, left, clock, report_progress)
        if on_progress is None and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
        selection = work.select(outcome)
        board = work.make_board(outcome, selection, clock() - began)
        work.log(board)
        if not selection.ranked:
            error = NothingPredicts(
                selection.reason, value=target, place=f"dataset {dataset.dataset!r} version {dataset.number}",
                next_step=_suggest_more(problem, scoring.name),
            )  # fmt: skip
            error.leaderboard = board
            raise error
        version, board = work.register(selection, board)
        work.log(board)
        return TrainedVersion(**msgspec.structs.asdict(version), leaderboard=board)


def _suggest_more(problem: Problem, metric: str) -> str:
    other = "auc" if problem.task is Task.BINARY and metric != "auc" else None
    choice = f", or choose by ranking: metric={other!r}, and the same in the gate" if other else ""
    return f"Give columns that know more of it, or more rows{choice}; the leaderboard is with the run and in error.leaderboard."


class _Work:
    """What one call of :func:`train` holds."""

    def __init__(
        self, workspace: Rooms, run: Any, source: DatasetVersion, model: str, problem: Problem, parts: Parts, metric: Metric, seed: int
    ) -> None:  # fmt: skip
        self._workspace, self._run, self._source, self._model = workspace, run, source, model
        self._problem, self._parts, self._metric, self._seed = problem, parts, metric, seed
        self._training: Part
        self._holdout: Part

    def commit_parts(self) -> None:
        """Both parts become dataset versions that lead back to the source and this run; the hold-out is locked."""
        inputs = [f"run:{self._run.id}", f"dataset_version:{self._source.id}"]
        parts = []
        for suffix, rows in (("train", self._parts.train), ("holdout", self._parts.holdout)):
            table = self._problem.table.take(rows).combine_chunks()
            name = f"{self._model}-{suffix}"
            version = self._workspace.data.commit(
                name, table, message=f"{self._parts.kind}; from {self._source.dataset} version {self._source.number}", inputs=inputs
            )  # fmt: skip
            parts.append(Part(version, table))
        self._training, self._holdout = parts
        self._workspace.training.lock_holdout(dataset_version=self._holdout.version.id)
        self._run.log_inputs(f"dataset_version:{self._training.version.id}")

    def leave_out_leaks(self, keep: Sequence[str]) -> None:
        problem = self._problem
        leave_out_leaks(
            problem,
            self._training.table,
            self._encode_labels(),
            self._parts.folds,
            keep,
            seed=self._seed,
            way_out="; keep=[{column}] uses it",
        )
        for sentence in [*problem.assumed, *(f"{n!r} is left out: {w}" for n, w in problem.left_out.items())]:
            if sys.stderr.isatty():
                sys.stderr.write(f"{sentence}\n")

    def search(
        self,
        candidates: Sequence[Candidate],
        left: float,
        clock: Callable[[], float],
        report_progress: OnProgress | None,
    ) -> Outcome:
        problem = self._problem
        signature = infer_input_signature(self._training, self._holdout, problem.inputs, problem.task)
        self._folds = limit_folds(self._parts.folds, self._seed)
        return Search(
            inputs=read_inputs(self._training.table, signature),
            truth=self._encode_labels(),
            folds=self._folds,
            task=problem.task,
            classes=len(self._list_classes()),
            metric=self._metric,
            make=self._build_estimator,
            seed=self._seed,
            seconds=left,
            clock=clock,
            on_progress=report_progress,
        ).run(candidates)

    def select(self, outcome: Outcome) -> Selection:
        problem = self._problem
        rows = self._training.table.take(outcome.validation)
        blocks = make_blocks(rows, time=problem.time, group=problem.group)
        return select(
            outcome, metric=self._metric, task=problem.task, blocks=blocks, target=repr(problem.target)
        )

    def make_board(self, outcome: Outcome, selection: Selection, spent: float) -> Leaderboard:
        problem = self._problem
        return Leaderboard(
            target=problem.target,
            task=problem.task,
            metric=self._metric.name,
            dataset_version=self._source.id,
            split=self._parts.kind,
            seed=self._seed,
            entries=selection.entries,
            selected=selection.ranked[0].name if selection.ranked else None,
            reason=selection.reason,
            assumed=list(problem.assumed),
            left_out=dict(problem.left_out),
            seconds=round(spent, 3),
            stopped_early=outcome.stopped_early,
        )

    def log(self, board: Leaderboard) -> None:
        self._run.log_artifact(board.as_json(), "leaderboard.json")
        self._run.log_artifact(board.as_markdown().encode(), "leaderboard.md")
        self._run.log_metrics(
            {f"candidate.{e.candidate}.{board.metric}": e.value for e in board.entries if e.value is not None}
        )
        if board.selected is not None:
            self._run.set_tag("selected", board.selected)

    def register(self, selection: Selection, board: Leaderboard) -> tuple[ModelVersion, Leaderboard]:
        """The first of the ranked candidates that can be stored; why others could not is added to the leaderboard."""
        failures: dict[str, str] = {}
        for candidate in selection.ranked:
            try:
                version = self._register(candidate)
            except (
                InvalidInput
            ) as error:  # what no format stores (models.formats.save): the next one may be storable
                failures[candidate.name] = f"cannot be stored: {error.message}"[:500]
                last: MainspringError = error
                continue
            reason = (
                board.reason if not failures else f"{candidate.name} is the first that could be stored; {board.reason}"
            )  # fmt: skip
            entries = [
                msgspec.structs.replace(e, reason=failures.get(e.candidate, e.reason)) for e in board.entries
            ]
            return version, msgspec.structs.replace(
                board, selected=candidate.name, reason=reason, entries=entries
            )
        raise last

    def _register(self, candidate: Candidate) -> ModelVersion:
        problem = self._problem
        estimator = self._build_estimator(candidate)
        text = write_script(
            estimator,
            run=self._run.id,
            chosen=f"{problem.target!r} by {candidate.name}",
            model=self._model,
            training=self._training,
            holdout=self._holdout,
            lists={"NUMBERS": list(problem.numbers), "TEXTS": list(problem.texts), "DATES": list(problem.dates)},
            settings={
                "TARGET": problem.target, "TASK": problem.task.value, "METRIC": self._metric.name, "TIME": problem.time,
                "GROUP": problem.group, "SEED": self._seed,
            },
        )  # fmt: skip
        version = fit_and_register(
            self._workspace,
            self._run,
            estimator,
            model=self._model,
            training=self._training,
            holdout=self._holdout,
            inputs=problem.inputs,
            target=problem.target,
            task=problem.task,
            metric=self._metric.name,
            time=problem.time,
            group=problem.group,
            tags={"family": candidate.family, "candidate": candidate.name},
            seed=self._seed,
        )
        self._run.log_artifact(text.encode(), "train.py")
        return version

    def _build_estimator(self, candidate: Candidate) -> Any:
        problem = self._problem
        return build(
            candidate,
            task=problem.task,
            numbers=problem.numbers,
            texts=problem.texts,
            dates=problem.dates,
            seed=self._seed,
        )

    def _read_labels(self) -> Any:
        return read_target(self._training.table, self._problem.target, self._problem.task)

    def _list_classes(self) -> Any:
        return list_classes(self._read_labels(), self._problem.task)

    def _encode_labels(self) -> Any:
        return encode_labels(self._read_labels(), self._problem.task, self._list_classes())


def _require_metric(name: str, task: Task) -> Metric:
    metric = metric_of(name, task)
    if metric.name == "bias":
        raise InvalidInput("models are not chosen by their bias", value=name, next_step="Use rmse or mae.")
    return metric


def _make_terminal_line() -> OnProgress | None:
    """One line that is written over, where a person watches."""
    if not sys.stderr.isatty():
        return None

    def show(now: Progress) -> None:
        value = "" if now.value is None else f" {now.value:.4g}"
        sys.stderr.write(
            f"\r\x1b[K{now.done} of about {now.total}: {now.candidate}{value}; best {now.best}; {now.seconds_left:.0f} s left"
        )
        sys.stderr.flush()

    return show
