"""The local composition root: opens storage, builds the rooms and connects them."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mainspring import config as configuration
from mainspring import durable
from mainspring.clock import Clock, SystemClock, from_us, to_us
from mainspring.config import Settings
from mainspring.errors import Conflict, Corrupt, InvalidInput
from mainspring.lineage import Foundation, Ledger, Lineage, projects
from mainspring.operations import Role, operation, operations_of
from mainspring.rooms import Namespaces
from mainspring.storage.leases import Leases
from mainspring.storage.sql import Store, open_store

if TYPE_CHECKING:
    from mainspring.execution import Execution
    from mainspring.storage.objects import ByteStore

T = TypeVar("T")

FORMAT = 1
_MARKER = "workspace.json"


class StoredClock:
    """A policy clock that moves only when it is set; stored in the database, so that every process reads the same time."""

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
    """One project in one workspace, on this machine. Close it, or use it as a context manager.

    Opening a project for the first time creates it: the user who can open its files is its administrator.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        project: str | None = None,
        clock: Clock | None = None,
        beside: Foundation | None = None,
    ) -> None:
        """``beside``: the foundation of another project of the same workspace, whose database and objects are used and not closed."""
        self.settings = settings
        self.project = project or settings.config.project.name
        self.base = (
            _share_foundation(beside, settings) if beside else _open_foundation(settings, self.project, clock)
        )
        self._owns_store = beside is None
        self._rooms: dict[str, Any] = {}
        self._lock = threading.RLock()

    def room(self, name: str) -> Any:
        with self._lock:
            if name not in self._rooms:
                self._rooms[name] = (
                    _BUILDERS[name](self) if name in _BUILDERS else _build_room(name, self.base)
                )
            return self._rooms[name]

    @cached_property
    def execution(self) -> Execution:
        """Runs this project's pipelines on this machine."""
        from mainspring.execution import Execution

        return Execution(
            self.base,
            self.room("pipelines"),
            self.room("tracking"),
            root=self.settings.root,
            policy=self.settings.config.pipelines,
        )

    def close(self) -> None:
        """Release files and connections. Idempotent."""
        self._rooms.clear()
        if self._owns_store:
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


def _build_room(name: str, base: Foundation) -> Any:
    from mainspring.rooms import room_class

    return room_class(name)(base)


def _build_lineage(workspace: Workspace) -> Lineage:
    from mainspring.introductions import graph_sources

    return Lineage(workspace.base, graph_sources(workspace.base, workspace.room))


def _build_deploy(workspace: Workspace) -> Any:
    from mainspring.deployments import Deploy
    from mainspring.deployments.trial import try_package

    return Deploy(workspace.base, workspace.room("models"), trial=try_package)


def _build_monitoring(workspace: Workspace) -> Any:
    from mainspring.monitoring import Monitoring

    kind = Monitoring if workspace.settings.policy else _without_policy(Monitoring)
    return kind(workspace.base, policies=workspace.settings.config.monitor)


def _build_loop(workspace: Workspace) -> Any:
    from mainspring.loop import Loop, LoopRooms

    rooms = LoopRooms(
        models=workspace.room("models"),
        deploy=workspace.room("deploy"),
        monitoring=workspace.room("monitoring"),
        labels=workspace.room("labels"),
    )
    kind = Loop if workspace.settings.policy else _without_policy(Loop)
    return kind(workspace.base, rooms, config=workspace.settings.config)


_NEED_POLICY = frozenset({"monitoring.get_policy", "loop.replay", "loop.simulate_policy"})
"""Operations that change nothing but depend on the policy."""


def _without_policy(room: type[T]) -> type[T]:
    """``room`` for a project whose policy this process does not have: operations that depend on the policy are refused, since
    defaults would decide in its place."""

    def refusing(name: str, role: Role) -> Any:
        def refuse(self: Any, **_arguments: Any) -> Any:
            raise Conflict(
                "this server has no policy of the project",
                value=self._base.project,
                place=f"{room.__name__.lower()}.{name}",
                next_step="List the project's directory in [server] projects of the server's mainspring.toml.",
            )

        refuse.__name__ = name
        return operation(role=role, changes=True)(refuse)

    refused = {
        o.name: refusing(o.name, o.policy.role)
        for o in operations_of(room).values()
        if (o.policy.changes and o.id != "loop.set_clock") or o.id in _NEED_POLICY
    }
    return type(room.__name__, (room,), refused)


_BUILDERS: dict[str, Callable[[Workspace], Any]] = {
    "lineage": _build_lineage,
    "deploy": _build_deploy,
    "monitoring": _build_monitoring,
    "loop": _build_loop,
}


# --- opening -----------------------------------------------------------------------------------------------------------


def repair(settings: Settings) -> list[str]:
    """Write files that the object store has lost from their copies in the database; returns the names of the files."""
    from mainspring.storage.objects.owner import restore

    if not (settings.home / _MARKER).exists():
        return []
    store = _open_database(settings, _check_marker(settings.home, settings))
    try:
        return restore(store, _open_bytes(settings))
    finally:
        store.close()


def start_anew(settings: Settings) -> list[str]:
    """Create a new database beside objects whose own is lost. The old files are renamed; returns their new names.

    Raises :class:`Conflict` if the workspace opens as it is.
    """
    try:
        Workspace(settings).close()
    except (Conflict, Corrupt):
        pass
    else:
        raise Conflict(
            "this workspace opens as it is: there is no need to start anew", place=str(settings.home)
        )
    home, aside = settings.home, []
    for suffix in ("", "-wal", "-shm") if settings.config.storage.database == "sqlite" else ():
        file = home / f"meta.db{suffix}"
        if file.exists():
            aside.append(f"{file.name}.lost-{to_us(SystemClock().now())}")
            file.rename(home / aside[-1])
    (home / _MARKER).unlink(missing_ok=True)
    _open_foundation(settings, settings.config.project.name, None, anew=True).store.close()
    return aside


def _open_foundation(
    settings: Settings, project: str, clock: Clock | None, *, anew: bool = False
) -> Foundation:
    from mainspring.storage.objects import open_objects

    home, storage = settings.home, settings.config.storage
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    marked = _check_marker(home, settings)
    store = _open_database(settings, marked, anew=anew)
    try:
        if clock is None:
            clock = StoredClock(store, project) if storage.clock == "manual" else SystemClock()
        leases = Leases(store)
        objects = open_objects(
            storage.objects,
            home=home,
            leases=leases,
            options=configuration.object_options(settings),
            anew=anew,
        )
        _record_database(home, marked, database=str(objects.owner))
        projects.ensure(store, project)
        return Foundation(
            project=project,
            home=home,
            store=store,
            objects=objects,
            ledger=Ledger(store, project=project, clock=clock),
            leases=leases,
            clock=clock,
            apart=marked["project"] != project,
        )
    except BaseException:
        store.close()
        raise


def _share_foundation(base: Foundation, settings: Settings) -> Foundation:
    """The foundation of another project on the same database and objects."""
    project = settings.config.project.name
    clock = StoredClock(base.store, project) if settings.config.storage.clock == "manual" else SystemClock()
    return dataclasses.replace(
        base,
        project=project,
        clock=clock,
        ledger=Ledger(base.store, project=project, clock=clock),
        apart=_check_marker(settings.home, settings)["project"] != project,
    )


def _open_database(settings: Settings, marked: dict[str, Any], *, anew: bool = False) -> Store:
    def lost() -> str | None:
        from mainspring.storage.objects.owner import has_packs, owner_of

        if marked.get("id"):
            return f"{_MARKER} names it: {marked['id']}"
        store = _open_bytes(settings)
        return "there are objects" if has_packs(store) or owner_of(store) is not None else None

    url = settings.config.storage.database
    return open_store(url, home=settings.home) if anew else open_store(url, home=settings.home, lost=lost)


def _open_bytes(settings: Settings) -> ByteStore:
    from mainspring.storage.objects.opening import open_bytes

    return open_bytes(
        settings.config.storage.objects, home=settings.home, options=configuration.object_options(settings)
    )


def _check_marker(home: Path, settings: Settings) -> dict[str, Any]:
    """Write or check the marker file, which names the format of this directory and where its database and objects are."""
    path = home / _MARKER
    expected: dict[str, Any] = {
        "format": FORMAT,
        "database": "sqlite" if settings.config.storage.database == "sqlite" else "postgresql",
        "objects": settings.config.storage.objects,
    }
    try:
        marker = json.loads(path.read_text())
    except FileNotFoundError:
        expected["project"] = settings.config.project.name
        _write_marker(path, expected)
        return expected
    except ValueError:
        marker = None
    if not isinstance(marker, dict) or not isinstance(marker.get("format"), int):
        raise Corrupt(
            "this is not a mainspring workspace, or its marker is damaged",
            place=str(path),
            next_step="Restore the file from a backup, or remove it: it is written again.",
        )
    if marker["format"] > FORMAT:
        raise Conflict(
            f"the workspace has format {marker['format']}, this program knows {FORMAT}",
            place=str(home),
            next_step="Upgrade mainspring.",
        )
    for key in ("database", "objects"):
        if marker.get(key) != expected[key]:
            raise InvalidInput(
                f"this workspace keeps its {key} elsewhere",
                value=str(expected[key]),
                place=str(path),
                next_step=f"It was made with {marker.get(key)!r}; use that, or another home.",
            )
    # Written by 0.1, which did not record the project whose files are in the home itself
    if "project" not in marker:
        marker["project"] = _project_of_bundle(home) or settings.config.project.name
        _write_marker(path, marker)
    return marker


def _project_of_bundle(home: Path) -> str | None:
    """The project whose routes are in the home's bundle."""
    try:
        return (home / "bundle" / ".lock").read_text() or None
    except FileNotFoundError:
        return None


def _record_database(home: Path, marked: dict[str, Any], *, database: str) -> None:
    """Record the id of the database in the marker, so that an empty database in its place is refused from now on."""
    if marked.get("id") == database:
        return
    if marked.get("id"):
        raise Conflict(
            "this is the database of another workspace",
            value=database,
            place=str(home / _MARKER),
            next_step=f"The one of this workspace has the id {marked['id']}: restore it from a backup.",
        )
    _write_marker(home / _MARKER, marked | {"id": database})


def _write_marker(path: Path, content: dict[str, Any]) -> None:
    durable.replace(path, json.dumps(content).encode())
