"""Checks of the policy: every value of ``mainspring.toml`` is checked when the file is read.

A gate that can never pass, a rollback rule that can never apply and a stage that ends at once are mistakes that would be noticed
only months later, when they are needed. So each is refused here, with its value, its place in the file and what to write.
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
_LARGEST = 1e12
"""The largest number of rows, requests or windows that makes sense to wait for."""


class MetricFacts(NamedTuple):
    """The facts about a metric that need no computation: its tasks, and the smallest and the largest value it can have."""

    tasks: frozenset[Task]
    low: float = -math.inf
    high: float = math.inf


_CLASSES = frozenset({Task.BINARY, Task.MULTICLASS})
_BINARY, _MULTICLASS, _REGRESSION = (
    frozenset({task}) for task in (Task.BINARY, Task.MULTICLASS, Task.REGRESSION)
)

METRICS: dict[str, MetricFacts] = {
    "log_loss": MetricFacts(_CLASSES, 0.0),
    "brier": MetricFacts(_CLASSES, 0.0, 2.0),
    "calibration_error": MetricFacts(_CLASSES, 0.0, 1.0),
    "accuracy": MetricFacts(_CLASSES, 0.0, 1.0),
    "precision": MetricFacts(_CLASSES, 0.0, 1.0),
    "recall": MetricFacts(_CLASSES, 0.0, 1.0),
    "f1": MetricFacts(_CLASSES, 0.0, 1.0),
    "balanced_accuracy": MetricFacts(_CLASSES, 0.0, 1.0),
    "mcc": MetricFacts(_CLASSES, -1.0, 1.0),
    "auc": MetricFacts(_CLASSES, 0.0, 1.0),
    "pr_auc": MetricFacts(_BINARY, 0.0, 1.0),
    "auc_weighted": MetricFacts(_MULTICLASS, 0.0, 1.0),
    "mae": MetricFacts(_REGRESSION, 0.0),
    "mse": MetricFacts(_REGRESSION, 0.0),
    "rmse": MetricFacts(_REGRESSION, 0.0),
    "bias": MetricFacts(_REGRESSION, 0.0),
    "median_absolute_error": MetricFacts(_REGRESSION, 0.0),
    "mape": MetricFacts(_REGRESSION, 0.0),
    "smape": MetricFacts(_REGRESSION, 0.0, 2.0),
    "pinball": MetricFacts(_REGRESSION, 0.0),
    "r2": MetricFacts(_REGRESSION, high=1.0),
}
"""The metrics of :mod:`mainspring.metrics`, computed on a hold-out and followed over windows. A copy, since the registry loads
NumPy and this module is loaded at every start; a test keeps the two equal (tests/test_policy.py)."""

_QUANTILE = re.compile(r"pinball_0\.(?!0+$)\d{1,4}", re.ASCII)

LATENCY = {"latency_p99_ms": MetricFacts(frozenset(Task), 0.0)}
"""Metrics of a gate beside those of :data:`METRICS`."""

TRAFFIC = {
    "error_rate": MetricFacts(frozenset(Task), 0.0, 1.0),
    "score_shift": MetricFacts(frozenset(Task), 0.0),
}
"""Metrics that a rollback rule limits without labels."""

PAIRED = {"log_loss": METRICS["log_loss"], "squared_error": MetricFacts(_REGRESSION, 0.0)}
"""The losses by which candidate and champion are compared during a rollout."""


def check(
    *,
    models: Mapping[str, ModelPolicy],
    deployments: Mapping[str, DeployPolicy],
    monitors: Mapping[str, MonitorPolicy],
    retrains: Mapping[str, RetrainPolicy],
    rules: Mapping[str, list[Rule]],
    place: str,
) -> None:
    """Refuse values that cannot be intended. Raises :class:`ConfigError` for the first one."""
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
    """A place in a file; checks values there and makes the errors that name it."""

    def __init__(self, file: str, path: str) -> None:
        self.file, self.path = file, path

    def __truediv__(self, field: str) -> _Place:
        return _Place(self.file, f"{self.path}.{field}" if not field.startswith("[") else self.path + field)

    def error(self, message: str, value: object, next_step: str) -> ConfigError:
        return ConfigError(message, value=value, place=f"{self.file}, {self.path}", next_step=next_step)

    def check_number(
        self,
        value: float | None,
        low: float = -math.inf,
        high: float = math.inf,
        *,
        above: bool = False,
        below: bool = False,
    ) -> None:
        """A finite number in ``[low, high]``; ``above``/``below`` exclude the ends."""
        if value is None:
            return
        inside = math.isfinite(value) and low <= value <= high
        if not inside or (above and value == low) or (below and value == high):
            raise self.error(
                "the number is out of range",
                value,
                f"Write {_describe_range(low, high, above=above, below=below)}.",
            )

    def check_duration(self, value: str | None, *, zero: bool = False) -> None:
        if value is None:
            return
        length = seconds(value)
        if not length and not zero:
            raise self.error("a duration of zero", value, "Write a longer one, e.g. '1h' or '14d'.")
        if length > _LONGEST_S:
            raise self.error("a duration beyond 100 years", value, "Write a shorter one, e.g. '365d'.")

    def check_ordered(self, low: float | None, high: float | None, names: str) -> None:
        if low is not None and high is not None and low > high:
            raise self.error(
                f"{names}: the first is larger than the second, so no value lies between",
                [low, high],
                "Exchange them.",
            )


def _describe_range(low: float, high: float, *, above: bool, below: bool) -> str:
    floor = f"{'above' if above else 'at least'} {low:g}" if math.isfinite(low) else ""
    ceiling = f"{'below' if below else 'at most'} {high:g}" if math.isfinite(high) else ""
    return "a number " + (" and ".join(p for p in (floor, ceiling) if p) or "that is finite")


# --- the gate --------------------------------------------------------------------------------------------------------


def _check_model(model: ModelPolicy, here: _Place) -> None:
    (here / "label_delay").check_duration(model.label_delay, zero=True)
    limits: dict[str, tuple[float, float]] = {}
    for number, rule in enumerate(model.gate):
        _check_gate(rule, here / f"gate[{number}]")
        if rule.versus is None:
            low, high = limits.get(rule.metric, (-math.inf, math.inf))
            low = max(low, -math.inf if rule.min is None else rule.min)
            high = min(high, math.inf if rule.max is None else rule.max)
            limits[rule.metric] = low, high
            (here / f"gate[{number}]").check_ordered(
                low, high, f"{rule.metric}, with the rules before: min and max"
            )


def _find_metric(name: str, known: Mapping[str, MetricFacts]) -> MetricFacts | None:
    """A metric of the table; ``pinball_0.9`` and the like are that of another quantile."""
    return known.get("pinball" if _QUANTILE.fullmatch(name) else name)


def _require_metric(name: str, known: Mapping[str, MetricFacts], here: _Place, what: str) -> MetricFacts:
    metric = _find_metric(name, known)
    if metric is None:
        raise (here / "metric").error(
            f"no metric of this name {what}", name, near(name, known, what="metric")
        )
    return metric


def _check_gate(rule: GateRule, here: _Place) -> None:
    known = _require_metric(rule.metric, METRICS | LATENCY, here, "is computed in a gate")
    _check_confidence(rule.confidence, here)
    if rule.versus is None:
        if rule.max_worse is not None:
            raise here.error(
                "max_worse needs something to compare with", rule.max_worse, 'Add versus = "champion".'
            )
        if rule.test == "paired":
            raise here.error(
                "a paired test needs something to compare with",
                rule.test,
                'Add versus = "champion" and max_worse.',
            )
        _check_limits(rule.metric, rule.min, rule.max, known, here)
        return
    if rule.metric in LATENCY:
        raise here.error(
            "a latency is not compared with the champion's", rule.metric, "Leave versus out and write max."
        )
    if rule.min is not None or rule.max is not None:
        raise here.error("one rule holds either limits or a comparison", rule.metric, "Write two rules.")
    _check_max_worse(rule.max_worse, known, here)


def _check_max_worse(value: float | None, known: MetricFacts, here: _Place) -> None:
    """No model can be worse by more than the whole range of the metric."""
    (here / "max_worse").check_number(value, 0.0, known.high - known.low)


def _check_limits(
    metric: str, low: float | None, high: float | None, known: MetricFacts, here: _Place
) -> None:
    if low is None and high is None:
        raise here.error("the rule sets no limit", metric, "Write min, max, or versus with max_worse.")
    (here / "min").check_number(low, known.low, known.high)
    (here / "max").check_number(high, known.low, known.high)
    here.check_ordered(low, high, "min and max")


def _check_confidence(value: float, here: _Place) -> None:
    (here / "confidence").check_number(value, 0.5, 1.0, below=True)


# --- the rollout -----------------------------------------------------------------------------------------------------


def _check_deployment(deploy: DeployPolicy, here: _Place) -> None:
    (here / "freeze").check_duration(deploy.freeze, zero=True)
    if not deploy.stages:
        raise (here / "stages").error(
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
        message = "more than one kind of stage at once" if sum(kinds) else "a stage without a kind"
        raise here.error(
            message, _format_table(stage), "Write one of shadow = true, canary = 0.1 or full = true."
        )
    (here / "canary").check_number(stage.canary, 0.0, 1.0, above=True, below=True)
    (here / "min_requests").check_number(stage.min_requests, 0, _LARGEST)
    (here / "min_labels").check_number(stage.min_labels, 0, _LARGEST)
    (here / "max_for").check_duration(stage.max_for)
    if stage.full:
        if not last:
            raise here.error(
                "stages after the full one are never reached",
                _format_table(stage),
                "Put the full stage last.",
            )
        if stage.min_requests or stage.min_labels or stage.max_for is not None:
            raise here.error(
                "a full stage waits for nothing",
                _format_table(stage),
                "Leave min_requests, min_labels and max_for out.",
            )
    elif not stage.min_requests and not stage.min_labels:
        raise here.error(
            "a stage that ends at once, without evidence",
            _format_table(stage),
            "Add min_requests or min_labels.",
        )


def _check_rollback(rule: RollbackRule, here: _Place) -> None:
    known = _require_metric(rule.metric, TRAFFIC | PAIRED, here, "is compared during a rollout")
    (here / "min_rows").check_number(rule.min_rows, 1, _LARGEST)
    _check_confidence(rule.confidence, here)
    if rule.metric in TRAFFIC:
        if rule.versus is not None or rule.max_worse is not None:
            raise here.error("this metric has a limit, not a comparison", rule.metric, "Write max alone.")
        if rule.max is None:
            raise here.error("the rule sets no limit", rule.metric, "Write max.")
        (here / "max").check_number(rule.max, known.low, known.high)
        return
    if rule.max is not None:
        raise here.error(
            "this metric is compared with the champion's",
            rule.metric,
            'Write versus = "champion" and max_worse.',
        )
    if rule.versus is None or rule.max_worse is None:
        raise here.error("the rule sets no limit", rule.metric, 'Write versus = "champion" and max_worse.')
    _check_max_worse(rule.max_worse, known, here)


# --- monitoring and retraining ---------------------------------------------------------------------------------------


def _check_monitor(policy: MonitorPolicy, here: _Place) -> None:
    if policy.metric is not None:
        _require_metric(policy.metric, METRICS, here, "is followed over windows")
    for name in ("window", "lookback", "label_horizon"):
        (here / name).check_duration(getattr(policy, name))
    for name in ("grace", "label_delay"):
        (here / name).check_duration(getattr(policy, name), zero=True)
    if policy.lookback is not None and seconds(policy.lookback) < seconds(policy.window):
        raise (here / "lookback").error(
            "shorter than one window", policy.lookback, f"Write at least {policy.window!r}."
        )
    if seconds(policy.label_horizon) < seconds(policy.label_delay):
        raise (here / "label_horizon").error(
            "labels would be dropped before they are due",
            policy.label_horizon,
            f"Write more than {policy.label_delay!r}.",
        )
    for name in ("null_share", "invalid_share", "unseen_share", "outside_share", "error_rate"):
        (here / name).check_number(getattr(policy, name), 0.0, 1.0)
    for name in ("min_rows", "min_labels", "confirm", "clear"):
        (here / name).check_number(getattr(policy, name), 1, _LARGEST)
    (here / "alpha").check_number(policy.alpha, 0.0, 1.0, above=True, below=True)
    (here / "bins").check_number(policy.bins, 2, 100)
    (here / "psi").check_number(policy.psi, 0.0)
    (here / "tolerance").check_number(policy.tolerance, 0.0)
    known = _find_metric(policy.metric or "", METRICS) or MetricFacts(frozenset())
    (here / "reference").check_number(policy.reference, known.low, known.high)
    for name, limit in policy.columns.items():
        (here / f"columns.{name}").check_number(limit, 0.0)


def check_retrain(policy: RetrainPolicy, *, place: str, path: str) -> None:
    """Refuse a reaction policy that cannot be intended. Raises :class:`ConfigError`."""
    here = _Place(place, path)
    (here / "cooldown").check_duration(policy.cooldown, zero=True)
    (here / "every").check_duration(policy.every)
    (here / "budget_window").check_duration(policy.budget_window)
    (here / "budget").check_number(policy.budget, 1)
    (here / "max_failures").check_number(policy.max_failures, 0, 30)
    if "schedule" in policy.retrain_on and policy.every is None:
        raise here.error(
            "a schedule without its interval", policy.retrain_on, "Add every, e.g. every = '30d'."
        )
    if policy.every is not None and "schedule" not in policy.retrain_on:
        raise (here / "every").error(
            "an interval without a schedule", policy.every, 'Add "schedule" to retrain_on.'
        )


# --- data ------------------------------------------------------------------------------------------------------------


def check_rule(rule: Rule, here: _Place) -> None:
    """A data check that no table could pass, or that checks nothing."""
    match rule:
        case RangeRule(min=low, max=high) | RowCountRule(min=low, max=high):
            (here / "min").check_number(low)
            (here / "max").check_number(high)
            here.check_ordered(low, high, "min and max")
            if low is None and high is None:
                raise here.error("the rule sets no limit", _format_table(rule), "Write min, max or both.")
        case LabelRateRule():
            (here / "low").check_number(rule.low, 0.0, 1.0)
            (here / "high").check_number(rule.high, 0.0, 1.0)
            (here / "min_rows").check_number(rule.min_rows, 1)
            here.check_ordered(rule.low, rule.high, "low and high")
        case NotNullRule():
            (here / "max_null_share").check_number(rule.max_null_share, 0.0, 1.0, below=True)
        case SetRule(allowed=[]) | UniqueRule(columns=[]):
            raise here.error("the list is empty", [], "Name at least one.")
        case _:
            pass


# --- across sections -------------------------------------------------------------------------------------------------


def _check_tasks(
    models: Mapping[str, ModelPolicy],
    deployments: Mapping[str, DeployPolicy],
    monitors: Mapping[str, MonitorPolicy],
    place: str,
) -> None:
    """All metrics named for one model must fit one task: an AUC and a squared error cannot both."""
    for name, model in models.items():
        named: list[tuple[str, str, MetricFacts | None]] = [
            (f"model.{name}.gate[{n}].metric", r.metric, _find_metric(r.metric, METRICS | LATENCY))
            for n, r in enumerate(model.gate)
        ]
        for target, deploy in deployments.items():
            if deploy.model != name:
                continue
            named += [
                (f"deploy.{target}.rollback[{n}].metric", r.metric, _find_metric(r.metric, TRAFFIC | PAIRED))
                for n, r in enumerate(deploy.rollback)
            ]
            metric = monitors[target].metric if target in monitors else None
            if metric is not None:
                named.append((f"monitor.{target}.metric", metric, _find_metric(metric, METRICS)))
        tasks: Collection[Task] = frozenset(Task)
        for path, metric, known in named:
            if known is None:  # the rules themselves were checked before
                continue
            if not known.tasks & set(tasks):
                kinds = " or ".join(sorted(t.value for t in tasks))
                raise _Place(place, path).error(
                    f"a metric of {' and '.join(sorted(t.value for t in known.tasks))} models, where the others are of {kinds} ones",
                    metric,
                    f"Metrics of {kinds} models: {', '.join(n for n, k in METRICS.items() if k.tasks & set(tasks))}.",
                )
            tasks = known.tasks & set(tasks)


def _format_table(record: Record) -> str:
    """A table as it is written in the file: the fields that differ from the defaults."""
    fields: list[str] = []
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if value not in (None, False, 0, ""):
            fields.append(f"{field} = {str(value).lower() if isinstance(value, bool) else value!r}")
    return "{ " + ", ".join(fields) + " }" if fields else "{}"
