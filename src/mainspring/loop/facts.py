"""The facts that the decisions about one deployment are made from, gathered from the rooms."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from mainspring.clock import from_us, to_us
from mainspring.errors import NotFound
from mainspring.lineage import Foundation
from mainspring.loop import rows
from mainspring.loop.apply import CHAMPION
from mainspring.loop.decide import failures_key
from mainspring.loop.rooms import LoopRooms
from mainspring.loop.routing import CANDIDATE_SHADOW, CHAMPION_SHADOW
from mainspring.records.base import seconds
from mainspring.records.loop import (
    AlertFact,
    DeployPolicy,
    Evidence,
    Facts,
    RetrainPolicy,
    RollbackRule,
    Rollout,
    RuleResult,
)
from mainspring.records.monitoring import Paired

_DAY_US = 86_400_000_000


def gather_facts(
    base: Foundation, rooms: LoopRooms, *, deployment: str, deploy: DeployPolicy, retrain: RetrainPolicy
) -> Facts:
    """All facts at the policy clock's time."""
    now = base.clock.now()
    champion, since = find_champion(rooms, deploy.model)
    with base.store.read() as tx:
        newest = rows.newest_job(tx, base.project, deployment)
        rollout = rows.running_rollout(tx, base.project, deployment)
        failures = rows.failures_in_a_row(tx, base.project, deployment)
        frozen = tx.scalar(
            "SELECT until_us FROM freezes WHERE project = ? AND deployment = ?", base.project, deployment
        )
        window = to_us(now - timedelta(seconds=seconds(retrain.budget_window)))
        spent = tx.scalar(
            "SELECT count(*) AS n FROM loop_jobs WHERE project = ? AND deployment = ? AND requested_us >= ? AND trigger_kind <> 'manual'",
            base.project, deployment, window,
        )  # fmt: skip
        job, _outcome = newest or (None, None)
        handled = job is None or rows.was_decided(tx, base.project, f"job:{job.id}")
        failures_since = rows.newest_promoted(tx, base.project, deployment) or "first"
        reported = rows.was_decided(tx, base.project, failures_key(deployment, failures_since))
        verdict = (
            rows.read_verdict(tx, base.project, job.verdict) if job is not None and job.verdict else None
        )
    alerts = rooms.monitoring.list_alerts(deployment=deployment, state="open")
    return Facts(
        deployment=deployment,
        now=now,
        champion=champion,
        champion_since=since,
        alerts=[
            AlertFact(id=a.id, kind=a.kind, subject=a.subject, opened_at=a.opened_at, detail=a.detail)
            for a in alerts
        ],
        job=job,
        verdict=verdict,
        handled=handled,
        rollout=rollout,
        evidence=gather_evidence(rooms, rollout, now, deploy.rollback) if rollout is not None else None,
        frozen_until=from_us(int(frozen)) if frozen is not None else None,
        retrains_in_budget=int(spent),
        failures=failures,
        failures_since=failures_since,
        failures_reported=reported,
    )


def gather_evidence(
    rooms: LoopRooms, rollout: Rollout, now: datetime, rules: Sequence[RollbackRule] = ()
) -> Evidence:
    """Compare candidate and champion on the rows that both scored since the stage began.

    The interval of the difference has the highest confidence that a rule about this metric requires (0.95 without one).
    """
    stage = rollout.stages[rollout.stage]
    if rollout.champion is None or stage.full:
        return Evidence()
    if stage.canary is not None and not stage.shadow:
        candidate, champion = str(rollout.version), f"shadow:{CHAMPION_SHADOW}"
    else:
        candidate, champion = f"shadow:{CANDIDATE_SHADOW}", str(rollout.champion)
    paired = rooms.monitoring.compare_scorers(
        deployment=rollout.deployment, a=candidate, b=champion, since=rollout.stage_started_at, until=now
    )
    confidences = [r.confidence for r in rules if r.metric == paired.loss]
    result = difference(paired, confidence=max(confidences, default=0.95)) if paired.labelled else None
    return Evidence(
        requests=paired.rows + paired.errors_a,
        labels=paired.labelled,
        errors=paired.errors_a,
        score_shift=paired.score_shift,
        paired={paired.loss: result} if result is not None else {},
    )


def difference(paired: Paired, *, confidence: float = 0.95) -> RuleResult:
    """Mean per-row loss of the candidate minus the champion's, with days as blocks, since rows of one day are not
    independent. No interval below three days."""
    from mainspring.metrics.compare import paired_difference

    differences = [a - b for a, b in zip(paired.loss_a, paired.loss_b, strict=True)]
    days = [us // _DAY_US for us in paired.at_us]
    result = paired_difference(differences, blocks=days, confidence=confidence, name=paired.loss).worse_by
    return RuleResult(
        rule={"metric": paired.loss},
        passed=True,
        value=result.value,
        low=result.low,
        high=result.high,
        rows=result.n,
        reason=result.reason or f"{result.method}, {result.blocks} days",
    )


def find_champion(rooms: LoopRooms, model: str) -> tuple[int | None, datetime | None]:
    """The champion's version, and since when; None without one."""
    try:
        moves = [a for a in rooms.models.list_alias_moves(model=model) if a.alias == CHAMPION]
    except NotFound:
        return None, None
    if not moves:
        return None, None
    newest = max(moves, key=lambda a: (a.at, a.event))
    return newest.version, newest.at
