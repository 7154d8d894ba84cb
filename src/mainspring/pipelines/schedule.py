"""What comes next in a run: which steps are ready, what the end of one means for the others, when the run is over.

Nothing here touches the database or a process. :class:`~mainspring.pipelines.drive.Drive` asks what to do, does it, and records the
outcome here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mainspring.pipelines.graph import upstream
from mainspring.pipelines.planning import Done
from mainspring.records.pipelines import GraphStep, PipelineEvent, RunState, StepError

MAX_BACKOFF_S = 60.0
MAX_LOST = 3
"""After this many lost attempts in a row a step counts as failed: the step itself may be what kills its workers."""

RETURNED = "returned"
"""The type of a ``lost`` error if the worker returned the step when it was stopped; such an attempt does not count."""

_RETRIED = frozenset({"exception", "signal", "timeout", "exit"})

Phase = Literal["waiting", "running", "done", "failed", "skipped"]
Kind = Literal["cached", "waiting", "running", "retry", "finished", "failed", "skipped", "ended"]


@dataclass
class Node:
    """The current state of a step in the run. ``not_before`` is monotonic time in seconds."""

    step: GraphStep
    upstream: list[str]
    phase: Phase = "waiting"
    attempt: int = 0
    failures: int = 0
    lost: int = 0
    not_before: float = 0.0


class Schedule:
    """The steps of one run. ``workers`` bounds how many attempts are under way at once."""

    def __init__(
        self, run: str, steps: Iterable[GraphStep], *, sources: dict[str, Done], workers: int
    ) -> None:
        self.run = run
        self.nodes = {s.name: Node(s, upstream(s)) for s in steps}
        self.done: dict[str, Done] = dict(sources)
        self.cancelled = False
        self.failed: tuple[str, StepError] | None = None
        self._workers = workers
        self._running = 0
        self._events: list[PipelineEvent] = []

    # --- queries -------------------------------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether there is nothing to decide: all workers are busy, or the waiting steps must wait longer."""
        if self.cancelled and not self._running:
            return False
        if not self.has_room():
            return True
        later = any(n.phase == "waiting" and n.not_before > time.monotonic() for n in self.nodes.values())
        return bool(self._running or later) and not any(self.is_ready(n) for n in self.nodes.values())

    def is_ready(self, node: Node) -> bool:
        return (
            node.phase == "waiting"
            and not self.cancelled
            and node.not_before <= time.monotonic()
            and all(self.nodes[u].phase == "done" for u in node.upstream)
        )

    def list_judgeable(self, *, after_an_end: bool) -> Iterator[GraphStep]:
        """Steps that may be judged now: the ready ones after an attempt has ended, otherwise all that wait.

        Before anything has run, a chain of cache hits may reach every waiting step.
        """
        for node in self.nodes.values():
            if self.is_ready(node) if after_an_end else node.phase == "waiting":
                yield node.step

    def has_room(self) -> bool:
        return self._running < self._workers

    def find_failed_upstream(self, node: Node) -> str | None:
        """The name of an upstream step that will never have a result, if the step waits for one."""
        if node.phase != "waiting":
            return None
        return next((u for u in node.upstream if self.nodes[u].phase in {"failed", "skipped"}), None)

    def wait_s(self, limit: float) -> float:
        """Seconds until the next retry may start, at most ``limit``."""
        waits = [
            n.not_before - time.monotonic()
            for n in self.nodes.values()
            if n.phase == "waiting" and n.not_before
        ]
        return max(0.0, min([limit, *waits]))

    def end_state(self) -> RunState | None:
        """The state in which the run ends; None while it goes on."""
        phases = {n.phase for n in self.nodes.values()}
        if "running" in phases or ("waiting" in phases and not self.cancelled):
            return None
        error = self.failed[1] if self.failed else None
        if (self.cancelled and "waiting" in phases) or (error is not None and error.kind == "cancelled"):
            return "cancelled"
        return "failed" if error else "finished"

    # --- changes -------------------------------------------------------------------------------------------------------

    def mark_cached(self, node: Node, result: Done, reason: str) -> None:
        """The step has an earlier result, taken from the cache."""
        node.phase = "done"
        self.done[node.step.name] = result
        self.add_event("cached", node, reason)

    def mark_running(self, node: Node, reason: str, *, elsewhere: bool) -> None:
        """An attempt begins: here, or as an offer that waits for a worker."""
        node.attempt += 1
        node.phase = "running"
        self._running += 1
        self.add_event(
            "waiting" if elsewhere else "running", node, "waits for a worker" if elsewhere else reason
        )

    def mark_skipped(self, node: Node, cause: str) -> None:
        """The step never runs, because the step ``cause`` has no result."""
        node.phase = "skipped"
        self.add_event("skipped", node, f"{cause} has no result")

    def mark_finished(self, node: Node, result: Done, seconds: float) -> None:
        """An attempt finished after ``seconds``."""
        node.phase = "done"
        self._running -= 1
        self.done[node.step.name] = result
        self.add_event("finished", node, "", seconds)

    def record_failure(self, node: Node, error: StepError, seconds: float) -> None:
        """An attempt failed: the step is tried again after a pause, or has failed.

        A lost attempt is not a failure of the step. The pause doubles with every failure, up to :data:`MAX_BACKOFF_S`.
        """
        self._running -= 1
        detail = f"{error.type or error.kind}: {error.message}"
        if error.kind == "lost":
            node.lost += error.type != RETURNED
            again = node.lost < MAX_LOST
            pause = 0.0
        else:
            node.lost = 0
            node.failures += 1
            again = error.kind in _RETRIED and node.failures <= node.step.retries
            pause = min(node.step.backoff_s * 2 ** (node.failures - 1), MAX_BACKOFF_S)
        if again and not self.cancelled:
            node.phase, node.not_before = "waiting", time.monotonic() + pause
            self.add_event("retry", node, f"{detail}; again in {pause:g} s", seconds)
            return
        node.phase = "failed"
        if self.cancelled and error.kind == "lost":
            error = StepError(kind="cancelled", type="", message=f"the run was cancelled; {error.message}")
        self.failed = self.failed or (node.step.name, error)
        self.add_event("failed", node, detail, seconds)

    def add_event(self, kind: Kind, node: Node | None, detail: str, seconds: float | None = None) -> None:
        name = node.step.name if node is not None else None
        self._events.append(PipelineEvent(kind=kind, run=self.run, step=name, detail=detail, seconds=seconds))

    def take_events(self) -> list[PipelineEvent]:
        """Events since the last call; the caller takes them after they are committed."""
        events, self._events = self._events, []
        return events
