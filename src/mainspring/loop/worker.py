"""What a worker process does with a retraining job: run the pipeline, find the version it registered, judge it, report.

It runs as its own process (``mainspring loop work JOB``): user code never runs inside the server or the loop.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mainspring import config as configuration
from mainspring.config import Config
from mainspring.errors import Fenced, MainspringError, NotFound, StepFailed
from mainspring.loop.apply import CHAMPION
from mainspring.loop.gates import TIME_COLUMN, answers_alike, judge
from mainspring.records.loop import Job, ModelPolicy, Promotion, Verdict
from mainspring.records.models import ModelVersion

if TYPE_CHECKING:
    from collections.abc import Callable

    from mainspring.data import DataClient
    from mainspring.loop.operations import Loop
    from mainspring.models import ModelsClient
    from mainspring.pipelines import Pipelines
    from mainspring.training import Training

    RunPipeline = Callable[[str, dict[str, Any], dict[str, Any]], str]


OFFERED = "until"


class WorkerRooms(Protocol):
    """What a worker asks of a workspace, here or remote."""

    @property
    def loop(self) -> Loop: ...
    @property
    def models(self) -> ModelsClient: ...
    @property
    def pipelines(self) -> Pipelines: ...
    @property
    def training(self) -> Training: ...
    @property
    def data(self) -> DataClient: ...


def work(workspace: WorkerRooms, config: Config, job_id: str, run_pipeline: RunPipeline) -> Job:
    """Do the job. ``run_pipeline(source, params, offered)`` runs it and returns the run's id, raising if it failed; what is offered
    goes only to a pipeline that declares it.

    An error of the product, or a step that failed, becomes the job's result; it does not end this process.
    """
    job = workspace.loop.claim_job(job=job_id)
    policy = config.model[job.model]
    run = version = verdict = error = None
    with _heartbeat(workspace, job):
        try:
            run = run_pipeline(policy.pipeline, {**policy.params, **job.params}, offered(job))
            registered = registered_by(workspace, job.model, run)
            version = registered.version
            verdict = gate(workspace, policy, registered).id
        except MainspringError as failure:
            error = f"{failure.code}: {failure}"
    return workspace.loop.finish_job(
        job=job_id, attempt=job.attempt, run=run, version=version, verdict=verdict, error=error
    )


@contextlib.contextmanager
def _heartbeat(workspace: WorkerRooms, job: Job, *, every_s: float = 10.0) -> Iterator[None]:
    """Send heartbeats from a thread until the block ends."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(every_s):
            try:
                workspace.loop.heartbeat_job(job=job.id, attempt=job.attempt)
            except Fenced:
                return
            except MainspringError:  # a busy database, perhaps; the next heartbeat counts as well
                continue

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def offered(job: Job) -> dict[str, Any]:
    """What a pipeline may declare as a parameter and gets from the loop: ``until``, the moment of decision.

    A row whose label arrived after ``until`` may be neither trained on nor held out; with labels that arrive ``label_delay`` late, that
    leaves events up to the job's ``cutoff``. A pipeline without it decides by itself which rows it reads.
    """
    return {OFFERED: job.requested_at.isoformat()}


def registered_by(workspace: WorkerRooms, model: str, run: str) -> ModelVersion:
    """The version of ``model`` that the run registered, or whose registration by an earlier run it took from the cache."""
    with contextlib.suppress(NotFound):  # no run has registered a version yet
        for version in workspace.models.list_versions(model=model, limit=50).items:
            if version.run == run:
                return version
    for recorded in reversed(workspace.pipelines.get_effects(run=run)):
        if recorded.effect.kind == "model_version":
            name, _, number = recorded.effect.ref.partition(":")[2].rpartition("@")
            if name == model:
                return workspace.models.get_version(model=model, selector=number)
    raise StepFailed(
        "the pipeline registered no version of the model",
        value=model,
        place=f"run {run}",
        next_step="Register one in its last step.",
    )


def deploy_first(
    workspace: WorkerRooms, config: Config, candidate: ModelVersion
) -> tuple[Verdict | None, Promotion | None]:
    """Judge a version of a model that has no champion yet, and let it answer where the policy deploys the model if it passes.

    The gate is the same as for every later version; there is nothing to roll it out beside. Does nothing for a model with a champion,
    without a gate or without a deployment in the policy.
    """
    policy = config.model[candidate.model]
    deployed = any(d.model == candidate.model for d in config.deploy.values())
    if not policy.gate or not deployed or _find_champion(workspace, candidate) is not None:
        return None, None
    verdict = gate(workspace, policy, candidate)
    if not verdict.passed:
        return verdict, None
    promotion = workspace.loop.promote(
        model=candidate.model,
        version=candidate.version,
        reason="the first version: every rule of the gate holds",
    )
    return verdict, promotion


def gate(workspace: WorkerRooms, policy: ModelPolicy, candidate: ModelVersion) -> Verdict:
    """Judge a registered version by the policy's gate on its hold-out, and record the verdict."""
    from mainspring.models.formats import load

    if candidate.holdout is None or candidate.label is None:
        raise StepFailed(
            "the version names no hold-out and label to judge it by",
            value=f"{candidate.model}@{candidate.version}",
        )
    champion = _find_champion(workspace, candidate)
    workspace.training.use_holdout(
        dataset_version=candidate.holdout, purpose=f"gate of {candidate.model}@{candidate.version}", by="gate"
    )
    holdout = workspace.data.get_version_by_id(candidate.holdout)
    rows = workspace.data.read(holdout.dataset, holdout.id)
    with tempfile.TemporaryDirectory(prefix="gate-") as scratch:
        folder = Path(scratch)
        loaded = {}
        for version in (candidate, champion):
            # A retrain in which nothing had changed may have the champion itself as its version.
            if version is not None and version.version not in loaded:
                package_folder = folder / str(version.version)
                workspace.models.download_package(version.model, str(version.version), package_folder)
                loaded[version.version] = load(package_folder)
        rules = judge(
            policy.gate,
            candidate=loaded[candidate.version],
            champion=loaded[champion.version] if champion is not None else None,
            rows=rows,
            label=candidate.label,
            time_column=candidate.tags.get("time_column", TIME_COLUMN),
        )
        same = (
            champion is not None
            and champion.version != candidate.version
            and answers_alike(loaded[candidate.version], loaded[champion.version], rows)
        )
    return workspace.loop.record_verdict(
        model=candidate.model,
        version=candidate.version,
        champion=champion.version if champion is not None else None,
        gate=configuration.digest(policy.gate),
        rules=rules,
        same_as=champion.version if champion is not None and same else None,
    )


def _find_champion(workspace: WorkerRooms, candidate: ModelVersion) -> ModelVersion | None:
    aliases = workspace.models.list_aliases(model=candidate.model)
    number = next((a.version for a in aliases if a.alias == CHAMPION), None)
    return (
        workspace.models.get_version(model=candidate.model, selector=str(number))
        if number is not None
        else None
    )
