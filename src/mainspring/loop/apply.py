"""Applies a decision: its row, its event, and what it changes, in one transaction, once.

Routes are part of that transaction as *intent* (``deploy.set_routes``); the bundle is written from them after the commit
(``deploy.publish``), and by the next round of the loop if the process died in between.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from mainspring.clock import to_us
from mainspring.lineage import Decision, Foundation
from mainspring.loop import rows
from mainspring.loop.rooms import LoopRooms
from mainspring.loop.routing import stage_routes
from mainspring.records.base import new_id, seconds, to_json
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.loop import (
    DeployPolicy,
    Facts,
    JobState,
    LoopDecision,
    ModelPolicy,
    Rollout,
    RolloutState,
    Stage,
)

CHAMPION = "champion"

_KINDS: dict[str, EventKind] = {
    "retrain": EventKind.LOOP_RETRAIN,
    "gate_pass": EventKind.LOOP_GATE_PASS,
    "gate_stop": EventKind.LOOP_GATE_STOP,
    "job_failed": EventKind.LOOP_JOB_FAILED,
    "start": EventKind.LOOP_START,
    "advance": EventKind.LOOP_ADVANCE,
    "promote": EventKind.LOOP_PROMOTE,
    "rollback": EventKind.LOOP_ROLLBACK,
    "abandon": EventKind.LOOP_ABANDON,
    "needs_human": EventKind.LOOP_NEEDS_HUMAN,
}


class Applier:
    """Applies decisions about one deployment."""

    def __init__(
        self, base: Foundation, rooms: LoopRooms, *, deployment: str, deploy: DeployPolicy, model: ModelPolicy
    ) -> None:
        self._base = base
        self._rooms = rooms
        self._deployment = deployment
        self._deploy = deploy
        self._model = model

    def apply(self, decision: LoopDecision, facts: Facts) -> bool:
        """Apply ``decision``; returns False if a decision with this key was applied before: then nothing changes."""
        effects: dict[str, Callable[[Decision, LoopDecision, Facts], None]] = {
            "retrain": self._retrain,
            "gate_pass": self._only_record,
            "gate_stop": self._gate_stop,
            "job_failed": self._job_failed,
            "start": self._start,
            "advance": self._advance,
            "promote": self._promote,
            "rollback": self._rollback,
            "abandon": self._abandon,
            "needs_human": self._only_record,
        }
        with self._base.ledger.decision() as d:
            subject = ref("deployment", self._deployment)
            # The key is unique: of controllers that decide the same at the same time, one inserts the row and goes on.
            taken = d.tx.execute(
                "INSERT INTO loop_decisions (project, key, deployment, action, reason, at_us, event) VALUES (?, ?, ?, ?, ?, ?, '') ON CONFLICT (project, key) DO NOTHING",
                self._base.project, decision.key, self._deployment, decision.action, decision.reason, to_us(facts.now),
            )  # fmt: skip
            if not taken:
                return False
            details = {k: v for k, v in decision.details.items() if k != "stages"}
            event = d.event(
                _KINDS[decision.action],
                subject,
                {"reason": decision.reason, "key": decision.key, **_to_builtins(details)},
            )
            d.tx.execute(
                "UPDATE loop_decisions SET event = ? WHERE project = ? AND key = ?",
                event.id,
                self._base.project,
                decision.key,
            )
            effects[decision.action](d, decision, facts)
        return True

    # --- effects -----------------------------------------------------------------------------------------------------

    def _only_record(self, _d: Decision, _decision: LoopDecision, _facts: Facts) -> None:
        """For decisions that change nothing but the record of them: the event is written before."""

    def _retrain(self, d: Decision, decision: LoopDecision, facts: Facts) -> None:
        request_job(
            d, self._base.project, deployment=self._deployment, model=self._deploy.model, trigger=str(decision.details.get("trigger", "")),
            reason=decision.reason, now=facts.now, delay=self._model.label_delay, params={},
        )  # fmt: skip
        alert = decision.details.get("alert")
        if alert:
            d.edge(ref("alert", str(alert)), ref("deployment", self._deployment), "triggered")

    def _gate_stop(self, d: Decision, decision: LoopDecision, _facts: Facts) -> None:
        self._end_job(d, decision.details["job"], "gated")

    def _job_failed(self, d: Decision, decision: LoopDecision, _facts: Facts) -> None:
        self._end_job(d, decision.details["job"], "failed")

    def _start(self, d: Decision, decision: LoopDecision, facts: Facts) -> None:
        stages: list[Stage] = decision.details["stages"]
        version, champion = int(decision.details["version"]), decision.details["champion"]
        rollout = Rollout(
            id=new_id(), deployment=self._deployment, model=self._deploy.model, version=version, champion=champion,
            state=RolloutState.RUNNING, stage=0, stages=stages, started_at=facts.now, stage_started_at=facts.now, reason=decision.reason,
        )  # fmt: skip
        now = to_us(facts.now)
        d.tx.execute(
            "INSERT INTO rollouts (project, id, deployment, model, version, champion, state, stage, stages, job, started_us, stage_us, reason) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)",
            self._base.project, rollout.id, rollout.deployment, rollout.model, version, champion, rollout.state.value,
            to_json(stages).decode(), decision.details.get("job"), now, now, rollout.reason,
        )  # fmt: skip
        d.edge(ref("model_version", f"{rollout.model}@{version}"), ref("rollout", rollout.id), "candidate")
        d.edge(ref("rollout", rollout.id), ref("deployment", self._deployment), "rolled_out")
        if not stages[0].full:
            self._set_stage_routes(rollout, f"rollout started: {decision.reason}")

    def _advance(self, d: Decision, decision: LoopDecision, facts: Facts) -> None:
        stage = int(decision.details["stage"])
        d.tx.execute(
            "UPDATE rollouts SET stage = ?, stage_us = ? WHERE project = ? AND id = ?",
            stage,
            to_us(facts.now),
            self._base.project,
            decision.details["rollout"],
        )
        rollout = rows.running_rollout(d.tx, self._base.project, self._deployment)
        if rollout is not None:
            self._set_stage_routes(rollout, f"stage {stage + 1}: {decision.reason}")

    def _promote(self, d: Decision, decision: LoopDecision, facts: Facts) -> None:
        version = int(decision.details["version"])
        self._rooms.models.set_alias(
            model=self._deploy.model,
            alias=CHAMPION,
            version=version,
            reason=decision.reason,
            expected=decision.details.get("previous") or 0,  # 0: nobody held it
        )
        self._end_rollout(d, decision, facts, RolloutState.PROMOTED, "promoted")
        self._rooms.deploy.deploy(
            deployment=self._deployment,
            model=self._deploy.model,
            version=version,
            reason=f"promoted: {decision.reason}",
        )

    def _rollback(self, d: Decision, decision: LoopDecision, facts: Facts) -> None:
        self._end_rollout(d, decision, facts, RolloutState.ROLLED_BACK, "rolled_back")
        until = facts.now + timedelta(seconds=seconds(self._deploy.freeze))
        freeze(d, self._base.project, self._deployment, until)
        self._restore(facts, f"rolled back: {decision.reason}")

    def _abandon(self, d: Decision, decision: LoopDecision, facts: Facts) -> None:
        self._end_rollout(d, decision, facts, RolloutState.ABANDONED, "abandoned")
        self._restore(facts, f"abandoned: {decision.reason}")

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _end_job(self, d: Decision, job: str, outcome: str) -> None:
        d.tx.execute(
            "UPDATE loop_jobs SET outcome = ? WHERE project = ? AND id = ? AND outcome IS NULL",
            outcome,
            self._base.project,
            job,
        )

    def _end_rollout(
        self, d: Decision, decision: LoopDecision, facts: Facts, end: RolloutState, outcome: str
    ) -> None:
        rollout = decision.details["rollout"]
        d.tx.execute(
            "UPDATE rollouts SET state = ?, ended_us = ?, reason = ? WHERE project = ? AND id = ? AND state = ?",
            end.value, to_us(facts.now), decision.reason, self._base.project, rollout, RolloutState.RUNNING.value,
        )  # fmt: skip
        row = d.tx.first("SELECT job FROM rollouts WHERE project = ? AND id = ?", self._base.project, rollout)
        if row and row["job"]:
            self._end_job(d, row["job"], outcome)

    def _set_stage_routes(self, rollout: Rollout, reason: str) -> None:
        targets, shadows = stage_routes(self._rooms, rollout)
        self._rooms.deploy.set_routes(
            deployment=self._deployment, targets=targets, shadows=shadows, reason=reason
        )

    def _restore(self, facts: Facts, reason: str) -> None:
        if facts.champion is not None:
            self._rooms.deploy.deploy(
                deployment=self._deployment, model=self._deploy.model, version=facts.champion, reason=reason
            )


def request_job(
    d: Decision,
    project: str,
    *,
    deployment: str,
    model: str,
    trigger: str,
    reason: str,
    now: datetime,
    delay: str,
    params: dict[str, Any],
) -> str:
    """Insert a retraining job; returns its id. Its cutoff is now minus the label delay: no row with a later event time may be used."""
    ident = new_id()
    cutoff = now - timedelta(seconds=seconds(delay))
    d.tx.execute(
        "INSERT INTO loop_jobs (project, id, deployment, model, state, trigger_kind, reason, requested_us, cutoff_us, params) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        project, ident, deployment, model, JobState.QUEUED.value, trigger, reason, to_us(now), to_us(cutoff), to_json(params).decode(),
    )  # fmt: skip
    return ident


def freeze(d: Decision, project: str, deployment: str, until: datetime) -> None:
    """Let nothing new be rolled out or retrained before ``until``; of two freezes the later end counts."""
    d.tx.execute(
        "INSERT INTO freezes (project, deployment, until_us) VALUES (?, ?, ?) ON CONFLICT (project, deployment) DO UPDATE SET until_us = "
        "CASE WHEN excluded.until_us > freezes.until_us THEN excluded.until_us ELSE freezes.until_us END",
        project, deployment, to_us(until),
    )  # fmt: skip


def _to_builtins(details: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    return {k: msgspec.to_builtins(v) for k, v in details.items() if v is not None}
