"""Operations of the loop."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from mainspring.clock import to_us
from mainspring.config import Config
from mainspring.errors import Conflict, Fenced, InvalidInput, MainspringError, NotFound, near
from mainspring.lineage import Foundation
from mainspring.loop import champions, replay, rows
from mainspring.loop.apply import CHAMPION, Applier, freeze, request_job
from mainspring.loop.decide import decide
from mainspring.loop.facts import find_champion, gather_facts
from mainspring.loop.rooms import LoopRooms
from mainspring.operations import Role, operation
from mainspring.policy import check_retrain
from mainspring.records.base import new_id
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.loop import (
    DeployPolicy,
    Job,
    JobState,
    LoopDecision,
    ModelPolicy,
    PersonNeeded,
    Promotion,
    ReplayReport,
    RetrainPolicy,
    Rollout,
    RuleResult,
    TickResult,
    Verdict,
)

log = logging.getLogger("mainspring.loop")

_MAX_ATTEMPTS = 3
_MAX_ROUNDS = (
    8  # one decision may make the next one due (gate passed → start → promote); a bound, never reached
)


class Loop:
    """Facts in, decisions out. Any number of controllers may call :meth:`tick`: each decision happens once."""

    room = "loop"

    def __init__(self, base: Foundation, rooms: LoopRooms, *, config: Config) -> None:
        self._base = base
        self._rooms = rooms
        self._config = config
        self.start_worker: Callable[[str], None] | None = None
        """Called with the id of each queued job, to start a worker process for it; set by the server. None: the job waits in the queue."""

    # --- the clock -----------------------------------------------------------------------------------------------------

    @operation(role=Role.VIEWER)
    def get_clock(self) -> datetime:
        """The policy time."""
        return self._base.clock.now()

    @operation(role=Role.ADMIN, changes=True)
    def set_clock(self, now: datetime) -> datetime:
        """Move a manual policy clock forward; refused where the workspace runs on the system clock."""
        if self._config.storage.clock != "manual":
            raise Conflict(
                "this workspace runs on the system clock",
                next_step='Set clock = "manual" in [storage] of a new workspace.',
            )
        if now.tzinfo is None:
            raise InvalidInput(
                "a time needs its zone", value=now.isoformat(), next_step="Write e.g. 2013-02-01T00:00:00Z."
            )
        with self._base.store.write() as tx:
            # The later of two times stays, whichever process writes last: policy time never goes back.
            tx.execute(
                "INSERT INTO settings (project, name, value) VALUES (?, 'clock_us', ?) ON CONFLICT (project, name) DO UPDATE SET value = "
                "CASE WHEN CAST(excluded.value AS BIGINT) > CAST(settings.value AS BIGINT) THEN excluded.value ELSE settings.value END",
                self._base.project, str(to_us(now)),
            )  # fmt: skip
        return self._base.clock.now()

    # --- deciding ------------------------------------------------------------------------------------------------------

    @operation(role=Role.OPERATOR, changes=True, deadline_s=300)
    def tick(self) -> TickResult:
        """Read what happened since the last round, decide what is due for every deployment, and do it.

        What fails is reported in ``problems`` and tried again in the next round; the other deployments are decided all the same.
        """
        now = self._base.clock.now()
        problems: list[str] = []
        with _collecting_problems(problems, "jobs"):
            self._recover_jobs()
        self._read_logs(problems)
        taken: list[LoopDecision] = []
        for deployment in self._config.deploy:
            with _collecting_problems(problems, f"deployment {deployment}"):
                self._decide(deployment, taken)
        with _collecting_problems(problems, "publish"):
            self._rooms.deploy.publish()  # in every round: an earlier one may have died before it
        return TickResult(now=now, decisions=taken, jobs=self._open_jobs(), problems=problems)

    def _read_logs(self, problems: list[str]) -> None:
        """Read the logs. Predictions before labels: a label whose prediction is not known yet would only be parked."""
        monitoring, labels = self._rooms.monitoring, self._rooms.labels
        with _collecting_problems(problems, "predictions"):
            while monitoring.ingest().more:
                pass
        with _collecting_problems(problems, "labels"):
            while labels.ingest_relayed().more:
                pass
            while labels.settle_parked().more:
                pass
        with _collecting_problems(problems, "windows"):
            while monitoring.evaluate_windows().more:
                pass

    def _decide(self, deployment: str, taken: list[LoopDecision]) -> None:
        """Decide and apply what is due for one deployment; the decisions that were applied are added to ``taken``."""
        deploy, model, retrain = self._policies(deployment)
        applier = Applier(self._base, self._rooms, deployment=deployment, deploy=deploy, model=model)
        for _ in range(_MAX_ROUNDS):
            facts = gather_facts(
                self._base, self._rooms, deployment=deployment, deploy=deploy, retrain=retrain
            )
            decisions = decide(facts, deploy, retrain)
            with self._base.ledger.decision() as d:
                replay.record_tick(d.tx, self._base.project, facts, deploy, retrain, decisions)
                new = [decision for decision in decisions if applier.apply(decision, facts)]
            taken += new
            if not new:
                break
        if self.start_worker is not None:
            for job in self._queued_jobs(deployment):
                self.start_worker(job)

    @operation(role=Role.OPERATOR, changes=True)
    def request_retrain(self, deployment: str, *, reason: str, params: dict[str, Any] | None = None) -> Job:
        """Ask for a retraining by hand; gate and rollout follow as always. ``params`` override the policy's."""
        deploy, model, _ = self._policies(deployment)
        with self._base.ledger.decision() as d:
            newest = rows.newest_job(d.tx, self._base.project, deployment)
            if newest is not None and newest[0].state in {JobState.QUEUED, JobState.RUNNING}:
                raise Conflict(
                    "a retraining is under way already",
                    value=newest[0].id,
                    next_step="Wait for it; there is one at a time.",
                )
            ident = request_job(
                d, self._base.project, deployment=deployment, model=deploy.model, trigger="manual", reason=reason, now=self._base.clock.now(),
                delay=model.label_delay, params=params or {},
            )  # fmt: skip
            d.event(
                EventKind.LOOP_RETRAIN,
                ref("deployment", deployment),
                {"reason": reason, "job": ident, "trigger": "manual"},
            )
            job = d.done(rows.read_job(d.tx, self._base.project, ident))
        if self.start_worker is not None:
            self.start_worker(job.id)
        return job

    @operation(role=Role.OPERATOR, changes=True)
    def rollback(self, deployment: str, *, reason: str) -> LoopDecision:
        """Withdraw the candidate if one is being rolled out; else put the previous champion back. Then freeze."""
        deploy, model, retrain = self._policies(deployment)
        facts = gather_facts(self._base, self._rooms, deployment=deployment, deploy=deploy, retrain=retrain)
        with self._base.ledger.decision() as d:
            if facts.rollout is not None:
                decision = LoopDecision(
                    action="rollback",
                    key=f"rollback:{facts.rollout.id}",
                    reason=reason,
                    details={"rollout": facts.rollout.id, "version": facts.rollout.version},
                )
                Applier(self._base, self._rooms, deployment=deployment, deploy=deploy, model=model).apply(
                    decision, facts
                )
            else:
                moved = self._rooms.models.rollback(model=deploy.model, alias=CHAMPION, reason=reason)
                decision = LoopDecision(
                    action="rollback",
                    key=f"rollback:{moved.event}",
                    reason=reason,
                    details={"version": moved.previous, "to": moved.version},
                )
                d.event(
                    EventKind.LOOP_ROLLBACK,
                    ref("deployment", deployment),
                    {"reason": reason, "from": moved.previous, "to": moved.version},
                )
                freeze(d, self._base.project, deployment, facts.now)
                if moved.version is not None:
                    self._rooms.deploy.deploy(
                        deployment=deployment, model=deploy.model, version=moved.version, reason=reason
                    )
            d.done(decision)
        self._rooms.deploy.publish()
        return decision

    @operation(role=Role.OPERATOR, changes=True, deadline_s=120)
    def promote(
        self, model: str, *, version: int | str = "latest", reason: str, override: bool = False
    ) -> Promotion:
        """Make a version the champion of its model by hand, and let it answer wherever the policy deploys the model, or it answers now.

        Alias and routes change in one decision. Gate and rollout are passed by: raises Conflict for a version that a gate or a person
        refused, unless an admin says ``override``. ``version``: a number, an alias or ``latest``.
        """
        return champions.promote(
            self._base, self._rooms, self._config, model=model, version=str(version), reason=reason, override=override
        )  # fmt: skip

    @operation(role=Role.OPERATOR, changes=True, deadline_s=120)
    def restore_champion(self, model: str, *, reason: str) -> Promotion:
        """Put the champion before this one back, alias and routes in one decision. Raises NotFound if there was none."""
        return champions.restore(self._base, self._rooms, self._config, model=model, reason=reason)

    # --- jobs ----------------------------------------------------------------------------------------------------------

    @operation(role=Role.EDITOR, changes=True)
    def claim_job(self, job: str, *, alive_s: float = 30.0) -> Job:
        """A worker takes a queued job and promises a heartbeat within ``alive_s`` seconds; Conflict if another has it."""
        with self._base.ledger.decision() as d:
            # The state is a condition of the update: of two workers that claim one job, one changes the row.
            if not d.tx.execute(
                "UPDATE loop_jobs SET state = ?, attempt = attempt + 1, alive_us = ? WHERE project = ? AND id = ? AND state = ?",
                JobState.RUNNING.value, _alive_until_us(alive_s), self._base.project, job, JobState.QUEUED.value,
            ):  # fmt: skip
                current = rows.read_job(d.tx, self._base.project, job)
                raise Conflict(
                    f"the job is {current.state.value}",
                    value=job,
                    next_step="Only a queued job can be claimed.",
                )
            d.event(EventKind.LOOP_JOB_STARTED, ref("job", job))
            return d.done(rows.read_job(d.tx, self._base.project, job))

    @operation(role=Role.EDITOR, changes=True)
    def heartbeat_job(self, job: str, *, attempt: int, alive_s: float = 30.0) -> None:
        """The worker is alive for another ``alive_s`` seconds; raises Fenced if the job was given to another worker meanwhile."""
        with self._base.store.write() as tx:
            if not tx.execute(
                "UPDATE loop_jobs SET alive_us = ? WHERE project = ? AND id = ? AND state = ? AND attempt = ?",
                _alive_until_us(alive_s), self._base.project, job, JobState.RUNNING.value, attempt,
            ):  # fmt: skip
                raise _lost_job(job)

    @operation(role=Role.EDITOR, changes=True)
    def finish_job(
        self,
        job: str,
        *,
        attempt: int,
        run: str | None = None,
        version: int | None = None,
        verdict: str | None = None,
        error: str | None = None,
    ) -> Job:
        """A worker reports how its job ended; raises Fenced if the job was given to another worker meanwhile."""
        end = JobState.FAILED if error is not None else JobState.FINISHED
        with self._base.ledger.decision() as d:
            changed = d.tx.execute(
                "UPDATE loop_jobs SET state = ?, run = ?, version = ?, verdict = ?, error = ?, finished_us = ?, alive_us = NULL "
                "WHERE project = ? AND id = ? AND state = ? AND attempt = ?",
                end.value, run, version, verdict, error, to_us(self._base.clock.now()), self._base.project, job, JobState.RUNNING.value, attempt,
            )  # fmt: skip
            if not changed:
                raise _lost_job(job)
            outcome = {"run": run, "version": version, "verdict": verdict, "error": error}
            d.event(
                EventKind.LOOP_JOB_FINISHED,
                ref("job", job),
                {k: v for k, v in outcome.items() if v is not None},
            )
            return d.done(rows.read_job(d.tx, self._base.project, job))

    def _recover_jobs(self) -> None:
        """Put a job whose worker sent no heartbeat in time back into the queue; after three attempts it has failed."""
        with self._base.store.read() as tx:
            selected = tx.all(
                "SELECT id, attempt FROM loop_jobs WHERE project = ? AND state = ? AND alive_us < ?",
                self._base.project,
                JobState.RUNNING.value,
                _alive_until_us(0),
            )
        for row in selected:
            if row["attempt"] >= _MAX_ATTEMPTS:
                self.finish_job(
                    job=row["id"], attempt=row["attempt"], error=f"the worker died {row['attempt']} times"
                )
                continue
            with self._base.ledger.decision() as d:
                if d.tx.execute(
                    "UPDATE loop_jobs SET state = ? WHERE project = ? AND id = ? AND state = ? AND attempt = ?",
                    JobState.QUEUED.value, self._base.project, row["id"], JobState.RUNNING.value, row["attempt"],
                ):  # fmt: skip
                    d.event(EventKind.LOOP_JOB_REQUEUED, ref("job", row["id"]), {"attempt": row["attempt"]})

    @operation(role=Role.EDITOR, changes=True)
    def record_verdict(
        self,
        model: str,
        *,
        version: int,
        champion: int | None,
        gate: str,
        rules: list[RuleResult],
        same_as: int | None = None,
    ) -> Verdict:
        """Record a gate's answer. It passes only if there is at least one rule and every rule passed.

        ``same_as``: the champion, if both answer every row of the hold-out alike.
        """
        candidate = self._rooms.models.get_version(model=model, selector=str(version))
        verdict = Verdict(
            id=new_id(), model=model, version=version, champion=champion, package=candidate.package, holdout=candidate.holdout or "", gate=gate,
            passed=bool(rules) and all(r.passed is True for r in rules), rules=rules, at=self._base.clock.now(), same_as=same_as,
        )  # fmt: skip
        with self._base.ledger.decision() as d:
            rows.save_verdict(d.tx, self._base.project, verdict)
            subject = ref("model_version", f"{model}@{version}")
            d.event(
                EventKind.GATE_PASSED if verdict.passed else EventKind.GATE_STOPPED,
                subject,
                {
                    "verdict": verdict.id,
                    "failed": [r.reason for r in rules if not r.passed],
                    "digest": rows.verdict_digest(self._base.project, verdict),
                },
            )
            d.edge(subject, ref("verdict", verdict.id), "judged")
            if candidate.holdout:
                d.edge(ref("dataset_version", candidate.holdout), ref("verdict", verdict.id), "holdout")
            return d.done(verdict)

    # --- reading -------------------------------------------------------------------------------------------------------

    @operation(role=Role.VIEWER)
    def list_jobs(self, deployment: str | None = None, *, limit: int = 100) -> list[Job]:
        """Retraining jobs, newest first."""
        with self._base.store.read() as tx:
            return [
                rows.job_of(r) for r in self._select_rows(tx, "loop_jobs", "requested_us", deployment, limit)
            ]

    @operation(role=Role.VIEWER)
    def get_job(self, job: str) -> Job:
        """One retraining job."""
        with self._base.store.read() as tx:
            return rows.read_job(tx, self._base.project, job)

    @operation(role=Role.VIEWER)
    def list_rollouts(self, deployment: str | None = None, *, limit: int = 100) -> list[Rollout]:
        """Rollouts, newest first."""
        with self._base.store.read() as tx:
            return [
                rows.rollout_of(r) for r in self._select_rows(tx, "rollouts", "started_us", deployment, limit)
            ]

    @operation(role=Role.VIEWER)
    def list_needs(self) -> list[PersonNeeded]:
        """Deployments for which the loop needs a person, newest first; one is off the list when its champion changes."""
        needs: list[PersonNeeded] = []
        for deployment, deploy in self._config.deploy.items():
            with self._base.store.read() as tx:
                called = rows.newest_call(tx, self._base.project, deployment)
            if called is None:
                continue
            _, since = find_champion(self._rooms, deploy.model)
            if since is None or since <= called.at:
                needs.append(called)
        return sorted(needs, key=lambda n: n.at, reverse=True)

    @operation(role=Role.VIEWER)
    def get_verdict(self, verdict: str) -> Verdict:
        """A gate's verdict; a row that was altered is refused."""
        with self._base.store.read() as tx:
            return rows.read_verdict(tx, self._base.project, verdict)

    @operation(role=Role.VIEWER)
    def list_verdicts(self, model: str, version: int | None = None, *, limit: int = 100) -> list[Verdict]:
        """Verdicts about a model, newest first."""
        where, values = ("AND version = ?", [version]) if version is not None else ("", [])
        with self._base.store.read() as tx:
            selected = tx.all(
                f"SELECT id FROM verdicts WHERE project = ? AND model = ? {where} ORDER BY at_us DESC, id DESC LIMIT ?",
                self._base.project,
                model,
                *values,
                _checked_limit(limit),
            )
            return [rows.read_verdict(tx, self._base.project, r["id"]) for r in selected]

    @operation(role=Role.VIEWER, deadline_s=300)
    def replay(self) -> ReplayReport:
        """Decide all recorded facts again under the policy of their time; the decisions must be the same."""
        return replay.replay(self._base)

    @operation(role=Role.VIEWER, deadline_s=300)
    def simulate_policy(self, deployment: str, *, policy: dict[str, Any]) -> ReplayReport:
        """Decide the recorded facts under another ``[monitor.*]`` reaction policy; what would differ, first difference first.

        Facts after the first difference are those that were recorded, not those that the changed policy would have led to: a later
        entry says only what that policy decides on them.
        """
        import msgspec

        try:
            retrain = msgspec.convert(policy, RetrainPolicy)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"not a policy: {error}", place="policy") from None
        check_retrain(retrain, place="policy", path=f"monitor.{deployment}")
        self._policies(deployment)
        return replay.replay(self._base, deployment=deployment, retrain=retrain)

    # --- helpers -------------------------------------------------------------------------------------------------------

    def _policies(self, deployment: str) -> tuple[DeployPolicy, ModelPolicy, RetrainPolicy]:
        deploy = self._config.deploy.get(deployment)
        if deploy is None:
            raise NotFound(
                "no such deployment in the policy",
                value=deployment,
                next_step=near(deployment, self._config.deploy, what="[deploy.*]"),
            )
        return deploy, self._config.model[deploy.model], self._config.retrain.get(deployment, RetrainPolicy())

    def _select_rows(
        self, tx: Any, table: str, order: str, deployment: str | None, limit: int
    ) -> list[dict[str, Any]]:
        where, values = ("AND deployment = ?", [deployment]) if deployment is not None else ("", [])
        selected: list[dict[str, Any]] = tx.all(
            f"SELECT * FROM {table} WHERE project = ? {where} ORDER BY {order} DESC, id DESC LIMIT ?",
            self._base.project,
            *values,
            _checked_limit(limit),
        )
        return selected

    def _open_jobs(self) -> list[str]:
        with self._base.store.read() as tx:
            selected = tx.all(
                "SELECT id FROM loop_jobs WHERE project = ? AND state IN (?, ?) ORDER BY requested_us",
                self._base.project,
                JobState.QUEUED.value,
                JobState.RUNNING.value,
            )
        return [r["id"] for r in selected]

    def _queued_jobs(self, deployment: str) -> list[str]:
        with self._base.store.read() as tx:
            selected = tx.all(
                "SELECT id FROM loop_jobs WHERE project = ? AND deployment = ? AND state = ?",
                self._base.project,
                deployment,
                JobState.QUEUED.value,
            )
        return [r["id"] for r in selected]


@contextlib.contextmanager
def _collecting_problems(problems: list[str], what: str) -> Iterator[None]:
    """Log an error in this part of the round and add it to ``problems``; the round goes on."""
    try:
        yield
    except MainspringError as error:
        log.warning("%s: %s", what, error)
        problems.append(f"{what}: {error.code}: {error}")
    except Exception as error:
        log.exception("%s", what)
        problems.append(f"{what}: internal error: {type(error).__name__}")


def _alive_until_us(seconds_from_now: float) -> int:
    return time.time_ns() // 1000 + int(seconds_from_now * 1e6)


def _lost_job(job: str) -> Fenced:
    return Fenced(
        "the job belongs to another worker or has ended", value=job, next_step="This worker must stop."
    )


def _checked_limit(limit: int) -> int:
    if not 1 <= limit <= 1000:
        raise InvalidInput("limit must be 1 to 1000", value=limit)
    return limit
