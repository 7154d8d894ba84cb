"""Halving: who has a turn on how many rows, what a failure costs, and what the clock cuts off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mainspring.errors import InvalidInput, MissingExtra, StepFailed
from mainspring.metrics.registry import metric
from mainspring.records.models import Task
from mainspring.training.automl.families import Candidate, propose
from mainspring.training.automl.rungs import Outcome, Progress, Search
from mainspring.training.splits import stratified_folds


class Guess:
    """Knows the truth up to an error of a fixed size; notes on how many rows it was fitted."""

    def __init__(self, size: float, seen: list[int], *, tick: Callable[[], None] = lambda: None) -> None:
        self.size, self.seen, self.tick = size, seen, tick

    def fit(self, inputs: pa.Table, labels: Any) -> Guess:
        self.tick()
        self.seen.append(inputs.num_rows)
        return self

    def predict(self, inputs: pa.Table) -> Any:
        return inputs["y"].to_numpy() + self.size


class Broken(Guess):
    def fit(self, inputs: pa.Table, labels: Any) -> Guess:
        raise ValueError("singular")


def run(rows: int, candidates: list[Candidate], make: Callable[[Candidate], Any], **options: Any) -> Outcome:
    y = np.random.default_rng(0).normal(size=rows)
    search = Search(
        inputs=pa.table({"y": y}),
        truth=y,
        folds=stratified_folds(np.zeros(rows), folds=5),
        task=Task.REGRESSION,
        classes=0,
        metric=metric("rmse", Task.REGRESSION),
        make=make,
        seed=0,
        **({"seconds": 1e9} | options),
    )
    return search.run(candidates)


def test_few_are_compared_on_everything() -> None:
    """15,000 rows: all 16 on a ninth, the better third of them (and each family's best) on a third, few on all."""
    seen: dict[str, list[int]] = {}
    candidates = propose(15, seed=0)

    def make(c: Candidate) -> Guess:
        return Guess(1.0 + c.number, seen.setdefault(c.name, []))

    outcome = run(15_000, candidates, make)
    assert {n for rows in seen.values() for n in rows} == {1334, 4000, 12000}
    assert seen["linear-1"] == [1334] * 5 + [4000] * 5 + [12000] * 5
    assert seen["linear-3"] == [1334] * 5
    assert {t.candidate.family for t in outcome.compared} == {c.family for c in candidates}
    assert len(outcome.truth) == 15_000
    assert not outcome.stopped_early


def test_few_rows_are_asked_for_two_folds_first_and_no_fold_twice() -> None:
    seen: dict[str, list[int]] = {}
    run(200, propose(9, seed=0), lambda c: Guess(1.0 + c.number, seen.setdefault(c.name, [])))
    assert seen["linear-1"] == [160] * 5
    assert seen["mlp-1"] == [160] * 5
    assert seen["linear-2"] == [160] * 2


def test_a_candidate_that_fails_is_noted_and_the_search_goes_on() -> None:
    outcome = run(100, propose(5, seed=0), lambda c: (Broken if c.family == "forest" else Guess)(1.0, []))
    failed = [t for t in outcome.trials if t.error]
    assert [(t.candidate.name, t.error) for t in failed] == [("forest-1", "ValueError: singular")]
    assert {t.candidate.family for t in outcome.compared} == {"dummy", "linear", "boosting", "knn", "mlp"}


def test_when_all_fail_the_reasons_are_named() -> None:
    with pytest.raises(StepFailed, match="singular"):
        run(100, propose(2, seed=0), lambda _: Broken(1.0, []))


def test_time_ends_the_search_but_never_before_the_dummy_and_one_candidate() -> None:
    """The clock moves a second with each fit, and the budget is gone before the search begins."""
    now = [0.0]

    def tick() -> None:
        now[0] += 1.0

    options: dict[str, Any] = {"clock": lambda: now[0], "seconds": -1.0}
    outcome = run(100, propose(5, seed=0), lambda _: Guess(1.0, [], tick=tick), **options)
    assert [t.candidate.name for t in outcome.compared] == ["dummy", "linear-1"]
    assert outcome.stopped_early
    assert {t.skipped for t in outcome.trials if t.rung < 0} == {"the budget ended before its turn"}


def test_time_within_a_rung_leaves_what_was_done() -> None:
    """Two folds each in the first rung: at 5 s the third candidate is within its turn."""
    now = [0.0]

    def tick() -> None:
        now[0] += 1.0

    options: dict[str, Any] = {"clock": lambda: now[0], "seconds": 5.0}
    outcome = run(100, propose(5, seed=0), lambda _: Guess(1.0, [], tick=tick), **options)
    assert [t.candidate.name for t in outcome.compared] == ["dummy", "linear-1"]
    assert outcome.trials[2].skipped == "the budget ended within its turn"
    assert len(outcome.truth) == 40


def test_progress_names_the_best_so_far() -> None:
    said: list[Progress] = []
    run(100, propose(3, seed=0), lambda c: Guess(4.0 - c.number, []), on_progress=said.append)
    assert [p.best for p in said[:4]] == ["dummy", "linear-1", "forest-1", "boosting-1"]
    assert said[-1].total >= 4


def test_a_seed_gives_the_same_candidates() -> None:
    assert propose(20, seed=3) == propose(20, seed=3)
    assert propose(20, seed=3) != propose(20, seed=4)
    assert len({c.name for c in propose(20, seed=3)}) == 21


@pytest.mark.parametrize(
    ("count", "families", "message"), [(0, None, "at least one"), (3, ["liner"], "linear")]
)
def test_candidates_that_cannot_be_are_refused(count: int, families: list[str] | None, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        propose(count, seed=0, families=families)


def test_a_family_of_a_library_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mainspring.training.automl.families.find_spec", lambda _name: None)
    assert "lgbm" not in {c.family for c in propose(12, seed=0)}
    with pytest.raises(MissingExtra, match="boosting"):
        propose(1, seed=0, families=["lgbm"])
