"""Roles by project of issued tokens: given at the command line, looked up at every request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner

from mainspring.cli.main import app
from mainspring.config import load
from mainspring.errors import InvalidInput, NotFound
from mainspring.operations import Role
from mainspring.server.tokens import Tokens
from mainspring.testing.server import Running, running_server
from mainspring.workspace import Workspace

POLICY = '[project]\nname = "here"\n'


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "mainspring.toml").write_text(POLICY)
    with Workspace(load(tmp_path)) as opened:
        yield opened


@pytest.fixture
def server(workspace: Workspace) -> Iterator[Running]:
    with running_server(workspace) as running:
        yield running


def command(root: Path, *words: str) -> Any:
    done = CliRunner().invoke(app, ["-C", str(root), "token", *words])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_a02_a_session_follows_the_roles_of_its_token(server: Running, workspace: Workspace) -> None:
    """A02: a lowered token lowers its sessions; one whose roles are elsewhere is nobody here; a revoked one ends
    them. Seen red with the principal of a session remembered."""
    root = workspace.settings.root
    workspace.projects.create_project(name="elsewhere")
    told = json.loads(command(root, "add", "bea", "--role", "editor", "--role", "*=viewer", "--json"))
    assert told["roles"] == {"here": "editor", "*": "viewer"}
    with httpx2.Client(base_url=server.url, trust_env=False, timeout=120) as browser:
        assert browser.post("/login", data={"token": told["token"]}).status_code == 303

        def asked() -> int:
            return browser.post("/api/v1/here/tracking/create_experiment", json={"name": "e"}).status_code

        assert asked() == 200
        for roles, status in ((["viewer"], 403), (["elsewhere=admin"], 404), (["*=editor"], 200)):
            command(root, "change", "bea", *(f"--role={r}" for r in roles))
            assert asked() == status, roles
        command(root, "revoke", "bea")
        assert asked() == 401


def test_a_token_says_its_roles_as_they_were_given(workspace: Workspace) -> None:
    tokens = Tokens(workspace.settings.home)
    tokens.issue("ann", {"here": Role.VIEWER, "there": Role.ADMIN}, days=1)
    (ann,) = tokens.principals().values()
    found = {p: ann.role_in(p) for p in ("here", "there", "nowhere")}
    assert found == {"here": Role.VIEWER, "there": Role.ADMIN, "nowhere": None}


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["king"], "no such role"),
        (["viewer", "admin"], "a project has one role"),
        (["=viewer", "here=admin"], "a project has one role"),
        (["../x=viewer"], "no such project"),
        (["viewer", "unmade=admin"], "no such project"),
    ],
)
def test_a06_a_role_that_means_nothing_gives_no_token(
    workspace: Workspace, roles: list[str], message: str
) -> None:
    """A06. Seen red with the second role of a project put in the place of the first."""
    with pytest.raises((InvalidInput, NotFound), match=message):
        command(workspace.settings.root, "add", "eve", *(f"--role={r}" for r in roles))
    assert Tokens(workspace.settings.home).list_tokens() == []
