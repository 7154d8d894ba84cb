"""Running a pipeline of this project so that it is also a tracked run: one id, seen from both rooms.

The pipelines room records the graph, the steps and the cache; the tracking room records code, environment, params and
metrics. Here both are told about the same execution.
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
        on_event: OnEvent | None = None,
        check: bool = True,
    ) -> PipelineRun:
        """Run ``file.py:function``; see :meth:`mainspring.pipelines.runner.Runner.run`."""
        return self._runner().run(
            source, params, on_event=self._recording(on_event, params or {}), check=check
        )

    def plan(self, source: str, params: Mapping[str, Any] | None = None) -> list[Why]:
        """What a run would take from the cache, and why; nothing runs."""
        return self._runner().plan(source, params)

    def resume(self, run: str, *, on_event: OnEvent | None = None, check: bool = True) -> PipelineRun:
        """Go on with an interrupted or failed run."""
        return self._runner().resume(run, on_event=self._recording(on_event, {}), check=check)

    def _runner(self) -> Runner:
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

    def _recording(self, on_event: OnEvent | None, params: Mapping[str, Any]) -> OnEvent:
        def tell(event: PipelineEvent) -> None:
            if event.kind == "started":
                self._begin(event.run, event.detail, params, event.files)
            elif event.kind == "ended":
                self._end(event.run)
            if on_event is not None:
                on_event(event)

        return tell

    def _begin(self, run: str, pipeline: str, params: Mapping[str, Any], files: list[str]) -> None:
        from mainspring.tracking.capture import capture

        shown = {k: v if isinstance(v, str) else to_json(v).decode() for k, v in params.items()}
        self._tracking.create_run(
            experiment="pipelines", name=pipeline, id=run, params=shown, tags={"pipeline": pipeline}
        )
        found = capture(root=self._root, files=files)
        self._tracking.record_capture(
            run=run,
            code=found.code,
            environment=found.environment,
            source=found.source,
            files=found.files,
        )

    def _end(self, run: str) -> None:
        for one in self._pipelines.get_effects(run=run):
            if one.reused and one.effect.kind == "artifact":
                kept = one.effect.data
                self._tracking.log_artifact(
                    run=run, path=kept["path"], digest=kept["digest"], size=kept["size"]
                )
        points = [
            Point.of(f"{s.step}.{name}", float(value))
            for s in self._pipelines.list_steps(run=run)
            for name, value in s.metrics.items()
        ]
        if points:
            self._tracking.log_batch(run=run, batch_id="steps", metrics=points)
        ended = self._pipelines.get_run(id=run).state
        self._tracking.finish_run(run=run, status="finished" if ended == "finished" else "failed")


def worker_runner(execution: Execution) -> Callable[[str, dict[str, Any]], str]:
    """What the loop's worker needs: run a pipeline, give the run's id, raise if it failed."""

    def run(source: str, params: dict[str, Any]) -> str:
        ended = execution.run(source, params)
        if ended.state != "finished":
            raise MainspringError(f"the run was {ended.state}", value=ended.id)
        return ended.id

    return run
