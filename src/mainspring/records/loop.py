"""The policy of the loop, the facts that it reads, and its decisions."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any, Literal

import msgspec

from mainspring.records.base import Digest, Duration, Record
from mainspring.records.models import AliasEvent

# --- policy: what mainspring.toml says -------------------------------------------------------------------------------


class GateRule(Record, frozen=True):
    """One condition a candidate must meet on the locked hold-out.

    Absolute: ``min`` and/or ``max``. Against the champion: ``versus = "champion"`` with ``max_worse`` (in the metric's
    own unit; 0 = must not be worse) and ``test``: ``paired`` demands that the one-sided ``confidence`` bound of the paired
    difference on the same rows stays within ``max_worse`` (non-inferiority). ``point`` compares the plain figures.
    ``metric``: one that is computed on a hold-out for the model's task, or ``latency_p99_ms`` (absolute only).
    """

    metric: str
    min: float | None = None
    max: float | None = None
    versus: Literal["champion"] | None = None
    max_worse: float | None = None
    test: Literal["paired", "point"] = "point"
    confidence: float = 0.95


class Stage(Record, frozen=True):
    """One stage of a rollout; it ends on evidence, never on time alone.

    ``shadow``: the candidate sees all requests and answers none. ``canary``: it answers this share. ``full``: it is
    champion. ``min_requests`` and ``min_labels`` count the rows both versions scored since the stage began. After
    ``max_for`` without the evidence the rollout is abandoned: the candidate is withdrawn, nothing is promoted.
    """

    shadow: bool = False
    canary: float | None = None
    full: bool = False
    min_requests: int = 0
    min_labels: int = 0
    max_for: Duration | None = None


class RollbackRule(Record, frozen=True):
    """A breach withdraws the candidate at once, in any stage where it answers traffic.

    ``error_rate``: share of failed requests of the candidate. ``score_shift``: population stability index between the
    scores of candidate and champion on the same rows. ``log_loss`` (regression: ``squared_error``) with
    ``versus = "champion"``: paired difference on the labelled rows; breached when even its favourable ``confidence``
    bound is worse than ``max_worse``.
    """

    metric: str
    max: float | None = None
    versus: Literal["champion"] | None = None
    max_worse: float | None = None
    test: Literal["paired", "point"] = "paired"
    min_rows: int = 100
    confidence: float = 0.95


class ModelPolicy(Record, frozen=True):
    """How a model is made: the pipeline (``file.py:function``), its params, and the gate."""

    pipeline: str
    params: dict[str, Any] = {}
    gate: list[GateRule] = []
    label_delay: Duration = "0s"
    """Labels arrive this much later than the event: training data ends at now minus this."""


class DeployPolicy(Record, frozen=True):
    """How a candidate becomes champion of a deployment."""

    model: str
    stages: list[Stage] = msgspec.field(default_factory=lambda: [Stage(full=True)])
    rollback: list[RollbackRule] = []
    freeze: Duration = "1d"
    """After a rollback nothing is rolled out for this long."""


class RetrainPolicy(Record, frozen=True):
    """When a deployment's model is retrained."""

    retrain_on: list[Literal["drift", "performance", "quality", "schedule"]] = []
    cooldown: Duration = "1d"
    every: Duration | None = None
    """With ``schedule``: at most this long between retrains."""
    budget: int = 100
    """Retrains allowed per ``budget_window``; then the loop stops and needs a person."""
    budget_window: Duration = "365d"
    max_failures: int = 3
    """Each retrain in a row that fails, is gated out or rolled back doubles the wait for the next one, at most this often: after
    ``max_failures`` of them it stays at ``2 ** max_failures`` times the cooldown (0: it never grows). What doubles is the
    cooldown, but at least a minute, counted from the end of the failed retrain."""


# --- facts and decisions ---------------------------------------------------------------------------------------------


class JobState(enum.StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


class RolloutState(enum.StrEnum):
    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABANDONED = "abandoned"


class RuleResult(Record, frozen=True):
    """The result of one rule. ``low``/``high`` bound ``value`` where it is an estimate; ``reason`` is for people."""

    rule: dict[str, Any]
    passed: bool
    value: float | None
    low: float | None = None
    high: float | None = None
    rows: int = 0
    reason: str = ""


class Verdict(Record, frozen=True):
    """A gate's answer for exactly this package, hold-out and rule set (by digest)."""

    id: str
    model: str
    version: int
    champion: int | None
    package: Digest
    holdout: str
    gate: Digest
    passed: bool
    rules: list[RuleResult]
    at: datetime
    same_as: int | None = None
    """The champion's version, if both answer every row of the hold-out alike: then there is nothing to roll out."""


class Job(Record, frozen=True):
    """One retraining: requested by a decision, run by a worker process, ends with a version and its verdict."""

    id: str
    deployment: str
    model: str
    state: JobState
    trigger: str
    reason: str
    requested_at: datetime
    cutoff: datetime
    """The time of the request minus the label delay: later events have no label yet."""
    params: dict[str, Any] = {}
    run: str | None = None
    version: int | None = None
    verdict: str | None = None
    error: str | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    """How often a worker took it; only the newest attempt may finish it."""


class Rollout(Record, frozen=True):
    """A candidate's rollout. ``stage`` is an index into ``stages``, the policy's stages when it began."""

    id: str
    deployment: str
    model: str
    version: int
    champion: int | None
    state: RolloutState
    stage: int
    stages: list[Stage]
    started_at: datetime
    stage_started_at: datetime
    reason: str = ""
    ended_at: datetime | None = None


class Evidence(Record, frozen=True):
    """What is known of a candidate against the champion on the same rows since its stage began."""

    requests: int = 0
    labels: int = 0
    errors: int = 0
    score_shift: float | None = None
    paired: dict[str, RuleResult] = {}
    """Per quality metric: value = candidate minus champion (positive: candidate worse), with its interval."""


class AlertFact(Record, frozen=True):
    """An open alert as the loop sees it."""

    id: str
    kind: str
    subject: str
    opened_at: datetime
    detail: str = ""


class Facts(Record, frozen=True):
    """Everything that one decision on one deployment is based on. Recorded with it, so that it can be replayed."""

    deployment: str
    now: datetime
    champion: int | None
    champion_since: datetime | None
    alerts: list[AlertFact] = []
    job: Job | None = None
    """The newest retrain job, if any."""
    verdict: Verdict | None = None
    """The verdict of that job's version."""
    handled: bool = True
    """Whether the newest job's outcome has led to a decision already."""
    rollout: Rollout | None = None
    """The running rollout, if any."""
    evidence: Evidence | None = None
    frozen_until: datetime | None = None
    retrains_in_budget: int = 0
    failures: int = 0
    """Retrains in a row that did not lead to a promotion."""
    failures_since: str | None = None
    """The job that was promoted last before them (``first``: none was). None in facts of 0.1, in which their number alone called nobody."""
    failures_reported: bool = False
    """Whether a person was called because of these failures already."""


class LoopDecision(Record, frozen=True):
    """What the loop decided. ``key`` makes it happen once: a second attempt with the same key is the same decision."""

    action: Literal[
        "retrain",
        "gate_pass",
        "gate_stop",
        "job_failed",
        "start",
        "advance",
        "promote",
        "rollback",
        "abandon",
        "needs_human",
    ]
    key: str
    reason: str
    details: dict[str, Any] = {}


class PersonNeeded(Record, frozen=True, kw_only=True):
    """The loop needs a person for a deployment: it has spent its budget, or its retrains failed again and again."""

    deployment: str
    reason: str
    at: datetime


class Promotion(Record, frozen=True, kw_only=True):
    """The champion was changed by hand. ``deployments``: where it answers now."""

    alias: AliasEvent
    deployments: list[str]


class TickResult(Record, frozen=True):
    """One round of the loop."""

    now: datetime
    decisions: list[LoopDecision]
    jobs: list[str]
    """Retrain jobs that are queued or running."""
    problems: list[str] = []
    """What failed in this round and is left for the next one; everything else was done."""


class ReplayReport(Record, frozen=True):
    """The decisions on recorded facts, made again. ``differences`` lists ticks whose decisions differ (empty: the same)."""

    ticks: int
    decisions: int
    same: bool
    differences: list[dict[str, Any]] = []
