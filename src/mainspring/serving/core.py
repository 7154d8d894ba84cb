"""The inference core: makes one prediction from a valid call, whatever dialect it came in.

It chooses the target, predicts, logs and answers; shadows are scored afterwards. Cheap predictions are made on the event loop: an ONNX
row takes 10 to 50 µs, handing it to a thread takes more and needs the GIL twice. What is expected to take longer than ``inline_ms`` runs
in a thread under admission control.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from mainspring.errors import InvalidInput, MainspringError, ModelFailed
from mainspring.records.serving import LoggedPrediction, LoggedShadow
from mainspring.serving.admission import Admission
from mainspring.serving.codec import Call
from mainspring.serving.log import PredictionLog
from mainspring.serving.metrics import Metrics
from mainspring.serving.options import ServeOptions
from mainspring.serving.routing import choose_target
from mainspring.serving.table import LiveDeployment, LiveTable, LiveTarget

logger = logging.getLogger("mainspring.serving")

_NO_ANSWER = (ModelFailed, InvalidInput)
"""Errors of a target after which the champion answers: the model failed, or it refuses a row that the champion may take."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The scores of a call, one for each row, and the target that gave them."""

    target: LiveTarget
    scores: list[Any]


@dataclass(frozen=True, slots=True)
class _ShadowJob:
    ident: str
    deployment: LiveDeployment
    call: Call
    event_us: int
    canary: bool


class _Request:
    """A call that is being answered: when it arrived, and how long it has taken so far."""

    __slots__ = ("_start", "arrival_us", "call", "event_us", "ident", "number")

    def __init__(self, call: Call, ident: str, number: int) -> None:
        self.call = call
        self.ident = ident
        self.number = number
        self.arrival_us = time.time_ns() // 1000
        self.event_us = self.arrival_us if call.event_us is None else call.event_us
        self._start = time.perf_counter_ns()

    def latency_us(self) -> int:
        """Microseconds since the call arrived."""
        return (time.perf_counter_ns() - self._start) // 1000


class Core:
    """Predicts for a live table. For one event loop."""

    log: PredictionLog
    """Set before the first request: a spare worker opens it when it begins to serve."""

    def __init__(self, options: ServeOptions, *, metrics: Metrics, log: PredictionLog | None = None) -> None:
        self.table = LiveTable(number=0)
        self.options = options
        self.metrics = metrics
        if log is not None:
            self.log = log
        self.admission = Admission(
            slots=options.slots,
            queue=options.queue,
            queue_deadline_s=options.queue_deadline_s,
            deadline_s=options.deadline_s,
        )
        # Slow shadows have a thread of their own, so that they never hold a slot that answers need.
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

        If a target that is not the champion fails or refuses the rows, its failure is logged and counted, and the champion answers.
        Raises what the champion raised, :class:`Overloaded` or :class:`DeadlineExceeded`.
        """
        if pinned is None and call.rows <= deployment.inline_rows and not call.large:
            return self.predict_inline(deployment, call, ident=ident, number=number)
        request = _Request(call, ident, number)
        target = pinned or self._choose_target(deployment, call.key or ident)
        try:
            try:
                scores = await self._score(target, call)
            except _NO_ANSWER as error:
                if target is deployment.champion or pinned is not None:
                    raise
                self._record_fallback(deployment, target, error, request)
                target = deployment.champion
                scores = await self._score(target, call)
        except MainspringError as error:
            self._record_failure(deployment, target, error, request)
            raise
        return self._record_answer(deployment, target, scores, request)

    def predict_inline(self, deployment: LiveDeployment, call: Call, *, ident: str, number: int) -> Answer:
        """:meth:`predict` for at most ``deployment.inline_rows`` rows: no thread, so nothing to wait for."""
        request = _Request(call, ident, number)
        target = self._choose_target(deployment, call.key or ident)
        try:
            try:
                scores = target.version.scores(call.columns, call.rows)
            except _NO_ANSWER as error:
                if target is deployment.champion:
                    raise
                self._record_fallback(deployment, target, error, request)
                target = deployment.champion
                scores = target.version.scores(call.columns, call.rows)
        except MainspringError as error:
            self._record_failure(deployment, target, error, request)
            raise
        return self._record_answer(deployment, target, scores, request)

    def _record_answer(
        self, deployment: LiveDeployment, target: LiveTarget, scores: list[Any], request: _Request
    ) -> Answer:
        latency_us = request.latency_us()
        self._log(deployment, target, request, latency_us, status="ok", scores=scores)
        target.series.observe("ok", request.call.rows, latency_us)
        return Answer(target, scores)

    def _record_failure(
        self, deployment: LiveDeployment, target: LiveTarget, error: MainspringError, request: _Request
    ) -> None:
        # Refused for overload, it never reached a model: counted by the app and not logged, so that refusing stays cheap.
        if error.code == "overloaded":
            return
        latency_us = request.latency_us()
        target.series.observe(error.code, 0, latency_us)
        self._log(deployment, target, request, latency_us, status=error.code, scores=[])

    def full(self, deployment: LiveDeployment) -> bool:
        """Whether a request that needs a slot or the model's own process would be refused."""
        host = deployment.champion.version.host
        return self.admission.full if host is None else host.full

    def _choose_target(self, deployment: LiveDeployment, key: str) -> LiveTarget:
        if len(deployment.targets) == 1:
            return deployment.champion
        return deployment.targets[choose_target(deployment.bounds, key)]

    async def _score(self, target: LiveTarget, call: Call) -> list[Any]:
        version = target.version
        if version.host is not None:
            return await version.hosted(version.host, call.columns, call.rows)
        if call.rows <= version.inline_rows and not call.large:
            return version.scores(call.columns, call.rows)
        return await self.admission.run(lambda: version.scores(call.columns, call.rows))

    def _log(
        self,
        deployment: LiveDeployment,
        target: LiveTarget,
        request: _Request,
        latency_us: int,
        *,
        status: str,
        scores: list[Any],
    ) -> None:
        call = request.call
        self.log.append(
            LoggedPrediction(
                id=request.ident,
                deployment=deployment.name,
                model=target.model,
                version=target.number,
                role=target.role,
                event_us=request.event_us,
                arrival_us=request.arrival_us,
                latency_us=latency_us,
                status=status,
                rows=call.rows,
                key=call.key,
                columns=call.columns,  # type: ignore[arg-type]
                scores=scores,
                routes=request.number,
                outputs=deployment.signature.outputs,
            )
        )

    def _record_fallback(
        self, deployment: LiveDeployment, target: LiveTarget, error: MainspringError, request: _Request
    ) -> None:
        latency_us = request.latency_us()
        target.series.observe(error.code, 0, latency_us)
        logger.warning("%s of %s failed, the champion answered: %s", target.role, deployment.name, error)
        self.log.append(
            LoggedShadow(
                id=request.ident, deployment=deployment.name, model=target.model, version=target.number, name=target.role,
                event_us=request.event_us, latency_us=latency_us, status=error.code,
            )
        )  # fmt: skip

    def shadow(self, deployment: LiveDeployment, call: Call, answer: Answer, *, ident: str) -> None:
        """Queue an answered request for its shadows. If the queue is full, it is dropped and counted."""
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
        """Stop taking work for threads."""
        self.admission.close()
        self._shadow_pool.close()

    async def _run_shadows(self) -> None:
        while self._shadows:
            job = self._shadows.popleft()
            for shadow in job.deployment.shadows:
                await asyncio.sleep(0)  # requests that are waiting come first
                if not shadow.canary_only or job.canary:
                    await self._run_shadow(shadow.target, job)

    async def _run_shadow(self, target: LiveTarget, job: _ShadowJob) -> None:
        start = time.perf_counter_ns()
        scores: list[Any] = []
        status = "ok"
        version, call = target.version, job.call
        try:
            if version.host is not None:
                scores = await version.hosted(version.host, call.columns, call.rows, lane="shadow")
            elif call.rows <= version.inline_rows and not call.large:
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
