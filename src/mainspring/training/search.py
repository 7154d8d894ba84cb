"""A small search over several model families on the same folds, with a selection that does not follow noise.

Optuna proposes parameters (ask), this module fits and scores (tell), in memory and in this process; the caller records trials
through ``on_trial``. Every trial is scored on the same validation rows, so the comparison of trials is paired.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from mainspring.errors import InvalidInput, MissingExtra, StepFailed
from mainspring.metrics.compare import paired_difference
from mainspring.metrics.metric import Floats, Metric, as_arrays
from mainspring.metrics.registry import metric
from mainspring.records.models import Task
from mainspring.records.training import Comparison, SearchResult, TrialResult
from mainspring.training.splits import Rows


@dataclass(frozen=True)
class Real:
    """A real number between ``low`` and ``high``, both included; ``log``: searched on a logarithmic scale."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Whole:
    """A whole number between ``low`` and ``high``, both included."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class OneOf:
    """One of these values (text, number, bool or None)."""

    options: tuple[Any, ...]


Dimension = Real | Whole | OneOf
Predict = Callable[[Rows], ArrayLike]
Fit = Callable[[Mapping[str, Any], Rows], Predict]


@dataclass(frozen=True)
class Family:
    """A kind of model. ``fit(params, rows)`` trains on these rows and returns a function that scores others.

    ``default`` is tried first. List families from simple to complex: of equals, the first is preferred.
    """

    name: str
    fit: Fit
    space: Mapping[str, Dimension] = field(default_factory=dict)
    default: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _ScoredTrial:
    """A finished trial with its loss on each validation row, in fold order."""

    result: TrialResult
    losses: Floats


def search(
    families: Sequence[Family],
    y: ArrayLike,
    folds: Sequence[tuple[Rows, Rows]],
    *,
    task: Task,
    trials: int,
    name: str = "log_loss",
    blocks: ArrayLike | None = None,
    seed: int = 0,
    prefer: Literal["best", "simplest"] = "simplest",
    confidence: float = 0.95,
    on_trial: Callable[[TrialResult], None] | None = None,
) -> SearchResult:
    """Search ``trials`` trials in all, alternating between the families, and select one.

    ``prefer="simplest"`` selects the first family (in the given order) whose best trial is not shown to be worse than the
    overall best on the same rows; ``"best"`` takes the lowest mean loss. ``blocks`` groups dependent rows (the day).
    ``name`` must be a metric that is a mean over rows. A trial that raises is recorded as failed and the search goes on;
    when all fail, :class:`StepFailed` names the last cause. The same seed gives the same trials.
    """
    loss = metric(name, task)
    # A mean that is better when larger (accuracy), or when nearer to 0 (bias), cannot be minimised.
    if loss.row_loss is None or loss.higher_is_better or loss.name == "bias":
        raise InvalidInput(
            "a search needs a loss that is a mean over rows",
            value=name,
            next_step="Use log_loss, brier, mae or rmse.",
        )
    _check_arguments(families, trials, folds)
    truth = np.asarray(y, dtype=np.float64)
    rows = np.concatenate([validation for _, validation in folds])
    keys = None if blocks is None else np.asarray(blocks)[rows]
    studies = _make_studies(families, seed)
    scored: list[_ScoredTrial] = []
    results: list[TrialResult] = []
    for number in range(trials):
        family = families[number % len(families)]
        study = studies[family.name]
        proposal = study.ask(_make_distributions(family))
        outcome = _run_trial(number, family, dict(proposal.params), truth, folds, loss)
        if outcome.result.loss is None:
            study.tell(proposal, state=_failed_state())
        else:
            study.tell(proposal, outcome.result.loss)
            scored.append(outcome)
        results.append(outcome.result)
        if on_trial is not None:
            on_trial(outcome.result)
    if not scored:
        raise StepFailed(
            "every trial of the search failed",
            value=results[-1].error,
            next_step="Fit one family by hand on the first fold to see the cause.",
        )
    return _select_trial(
        families, scored, results, keys, name=name, seed=seed, prefer=prefer, confidence=confidence
    )


def _check_arguments(families: Sequence[Family], trials: int, folds: Sequence[tuple[Rows, Rows]]) -> None:
    names = [f.name for f in families]
    if not names or len(set(names)) != len(names):
        raise InvalidInput("a search needs families with different names", value=names)
    if trials < len(names):
        raise InvalidInput(
            "too few trials to try every family once", value=trials, next_step=f"Use at least {len(names)}."
        )
    if not folds:
        raise InvalidInput("a search needs at least one fold", next_step="Make folds with training.splits.")


def _run_trial(
    number: int,
    family: Family,
    params: dict[str, Any],
    y: Floats,
    folds: Sequence[tuple[Rows, Rows]],
    loss: Metric,
) -> _ScoredTrial:
    began = time.monotonic()
    parts: list[Floats] = []
    assert loss.row_loss is not None  # noqa: S101 - checked by the caller
    try:
        for train, validation in folds:
            truth, scores = as_arrays(y[validation], family.fit(params, train)(validation))
            parts.append(loss.row_loss(truth, scores))
    except Exception as error:  # noqa: BLE001 - an error in one part of the space must not lose the other trials
        failed = TrialResult(
            number=number, family=family.name, params=params, loss=None, seconds=time.monotonic() - began, state="failed",
            error=f"{type(error).__name__}: {error}"[:500],
        )  # fmt: skip
        return _ScoredTrial(failed, np.zeros(0))
    losses = np.concatenate(parts)
    result = TrialResult(
        number=number,
        family=family.name,
        params=params,
        loss=float(losses.mean()),
        fold_losses=[float(p.mean()) for p in parts],
        seconds=time.monotonic() - began,
    )
    return _ScoredTrial(result, losses)


def _select_trial(
    families: Sequence[Family],
    scored: list[_ScoredTrial],
    results: list[TrialResult],
    keys: Any,
    *,
    name: str,
    seed: int,
    prefer: str,
    confidence: float,
) -> SearchResult:
    def rank(trial: _ScoredTrial) -> float:
        return trial.result.loss if trial.result.loss is not None else float("inf")

    best = min(scored, key=rank)
    versus: dict[str, Comparison] = {}
    leaders: dict[str, _ScoredTrial] = {}
    for family in families:
        own = [s for s in scored if s.result.family == family.name]
        if own:
            leaders[family.name] = min(own, key=rank)
            if leaders[family.name] is not best:
                versus[family.name] = paired_difference(
                    leaders[family.name].losses - best.losses, blocks=keys, confidence=confidence, name=name
                )
    selected, reason = best, f"{best.result.family} has the lowest mean {name}"
    if prefer == "simplest":
        for family_name, leader in leaders.items():
            if leader is best:
                break
            test = versus[family_name]
            if test.p_harm is not None and not test.harmful:
                selected = leader
                reason = f"{family_name} is simpler and not shown to be worse than {best.result.family} (p = {test.p_harm:.3f})"
                break
    return SearchResult(
        trials=results,
        best=best.result.number,
        selected=selected.result.number,
        metric=name,
        seed=seed,
        reason=reason,
        versus=versus,
    )


# --- Optuna, loaded only here ----------------------------------------------------------------------------------------


def _make_studies(families: Sequence[Family], seed: int) -> dict[str, Any]:
    optuna = _import_optuna()
    studies = {}
    with _quiet_logging(optuna):
        for number, family in enumerate(families):
            sampler = optuna.samplers.TPESampler(seed=seed * 1009 + number)
            studies[family.name] = optuna.create_study(direction="minimize", sampler=sampler)
            if family.default:
                unknown = sorted(set(family.default) - set(family.space))
                if unknown:
                    raise InvalidInput(
                        "a default names no dimension of its space",
                        value=unknown,
                        place=f"family {family.name}",
                    )
                studies[family.name].enqueue_trial(dict(family.default))
    return studies


def _make_distributions(family: Family) -> dict[str, Any]:
    kinds = _import_optuna().distributions
    distributions: dict[str, Any] = {}
    for name, dimension in family.space.items():
        if isinstance(dimension, OneOf):
            distributions[name] = kinds.CategoricalDistribution(dimension.options)
        elif isinstance(dimension, Whole):
            distributions[name] = kinds.IntDistribution(dimension.low, dimension.high, log=dimension.log)
        else:
            distributions[name] = kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return distributions


def _failed_state() -> Any:
    return _import_optuna().trial.TrialState.FAIL


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingExtra.for_library("optuna", extra="ml") from None
    return optuna


@contextlib.contextmanager
def _quiet_logging(optuna: Any) -> Iterator[None]:
    """Trials are recorded by the caller, so Optuna must not log them to the user's stderr."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
