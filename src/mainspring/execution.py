"""Running a pipeline of this project so that it is also a tracked run: both rooms use the same id.

The pipelines room records the graph, the steps and the cache; the tracking room records code, environment, params and
metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.errors import MainspringError
from mainspring.records.base import to_json
from mainspring.records.pipelines import PipelineEvent, PipelineRun, Why
from mainspring.records.tracking import Point

if TYPE_CHECKING:
    from mainspring.config import PipelinesSection
    from mainspring.lineage import Foundation
    from mainspring.pipelines import Pipelines, Runner
    from mainspring.tracking import Tracking

OnEvent = Callable[[PipelineEvent], None]


class Execution:
    """Runs, plans and resumes the pipelines of the project at ``root``."""

    def __init__(
        self,
        base: Foundation,
        pipelines: Pipelines,
        tracking: Tracking,
        *,
        root: Path,
        policy: PipelinesSection,
    ) -> None:
        self._policy = policy
        self._base = base
        self._pipelines = pipelines
        self._tracking = tracking
        self._root = root

    def run(
        self,
        source: str,
        params: Mapping[str, Any] | None = None,
        *,
        offered: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        check: bool = True,
    ) -> PipelineRun:
        """Run ``file.py:function``; see :meth:`mainspring.pipelines.runner.Runner.run`."""
        handle = self._event_handler(on_event, params or {}, offered or {})
        return self._make_runner().run(source, params, offered=offered, on_event=handle, check=check)

    def plan(self, source: str, params: Mapping[str, Any] | None = None) -> list[Why]:
        """For each step whether a run would take its result from the cache, and why; nothing runs."""
        return self._make_runner().plan(source, params)

    def resume(self, run: str, *, on_event: OnEvent | None = None, check: bool = True) -> PipelineRun:
        """Continue an interrupted or failed run; see :meth:`mainspring.pipelines.runner.Runner.resume`."""
        return self._make_runner().resume(run, on_event=self._event_handler(on_event, {}), check=check)

    def _make_runner(self) -> Runner:
        from mainspring.pipelines import Runner
        from mainspring.tracking.capture import environment_digest

        return Runner(
            self._base,
            self._pipelines,
            root=self._root,
            environment=environment_digest(),
            executor=self._policy.executor,
            workers=self._policy.workers,
            opener="mainspring.workspace:open_workspace",
            workspace={"root": str(self._root), "project": self._base.project},
        )

    def _event_handler(
        self, on_event: OnEvent | None, params: Mapping[str, Any], offered: Mapping[str, Any] | None = None
    ) -> OnEvent:
        """A handler that keeps the tracked run in step with the pipeline run, and passes each event on."""

        def handle(event: PipelineEvent) -> None:
            if event.kind == "started":
                taken = self._pipelines.get_run(id=event.run).params if offered else {}
                given = {**params, **{k: taken[k] for k in offered or () if k in taken}}
                self._begin_run(event.run, event.detail, given, event.files)
            elif event.kind == "ended":
                self._end_run(event.run)
            if on_event is not None:
                on_event(event)

        return handle

    def _begin_run(self, run: str, pipeline: str, params: Mapping[str, Any], files: list[str]) -> None:
        from mainspring.tracking.capture import capture

        texts = {k: v if isinstance(v, str) else to_json(v).decode() for k, v in params.items()}
        self._tracking.create_run(
            experiment="pipelines", name=pipeline, id=run, params=texts, tags={"pipeline": pipeline}
        )
        captured = capture(root=self._root, files=files)
        self._tracking.record_capture(
            run=run,
            code=captured.code,
            environment=captured.environment,
            source=captured.source,
            files=captured.files,
        )

    def _end_run(self, run: str) -> None:
        for entry in self._pipelines.get_effects(run=run):
            if entry.reused and entry.effect.kind == "artifact":
                artifact = entry.effect.data
                self._tracking.log_artifact(
                    run=run, path=artifact["path"], digest=artifact["digest"], size=artifact["size"]
                )
        points = [
            Point.of(f"{s.step}.{name}", float(value))
            for s in self._pipelines.list_steps(run=run)
            for name, value in s.metrics.items()
        ]
        if points:
            self._tracking.log_batch(run=run, batch_id="steps", metrics=points)
        state = self._pipelines.get_run(id=run).state
        self._tracking.finish_run(run=run, status="finished" if state == "finished" else "failed")


def worker_runner(execution: Execution) -> Callable[[str, dict[str, Any], dict[str, Any]], str]:
    """A function for the loop's worker: it runs a pipeline and returns the run's id. It raises if the run did not finish."""

    def run(source: str, params: dict[str, Any], offered: dict[str, Any]) -> str:
        ended = execution.run(source, params, offered=offered)
        if ended.state != "finished":
            raise MainspringError(f"the run was {ended.state}", value=ended.id)
        return ended.id

    return run
