"""``mainspring token``: who else may use this workspace's server, and as what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mainspring.cli.output import (
    chosen_project,
    json_option,
    local_settings,
    print_facts,
    print_json,
    print_note,
    print_table,
)

if TYPE_CHECKING:
    from mainspring.operations import Role
    from mainspring.server.tokens import Tokens

ROLES = ("viewer", "labeller", "editor", "operator", "admin")


@click.group()
def token() -> None:
    """Tokens with a role by project: add, list, change, revoke. The server takes notice at once."""


_roles = click.option(
    "--role",
    "assignments",
    multiple=True,
    required=True,
    metavar="[PROJECT=]ROLE",
    help=f"What its holder may do ({', '.join(ROLES)}) in PROJECT, by default this one; '*' is every project. Repeat for more.",
)


@token.command()
@click.argument("name")
@_roles
@click.option("--days", type=float, default=90.0, show_default=True, help="For how long.")
@json_option
def add(name: str, assignments: tuple[str, ...], days: float, as_json: bool) -> None:
    """Issue a token for NAME, a person or a program. It is shown once."""
    roles = _parse_roles(assignments)
    secret = _open_tokens().issue(name, roles, days=days)
    if as_json:
        print_json({"name": name, "roles": {p: r.name.lower() for p, r in roles.items()}, "token": secret})
        return
    print_facts(
        [("name", name), *((f"role in {p}", r.name.lower()) for p, r in roles.items()), ("token", secret)]
    )
    project = next((p for p in roles if p != "*"), local_settings().config.project.name)
    print_note(f"next: {name} logs in to the pages with it, or sets MAINSPRING_TOKEN to it and types")
    print_note(f"      mainspring --url URL --project {project} status")


@token.command()
@click.argument("name")
@_roles
@json_option
def change(name: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Give the token of NAME these roles instead of those it has. Sessions opened with it follow."""
    roles = _parse_roles(assignments)
    _open_tokens().change(name, roles)
    if as_json:
        print_json({"changed": name, "roles": {p: r.name.lower() for p, r in roles.items()}})
        return
    print_facts([("changed", name), *((f"role in {p}", r.name.lower()) for p, r in roles.items())])


@token.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """Every token: its name, roles and end. The tokens themselves are kept nowhere."""
    tokens = _open_tokens().list_tokens()
    if as_json:
        print_json(
            [
                {
                    "name": t.name,
                    "roles": t.roles,
                    "created": _day(t.created_us),
                    "expires": _day(t.expires_us),
                }
                for t in tokens
            ]
        )
        return
    print_table(
        ("name", "roles", "created", "expires"),
        [
            (
                t.name,
                ", ".join(f"{p}={r}" for p, r in t.roles.items()),
                _day(t.created_us),
                _day(t.expires_us),
            )
            for t in tokens
        ],
    )


@token.command()
@click.argument("name")
@json_option
def revoke(name: str, as_json: bool) -> None:
    """End the token of NAME, and every session that was opened with it."""
    _open_tokens().revoke(name)
    if as_json:
        print_json({"revoked": name})
        return
    print_facts([("revoked", name)])


def _open_tokens() -> Tokens:
    from mainspring.cli.output import check_project, local_workspace_settings
    from mainspring.server.tokens import Tokens

    settings = local_workspace_settings()
    check_project(settings)
    return Tokens(settings.home)


def _parse_roles(assignments: tuple[str, ...]) -> dict[str, Role]:
    """Roles by project, from texts such as ``viewer`` (this directory's project) or ``flights=viewer``; each project once."""
    from mainspring.errors import InvalidInput, near
    from mainspring.operations import Role

    roles: dict[str, Role] = {}
    for text in assignments:
        project, _, role = text.rpartition("=")
        project = project or chosen_project(local_settings())
        if role not in ROLES:
            raise InvalidInput(
                "no such role", value=role, place="--role", next_step=near(role, ROLES, what="role")
            )
        if project in roles:
            raise InvalidInput("a project has one role", value=project, place="--role")
        roles[project] = Role[role.upper()]
    _check_projects(set(roles))
    return roles


def _check_projects(named: set[str]) -> None:
    """Refuses a role in a project that does not exist: it would apply to whatever project gets that name later."""
    from mainspring.operations import EVERY_PROJECT, no_project

    settings = local_settings()
    others = named - {settings.config.project.name, EVERY_PROJECT}
    if not others:
        return
    from mainspring.lineage.projects import exists
    from mainspring.workspace import Workspace

    with Workspace(settings) as workspace:
        for project in sorted(others):
            if not exists(workspace.base.store, project):
                raise no_project(project)


def _day(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d")
