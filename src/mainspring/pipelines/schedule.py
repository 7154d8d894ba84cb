"""What comes next in a run: which steps are ready, what their ends mean for the others, when the run is over.

Nothing here touches the database or a process. The drive asks, does, and tells what came of it.
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
"""So many attempts at a step may lose their worker one after the other before it counts as failed: it may be what kills them."""

RETURNED = "returned"
"""The type of a ``lost`` error where the worker gave the step back in order."""

_RETRIED = frozenset({"exception", "signal", "timeout", "exit"})

Phase = Literal["waiting", "running", "done", "failed", "skipped"]
Kind = Literal["cached", "waiting", "running", "retry", "finished", "failed", "skipped", "ended"]


@dataclass
class Node:
    """A step of the run as it stands. ``not_before`` is monotonic time."""

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

    # --- asking --------------------------------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Nothing to decide: all workers busy, or what waits must wait longer."""
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

    def to_look_at(self, *, after_an_end: bool) -> Iterator[GraphStep]:
        """Steps that may be judged now; before anything has run, all that wait may, one after the other."""
        for node in self.nodes.values():
            if self.is_ready(node) if after_an_end else node.phase == "waiting":
                yield node.step

    def has_room(self) -> bool:
        return self._running < self._workers

    def lacking(self, node: Node) -> str | None:
        """The step before a waiting one that will never have a result."""
        if node.phase != "waiting":
            return None
        return next((u for u in node.upstream if self.nodes[u].phase in {"failed", "skipped"}), None)

    def wait_s(self, limit: float) -> float:
        """How long nothing new can be ready, at most ``limit``."""
        waits = [
            n.not_before - time.monotonic()
            for n in self.nodes.values()
            if n.phase == "waiting" and n.not_before
        ]
        return max(0.0, min([limit, *waits]))

    def ending(self) -> RunState | None:
        """How the run ends, if it does now."""
        phases = {n.phase for n in self.nodes.values()}
        if "running" in phases or ("waiting" in phases and not self.cancelled):
            return None
        error = self.failed[1] if self.failed else None
        if (self.cancelled and "waiting" in phases) or (error is not None and error.kind == "cancelled"):
            return "cancelled"
        return "failed" if error else "finished"

    # --- telling -------------------------------------------------------------------------------------------------------

    def took(self, node: Node, result: Done, reason: str) -> None:
        """An earlier result stands for the step."""
        node.phase = "done"
        self.done[node.step.name] = result
        self.note("cached", node, reason)

    def began(self, node: Node, reason: str, *, elsewhere: bool) -> None:
        node.attempt += 1
        node.phase = "running"
        self._running += 1
        self.note("waiting" if elsewhere else "running", node, "waits for a worker" if elsewhere else reason)

    def skipped(self, node: Node, cause: str) -> None:
        node.phase = "skipped"
        self.note("skipped", node, f"{cause} has no result")

    def finished(self, node: Node, result: Done, seconds: float) -> None:
        node.phase = "done"
        self._running -= 1
        self.done[node.step.name] = result
        self.note("finished", node, "", seconds)

    def failed_once(self, node: Node, error: StepError, seconds: float) -> None:
        """An attempt failed: the step is tried again after a pause, or has failed. A lost attempt is no failure of the step."""
        self._running -= 1
        said = f"{error.type or error.kind}: {error.message}"
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
            self.note("retry", node, f"{said}; again in {pause:g} s", seconds)
            return
        node.phase = "failed"
        if self.cancelled and error.kind == "lost":
            error = StepError(kind="cancelled", type="", message=f"the run was cancelled; {error.message}")
        self.failed = self.failed or (node.step.name, error)
        self.note("failed", node, said, seconds)

    def note(self, kind: Kind, node: Node | None, detail: str, seconds: float | None = None) -> None:
        name = node.step.name if node is not None else None
        self._events.append(PipelineEvent(kind=kind, run=self.run, step=name, detail=detail, seconds=seconds))

    def take_notes(self) -> list[PipelineEvent]:
        """What happened since the last call; asked for when it is committed."""
        events, self._events = self._events, []
        return events
