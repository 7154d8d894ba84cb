"""Running pipelines on this machine: the client side, with a home directory and the project's code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from mainspring.clock import from_us
from mainspring.errors import Conflict, StepFailed
from mainspring.lineage import Foundation
from mainspring.pipelines import processes, rows
from mainspring.pipelines.closure import Closures
from mainspring.pipelines.drive import Drive, OnEvent
from mainspring.pipelines.executors import Setup, check_executor, make_executor
from mainspring.pipelines.graph import (
    Built,
    build,
    convert_params,
    function_spec,
    params_as_data,
    upstream,
    with_offered,
)
from mainspring.pipelines.job import source_key
from mainspring.pipelines.launching import Settings
from mainspring.pipelines.loading import load_pipeline
from mainspring.pipelines.operations import Pipelines
from mainspring.pipelines.outcomes import run_folder
from mainspring.pipelines.planning import Done, Planner, pin
from mainspring.pipelines.step import Pipeline
from mainspring.records.base import new_id
from mainspring.records.pipelines import PipelineEvent, PipelineRun, Why
from mainspring.storage.leases import Lease

_DEFAULT_WORKERS = 2


class Runner:
    """Runs, plans and resumes pipelines of the project at ``root``.

    ``environment`` is a digest of the installed environment (part of every cache key). ``executor`` says where steps run
    (``executors``), ``workers`` bounds how many at once (default: 2, at most the cores). ``opener`` (``module:function``) and ``workspace`` (its keywords) let a step open this
    workspace in its own process.
    """

    def __init__(
        self,
        base: Foundation,
        ops: Pipelines,
        *,
        root: Path | str = ".",
        environment: str = "",
        executor: str = "local",
        workers: int | None = None,
        opener: str | None = None,
        workspace: Mapping[str, object] | None = None,
        lease_ttl_s: float = 15.0,
    ) -> None:
        self._base = base
        self._ops = ops
        self._root = Path(root).resolve()
        self._environment = environment
        self._executor = check_executor(executor)
        self._settings = Settings(
            workers=workers or min(_DEFAULT_WORKERS, os.cpu_count() or 1),
            lease_ttl_s=lease_ttl_s,
            opener=opener,
            workspace=dict(workspace or {}),
        )

    def run(
        self,
        pipeline: Pipeline[..., Any] | str,
        params: Mapping[str, Any] | None = None,
        *,
        offered: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        check: bool = True,
    ) -> PipelineRun:
        """Run ``pipeline`` (an object, or ``file.py:name`` below the root) and return its record.

        ``offered``: parameters that are passed only to a pipeline that declares them, over those of the same name in ``params``.
        Independent steps run side by side. When a step fails, what does not depend on it still runs; then, with ``check``,
        :class:`StepFailed` is raised with the step, the reason and the run's id. Everything is recorded in any case.
        """
        built, loaded, values = self._build(pipeline, params or {}, offered or {})
        shown, at = params_as_data(values), self._base.clock.now()
        planner = self._make_planner(built, shown, at)
        started = from_us(rows.wall_us())
        sources = planner.resolve_sources(self._base.objects.writing, {})
        run = PipelineRun(
            id=new_id(),
            pipeline=loaded.name,
            state="running",
            params=shown,
            graph=pin(built.graph, sources),
            source=function_spec(loaded.function, self._root),
            root=str(self._root),
            environment=self._environment,
            started=started,
            at=at,
        )
        lease = self._acquire_lease(run.id)
        try:
            with self._base.ledger.decision() as d:
                rows.insert_run(d, self._base.project, run)
                for done in sources.values():
                    for artifact in done.outputs:
                        if not artifact.source:
                            d.refer(artifact.digest, f"run:{run.id}", tree=artifact.kind == "tree")
            return self._run_to_end(run, built, planner, lease, sources, on_event=on_event, check=check)
        finally:
            self._base.leases.release(lease)

    def plan(self, pipeline: Pipeline[..., Any] | str, params: Mapping[str, Any] | None = None) -> list[Why]:
        """For each step whether its result would be taken from the cache, and why; nothing runs and nothing is recorded.

        ``hit`` is None for a step whose inputs are not known before an earlier step has run.
        """
        built, loaded, values = self._build(pipeline, params or {})
        planner = self._make_planner(built, params_as_data(values), self._base.clock.now())
        done = planner.resolve_sources(self._base.objects.writing, {})
        planner.read_fingerprints(built.graph.steps)
        verified: set[str] = set()
        decisions: list[Why] = []
        with self._base.store.read() as tx:
            for step in built.graph.steps:
                missing = [u for u in upstream(step) if u not in done]
                if missing:
                    decisions.append(
                        Why(
                            step=step.name, hit=None, reason=f"depends on what {', '.join(missing)} will give"
                        )
                    )
                    continue
                judgement = planner.judge(tx, step, done, pipeline=loaded.name, run=None, verified=verified)
                decisions.append(judgement.why)
                if judgement.entry is not None:
                    done[step.name] = Done(judgement.entry.shape, judgement.entry.outputs)
        planner.save_index()
        return decisions

    def resume(self, run_id: str, *, on_event: OnEvent | None = None, check: bool = True) -> PipelineRun:
        """Continue a run whose runner died or was stopped, or that failed. Finished steps are not run again.

        Processes that the old runner left are killed first. Raises :class:`Conflict` while another runner has the run, and
        :class:`StepFailed` like :meth:`run`.
        """
        run = self._ops.get_run(id=run_id)
        if run.state == "finished":
            return run
        lease = self._acquire_lease(run_id)
        try:
            processes.kill_by_cookie(run_id)
            processes.kill_ownerless()
            self._root = Path(run.root)
            loaded = load_pipeline(run.source, root=self._root)
            values = convert_params(loaded, run.params)
            built = build(loaded, values, root=self._root)
            planner = self._make_planner(
                built, run.params, run.at or run.started, environment=run.environment
            )
            pinned = {source_key(a): a.version for a in rows.datasets_of(run.graph) if a.version}
            sources = planner.resolve_sources(self._base.objects.writing, pinned)
            with self._base.ledger.decision() as d:
                self._base.leases.check(d.tx, lease)
                rows.reopen_run(d, self._base.project, run_id)
            return self._run_to_end(run, built, planner, lease, sources, on_event=on_event, check=check)
        finally:
            self._base.leases.release(lease)

    def _build(
        self,
        pipeline: Pipeline[..., Any] | str,
        params: Mapping[str, Any],
        offered: Mapping[str, Any] | None = None,
    ) -> tuple[Built, Pipeline[..., Any], dict[str, Any]]:
        loaded = load_pipeline(pipeline, root=self._root) if isinstance(pipeline, str) else pipeline
        values = convert_params(loaded, with_offered(loaded, params, offered or {}))
        return build(loaded, values, root=self._root), loaded, values

    def _make_planner(
        self, built: Built, params: Mapping[str, Any], at: datetime, *, environment: str | None = None
    ) -> Planner:
        return Planner(
            self._base,
            built,
            root=self._root,
            environment=self._environment if environment is None else environment,
            closures=Closures(self._root),
            context={"params": dict(params), "at": at.isoformat()},
        )

    def _run_to_end(
        self,
        run: PipelineRun,
        built: Built,
        planner: Planner,
        lease: Lease,
        sources: dict[str, Done],
        *,
        on_event: OnEvent | None,
        check: bool,
    ) -> PipelineRun:
        report: OnEvent = on_event or (lambda _: None)
        file = run.source.rpartition(":")[0]
        files = sorted({*planner.list_source_files(), *([] if Path(file).is_absolute() else [file])})
        report(PipelineEvent(kind="started", run=run.id, detail=run.pipeline, files=files))
        setup = Setup(base=self._base, run=run.id, root=self._root, modules=planner.list_modules())
        executor = make_executor(self._executor, setup)
        run_folder(self._base.home, run.id).mkdir(parents=True, exist_ok=True, mode=0o700)
        Drive(
            self._base, run, built, planner, lease, executor=executor, settings=self._settings, on_event=report, sources=sources
        ).run_to_end()  # fmt: skip
        planner.save_index()
        ended = self._ops.get_run(id=run.id)
        if check and ended.state != "finished":
            error = ended.error
            raise StepFailed(
                f"step {ended.failed_step!r} failed ({error.kind}): {error.type + ': ' if error.type else ''}{error.message}"
                if error
                else f"the run was {ended.state}",
                place=f"pipeline {ended.pipeline}, run {run.id}",
                next_step=f"Its log: mainspring runs log {run.id} {ended.failed_step or ''}. Fix the cause, then resume the run or start a new one.",
            )
        return ended

    def _acquire_lease(self, run_id: str) -> Lease:
        name = rows.run_lease(self._base, run_id)
        holder = processes.identity()
        try:
            return self._base.leases.acquire(name, holder=holder, ttl_s=self._settings.lease_ttl_s)
        except Conflict:
            if not self._expire_dead_holder(name):
                raise
            return self._base.leases.acquire(name, holder=holder, ttl_s=self._settings.lease_ttl_s)

    def _expire_dead_holder(self, name: str) -> bool:
        """Expire the lease of a holder on this machine that is known to be dead, instead of waiting for its end.

        The condition on the token keeps this from expiring a lease that another runner has acquired meanwhile.
        """
        with self._base.store.write() as tx:
            row = tx.first("SELECT holder, token FROM leases WHERE name = ?", name)
            if row is None or not processes.is_dead(str(row["holder"])):
                return False
            return bool(
                tx.execute(
                    "UPDATE leases SET expires_us = 0 WHERE name = ? AND token = ?", name, int(row["token"])
                )
            )
