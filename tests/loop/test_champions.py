"""The champion moved by hand: alias and routes together, from Python, here and on a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import mainspring
from mainspring.config import load
from mainspring.errors import Conflict, InvalidInput, NotFound
from mainspring.models import ModelsClient
from mainspring.testing.server import running_server
from mainspring.workspace import Workspace

POLICY = """
[project]
name = "shop"
[model.buy]
pipeline = "train.py:train"
[deploy.web]
model = "buy"
[deploy.shop]
model = "buy"
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    from sklearn.linear_model import LogisticRegression

    (tmp_path / "mainspring.toml").write_text(POLICY)
    x = np.linspace(-1, 1, 60)
    with Workspace(load(tmp_path)) as opened:
        for c in (1.0, 0.1):
            fitted = LogisticRegression(C=c).fit(x[:, None], (x > 0).astype(int))
            rows = {"x": x.tolist()}
            opened.models.save_and_register(fitted, model="buy", sample=rows, training=rows)
        yield opened


def answering(workspace: Workspace) -> dict[str, int]:
    return {d.name: d.targets[0].version for d in workspace.deploy.list_deployments()}


def test_a_promotion_moves_the_alias_and_every_deployment_and_can_be_undone(workspace: Workspace) -> None:
    """Seen red while promoting was a command of the shell alone."""
    done = workspace.models.promote("buy", 1, reason="first")
    assert (done.alias.version, done.deployments) == (1, ["shop", "web"])
    with (
        running_server(workspace) as server,
        mainspring.open(server.url, token=server.token, project="shop") as remote,
    ):
        done = remote.models.promote("buy", reason="newest")
        assert (done.alias.version, done.alias.previous) == (2, 1)
        assert answering(workspace) == {"shop": 2, "web": 2}
        assert remote.loop.restore_champion("buy", reason="no").alias.version == 1
    assert answering(workspace) == {"shop": 1, "web": 1}
    assert workspace.models.get_version("buy", "champion").version == 1
    with pytest.raises(NotFound):
        workspace.models.promote("buy", 9, reason="misspelt")


def test_what_a_person_refused_stays_where_it_is_unless_an_admin_insists(workspace: Workspace) -> None:
    workspace.models.promote("buy", 1, reason="first")
    workspace.models.approve("buy", version=2, approved=False, reason="not yet")
    with pytest.raises(Conflict):
        workspace.models.promote("buy", 2, reason="now")
    assert answering(workspace) == {"shop": 1, "web": 1}
    assert workspace.models.promote("buy", 2, reason="now", override=True).alias.overridden
    assert answering(workspace) == {"shop": 2, "web": 2}


def test_a_package_that_does_not_load_moves_nothing(workspace: Workspace) -> None:
    """Seen red with the package opened by ``deploy`` alone, which leaves that out within a decision: the alias pointed at it."""
    workspace.models.promote("buy", 1, reason="first")
    trial = workspace.room("deploy")

    def refuse(folder: Path) -> None:
        raise InvalidInput("does not load", value=folder.name)

    trial._trial = refuse  # what opens packages is given to the room by whoever composes it
    with pytest.raises(InvalidInput, match="does not load"):
        workspace.models.promote("buy", 2, reason="now")
    assert workspace.models.get_version("buy", "champion").version == 1
    assert answering(workspace) == {"shop": 1, "web": 1}


def test_models_without_a_workspace_name_what_has_deployments(workspace: Workspace) -> None:
    alone = ModelsClient(workspace.room("models"), workspace.objects)
    with pytest.raises(InvalidInput, match="beside them"):
        alone.promote("buy", reason="r")
