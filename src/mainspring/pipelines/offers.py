"""The executor of policy ``executor = "worker"``: steps wait in the database until a worker process takes them.

An executor that has a cluster to start something on (Ray, Kubernetes) waits in the same way: what it starts there begins and
finishes the step by the operations (``pipelines/worker.py`` does all of it).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mainspring.pipelines import attempts
from mainspring.pipelines.executor import Ended
from mainspring.pipelines.job import Task
from mainspring.pipelines.logs import CappedLog
from mainspring.records.pipelines import StepJob
from mainspring.storage.sql import Store

_POLL_S = 0.05
"""Seconds between two queries of the database while steps are under way elsewhere."""


class Offers:
    """Waits for attempts that workers begin and finish."""

    is_here = False

    def __init__(self, store: Store, project: str) -> None:
        self._store = store
        self._project = project
        self._under_way: set[str] = set()

    def start(self, job: StepJob, prepare: Callable[[], tuple[Task, CappedLog]]) -> None:  # noqa: ARG002
        self._under_way.add(job.execution)

    def poll(self, *, wait_s: float) -> list[Ended]:
        until = time.monotonic() + wait_s
        while True:
            ended: set[str] = set()
            if self._under_way:
                with self._store.read() as tx:
                    ended = self._under_way - attempts.select_under_way(tx, self._project, self._under_way)
                self._under_way -= ended
            left = until - time.monotonic()
            if ended or left <= 0:
                return [Ended(e, None, timed_out=False, cancelled=False) for e in sorted(ended)]
            time.sleep(min(_POLL_S, left))

    def keep_watching(self, execution: str) -> None:
        self._under_way.add(execution)

    def kill(self, execution: str) -> None:
        """Does nothing: the drive withdraws a waiting offer, and a worker is notified in the answer to its next heartbeat."""

    def close(self) -> None:
        """Forget the attempts. Those under way when a run is interrupted are marked as lost, and their workers' calls are refused."""
        self._under_way.clear()
