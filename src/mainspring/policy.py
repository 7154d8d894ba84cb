"""What a policy may say: every value of ``mainspring.toml`` is checked when the file is read.

A gate that can never pass, a rollback rule that can never fire and a stage that ends at once are mistakes that show
months later, when they should have held. So each is refused here, with its value, its place in the file and what to write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from mainspring.errors import ConfigError, near
from mainspring.records.base import Record, seconds
from mainspring.records.data import (
    LabelRateRule,
    NotNullRule,
    RangeRule,
    RowCountRule,
    Rule,
    SetRule,
    UniqueRule,
)
from mainspring.records.loop import DeployPolicy, GateRule, ModelPolicy, RetrainPolicy, RollbackRule, Stage
from mainspring.records.models import Task
from mainspring.records.monitoring import MonitorPolicy

_LONGEST_S = 100 * 365 * 86_400.0
_MOST = 1e12
"""Rows, requests or windows that anybody could wait for."""


class Known(NamedTuple):
    """What is known of a metric without computing it: its tasks, and the least and the largest value it can have."""

    tasks: frozenset[Task]
    low: float = -math.inf
    high: float = math.inf


_CLASSES = frozenset({Task.BINARY, Task.MULTICLASS})
_BINARY, _MULTICLASS, _REGRESSION = (frozenset({task}) for task in Task)

METRICS: dict[str, Known] = {
    "log_loss": Known(_CLASSES, 0.0),
    "brier": Known(_CLASSES, 0.0, 2.0),
    "calibration_error": Known(_CLASSES, 0.0, 1.0),
    "accuracy": Known(_CLASSES, 0.0, 1.0),
    "precision": Known(_CLASSES, 0.0, 1.0),
    "recall": Known(_CLASSES, 0.0, 1.0),
    "f1": Known(_CLASSES, 0.0, 1.0),
    "balanced_accuracy": Known(_CLASSES, 0.0, 1.0),
    "mcc": Known(_CLASSES, -1.0, 1.0),
    "auc": Known(_CLASSES, 0.0, 1.0),
    "pr_auc": Known(_BINARY, 0.0, 1.0),
    "auc_weighted": Known(_MULTICLASS, 0.0, 1.0),
    "mae": Known(_REGRESSION, 0.0),
    "mse": Known(_REGRESSION, 0.0),
    "rmse": Known(_REGRESSION, 0.0),
    "bias": Known(_REGRESSION, 0.0),
    "median_absolute_error": Known(_REGRESSION, 0.0),
    "mape": Known(_REGRESSION, 0.0),
    "smape": Known(_REGRESSION, 0.0, 2.0),
    "pinball": Known(_REGRESSION, 0.0),
    "r2": Known(_REGRESSION, high=1.0),
}
"""The metrics of :mod:`mainspring.metrics`, computed on a hold-out and followed over windows. A copy, since the registry loads
NumPy and this is read at every start; a test holds the two together (tests/test_policy.py)."""

_QUANTILE = re.compile(r"pinball_0\.(?!0+$)\d{1,4}", re.ASCII)

LATENCY = {"latency_p99_ms": Known(frozenset(Task), 0.0)}
"""What a gate measures beside them."""

TRAFFIC = {"error_rate": Known(frozenset(Task), 0.0, 1.0), "score_shift": Known(frozenset(Task), 0.0)}
"""What a rollback rule limits without labels."""

PAIRED = {"log_loss": METRICS["log_loss"], "squared_error": Known(_REGRESSION, 0.0)}
"""The losses that candidate and champion are compared by while traffic runs."""


def check(
    *,
    models: Mapping[str, ModelPolicy],
    deployments: Mapping[str, DeployPolicy],
    monitors: Mapping[str, MonitorPolicy],
    retrains: Mapping[str, RetrainPolicy],
    rules: Mapping[str, list[Rule]],
    place: str,
) -> None:
    """Refuse what cannot be meant. Raises :class:`ConfigError`."""
    for name, data in rules.items():
        for number, rule in enumerate(data):
            check_rule(rule, _Place(place, f"data.{name}.checks[{number}]"))
    for name, model in models.items():
        _check_model(model, _Place(place, f"model.{name}"))
    for name, deploy in deployments.items():
        _check_deployment(deploy, _Place(place, f"deploy.{name}"))
    for name, monitor in monitors.items():
        _check_monitor(monitor, _Place(place, f"monitor.{name}"))
    for name, retrain in retrains.items():
        check_retrain(retrain, place=place, path=f"monitor.{name}")
    _check_tasks(models, deployments, monitors, place)


class _Place:
    """Where in which file; says no with it."""

    def __init__(self, file: str, path: str) -> None:
        self.file, self.path = file, path

    def __truediv__(self, field: str) -> _Place:
        return _Place(self.file, f"{self.path}.{field}" if not field.startswith("[") else self.path + field)

    def no(self, message: str, value: object, next_step: str) -> ConfigError:
        return ConfigError(message, value=value, place=f"{self.file}, {self.path}", next_step=next_step)

    def number(
        self,
        value: float | None,
        low: float = -math.inf,
        high: float = math.inf,
        *,
        above: bool = False,
        below: bool = False,
    ) -> None:
        """A finite number in ``[low, high]``; ``above``/``below``: the ends themselves are out."""
        if value is None:
            return
        inside = math.isfinite(value) and low <= value <= high
        if not inside or (above and value == low) or (below and value == high):
            raise self.no(
                "the number is out of range", value, f"Write {_range(low, high, above=above, below=below)}."
            )

    def duration(self, value: str | None, *, zero: bool = False) -> None:
        if value is None:
            return
        length = seconds(value)
        if not length and not zero:
            raise self.no("a length of time of nothing", value, "Write a longer one, e.g. '1h' or '14d'.")
        if length > _LONGEST_S:
            raise self.no("a length of time beyond 100 years", value, "Write a shorter one, e.g. '365d'.")

    def ordered(self, low: float | None, high: float | None, names: str) -> None:
        if low is not None and high is not None and low > high:
            raise self.no(
                f"{names}: the first is larger than the second, so nothing lies between",
                [low, high],
                "Exchange them.",
            )


def _range(low: float, high: float, *, above: bool, below: bool) -> str:
    floor = f"{'above' if above else 'at least'} {low:g}" if math.isfinite(low) else ""
    ceiling = f"{'below' if below else 'at most'} {high:g}" if math.isfinite(high) else ""
    return "a number " + (" and ".join(p for p in (floor, ceiling) if p) or "that is finite")


# --- the gate --------------------------------------------------------------------------------------------------------


def _check_model(model: ModelPolicy, here: _Place) -> None:
    (here / "label_delay").duration(model.label_delay, zero=True)
    limits: dict[str, tuple[float, float]] = {}
    for number, rule in enumerate(model.gate):
        _check_gate(rule, here / f"gate[{number}]")
        if rule.versus is None:
            low, high = limits.get(rule.metric, (-math.inf, math.inf))
            low = max(low, -math.inf if rule.min is None else rule.min)
            high = min(high, math.inf if rule.max is None else rule.max)
            limits[rule.metric] = low, high
            (here / f"gate[{number}]").ordered(
                low, high, f"{rule.metric}, with the rules before: min and max"
            )


def _find(name: str, known: Mapping[str, Known]) -> Known | None:
    """A metric of the table; ``pinball_0.9`` and the like are that of another quantile."""
    return known.get("pinball" if _QUANTILE.fullmatch(name) else name)


def _metric(name: str, known: Mapping[str, Known], here: _Place, what: str) -> Known:
    found = _find(name, known)
    if found is None:
        raise (here / "metric").no(f"no metric of this name {what}", name, near(name, known, what="metric"))
    return found


def _check_gate(rule: GateRule, here: _Place) -> None:
    known = _metric(rule.metric, METRICS | LATENCY, here, "is computed in a gate")
    _confidence(rule.confidence, here)
    if rule.versus is None:
        if rule.max_worse is not None:
            raise here.no("max_worse compares with nobody", rule.max_worse, 'Add versus = "champion".')
        if rule.test == "paired":
            raise here.no(
                "a paired test compares with nobody", rule.test, 'Add versus = "champion" and max_worse.'
            )
        _limits(rule.metric, rule.min, rule.max, known, here)
        return
    if rule.metric in LATENCY:
        raise here.no(
            "a latency is not compared with the champion's", rule.metric, "Leave versus out and write max."
        )
    if rule.min is not None or rule.max is not None:
        raise here.no("one rule holds either limits or a comparison", rule.metric, "Write two rules.")
    _max_worse(rule.max_worse, known, here)


def _max_worse(value: float | None, known: Known, here: _Place) -> None:
    """Nobody can be worse by more than the whole range of the metric."""
    (here / "max_worse").number(value, 0.0, known.high - known.low)


def _limits(metric: str, low: float | None, high: float | None, known: Known, here: _Place) -> None:
    if low is None and high is None:
        raise here.no("the rule sets no limit", metric, "Write min, max, or versus with max_worse.")
    (here / "min").number(low, known.low, known.high)
    (here / "max").number(high, known.low, known.high)
    here.ordered(low, high, "min and max")


def _confidence(value: float, here: _Place) -> None:
    (here / "confidence").number(value, 0.5, 1.0, below=True)


# --- the rollout -----------------------------------------------------------------------------------------------------


def _check_deployment(deploy: DeployPolicy, here: _Place) -> None:
    (here / "freeze").duration(deploy.freeze, zero=True)
    if not deploy.stages:
        raise (here / "stages").no(
            "a rollout without stages", [], "Write at least { full = true }, or leave stages out."
        )
    last = len(deploy.stages) - 1
    for number, stage in enumerate(deploy.stages):
        _check_stage(stage, here / f"stages[{number}]", last=number == last)
    for number, rule in enumerate(deploy.rollback):
        _check_rollback(rule, here / f"rollback[{number}]")


def _check_stage(stage: Stage, here: _Place, *, last: bool) -> None:
    kinds = [stage.shadow, stage.canary is not None, stage.full]
    if sum(kinds) != 1:
        said = "more than one kind of stage at once" if sum(kinds) else "a stage that says nothing"
        raise here.no(said, _written(stage), "Write one of shadow = true, canary = 0.1 or full = true.")
    (here / "canary").number(stage.canary, 0.0, 1.0, above=True, below=True)
    (here / "min_requests").number(stage.min_requests, 0, _MOST)
    (here / "min_labels").number(stage.min_labels, 0, _MOST)
    (here / "max_for").duration(stage.max_for)
    if stage.full:
        if not last:
            raise here.no(
                "stages after the full one are never reached", _written(stage), "Put the full stage last."
            )
        if stage.min_requests or stage.min_labels or stage.max_for is not None:
            raise here.no(
                "a full stage waits for nothing",
                _written(stage),
                "Leave min_requests, min_labels and max_for out.",
            )
    elif not stage.min_requests and not stage.min_labels:
        raise here.no(
            "a stage that ends at once, without evidence", _written(stage), "Add min_requests or min_labels."
        )


def _check_rollback(rule: RollbackRule, here: _Place) -> None:
    known = _metric(rule.metric, TRAFFIC | PAIRED, here, "is compared during a rollout")
    (here / "min_rows").number(rule.min_rows, 1, _MOST)
    _confidence(rule.confidence, here)
    if rule.metric in TRAFFIC:
        if rule.versus is not None or rule.max_worse is not None:
            raise here.no("this metric has a limit, not a comparison", rule.metric, "Write max alone.")
        if rule.max is None:
            raise here.no("the rule sets no limit", rule.metric, "Write max.")
        (here / "max").number(rule.max, known.low, known.high)
        return
    if rule.max is not None:
        raise here.no(
            "this metric is compared with the champion's",
            rule.metric,
            'Write versus = "champion" and max_worse.',
        )
    if rule.versus is None or rule.max_worse is None:
        raise here.no("the rule sets no limit", rule.metric, 'Write versus = "champion" and max_worse.')
    _max_worse(rule.max_worse, known, here)


# --- monitoring and retraining ---------------------------------------------------------------------------------------


def _check_monitor(policy: MonitorPolicy, here: _Place) -> None:
    if policy.metric is not None:
        _metric(policy.metric, METRICS, here, "is followed over windows")
    for name in ("window", "lookback", "label_horizon"):
        (here / name).duration(getattr(policy, name))
    for name in ("grace", "label_delay"):
        (here / name).duration(getattr(policy, name), zero=True)
    if policy.lookback is not None and seconds(policy.lookback) < seconds(policy.window):
        raise (here / "lookback").no(
            "shorter than one window", policy.lookback, f"Write at least {policy.window!r}."
        )
    if seconds(policy.label_horizon) < seconds(policy.label_delay):
        raise (here / "label_horizon").no(
            "labels would be given up before they are due",
            policy.label_horizon,
            f"Write more than {policy.label_delay!r}.",
        )
    for name in ("null_share", "invalid_share", "unseen_share", "outside_share", "error_rate"):
        (here / name).number(getattr(policy, name), 0.0, 1.0)
    for name in ("min_rows", "min_labels", "confirm", "clear"):
        (here / name).number(getattr(policy, name), 1, _MOST)
    (here / "alpha").number(policy.alpha, 0.0, 1.0, above=True, below=True)
    (here / "bins").number(policy.bins, 2, 100)
    (here / "psi").number(policy.psi, 0.0)
    (here / "tolerance").number(policy.tolerance, 0.0)
    known = _find(policy.metric or "", METRICS) or Known(frozenset())
    (here / "reference").number(policy.reference, known.low, known.high)
    for name, limit in policy.columns.items():
        (here / f"columns.{name}").number(limit, 0.0)


def check_retrain(policy: RetrainPolicy, *, place: str, path: str) -> None:
    """Refuse a reaction policy that cannot be meant. Raises :class:`ConfigError`."""
    here = _Place(place, path)
    (here / "cooldown").duration(policy.cooldown, zero=True)
    (here / "every").duration(policy.every)
    (here / "budget_window").duration(policy.budget_window)
    (here / "budget").number(policy.budget, 1)
    (here / "max_failures").number(policy.max_failures, 0, 30)
    if "schedule" in policy.retrain_on and policy.every is None:
        raise here.no("a schedule without its interval", policy.retrain_on, "Add every, e.g. every = '30d'.")
    if policy.every is not None and "schedule" not in policy.retrain_on:
        raise (here / "every").no(
            "an interval without a schedule", policy.every, 'Add "schedule" to retrain_on.'
        )


# --- data ------------------------------------------------------------------------------------------------------------


def check_rule(rule: Rule, here: _Place) -> None:
    """A data check that no table could pass, or that checks nothing."""
    match rule:
        case RangeRule(min=low, max=high) | RowCountRule(min=low, max=high):
            (here / "min").number(low)
            (here / "max").number(high)
            here.ordered(low, high, "min and max")
            if low is None and high is None:
                raise here.no("the rule sets no limit", _written(rule), "Write min, max or both.")
        case LabelRateRule():
            (here / "low").number(rule.low, 0.0, 1.0)
            (here / "high").number(rule.high, 0.0, 1.0)
            (here / "min_rows").number(rule.min_rows, 1)
            here.ordered(rule.low, rule.high, "low and high")
        case NotNullRule():
            (here / "max_null_share").number(rule.max_null_share, 0.0, 1.0, below=True)
        case SetRule(allowed=[]) | UniqueRule(columns=[]):
            raise here.no("the list is empty", [], "Name at least one.")
        case _:
            pass


# --- across sections -------------------------------------------------------------------------------------------------


def _check_tasks(
    models: Mapping[str, ModelPolicy],
    deployments: Mapping[str, DeployPolicy],
    monitors: Mapping[str, MonitorPolicy],
    place: str,
) -> None:
    """All metrics that are asked of one model must fit one task: an AUC and a squared error never do."""
    for name, model in models.items():
        asked: list[tuple[str, str, Known | None]] = [
            (f"model.{name}.gate[{n}].metric", r.metric, _find(r.metric, METRICS | LATENCY))
            for n, r in enumerate(model.gate)
        ]
        for target, deploy in deployments.items():
            if deploy.model != name:
                continue
            asked += [
                (f"deploy.{target}.rollback[{n}].metric", r.metric, _find(r.metric, TRAFFIC | PAIRED))
                for n, r in enumerate(deploy.rollback)
            ]
            metric = monitors[target].metric if target in monitors else None
            if metric is not None:
                asked.append((f"monitor.{target}.metric", metric, _find(metric, METRICS)))
        tasks: Collection[Task] = frozenset(Task)
        for path, metric, known in asked:
            if known is None:  # the rules themselves were checked before
                continue
            if not known.tasks & set(tasks):
                kinds = " or ".join(sorted(t.value for t in tasks))
                raise _Place(place, path).no(
                    f"a metric of {' and '.join(sorted(t.value for t in known.tasks))} models, where the others are of {kinds} ones",
                    metric,
                    f"Metrics of {kinds} models: {', '.join(n for n, k in METRICS.items() if k.tasks & set(tasks))}.",
                )
            tasks = known.tasks & set(tasks)


def _written(record: Record) -> str:
    """A table as it stands in the file: what differs from the defaults."""
    fields: list[str] = []
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if value not in (None, False, 0, ""):
            fields.append(f"{field} = {str(value).lower() if isinstance(value, bool) else value!r}")
    return "{ " + ", ".join(fields) + " }" if fields else "{}"
