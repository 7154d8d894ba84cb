"""``mainspring token``: who else may use this workspace's server, and as what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from mainspring.cli.output import emit, facts, json_option, local_settings, say, table

if TYPE_CHECKING:
    from mainspring.server.tokens import Tokens

ROLES = ("viewer", "labeller", "editor", "operator", "admin")


@click.group()
def token() -> None:
    """Tokens with one role each: add, list, revoke. The server takes notice at once."""


@token.command()
@click.argument("name")
@click.option(
    "--role", type=click.Choice(ROLES), required=True, help="What its holder may do in this project."
)
@click.option("--days", type=float, default=90.0, show_default=True, help="For how long.")
@json_option
def add(name: str, role: str, days: float, as_json: bool) -> None:
    """Issue a token for NAME, a person or a program. It is shown once."""
    from mainspring.operations import Role

    secret = _tokens().issue(name, Role[role.upper()], days=days)
    if as_json:
        emit({"name": name, "role": role, "token": secret})
        return
    facts([("name", name), ("role", role), ("token", secret)])
    project = local_settings().config.project.name
    say(f"next: {name} logs in to the pages with it, or sets MAINSPRING_TOKEN to it and types")
    say(f"      mainspring --url URL --project {project} status")


@token.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """Every token: its name, role and end. The tokens themselves are kept nowhere."""
    found = [
        {
            "name": t.name,
            "role": t.role,
            "created": _day(t.created_us),
            "expires": _day(t.expires_us),
        }
        for t in _tokens().listed()
    ]
    if as_json:
        emit(found)
        return
    table(("name", "role", "created", "expires"), [tuple(f.values()) for f in found])


@token.command()
@click.argument("name")
@json_option
def revoke(name: str, as_json: bool) -> None:
    """End the token of NAME, and every session that was opened with it."""
    _tokens().revoke(name)
    if as_json:
        emit({"revoked": name})
        return
    facts([("revoked", name)])


def _tokens() -> Tokens:
    from mainspring.cli.output import check_project, workspace_itself
    from mainspring.server.tokens import Tokens

    settings = workspace_itself()
    check_project(settings)
    return Tokens(settings.home)


def _day(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d")
