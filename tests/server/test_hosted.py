"""One server, several projects of its workspace: how they come to be, open, keep apart, and whose policy holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest
from click.testing import CliRunner

from mainspring.cli.main import app
from mainspring.config import load, served
from mainspring.errors import ConfigError, Conflict, MainspringError, NotFound, PermissionDenied
from mainspring.operations import EVERY_PROJECT, Principal, Role, acting
from mainspring.records.base import new_id
from mainspring.records.serving import LOG_PREFIX, LoggedPrediction, encode_log
from mainspring.remote import RemoteWorkspace
from mainspring.server.hosted import Hosted
from mainspring.storage.journal import JournalWriter
from mainspring.testing.server import Running, running_server
from mainspring.workspace import Workspace

POLICY = """
[project]
name = "{0}"
[model.{0}]
pipeline = "pipelines/train.py:train"
[deploy.{0}]
model = "{0}"
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """The project ``one``, which serves ``two`` from its own directory; ``three`` is made by its administrator."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mainspring.toml").write_text(POLICY.format(name))
    with (tmp_path / "one" / "mainspring.toml").open("a") as file:
        file.write('[server]\nprojects = ["../two"]\n')
    with Workspace(load(tmp_path / "one")) as opened:
        opened.projects.create_project(name="three")
        yield opened


@pytest.fixture
def server(workspace: Workspace) -> Iterator[Running]:
    people = [Principal("ann", {"two": Role.EDITOR, "three": Role.VIEWER, "unmade": Role.ADMIN})]
    with running_server(workspace, principals=people) as running:
        yield running


def remote(server: Running, project: str, token: str | None = None) -> RemoteWorkspace:
    return RemoteWorkspace(server.url, token=token or server.token, project=project)


def test_projects_are_listed_by_role_and_made_by_the_administrator(
    server: Running, workspace: Workspace
) -> None:
    with remote(server, "one") as everything, remote(server, "two", server.tokens["ann"]) as ann:
        assert [(p.name, p.role) for p in everything.projects.list_projects()] == [
            ("one", "admin"),
            ("three", "admin"),
            ("two", "admin"),
        ]
        assert [(p.name, p.role) for p in ann.connection.projects()] == [
            ("three", "viewer"),
            ("two", "editor"),
        ]
        assert ann.projects.list_projects() == ann.connection.projects()
        made = everything.projects.create_project(name="four")
        assert (made.name, made.role, made.created_by) == ("four", "admin", "token")
        with remote(server, "four") as four:
            (event,) = four.lineage.list_events().items
            assert (event.kind, event.subject, event.actor) == ("project.created", "project:four", "token")
            assert four.lineage.verify().ok
        with pytest.raises(Conflict):
            everything.projects.create_project(name="four")
        with pytest.raises(MainspringError):
            everything.projects.create_project(name="../x")


def test_a02_an_administrator_of_one_project_makes_none(workspace: Workspace) -> None:
    """A02. Seen red with the role looked for in the project of the call only."""
    with (
        acting(Principal("ann", {"one": Role.ADMIN, EVERY_PROJECT: Role.OPERATOR})),
        pytest.raises(PermissionDenied),
    ):
        workspace.projects.create_project(name="five")
    assert "five" not in [p.name for p in workspace.projects.list_projects()]


def test_a_repeated_creation_is_answered_from_its_key(server: Running) -> None:
    with httpx2.Client(
        base_url=server.url, headers={"authorization": f"Bearer {server.token}"}, trust_env=False, timeout=120
    ) as http:
        for replayed in (None, "true"):
            answer = http.post(
                "/api/v1/one/projects/create_project", json={"name": "six"}, headers={"idempotency-key": "k"}
            )
            assert (answer.status_code, answer.headers.get("idempotent-replay")) == (200, replayed), (
                answer.text
            )
        # The key is of the project of the call: in another one it has been used by nobody.
        assert (
            http.post(
                "/api/v1/six/tracking/create_experiment", json={"name": "e"}, headers={"idempotency-key": "k"}
            ).status_code
            == 200
        )


def test_a03_equal_names_in_two_projects_do_not_mix(server: Running) -> None:
    """A03. Seen red with the finder of rooms answering with the server's own project, whichever was asked for."""
    for number, project in enumerate(("one", "two", "three")):
        with remote(server, project) as it:
            it.data.commit("flats", pa.table({"size": [number]}), message=project)
            it.tracking.operations.create_run(experiment="tries", name=project)
    for number, project in enumerate(("one", "two", "three")):
        with remote(server, project) as it:
            (version,) = it.data.list_versions("flats").items
            assert (version.number, version.message) == (1, project)
            assert it.data.read("flats", "latest").column("size").to_pylist() == [number]
            assert [r.name for r in it.tracking.search_runs().items] == [project]
            assert it.lineage.verify().ok


def test_opening_at_once_and_beyond_the_bound(workspace: Workspace) -> None:
    """Many threads, twelve projects, a cache of two: everyone gets their own, and a project that stays open is opened once."""
    names = [f"p{i}" for i in range(12)]
    for name in names:
        workspace.projects.create_project(name=name)
    hosted = Hosted(workspace, limit=2)
    together = threading.Barrier(12)

    def ask(number: int) -> list[str]:
        together.wait(120)
        return [hosted.workspace(names[(number + i) % 12]).room("tracking")._base.project for i in range(12)]

    def open_it(_number: int) -> Workspace:
        together.wait(120)
        return hosted.workspace("p0")

    with ThreadPoolExecutor(12) as pool:
        for number, found in enumerate(pool.map(ask, range(12))):
            assert found == [names[(number + i) % 12] for i in range(12)]
        assert len(hosted._others) == 2
        assert len({id(w) for w in pool.map(open_it, range(12))}) == 1


def test_a03_what_is_not_the_callers_is_not_looked_for(workspace: Workspace) -> None:
    """A03: a project in which the caller has no part is neither opened nor looked up. Seen red without the question before."""
    hosted = Hosted(workspace)
    with acting(Principal("bob", {"two": Role.ADMIN})):
        for name in ("three", "nowhere", "../x", "\ud800", "a\0b", ""):
            with pytest.raises(NotFound, match="no such project"):
                hosted.workspace(name)
    assert not hosted._others
    for name in ("nowhere", "../x", "\ud800", "a\0b", ""):  # the administrator is told the same
        with pytest.raises(NotFound, match="no such project"):
            hosted.workspace(name)


def test_a_project_follows_its_own_policy_or_none(server: Running, workspace: Workspace) -> None:
    """A wrong policy is worse than none. Seen red with the room built as for a project whose file is here: windows were evaluated by
    defaults that nobody had chosen."""
    with remote(server, "one") as one, remote(server, "two") as two, remote(server, "three") as three:
        for it, name in ((one, "one"), (two, "two")):
            assert it.loop.tick() is not None
            with pytest.raises(NotFound):
                it.loop.request_retrain(deployment="two" if name == "one" else "one", reason="r")
        for call in (
            three.loop.tick,
            three.monitoring.ingest,
            three.monitoring.evaluate_windows,
            lambda: three.monitoring.get_policy(deployment="d"),
            lambda: three.loop.request_retrain(deployment="d", reason="r"),
        ):
            with pytest.raises(Conflict, match="no policy of the project"):
                call()
        assert three.loop.list_jobs() == []
        assert three.monitoring.list_alerts() == []
    with acting(Principal("ann", {"three": Role.VIEWER})), pytest.raises(PermissionDenied):
        Hosted(workspace).workspace("three").loop.tick()


def test_a03_predictions_of_one_project_are_not_in_the_journal_of_another(workspace: Workspace) -> None:
    """A03. Seen red with one bundle for all projects of a home: the other project's ingest took the request."""
    ident = new_id()
    writer = JournalWriter(workspace.base.bundle / "log", prefix=LOG_PREFIX)
    writer.append(
        encode_log(
            LoggedPrediction(
                id=ident, deployment="one", model="one", version=1, role="champion", event_us=1, arrival_us=1, latency_us=1,
                columns={"x": [1.0]}, scores=[0.5], routes=1,
            )
        )
    )  # fmt: skip
    writer.sync()
    writer.close()
    two = Hosted(workspace, served(workspace.settings)).workspace("two")
    assert two.monitoring.ingest().requests == 0
    assert workspace.monitoring.ingest().requests == 1
    assert workspace.monitoring.get_prediction(id=f"{ident}/0").deployment == "one"
    with pytest.raises(NotFound):
        two.monitoring.get_prediction(id=f"{ident}/0")
    assert workspace.base.bundle == workspace.settings.home / "bundle"
    assert two.base.bundle != workspace.base.bundle


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (None, "there is no mainspring.toml"),
        ('[project]\nname = "one"\n', "two directories have one project"),
        ('[project]\nname = "two"\n[storage]\nclock = "manual"\n', "keeps its data elsewhere"),
    ],
)
def test_a_directory_that_cannot_be_served_is_told_at_the_start(
    workspace: Workspace, other: str | None, message: str
) -> None:
    file = workspace.settings.root.parent / "two" / "mainspring.toml"
    file.unlink() if other is None else file.write_text(other)
    with pytest.raises(ConfigError, match=message):
        served(workspace.settings)


def command(workspace: Workspace, *words: str) -> Any:
    done = CliRunner().invoke(app, ["-C", str(workspace.settings.root), *words])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_the_command_line_names_another_project(workspace: Workspace) -> None:
    """Seen red with a project made by naming it."""
    command(workspace, "projects", "create", "seven")
    workspace.tracking.operations.create_run(experiment="tries", name="of one")
    assert "of one" in command(workspace, "runs", "list")
    assert "of one" not in command(workspace, "--project", "seven", "runs", "list")
    with pytest.raises(NotFound, match="no such project"):
        command(workspace, "--project", "svn", "runs", "list")
    assert "seven" in command(workspace, "projects", "list")
    assert "svn" not in command(workspace, "projects", "list")
