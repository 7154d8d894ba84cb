"""Facts and policy in, decisions out: everything that the loop decides, as a pure function.

It uses no clock, no database and no randomness, so it can be replayed on recorded facts (``loop replay``), run with a changed
policy (``loop what-if``), and tested case by case. Every comparison is written so that NaN fails it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from mainspring.records.base import counted, seconds
from mainspring.records.loop import (
    AlertFact,
    DeployPolicy,
    Evidence,
    Facts,
    JobState,
    LoopDecision,
    RetrainPolicy,
    RollbackRule,
    Rollout,
    RuleResult,
    Stage,
)


def decide(facts: Facts, deploy: DeployPolicy, retrain: RetrainPolicy) -> list[LoopDecision]:
    """What to do now for one deployment; empty when nothing is due. At most one decision about each matter."""
    if facts.rollout is not None:
        if facts.champion != facts.rollout.champion:
            return [_abandon_overtaken(facts.rollout, facts.champion)]
        return _decide_rollout(facts.rollout, facts.evidence or Evidence(), deploy, facts.now)
    settled = _settle_job(facts, deploy)
    if settled:
        return settled
    return _decide_retrain(facts, retrain)


# --- retraining ------------------------------------------------------------------------------------------------------


def _settle_job(facts: Facts, deploy: DeployPolicy) -> list[LoopDecision]:
    """What follows from the newest job, if it has ended and no decision about it was recorded yet."""
    job, verdict = facts.job, facts.verdict
    if job is None or facts.handled or job.state in {JobState.QUEUED, JobState.RUNNING}:
        return []
    if job.state is JobState.FAILED or verdict is None or job.version is None:
        return [
            LoopDecision(
                action="job_failed",
                key=f"job:{job.id}",
                reason=job.error or "the retrain ended without a verdict",
                details={"job": job.id},
            )
        ]
    details = {"job": job.id, "version": job.version, "verdict": verdict.id}
    if not verdict.passed:
        failed = (
            "; ".join(r.reason for r in verdict.rules if not r.passed)
            or "the gate has no rule that could pass"
        )
        return [LoopDecision(action="gate_stop", key=f"job:{job.id}", reason=failed, details=details)]
    if job.version == facts.champion:
        same = f"version {job.version} is the champion already"
        return [LoopDecision(action="gate_stop", key=f"job:{job.id}", reason=same, details=details)]
    if verdict.same_as is not None and verdict.same_as == facts.champion:
        same = (
            f"version {job.version} answers every row of the hold-out as version {facts.champion} does, which is the champion: "
            "there is nothing to roll out"
        )
        return [LoopDecision(action="gate_stop", key=f"job:{job.id}", reason=same, details=details)]
    passed = LoopDecision(
        action="gate_pass", key=f"job:{job.id}", reason="every rule of the gate holds", details=details
    )
    if facts.champion is None:
        stages, reason = [Stage(full=True)], "there is no champion yet"
    else:
        stages, reason = list(deploy.stages), "the gate passed"
    start = LoopDecision(
        action="start",
        key=f"rollout:{job.id}",
        reason=reason,
        details={"version": job.version, "champion": facts.champion, "stages": stages, "job": job.id},
    )
    return [passed, start]


def _decide_retrain(facts: Facts, policy: RetrainPolicy) -> list[LoopDecision]:
    job = facts.job
    if job is not None and job.state in {JobState.QUEUED, JobState.RUNNING}:
        return []  # single flight
    if facts.champion is None or (facts.frozen_until is not None and facts.now < facts.frozen_until):
        return []
    trigger = _find_trigger(facts, policy)
    if trigger is None:
        return []
    kind, reason, ident = trigger
    if (call := _call_about_failures(facts, policy, reason)) is not None:
        return [call]
    if facts.now < _earliest_retrain(facts, policy):
        return []
    if facts.retrains_in_budget >= policy.budget:
        return [
            LoopDecision(
                action="needs_human",
                key=f"budget:{facts.deployment}:{ident}",
                reason=f"{counted(facts.retrains_in_budget, 'retrain')} in {policy.budget_window} used up the budget; {reason}",
            )
        ]
    since = job.id if job is not None else "first"
    return [
        LoopDecision(
            action="retrain",
            key=f"retrain:{facts.deployment}:{since}:{ident}",
            reason=reason,
            details={"trigger": kind, "alert": ident},
        )
    ]


def _call_about_failures(facts: Facts, policy: RetrainPolicy, reason: str) -> LoopDecision | None:
    """Once for each row of failures that reaches the limit: the loop goes on trying, rarely, but it has not helped itself."""
    limit = policy.max_failures
    if facts.failures_since is None or facts.failures_reported or not 0 < limit <= facts.failures:
        return None
    last = facts.job.error if facts.job is not None and facts.job.error else "none led to a promotion"
    return LoopDecision(
        action="needs_human",
        key=failures_key(facts.deployment, facts.failures_since),
        reason=f"{counted(facts.failures, 'retrain')} in a row failed ({last}); {reason}",
    )


def failures_key(deployment: str, since: str) -> str:
    """The key of the decision that calls a person about the failures since the job ``since``."""
    return f"failures:{deployment}:{since}"


def _find_trigger(facts: Facts, policy: RetrainPolicy) -> tuple[str, str, str] | None:
    wanted = [a for a in facts.alerts if a.kind in policy.retrain_on]
    if wanted:
        # Decay says more than drift: it is named as the cause when both are open.
        first = min(wanted, key=lambda a: (a.kind != "performance", a.opened_at, a.id))
        return first.kind, _describe_alert(first), first.id
    if "schedule" in policy.retrain_on and policy.every is not None:
        last = facts.job.requested_at if facts.job is not None else facts.champion_since
        if last is not None and facts.now >= last + timedelta(seconds=seconds(policy.every)):
            return (
                "schedule",
                f"the last retrain was {policy.every} ago",
                f"schedule:{facts.now.date().isoformat()}",
            )
    return None


def _describe_alert(alert: AlertFact) -> str:
    return f"{alert.kind} of {alert.subject}" + (f": {alert.detail}" if alert.detail else "")


_FLOOR_S = 60.0
"""The wait that doubles after each failure is at least this long: with a cooldown of 0 s, retrains would fail in every round."""
_LONGEST_S = 10 * 365 * 86_400.0


def _earliest_retrain(facts: Facts, policy: RetrainPolicy) -> datetime:
    """When the next retrain may be requested: a cooldown after the last request, and longer while retrains fail in a row."""
    job, cooldown = facts.job, seconds(policy.cooldown)
    last = job.requested_at if job is not None else facts.champion_since
    if last is None:
        return facts.now
    if job is None or not facts.failures:
        return last + timedelta(seconds=min(cooldown, _LONGEST_S))
    wait = max(cooldown, _FLOOR_S) * 2 ** min(facts.failures, policy.max_failures)
    return max(last, job.finished_at or last) + timedelta(seconds=min(wait, _LONGEST_S))


# --- rollout ---------------------------------------------------------------------------------------------------------


def _decide_rollout(
    rollout: Rollout, evidence: Evidence, policy: DeployPolicy, now: datetime
) -> list[LoopDecision]:
    stage = rollout.stages[rollout.stage]
    if not stage.shadow:
        for rule in policy.rollback:
            breach = breached(rule, evidence)
            if breach is not None:
                return [
                    LoopDecision(
                        action="rollback",
                        key=f"rollback:{rollout.id}",
                        reason=breach,
                        details={
                            "rollout": rollout.id,
                            "version": rollout.version,
                            "stage": rollout.stage,
                            "rule": rule,
                        },
                    )
                ]
    open_question = None if stage.shadow else _find_open_question(policy, evidence)
    if (
        evidence.requests >= stage.min_requests
        and evidence.labels >= stage.min_labels
        and open_question is None
    ):
        return [_end_stage(rollout, evidence)]
    if stage.max_for is not None and now >= rollout.stage_started_at + timedelta(
        seconds=seconds(stage.max_for)
    ):
        evidence_so_far = f"{evidence.requests} of {counted(stage.min_requests, 'request')}, {evidence.labels} of {counted(stage.min_labels, 'label')}"
        if open_question is not None:
            evidence_so_far += f"; {open_question}"
        return [
            LoopDecision(
                action="abandon",
                key=f"abandon:{rollout.id}",
                reason=f"not enough evidence after {stage.max_for}: {evidence_so_far}",
                details={"rollout": rollout.id, "version": rollout.version},
            )
        ]
    return []


def _find_open_question(policy: DeployPolicy, evidence: Evidence) -> str | None:
    """Why a paired rule cannot be judged yet: its evidence has no interval. It cannot be broken then, so it must not be passed either."""
    for rule in policy.rollback:
        result = evidence.paired.get(rule.metric)
        if rule.test == "paired" and result is not None and result.low is None:
            return f"{rule.metric} cannot be compared yet: {result.reason}"
    return None


def _abandon_overtaken(rollout: Rollout, champion: int | None) -> LoopDecision:
    """The champion changed during the rollout: the version that the candidate was compared with no longer answers."""
    now = f"version {champion}" if champion is not None else "nothing"
    return LoopDecision(
        action="abandon",
        key=f"abandon:{rollout.id}",
        reason=f"the champion was changed to {now} during the rollout",
        details={"rollout": rollout.id, "version": rollout.version},
    )


def _end_stage(rollout: Rollout, evidence: Evidence) -> LoopDecision:
    after = rollout.stage + 1
    reason = (
        f"{counted(evidence.requests, 'request')} and {counted(evidence.labels, 'label')} without a breach"
        if rollout.champion is not None
        else "the first version: nobody to compare it with"
    )
    if after >= len(rollout.stages) or rollout.stages[after].full:
        return LoopDecision(
            action="promote",
            key=f"promote:{rollout.id}",
            reason=reason,
            details={"rollout": rollout.id, "version": rollout.version, "previous": rollout.champion},
        )
    return LoopDecision(
        action="advance",
        key=f"advance:{rollout.id}:{after}",
        reason=reason,
        details={"rollout": rollout.id, "version": rollout.version, "stage": after},
    )


def breached(rule: RollbackRule, evidence: Evidence) -> str | None:
    """Why the rule is broken, or None. Too little evidence never breaks a rule (and never promotes either)."""
    if rule.metric == "error_rate":
        if evidence.requests < rule.min_rows or rule.max is None:
            return None
        rate = evidence.errors / evidence.requests
        return (
            None
            if not rate > rule.max
            else f"error rate {rate:.2%} is above {rule.max:.2%} ({counted(evidence.requests, 'request')})"
        )
    if rule.metric == "score_shift":
        if evidence.requests < rule.min_rows or evidence.score_shift is None or rule.max is None:
            return None
        shift = evidence.score_shift
        return (
            None
            if not shift > rule.max
            else f"scores shifted by {shift:.3f} against the champion on the same rows (limit {rule.max})"
        )
    result = evidence.paired.get(rule.metric)
    if result is None or result.rows < rule.min_rows or rule.max_worse is None:
        return None
    return _find_harm(rule, result, rule.max_worse)


def _find_harm(rule: RollbackRule, result: RuleResult, limit: float) -> str | None:
    # Withdrawing needs proof of harm: even the favourable end of the interval must be beyond the limit.
    proof = result.low if rule.test == "paired" else result.value
    if proof is None or not proof > limit:
        return None
    value = result.value if result.value is not None else proof
    return f"{rule.metric} is worse than the champion's by {value:.4f} (at least {proof:.4f}, allowed {limit}) on {result.rows} labelled rows"
