"""``mainspring init | projects``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mainspring.cli.output import emit, facts, json_option, say, table, with_workspace

if TYPE_CHECKING:
    from mainspring.rooms import Namespaces

NEXT = {
    "basic": "mainspring data commit rents data/rents.csv, then mainspring run rent",
    "flights": "read README.md",
}
"""What a new project of each template needs first."""
TEMPLATES = tuple(NEXT)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--template", type=click.Choice(TEMPLATES), default="basic", show_default=True)
@json_option
def init(directory: Path, template: str, as_json: bool) -> None:
    """Make a project in DIRECTORY that runs, with its policy, a pipeline and tests."""
    from mainspring.errors import Conflict
    from mainspring.projects import copy_template
    from mainspring.records.base import check_name

    name = check_name(directory.absolute().name, what="project")
    if directory.exists() and any(directory.iterdir()):
        raise Conflict(
            "the directory is not empty",
            value=str(directory),
            next_step="Name a new one; nothing was written.",
        )
    made = copy_template(template, directory, name=name)
    if as_json:
        emit({"directory": str(directory), "files": made})
        return
    for path in made:
        click.echo(path)
    say(f"next: cd {directory}, then {NEXT[template]}")


@click.group()
def projects() -> None:
    """The projects of this workspace, or of a server."""


@projects.command(name="list")
@json_option
@with_workspace
def list_(workspace: Namespaces, as_json: bool) -> None:
    """The projects in which you have a role, by name."""
    from mainspring.remote import RemoteWorkspace

    if isinstance(workspace, RemoteWorkspace):  # which need not be the one that this directory names
        found = workspace.connection.projects()
    else:
        found = workspace.projects.list_projects()
    if as_json:
        emit(found)
        return
    table(("project", "role", "created", "by"), [(p.name, p.role, p.created_at, p.created_by) for p in found])


@projects.command()
@click.argument("name")
@json_option
@with_workspace
def create(workspace: Namespaces, name: str, as_json: bool) -> None:
    """Make the project NAME in this workspace. Needs the role admin in every project."""
    from mainspring.remote import RemoteWorkspace

    if isinstance(workspace, RemoteWorkspace):  # a call goes through a project that is there
        visible = [p.name for p in workspace.connection.projects()]
        if visible and workspace.project not in visible:
            workspace.connection.project = visible[0]
    made = workspace.projects.create_project(name=name)
    if as_json:
        emit(made)
        return
    facts([("project", made.name), ("created by", made.created_by)])
    say(f"next: mainspring --project {made.name} status")
