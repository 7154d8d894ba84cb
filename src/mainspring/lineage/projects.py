"""The projects of a workspace: which there are, and making one.

A project exists if it has a row. Its own process writes the row at the first opening (whoever can open the files of a workspace may do
anything with them); an administrator of the workspace makes others with :meth:`Projects.create_project`.
"""

from __future__ import annotations

import time

from mainspring.clock import from_us
from mainspring.errors import Conflict, InvalidInput, PermissionDenied
from mainspring.lineage.foundation import Foundation
from mainspring.lineage.ledger import Ledger
from mainspring.operations import EVERY_PROJECT, Role, acts, operation
from mainspring.records.base import check_name
from mainspring.records.events import EventKind
from mainspring.records.projects import Project
from mainspring.storage.sql import Store, Writer
from mainspring.storage.sql.store import Row


class Projects:
    """Which projects the caller has a part in, and making one."""

    room = "projects"

    def __init__(self, base: Foundation) -> None:
        self._base = base

    @operation(role=Role.VIEWER)
    def list_projects(self) -> list[Project]:
        """The projects of this workspace in which the caller has a role, by name."""
        return visible(self._base.store)

    @operation(role=Role.ADMIN, changes=True)
    def create_project(self, name: str) -> Project:
        """Make a project. Needs the role admin in every project: in the new one nobody else has a role yet.

        Raises :class:`Conflict` if it exists.
        """
        who = acts()
        if (who.role_in(EVERY_PROJECT) or 0) < Role.ADMIN:
            raise PermissionDenied(
                "projects.create_project needs the role admin in every project",
                value=name,
                next_step="Ask whoever runs the server: mainspring projects create NAME.",
            )
        check_name(name, what="project")
        new_ledger = Ledger(self._base.store, project=name, clock=self._base.clock)
        with self._base.ledger.decision() as decision:  # the caller's key is answered in the caller's project
            if not insert(decision.tx, name, by=who.name):
                raise Conflict("there is such a project", value=name)
            with new_ledger.decision() as first_decision:
                first_decision.event(EventKind.PROJECT_CREATED, f"project:{name}")
            row = decision.tx.one("SELECT * FROM projects WHERE name = ?", name, what="the project")
            return decision.done(_project(row, Role.ADMIN))


def exists(store: Store, name: str) -> bool:
    """Whether there is such a project. ``name`` may be any text."""
    try:
        check_name(name, what="project")
    except InvalidInput:
        return False
    with store.read() as tx:
        return tx.first("SELECT name FROM projects WHERE name = ?", name) is not None


def ensure(store: Store, name: str) -> None:
    """Insert the project's row if it is missing: a read, and a write only at the first opening."""
    if not exists(store, name):
        with store.write() as tx:
            insert(tx, name, by="local")


def visible(store: Store) -> list[Project]:
    """The projects in which whoever acts has a role, by name."""
    who = acts()
    with store.read() as tx:
        rows = tx.all("SELECT * FROM projects ORDER BY name")
    held = [(row, who.role_in(str(row["name"]))) for row in rows]
    return [_project(row, role) for row, role in held if role is not None]


def insert(tx: Writer, name: str, *, by: str) -> bool:
    """Insert the project's row; returns False if it was there."""
    return bool(
        tx.execute(
            "INSERT INTO projects (name, created_us, created_by) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING",
            name,
            time.time_ns() // 1000,
            by,
        )
    )


def _project(row: Row, role: Role) -> Project:
    return Project(
        name=row["name"],
        role=role.name.lower(),
        created_at=from_us(int(row["created_us"])),
        created_by=row["created_by"],
    )
