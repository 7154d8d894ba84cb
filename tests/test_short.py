"""``ms.commit``, ``ms.train``, ``ms.deploy``: in a directory, and on a server; and the prediction that comes of it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import mainspring as ms
from mainspring.errors import CheckFailed, Conflict, InvalidInput, NotFound
from mainspring.testing.server import running_server
from mainspring.workspace import open_workspace


@pytest.fixture
def port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> Path:
    (tmp_path / "mainspring.toml").write_text(
        f'[project]\nname = "tiny"\n[serving]\nport = {port}\n'
        '[data.wine]\nchecks = [{ check = "range", column = "alcohol", min = 5, max = 20 }]\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def wine() -> Any:
    from sklearn.datasets import load_wine

    return load_wine(as_frame=True).frame


@pytest.fixture
def inference(project: Path, port: int) -> Iterator[str]:
    """The inference server of the project, before anything is deployed."""
    with open_workspace(project) as workspace:
        bundle = workspace.base.bundle
    bundle.mkdir(parents=True, exist_ok=True, mode=0o700)
    process = subprocess.Popen(
        [sys.executable, "-m", "mainspring.serving", "--bundle", str(bundle), "--port", str(port), "--poll", "0.05"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait(120)
        process.stdout.close()


def test_from_a_frame_to_a_served_prediction(
    project: Path, wine: Any, inference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = ms.commit("wine", wine)
    model = ms.train(version, target="target", budget="1h", max_trials=1)
    monkeypatch.setattr("mainspring.short._SERVER_WAIT_S", 120.0)
    deployed = ms.deploy(model)
    assert deployed.answers, deployed.says
    assert deployed.address == inference
    row = {k: v for k, v in wine.iloc[0].to_dict().items() if k != "target"}
    answer = httpx2.post(
        f"{inference}/v1/deployments/wine/predict", json={"rows": [row]}, trust_env=False, timeout=60
    ).json()
    assert answer["version"] == model.version
    assert answer["predictions"][0]["label"] in {0, "0"}
    with ms.open() as workspace:
        champion = workspace.models.get_version("wine", "champion")
    assert champion.version == model.version


def test_the_same_on_a_server(
    project: Path, wine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the spool of a remote run is in the user's cache
    with open_workspace(project) as workspace, running_server(workspace) as server:
        monkeypatch.setenv("MAINSPRING_URL", server.url)
        monkeypatch.setenv("MAINSPRING_TOKEN", server.token)
        ms.commit("wine", wine)
        model = ms.train("wine", target="target", budget="1h", max_trials=1, name="cultivar")
        deployed = ms.deploy("cultivar@1", name="tasting")
        assert deployed.answers is None
        assert server.url in deployed.says
        assert [t.version for t in workspace.deploy.get_deployment("tasting").targets] == [model.version]
        assert (
            workspace.models.list_aliases("cultivar") == []
        )  # deployed under another name, it is no champion


def test_without_a_project_the_command_that_makes_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: ms.commit("a", {"x": [1]}),
        lambda: ms.train("a", target="x"),
        lambda: ms.deploy("a"),
    ):
        with pytest.raises(NotFound, match="mainspring init"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_the_checks_of_the_policy_hold(project: Path, wine: Any) -> None:
    wine.loc[0, "alcohol"] = -1
    with pytest.raises(CheckFailed):
        ms.commit("wine", wine)


def test_without_a_server_the_command_that_starts_it_is_named(project: Path, trained: Any) -> None:
    """Seen red while the room of the same name, once loaded, took the place of ``ms.deploy``."""
    deployed = ms.deploy(trained)
    assert deployed.answers is False
    assert deployed.says.endswith("Start it: mainspring up")


def test_what_somebody_refused_is_not_deployed(project: Path, trained: Any) -> None:
    with ms.open() as workspace:
        workspace.models.approve(trained.model, version=trained.version, approved=False, reason="not yet")
    for name in (None, "other"):
        with pytest.raises(Conflict):
            ms.deploy(trained, name=name)
    with ms.open() as workspace:
        assert workspace.deploy.list_deployments() == []


def test_what_no_server_can_load_does_not_become_champion(
    project: Path, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen red while the alias was moved before the package was tried."""

    def refuse(_self: Any, _packages: Any) -> None:
        raise InvalidInput("does not load")

    monkeypatch.setattr("mainspring.deployments.operations.Deploy._try_packages", refuse)
    with pytest.raises(InvalidInput, match="does not load"):
        ms.deploy(trained)
    with ms.open() as workspace:
        assert workspace.models.list_aliases(trained.model) == []


def test_a_gate_of_the_policy_judges_first(project: Path, trained: Any) -> None:
    """Seen red with the gate left out: a version that the policy refuses was deployed."""
    file = project / "mainspring.toml"
    file.write_text(
        f'{file.read_text()}[model.small]\npipeline = "pipelines/train.py:train"\ngate = [{{ metric = "log_loss", max = 0.0001 }}]\n'
    )
    with pytest.raises(Conflict, match="gate"):
        ms.deploy(trained)
    with ms.open() as workspace:
        assert [v.passed for v in workspace.loop.list_verdicts("small", trained.version)] == [False]


def test_what_is_no_version_is_refused(project: Path) -> None:
    with pytest.raises(InvalidInput, match=r"not a dataset version.*ms\.commit\('NAME', rows\)"):
        ms.train({"x": [1]}, target="x")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="model version"):
        ms.deploy(3)  # type: ignore[arg-type]


@pytest.fixture
def trained(project: Path) -> Any:
    """A version of a model ``small``, registered by hand: what deploys it does not ask how it was made."""
    import numpy as np
    import pyarrow as pa
    from sklearn.linear_model import LogisticRegression

    from mainspring.models.formats import infer_signature

    x = np.linspace(-1, 1, 60)
    rows = pa.table({"x": x, "y": (x > 0.1).astype(int)})
    with ms.open() as workspace:
        held = workspace.data.commit("small-holdout", rows)
        return workspace.models.save_and_register(
            LogisticRegression().fit(x[:, None], rows["y"].to_numpy()),
            model="small",
            signature=infer_signature(rows.select(["x"]), task="binary"),
            sample=rows.select(["x"]),
            training=rows.select(["x"]),
            holdout=held.id,
            label="y",
        )
