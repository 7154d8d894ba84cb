"""The local composition root: opens storage, builds the rooms and introduces them to one another."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mainspring import config as configuration
from mainspring.clock import Clock, SystemClock, from_us
from mainspring.config import Settings
from mainspring.errors import Conflict, InvalidInput
from mainspring.lineage import Foundation, Ledger, Lineage
from mainspring.rooms import Namespaces
from mainspring.storage.leases import Leases
from mainspring.storage.sql import Store, open_store

if TYPE_CHECKING:
    from mainspring.execution import Execution

FORMAT = 1
_MARKER = "workspace.json"


class StoredClock:
    """A policy clock that stands still until somebody moves it; kept in the database, so every process reads the same."""

    def __init__(self, store: Store, project: str) -> None:
        self._store = store
        self._project = project

    def now(self) -> datetime:
        with self._store.read() as tx:
            value = tx.scalar(
                "SELECT value FROM settings WHERE project = ? AND name = 'clock_us'", self._project
            )
        return from_us(int(value)) if value is not None else SystemClock().now()


class Workspace(Namespaces):
    """One project in one workspace, on this machine. Close it, or use it as a context manager."""

    def __init__(self, settings: Settings, *, project: str | None = None, clock: Clock | None = None) -> None:
        self.settings = settings
        self.project = project or settings.config.project.name
        home = settings.home
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        _mark(home, settings)
        store = open_store(settings.config.storage.database, home=home)
        try:
            self.base = self._found(store, clock)
        except BaseException:
            store.close()
            raise
        self._rooms: dict[str, Any] = {}
        self._lock = threading.RLock()

    def _found(self, store: Store, clock: Clock | None) -> Foundation:
        from mainspring.storage.objects import open_objects

        settings = self.settings
        if clock is None:
            clock = (
                StoredClock(store, self.project)
                if settings.config.storage.clock == "manual"
                else SystemClock()
            )
        leases = Leases(store)
        return Foundation(
            project=self.project,
            home=settings.home,
            store=store,
            objects=open_objects(
                settings.config.storage.objects,
                home=settings.home,
                leases=leases,
                options=configuration.object_options(settings),
            ),
            ledger=Ledger(store, project=self.project, clock=clock),
            leases=leases,
            clock=clock,
        )

    def room(self, name: str) -> Any:
        with self._lock:
            if name not in self._rooms:
                self._rooms[name] = _BUILDERS[name](self) if name in _BUILDERS else _plain(name, self.base)
            return self._rooms[name]

    @cached_property
    def execution(self) -> Execution:
        """Runs this project's pipelines on this machine."""
        from mainspring.execution import Execution

        return Execution(self.base, self.room("pipelines"), self.room("tracking"), root=self.settings.root)

    def close(self) -> None:
        """Release files and connections. Idempotent."""
        for room in self._rooms.values():
            closing = getattr(room, "_close", None)
            if closing is not None:
                closing()
        self._rooms.clear()
        self.base.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_workspace(
    root: Path | str | None = None, *, project: str | None = None, clock: Clock | None = None
) -> Workspace:
    """Open the workspace of the project at ``root`` (default: the nearest one upwards)."""
    return Workspace(configuration.load(root), project=project, clock=clock)


# --- rooms that need more than the foundation --------------------------------------------------------------------------


def _plain(name: str, base: Foundation) -> Any:
    from mainspring.rooms import room_class

    return room_class(name)(base)


def _lineage(workspace: Workspace) -> Lineage:
    from mainspring.introductions import introduce

    lineage = Lineage(workspace.base)
    introduce(lineage, workspace)
    return lineage


def _deploy(workspace: Workspace) -> Any:
    from mainspring.deploy import Deploy
    from mainspring.deploy.trial import try_package

    return Deploy(workspace.base, workspace.room("models"), trial=try_package)


def _monitoring(workspace: Workspace) -> Any:
    from mainspring.monitoring import Monitoring

    return Monitoring(workspace.base, policies=workspace.settings.config.monitor)


def _loop(workspace: Workspace) -> Any:
    from mainspring.loop import Loop, LoopRooms

    rooms = LoopRooms(
        models=workspace.room("models"),
        deploy=workspace.room("deploy"),
        monitoring=workspace.room("monitoring"),
        labels=workspace.room("labels"),
    )
    return Loop(workspace.base, rooms, config=workspace.settings.config)


_BUILDERS: dict[str, Callable[[Workspace], Any]] = {
    "lineage": _lineage,
    "deploy": _deploy,
    "monitoring": _monitoring,
    "loop": _loop,
}


def _mark(home: Path, settings: Settings) -> None:
    """Write or check the marker that says what this directory is and where its database and objects are."""
    path = home / _MARKER
    wanted = {
        "format": FORMAT,
        "database": "sqlite" if settings.config.storage.database == "sqlite" else "postgresql",
        "objects": settings.config.storage.objects,
    }
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        temporary = path.with_name(f"{_MARKER}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(wanted))
        temporary.chmod(0o600)
        with contextlib.suppress(FileExistsError):
            temporary.replace(path)
        return
    except ValueError:
        raise Conflict(
            "this is not a mainspring workspace", place=str(path), next_step="Restore the file from a backup."
        ) from None
    if found.get("format", 0) > FORMAT:
        raise Conflict(
            f"the workspace has format {found['format']}, this program knows {FORMAT}",
            place=str(home),
            next_step="Upgrade mainspring.",
        )
    for key in ("database", "objects"):
        if found.get(key) != wanted[key]:
            raise InvalidInput(
                f"this workspace keeps its {key} elsewhere",
                value=str(wanted[key]),
                place=str(path),
                next_step=f"It was made with {found.get(key)!r}; use that, or another home.",
            )
