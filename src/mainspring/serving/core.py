"""The inference core: one prediction from a valid call, whatever dialect it came in.

Route, predict, log, answer; shadows afterwards. Cheap predictions are made on the event loop (an ONNX row costs 10 to 50 µs, a
thread hop more than that, and the hop needs the GIL twice); what is expected to take longer than ``inline_ms`` goes to a
thread under admission control.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from mainspring.errors import MainspringError
from mainspring.records.serving import LoggedPrediction, LoggedShadow
from mainspring.serving.admission import Admission
from mainspring.serving.codec import Call
from mainspring.serving.log import PredictionLog
from mainspring.serving.metrics import Metrics
from mainspring.serving.options import ServeOptions
from mainspring.serving.problems import ModelFailed
from mainspring.serving.routing import choose
from mainspring.serving.table import LiveDeployment, LiveTable, LiveTarget

logger = logging.getLogger("mainspring.serving")


@dataclass(frozen=True, slots=True)
class Answer:
    """What was predicted, and by whom."""

    target: LiveTarget
    scores: list[Any]


@dataclass(frozen=True, slots=True)
class _ShadowJob:
    ident: str
    deployment: LiveDeployment
    call: Call
    event_us: int
    canary: bool


class Core:
    """Predicts for a live table. Lives on one event loop."""

    def __init__(self, options: ServeOptions, *, metrics: Metrics, log: PredictionLog) -> None:
        self.table = LiveTable(number=0)
        self.options = options
        self.metrics = metrics
        self.log = log
        self.admission = Admission(
            slots=options.slots,
            queue=options.queue,
            queue_deadline_s=options.queue_deadline_s,
            deadline_s=options.deadline_s,
        )
        # Slow shadows have a thread of their own: they can never hold a slot of the primary.
        self._shadow_pool = Admission(
            slots=1, queue=1, queue_deadline_s=options.deadline_s, deadline_s=options.deadline_s
        )
        self._shadows: deque[_ShadowJob] = deque()
        self._shadow_task: asyncio.Task[None] | None = None

    async def predict(
        self,
        deployment: LiveDeployment,
        call: Call,
        *,
        ident: str,
        number: int,
        pinned: LiveTarget | None = None,
    ) -> Answer:
        """Answer ``call`` with the target that its key (or its id) is routed to, or with ``pinned``.

        A target that is not the champion and fails is stood in for by the champion; its failure is logged and counted. Raises
        what the champion raised, :class:`Overloaded` or :class:`DeadlineExceeded`.
        """
        arrival_us = time.time_ns() // 1000
        start = time.perf_counter_ns()
        event_us = arrival_us if call.event_us is None else call.event_us
        target = pinned or self._route(deployment, call.key or ident)
        try:
            try:
                scores = await self._scores(target, call)
            except ModelFailed as error:
                if target is deployment.champion or pinned is not None:
                    raise
                self._stood_in(
                    deployment,
                    target,
                    error,
                    ident=ident,
                    event_us=event_us,
                    latency_us=(time.perf_counter_ns() - start) // 1000,
                )
                target = deployment.champion
                scores = await self._scores(target, call)
        except MainspringError as error:
            # Shed requests never reached a model: they are counted, not logged, so that shedding stays cheap.
            if error.code == "overloaded":
                raise
            latency_us = (time.perf_counter_ns() - start) // 1000
            target.series.observe(error.code, 0, latency_us)
            self._log(
                deployment,
                target,
                call,
                ident,
                event_us,
                arrival_us,
                latency_us,
                number,
                status=error.code,
                scores=[],
            )
            raise
        latency_us = (time.perf_counter_ns() - start) // 1000
        self._log(
            deployment,
            target,
            call,
            ident,
            event_us,
            arrival_us,
            latency_us,
            number,
            status="ok",
            scores=scores,
        )
        target.series.observe("ok", call.rows, latency_us)
        return Answer(target, scores)

    def _route(self, deployment: LiveDeployment, key: str) -> LiveTarget:
        if len(deployment.targets) == 1:
            return deployment.champion
        return deployment.targets[choose(deployment.bounds, key)]

    async def _scores(self, target: LiveTarget, call: Call) -> list[Any]:
        version = target.version
        if call.rows <= version.inline_rows:
            return version.scores(call.columns, call.rows)
        return await self.admission.run(lambda: version.scores(call.columns, call.rows))

    def _log(
        self,
        deployment: LiveDeployment,
        target: LiveTarget,
        call: Call,
        ident: str,
        event_us: int,
        arrival_us: int,
        latency_us: int,
        number: int,
        *,
        status: str,
        scores: list[Any],
    ) -> None:
        self.log.append(
            LoggedPrediction(
                id=ident,
                deployment=deployment.name,
                model=target.model,
                version=target.number,
                role=target.role,
                event_us=event_us,
                arrival_us=arrival_us,
                latency_us=latency_us,
                status=status,
                rows=call.rows,
                key=call.key,
                columns=call.columns,  # type: ignore[arg-type]
                scores=scores,
                routes=number,
            )
        )

    def _stood_in(
        self,
        deployment: LiveDeployment,
        target: LiveTarget,
        error: ModelFailed,
        *,
        ident: str,
        event_us: int,
        latency_us: int,
    ) -> None:
        target.series.observe(error.code, 0, latency_us)
        logger.warning("%s of %s failed, the champion answered: %s", target.role, deployment.name, error)
        self.log.append(
            LoggedShadow(
                id=ident, deployment=deployment.name, model=target.model, version=target.number, name=target.role,
                event_us=event_us, latency_us=latency_us, status=error.code,
            )
        )  # fmt: skip

    def shadow(self, deployment: LiveDeployment, call: Call, answer: Answer, *, ident: str) -> None:
        """Queue the shadows of an answered request. Full: dropped and counted. Costs nothing without shadows."""
        if not deployment.shadows:
            return
        if len(self._shadows) >= self.options.shadow_queue:
            self.metrics.counters["shadow_dropped"] += 1
            return
        event_us = time.time_ns() // 1000 if call.event_us is None else call.event_us
        self._shadows.append(_ShadowJob(ident, deployment, call, event_us, answer.target.role == "canary"))
        if self._shadow_task is None or self._shadow_task.done():
            self._shadow_task = asyncio.get_running_loop().create_task(self._run_shadows())

    async def drain(self, within_s: float) -> None:
        """Let queued shadows finish."""
        if self._shadow_task is not None and not self._shadow_task.done():
            await asyncio.wait({self._shadow_task}, timeout=within_s)

    def close(self) -> None:
        self.admission.close()
        self._shadow_pool.close()

    async def _run_shadows(self) -> None:
        while self._shadows:
            job = self._shadows.popleft()
            for shadow in job.deployment.shadows:
                await asyncio.sleep(0)  # requests that are waiting go first
                if not shadow.canary_only or job.canary:
                    await self._run_shadow(shadow.target, job)

    async def _run_shadow(self, target: LiveTarget, job: _ShadowJob) -> None:
        start = time.perf_counter_ns()
        scores: list[Any] = []
        status = "ok"
        version, call = target.version, job.call
        try:
            if call.rows <= version.inline_rows:
                scores = version.scores(call.columns, call.rows)
            else:
                scores = await self._shadow_pool.run(lambda: version.scores(call.columns, call.rows))
        except MainspringError as error:
            status = error.code
        latency_us = (time.perf_counter_ns() - start) // 1000
        target.series.observe(status, call.rows if status == "ok" else 0, latency_us)
        self.log.append(
            LoggedShadow(
                id=job.ident, deployment=job.deployment.name, model=target.model, version=target.number, name=target.name,
                event_us=job.event_us, latency_us=latency_us, status=status, scores=scores,
            )
        )  # fmt: skip
