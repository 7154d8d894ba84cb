"""Tokens with one role each: issued at the command line, noticed by the server at once, and pages that fit who looks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mainspring.errors import Conflict, InvalidInput, NotFound, Unavailable
from mainspring.operations import Role, operations_of
from mainspring.rooms import ROOMS, room_class
from mainspring.server.tokens import FILE, Tokens
from mainspring.workspace import Workspace

ROLES = [role.name.lower() for role in Role]
DAY = 86_400.0


def command(root: Path, *words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "mainspring.cli", "-C", str(root), "token", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in words else done.stdout


@pytest.fixture(scope="module")
def people(shop_workspace: Workspace) -> Iterator[dict[str, str]]:
    """A token of each role, by its name."""
    tokens = Tokens(shop_workspace.settings.home)
    yield {
        role.name.lower(): tokens.issue(f"a-{role.name.lower()}", {shop_workspace.project: role}, days=1)
        for role in Role
    }
    for role in ROLES:
        tokens.revoke(f"a-{role}")


def as_(url: str, token: str, accept: str = "text/html") -> httpx2.Client:
    headers = {"authorization": f"Bearer {token}", "accept": accept}
    return httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=60)


def forms(page: httpx2.Response) -> set[str]:
    return set(re.findall(r'<form method="post" action="([^"]+)"', page.text))


def test_a02_a_token_of_the_command_line_lets_in_and_its_end_shuts_out(
    shop: Any, shop_server: str, shop_workspace: Workspace
) -> None:
    """A02: a browser's session, too, ends with the token. Seen red with the list of tokens read once, at the start."""
    told = command(shop.root, "add", "ada", "--role", "viewer", "--json")
    assert (told["name"], told["roles"]) == ("ada", {shop_workspace.project: "viewer"})
    address = f"/api/v1/{shop_workspace.project}"
    with (
        as_(shop_server, told["token"], "application/json") as ada,
        httpx2.Client(base_url=shop_server, trust_env=False) as browser,
    ):
        assert ada.get(f"{address}/models/list_models").status_code == 200
        body = {"items": [{"prediction_id": shop.prediction, "value": True}]}
        assert ada.post(f"{address}/labels/record_feedback", json=body).status_code == 403
        assert browser.post("/login", data={"token": told["token"]}).status_code == 303
        assert browser.get("/").status_code == 200
        assert [t["name"] for t in command(shop.root, "list", "--json") if t["name"] == "ada"]
        command(shop.root, "revoke", "ada")
        assert ada.get(f"{address}/models/list_models").status_code == 401
        assert browser.get("/", headers={"accept": "application/json"}).status_code == 401
    kept = (shop_workspace.settings.home / FILE).read_text()
    assert told["token"] not in kept


@pytest.mark.parametrize("role", ROLES)
def test_a02_a_page_shows_the_forms_that_its_reader_may_send(
    shop: Any, shop_server: str, people: dict[str, str], role: str
) -> None:
    """A02. Seen red with ``may`` answering yes: a viewer saw buttons that answered 403."""
    paths = ("/deployments/buy", "/models/buy/versions/1", "/models/buy/versions/2")
    with as_(shop_server, people[role]) as http:
        shown = set().union(*(forms(http.get(path)) for path in paths)) - {"/logout"}
    needed = {
        "/deployments/buy/rollback": "loop.rollback",
        "/deployments/buy/retrain": "loop.request_retrain",
        "/models/buy/versions/1/approve": "models.approve",
        "/models/buy/versions/2/approve": "models.approve",
        "/models/buy/versions/2/promote": "models.set_alias",
    }
    roles = {o.id: o.policy.role for room in ROOMS for o in operations_of(room_class(room)).values()}
    assert shown == {path for path, operation in needed.items() if Role[role.upper()] >= roles[operation]}


def test_a06_a_token_ends_by_itself_and_belongs_to_one_name(tmp_path: Path) -> None:
    """A06. Seen red with the end of a token not looked at, and with the file readable for others."""
    now = [1_000_000.0]
    tokens = Tokens(tmp_path, now=lambda: now[0])
    secret = tokens.issue("ada", {"p": Role.LABELLER}, days=2)
    assert len(secret) > 40
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    (holder,) = tokens.principals().values()
    assert (holder.name, holder.role_in("p"), holder.role_in("q")) == ("ada", Role.LABELLER, None)
    with pytest.raises(Conflict):
        tokens.issue("ada", {"p": Role.ADMIN}, days=1)
    for name in ("loop", "local", "token", "../x", ""):
        with pytest.raises(InvalidInput):
            tokens.issue(name, {"p": Role.VIEWER}, days=1)
    with pytest.raises(NotFound):
        tokens.revoke("bob")
    now[0] += 2 * DAY
    assert tokens.principals() == {}


def test_a_list_of_tokens_that_cannot_be_read_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    """Seen red while only a missing file was thought of: the gate let the exception through."""
    tokens = Tokens(tmp_path)
    tokens.issue("ada", {"p": Role.VIEWER}, days=1)
    (tmp_path / FILE).write_bytes(b"[{")
    with pytest.raises(Unavailable, match="cannot be read"):
        Tokens(tmp_path).principals()
