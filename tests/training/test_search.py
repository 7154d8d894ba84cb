from __future__ import annotations

import numpy as np
import pytest

from mainspring.errors import InvalidInput, StepFailed
from mainspring.records.base import from_json, to_json
from mainspring.records.models import Task
from mainspring.records.training import SearchResult
from mainspring.training.search import Family, OneOf, Real, Whole, search
from mainspring.training.splits import stratified_folds

RNG = np.random.default_rng(0)
X = RNG.normal(size=600)
Y = X * 2 + 1 + RNG.normal(0, 0.3, 600)
FOLDS = stratified_folds(np.zeros(600), folds=3)


def constant(params, rows):
    level = float(Y[rows].mean()) + params.get("shift", 0.0)
    return lambda other: np.full(len(other), level)


def line(params, rows):
    slope, offset = np.polyfit(X[rows], Y[rows], 1)
    return lambda other: slope * params["shrink"] * X[other] + offset


def curve(params, rows):
    fitted = np.polynomial.Polynomial.fit(X[rows], Y[rows], params["degree"])
    return lambda other: fitted(X[other])


CONSTANT = Family("constant", constant, {"shift": Real(-1, 1)}, {"shift": 0.0})
LINE = Family("line", line, {"shrink": Real(0.5, 1.5)}, {"shrink": 1.0})
CURVE = Family("curve", curve, {"degree": Whole(1, 6)}, {"degree": 2})


def test_the_simplest_family_that_is_not_shown_worse_is_selected() -> None:
    found = search([CONSTANT, LINE, CURVE], Y, FOLDS, task=Task.REGRESSION, name="mae", trials=12, seed=1)
    assert found.family == "line"
    assert found.versus["constant"].harmful
    assert [t.number for t in found.trials] == list(range(12))
    assert {t.family for t in found.trials} == {"constant", "line", "curve"}
    assert found.trials[1].params == {"shrink": 1.0}  # the default goes first
    assert from_json(to_json(found), SearchResult) == found
    best = search(
        [CONSTANT, LINE, CURVE], Y, FOLDS, task=Task.REGRESSION, name="mae", trials=12, seed=1, prefer="best"
    )
    assert best.selected == best.best
    assert best.trials[best.best].loss == min(t.loss for t in best.trials)


def test_the_same_seed_gives_the_same_trials() -> None:
    def params(seed: int) -> list[dict]:
        return [
            t.params
            for t in search(
                [LINE, CURVE], Y, FOLDS, task=Task.REGRESSION, name="mae", trials=10, seed=seed
            ).trials
        ]

    assert params(7) == params(7)
    assert params(7) != params(8)


def test_a_failing_trial_is_recorded_and_the_search_goes_on() -> None:
    def explodes(params, rows):
        if params["bad"]:
            raise ValueError("singular")
        return line({"shrink": 1.0}, rows)

    seen = []
    family = Family("fragile", explodes, {"bad": OneOf((True, False))}, {"bad": True})
    found = search([family, LINE], Y, FOLDS, task=Task.REGRESSION, name="mae", trials=8, on_trial=seen.append)
    assert [t.number for t in seen] == list(range(8))
    assert (found.trials[0].state, found.trials[0].loss, found.trials[0].error) == (
        "failed",
        None,
        "ValueError: singular",
    )
    assert found.trials[found.selected].state == "finished"


def test_a_score_that_is_not_finite_fails_its_trial() -> None:
    family = Family("nan", lambda params, rows: lambda other: np.full(len(other), np.nan))
    with pytest.raises(StepFailed, match="not finite"):
        search([family], Y, FOLDS, task=Task.REGRESSION, name="mae", trials=2)


def test_impossible_searches_are_refused_before_work_starts() -> None:
    with pytest.raises(InvalidInput, match="try every family"):
        search([LINE, CURVE], Y, FOLDS, task=Task.REGRESSION, name="mae", trials=1)
    with pytest.raises(InvalidInput, match="mean over rows"):
        search([LINE], Y, FOLDS, task=Task.BINARY, name="auc", trials=1)
    with pytest.raises(InvalidInput, match="dimension"):
        search([Family("x", line, {}, {"shrnk": 1})], Y, FOLDS, task=Task.REGRESSION, name="mae", trials=1)


@pytest.mark.parametrize("name", ["accuracy", "auc"])
def test_only_a_loss_is_minimised(name: str) -> None:
    """Seen red against 0.1, which took accuracy for a loss and looked for the least accurate model."""
    with pytest.raises(InvalidInput, match="a search needs a loss"):
        search([LINE], [0.0, 1.0] * 20, FOLDS, task=Task.BINARY, trials=1, name=name)
