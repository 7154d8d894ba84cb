"""The projects that one server answers for: all of its workspace, over one database and one object store.

The project of the server's own directory and those in ``[server] projects`` have their policy here. Others are opened at their
first request, without a policy: their data, runs, models and lineage are available, and operations that need a policy are
refused. At most :data:`OPEN_AT_ONCE` of them stay open; the next request for a closed one costs one read of the database.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import anyio.to_thread

from mainspring.config import Settings, without_policy
from mainspring.lineage import Ledger, projects
from mainspring.operations import acts, no_project
from mainspring.workspace import Workspace

OPEN_AT_ONCE = 64


class Bound(NamedTuple):
    """A room of one project, and where answers to that project's idempotency keys are kept."""

    room: Any
    ledger: Ledger


class Hosted:
    """Opens projects for callers who have a role in them. Safe to use from many threads."""

    def __init__(self, own: Workspace, served: Sequence[Settings] = (), *, limit: int = OPEN_AT_ONCE) -> None:
        self.own = own
        self._limit = limit
        self._lock = threading.Lock()
        self._others: OrderedDict[str, Workspace] = OrderedDict()
        self._followed = {own.project: own}
        for settings in served:
            workspace = Workspace(settings, beside=own.base)
            projects.ensure(own.base.store, workspace.project)
            self._followed[workspace.project] = workspace

    @property
    def followed(self) -> list[Workspace]:
        """The projects whose policy this process has, the server's own first."""
        return list(self._followed.values())

    def workspace(self, project: str) -> Workspace:
        """The project, opened if need be. Reads the database: call it from a thread.

        Raises :class:`NotFound` for one that does not exist, with the same message as for one in which the caller has no role. The
        role is checked first: without one the database is not read, so that the time of the answer does not reveal whether the
        project exists.
        """
        if acts().role_in(project) is None:
            raise no_project(project)
        workspace = self._get_open(project)
        if workspace is not None:
            return workspace
        if not projects.exists(self.own.base.store, project):
            raise no_project(project)
        opened = Workspace(without_policy(self.own.settings, project), beside=self.own.base)
        # Opened outside the lock, so that other projects do not wait; if another thread was faster, its workspace is used.
        with self._lock:
            workspace = self._others.setdefault(project, opened)
            self._others.move_to_end(project)
            while len(self._others) > self._limit:
                self._others.popitem(last=False)  # requests that already use it keep their reference
        return workspace

    async def room(self, project: str, name: str) -> Bound:
        """A room of the project."""
        workspace = self._followed.get(project)
        if workspace is None:
            workspace = await anyio.to_thread.run_sync(self.workspace, project)
        return Bound(workspace.room(name), workspace.base.ledger)

    def _get_open(self, project: str) -> Workspace | None:
        followed = self._followed.get(project)
        if followed is not None:
            return followed
        with self._lock:
            workspace = self._others.get(project)
            if workspace is not None:
                self._others.move_to_end(project)
            return workspace
