"""Successive halving: all candidates on little, the better third on more, until few are compared on everything.

On many rows a rung trains on a third of the rows of the next; on few, the first rung asks two of the folds and the last asks
all. The schedule follows from the rows and the number of candidates alone, so a seed gives the same search whenever the
budget allows all of it; the clock only cuts it short.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mainspring.errors import StepFailed
from mainspring.metrics.metric import Floats, Metric
from mainspring.records.models import Task
from mainspring.training.automl.families import DUMMY, MOST_ROWS, Candidate
from mainspring.training.automl.fitting import compute_scores, fit_estimator
from mainspring.training.splits import Rows, draw_rows

KEEP = 3
_FIRST_ROWS = 1_000
_MAX_RUNGS = 3


@dataclass(frozen=True)
class Rung:
    rows: int
    folds: int


@dataclass(frozen=True)
class Progress:
    """What is under way, for whoever watches. ``seconds_left`` is what the budget has left, not a forecast."""

    candidate: str
    value: float | None
    best: str
    done: int
    total: int
    seconds_left: float


OnProgress = Callable[[Progress], None]


@dataclass
class Trial:
    """How far a candidate came: the rung, its scores there, and what ended it."""

    candidate: Candidate
    rung: int = -1
    value: float | None = None
    scores: Floats | None = None
    rows: int = 0
    seconds: float = 0.0
    error: str = ""
    skipped: str = ""


@dataclass
class Outcome:
    """All trials, and the rung on which those that came furthest are compared."""

    trials: list[Trial]
    rung: int
    truth: Floats
    validation: Rows
    stopped_early: bool = False

    @property
    def compared(self) -> list[Trial]:
        return [t for t in self.trials if t.rung == self.rung and t.scores is not None and not t.error]


@dataclass
class Search:
    """One search. ``make`` gives an unfitted estimator; ``truth`` are the labels as metrics take them."""

    inputs: pa.Table
    truth: Floats
    folds: Sequence[tuple[Rows, Rows]]
    task: Task
    classes: int
    metric: Metric
    make: Callable[[Candidate], Any]
    seed: int
    seconds: float
    clock: Callable[[], float] = time.monotonic
    on_progress: OnProgress | None = None
    _kept: dict[tuple[str, int, int], Floats] = field(default_factory=dict)
    _done: int = 0

    def run(self, candidates: Sequence[Candidate]) -> Outcome:
        """Try them all. Raises :class:`StepFailed` if not even one of them and the dummy could be scored."""
        self._end = self.clock() + self.seconds
        trials = [Trial(c) for c in candidates]
        plan = self._plan_rungs()
        self._total = _count_turns(len(candidates), len(plan))
        alive, reached, early = trials, -1, False
        for number, rung in enumerate(plan):
            last = number == len(plan) - 1
            early |= self._climb(alive, number, rung, first=number == 0)
            there = [t for t in alive if t.rung == number and not t.error]
            if any(t.candidate.family != DUMMY for t in there) and any(
                t.candidate.family == DUMMY for t in there
            ):
                reached = number
            else:
                break
            if last or early:
                break
            alive = self._keep_better(there)
        if reached < 0:
            errors = [f"{t.candidate.name}: {t.error}" for t in trials if t.error]
            raise StepFailed("no candidate could be fitted", value="; ".join(errors) or None)
        for trial in trials:
            if trial.rung < 0 and not trial.error and not trial.skipped:
                trial.skipped = "the budget ended before its turn"
        validation = self._list_validation_rows(plan[reached])
        return Outcome(trials, reached, self.truth[validation], validation, early)

    def _plan_rungs(self) -> list[Rung]:
        rows, folds = max(len(t) for t, _ in self.folds), len(self.folds)
        sizes = [rows]
        while sizes[0] / KEEP >= _FIRST_ROWS and len(sizes) < _MAX_RUNGS:
            sizes.insert(0, math.ceil(sizes[0] / KEEP))
        if len(sizes) > 1:
            return [Rung(size, folds) for size in sizes]
        return [Rung(rows, 2), Rung(rows, folds)] if folds > 3 else [Rung(rows, folds)]

    def _climb(self, alive: Sequence[Trial], number: int, rung: Rung, *, first: bool) -> bool:
        """Give every candidate its turn on a rung; returns whether time ended it."""
        early = False
        for position, trial in enumerate(alive):
            # The dummy and one candidate have their turn whatever the clock says: without them there is no answer at all.
            must = first and position < 2
            left = self._end - self.clock()
            if not must and left <= self._expect_seconds(trial, rung):
                early = True
                if trial.rung < 0:
                    trial.skipped = "the budget ended before its turn"
                continue
            self._try_candidate(trial, number, rung, must=must)
            self._done += 1
            self._report_turn(trial, alive, number)
        return early

    def _expect_seconds(self, trial: Trial, rung: Rung) -> float:
        """Seconds that a turn may take, by what the turn before took."""
        return trial.seconds * (rung.rows / trial.rows) if trial.rows else 0.0

    def _try_candidate(self, trial: Trial, number: int, rung: Rung, *, must: bool) -> None:
        began = self.clock()
        most = MOST_ROWS.get(trial.candidate.family)
        if most is not None and self.inputs.num_rows > most:
            trial.skipped = f"not tried on more than {most} rows"
            return
        try:
            parts = []
            for fold in self._list_folds(rung):
                if not must and self.clock() >= self._end:
                    trial.skipped = "the budget ended within its turn"
                    return
                parts.append(self._score_fold(trial.candidate, fold, rung.rows))
            scores = np.concatenate(parts)
            truth = self.truth[self._list_validation_rows(rung)]
            value = self.metric(truth, scores)
            if value is None:
                trial.error = f"{self.metric.name} is undefined on its scores"
                return
            trial.scores, trial.value, trial.rung = scores, value, number
            trial.rows, trial.seconds = rung.rows, self.clock() - began
        except Exception as error:  # noqa: BLE001 - a candidate that fails is a line of the leaderboard, never the end
            trial.error = f"{type(error).__name__}: {error}"[:300]

    def _score_fold(self, candidate: Candidate, fold: int, rows: int) -> Floats:
        key = (candidate.name, fold, rows)
        if key not in self._kept:
            train, validation = self.folds[fold]
            train = draw_rows(train, rows, self.seed)
            labels = self.truth[train]
            model = fit_estimator(self.make(candidate), self.inputs.take(train), labels)
            known = np.arange(self.classes, dtype=np.float64)
            self._kept[key] = compute_scores(model, self.inputs.take(validation), self.task, known)
        return self._kept[key]

    def _list_folds(self, rung: Rung) -> range:
        """The newest folds where there are fewer than all: those of time come last."""
        return range(len(self.folds) - rung.folds, len(self.folds))

    def _list_validation_rows(self, rung: Rung) -> Rows:
        return np.concatenate([self.folds[k][1] for k in self._list_folds(rung)])

    def _keep_better(self, there: Sequence[Trial]) -> list[Trial]:
        """The dummy, the better third, and the best of each family: so that the simple ones are compared to the end."""
        ordered = self._order_trials([t for t in there if t.candidate.family != DUMMY])
        kept = ordered[: math.ceil(len(ordered) / KEEP)]
        seen = {t.candidate.family for t in kept}
        for trial in ordered:
            if trial.candidate.family not in seen:
                seen.add(trial.candidate.family)
                kept.append(trial)
        return [t for t in there if t.candidate.family == DUMMY] + kept

    def _order_trials(self, trials: Sequence[Trial]) -> list[Trial]:
        sign = -1.0 if self.metric.higher_is_better else 1.0
        return sorted(
            (t for t in trials if t.value is not None),
            key=lambda t: (sign * (t.value or 0.0), t.candidate.number),
        )

    def _report_turn(self, trial: Trial, alive: Sequence[Trial], number: int) -> None:
        if self.on_progress is None:
            return
        leaders = self._order_trials([t for t in alive if t.rung == number])
        self.on_progress(
            Progress(
                candidate=trial.candidate.name,
                value=trial.value,
                best=leaders[0].candidate.name if leaders else "",
                done=self._done,
                total=self._total,
                seconds_left=max(self._end - self.clock(), 0.0),
            )
        )


def _count_turns(candidates: int, rungs: int) -> int:
    """About how many turns there will be."""
    return sum(math.ceil(candidates / KEEP**rung) for rung in range(rungs))
