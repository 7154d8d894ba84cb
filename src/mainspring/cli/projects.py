"""``mainspring init | projects``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mainspring.cli.output import (
    json_option,
    print_facts,
    print_json,
    print_note,
    print_table,
    with_workspace,
)

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
    written = copy_template(template, directory, name=name)
    if as_json:
        print_json({"directory": str(directory), "files": written})
        return
    for path in written:
        click.echo(path)
    print_note(f"next: cd {directory}, then {NEXT[template]}")


@click.group()
def projects() -> None:
    """The projects of this workspace, or of a server."""


@projects.command(name="list")
@json_option
@with_workspace
def list_(workspace: Namespaces, as_json: bool) -> None:
    """The projects in which you have a role, by name."""
    from mainspring.remote import RemoteWorkspace

    if isinstance(workspace, RemoteWorkspace):  # a server need not have the project of this directory
        visible = workspace.connection.projects()
    else:
        visible = workspace.projects.list_projects()
    if as_json:
        print_json(visible)
        return
    print_table(
        ("project", "role", "created", "by"), [(p.name, p.role, p.created_at, p.created_by) for p in visible]
    )


@projects.command()
@click.argument("name")
@json_option
@with_workspace
def create(workspace: Namespaces, name: str, as_json: bool) -> None:
    """Make the project NAME in this workspace. Needs the role admin in every project."""
    from mainspring.remote import RemoteWorkspace

    if isinstance(workspace, RemoteWorkspace):  # a call is made in a project, which must exist
        visible = [p.name for p in workspace.connection.projects()]
        if visible and workspace.project not in visible:
            workspace.connection.project = visible[0]
    project = workspace.projects.create_project(name=name)
    if as_json:
        print_json(project)
        return
    print_facts([("project", project.name), ("created by", project.created_by)])
    print_note(f"next: mainspring --project {project.name} status")
