"""The same scenarios of each room on a local workspace and, over HTTP, on a remote one: one contract, two ways in."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pyarrow as pa
import pytest

from mainspring import config
from mainspring.errors import CheckFailed, Conflict, InvalidInput, MainspringError, NotFound, Unauthenticated
from mainspring.operations import operations_of
from mainspring.records.data import CheckRule
from mainspring.records.labels import Feedback
from mainspring.records.models import Column, Signature, Task
from mainspring.remote import RemoteWorkspace
from mainspring.rooms import ROOMS, Namespaces, room_class
from mainspring.testing.server import Running, running_server
from mainspring.workspace import Workspace

POLICY = """
[project]
name = "both"
[model.rent]
pipeline = "pipelines/train.py:train"
[deploy.rent]
model = "rent"
[monitor.rent]
retrain_on = ["drift"]
"""
RULES = msgspec.convert(
    [{"check": "range", "column": "size", "min": 1}, {"check": "not_null", "column": "rent"}], list[CheckRule]
)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Workspace]:
    root = tmp_path / "project"
    root.mkdir()
    (root / "mainspring.toml").write_text(POLICY)
    with Workspace(config.load(root)) as opened:
        yield opened


@pytest.fixture
def server(here: Workspace) -> Iterator[Running]:
    with running_server(here) as running:
        yield running


@pytest.fixture
def remote(server: Running, tmp_path: Path) -> Iterator[RemoteWorkspace]:
    with RemoteWorkspace(server.url, token=server.token, project="both", spool=tmp_path / "spool") as opened:
        yield opened


@pytest.fixture(params=["local", "remote"])
def any_workspace(request: pytest.FixtureRequest) -> Namespaces:
    found: Namespaces = request.getfixturevalue("here" if request.param == "local" else "remote")
    return found


def _flats(count: int, *, rent: float = 500.0) -> pa.Table:
    sizes = [20.0 + i for i in range(count)]
    return pa.table({"id": list(range(count)), "size": sizes, "rent": [rent + 10 * s for s in sizes]})


def test_data(any_workspace: Namespaces, tmp_path: Path) -> None:
    data = any_workspace.data
    first = data.commit("flats", _flats(50), message="first", tags=["start"], checks=RULES)
    assert (first.number, first.rows, first.tags) == (1, 50, ["start"])
    assert data.commit("flats", _flats(50)).id == first.id
    second = data.commit("flats", _flats(60))
    found = data.diff("flats", 1, 2, key=["id"])
    assert found.rows is not None
    assert (found.rows.added, found.rows.removed, found.rows.changed) == (10, 0, 0)
    assert data.read("flats", "start").equals(_flats(50))
    written = data.checkout("flats", 2, tmp_path / "out")
    assert [p.name for p in written] == ["table.parquet"]
    assert data.check("flats", RULES).passed
    assert data.get_profile("flats").rows == 60
    assert [v.number for v in data.list_versions("flats").items] == [2, 1]
    assert data.get_version_by_id(second.id).number == 2

    file = tmp_path / "flats.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([["size", "rent"], [10, 100], [0, ""]])
    with pytest.raises(CheckFailed) as refused:
        data.commit("flats", file, checks=RULES)
    assert refused.value.code == "check_failed"
    assert len(data.list_versions("flats").items) == 2
    report = data.list_refusals("flats")[0]
    assert [f.failing for f in report.findings] == [1, 1]
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.bin").write_bytes(bytes(range(256)) * 1000)
    kept = data.commit("pictures", folder)
    assert [f.path for f in data.list_files("pictures")] == ["deep/a.bin"]
    assert kept.kind == "files"
    (out,) = data.checkout("pictures", "latest", tmp_path / "pictures")
    assert out.read_bytes() == bytes(range(256)) * 1000
    with pytest.raises(NotFound) as unknown:
        data.get_version("flat")
    assert unknown.value.next_step == "Did you mean 'flats'?"


def test_tracking(any_workspace: Namespaces) -> None:
    tracking = any_workspace.tracking
    with tracking.start_run(experiment="tuning", name="one", params={"depth": 3}, capture=False) as run:
        for step in range(50):
            run.log_metric("loss", 1 / (step + 1), step=step)
        run.log_metric("odd", float("nan"))
        run.set_tag("who", "me")
        run.log_artifact(b"hello", "notes/hello.txt")
    stored = tracking.operations.get_run(run=run.id)
    assert (stored.status.value, stored.params, stored.tags["who"]) == ("finished", {"depth": "3"}, "me")
    assert stored.metrics["loss"].value == 1 / 50
    history = tracking.get_metric_history(run=run.id, key="loss")
    assert [p.step for p in history.items] == list(range(50))
    assert math.isnan(tracking.get_metric_history(run=run.id, key="odd").items[0].number)
    assert [a.path for a in tracking.list_artifacts(run=run.id).items] == ["notes/hello.txt"]
    assert b"".join(tracking.download_artifact(run=run.id, path="notes/hello.txt").chunks) == b"hello"
    page = tracking.search_runs(filter="metrics.loss < 0.1 and params.depth = '3'", experiments=["tuning"])
    assert [r.id for r in page.items] == [run.id]
    assert not tracking.search_runs(filter="metrics.loss > 0.1", experiments=["tuning"]).items
    assert list(tracking.spool.iterdir()) == []
    with pytest.raises(InvalidInput):
        tracking.search_runs(filter="metrics.loss >")


SIGNATURE = Signature(
    inputs=[Column(name="size", type="float64"), Column(name="id", type="float64")], task=Task.REGRESSION
)


def _register(workspace: Namespaces) -> Any:
    from sklearn.linear_model import LinearRegression

    rows = _flats(50)
    version = workspace.data.commit("flats", rows)
    matrix = [[s, float(i)] for s, i in zip(rows["size"].to_pylist(), rows["id"].to_pylist(), strict=True)]
    fitted = LinearRegression().fit(matrix, rows["rent"].to_pylist())
    sample = {"size": rows["size"].to_pylist(), "id": [float(i) for i in rows["id"].to_pylist()]}
    return workspace.models.save_and_register(
        fitted, model="rent", signature=SIGNATURE, sample=sample, metrics={"mae": 0.5}, dataset_version=version.id,
        holdout=version.id, label="rent",
    )  # fmt: skip


def test_models_and_what_serves_them(any_workspace: Namespaces, tmp_path: Path) -> None:
    models = any_workspace.models
    first, second = _register(any_workspace), _register(any_workspace)
    assert (first.version, second.version) == (1, 2)
    for number, reason in ((1, "first"), (2, "better")):
        models.set_alias(model="rent", alias="champion", version=number, reason=reason)
    assert models.get_version(model="rent", selector="champion").version == 2
    models.rollback(model="rent", alias="champion", reason="worse")
    history = models.list_alias_moves(model="rent", alias="champion")
    assert [e.version for e in history] == [1, 2, 1]
    assert history[-1].reason == "worse"
    assert "rent" in models.get_card(model="rent", version=1).markdown
    models.download_package("rent", "champion", tmp_path / "package")
    assert (tmp_path / "package" / "model.json").exists()
    predicted = models.load("rent", "champion").compute_scores({"size": [30.0], "id": [10.0]})
    assert predicted[0] == pytest.approx(800.0, rel=1e-3)

    deploy = any_workspace.deploy
    deploy.deploy(deployment="rent", model="rent", version=1, reason="first")
    assert [(t.model, t.version) for t in deploy.get_deployment(name="rent").targets] == [("rent", 1)]
    with pytest.raises(NotFound) as unknown:
        models.get_version(model="rent", selector="champion2")
    assert "champion" in str(unknown.value.next_step)

    reach = any_workspace.lineage.get_blast_radius(ref=f"dataset_version:{first.dataset_version}")
    assert {"model_version:rent@1", "model_version:rent@2"} <= {n.ref for n in reach.nodes}
    origin = any_workspace.lineage.get_origin(ref="model_version:rent@1")
    assert f"dataset_version:{first.dataset_version}" in {n.ref for n in origin.nodes}
    kinds = [e.kind for e in any_workspace.lineage.list_events(kind="model.").items]
    assert kinds
    assert any_workspace.lineage.verify().ok


def test_labels_loop_and_monitoring(any_workspace: Namespaces) -> None:
    items = [Feedback(prediction_id="01900000-0000-7000-8000-000000000000/0", value=1.0)]
    assert any_workspace.labels.record_feedback(items=items).parked == 1
    assert any_workspace.labels.get_stats().parked == 1
    _register(any_workspace)
    any_workspace.deploy.deploy(deployment="rent", model="rent", version=1, reason="first")
    job = any_workspace.loop.request_retrain(deployment="rent", reason="newer rows")
    assert job.state.value == "queued"
    assert [j.id for j in any_workspace.loop.list_jobs(deployment="rent")] == [job.id]
    assert any_workspace.loop.get_job(job=job.id) == job
    # Each of these is made of several decisions; a caller's key answers for the whole, not for a part.
    for _ in range(2):
        any_workspace.loop.tick()
        any_workspace.labels.settle_parked()
        any_workspace.labels.ingest_relayed()
        any_workspace.monitoring.ingest()
        any_workspace.monitoring.evaluate_windows()
        any_workspace.deploy.publish()
    assert any_workspace.loop.replay().same
    assert any_workspace.monitoring.list_alerts(deployment="rent") == []
    assert abs((any_workspace.loop.get_clock() - datetime.now(UTC)).total_seconds()) < 60
    with pytest.raises(NotFound):
        any_workspace.loop.get_job(job="01900000-0000-7000-8000-000000000000")


def test_holdouts_and_pipelines(any_workspace: Namespaces) -> None:
    version = any_workspace.data.commit("held", _flats(20))
    any_workspace.training.lock_holdout(dataset_version=version.id, max_uses=1)
    any_workspace.training.use_holdout(dataset_version=version.id, purpose="gate", by="test")
    assert any_workspace.training.get_holdout(dataset_version=version.id).uses == 1
    with pytest.raises(MainspringError) as spent:
        any_workspace.training.use_holdout(dataset_version=version.id, purpose="again", by="test")
    assert spent.value.status < 500
    with pytest.raises(NotFound):
        any_workspace.pipelines.get_run(id="01900000-0000-7000-8000-000000000000")


@pytest.fixture
def client(server: Running) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {server.token}"}
    with httpx2.Client(base_url=server.url, headers=headers, trust_env=False) as opened:
        yield opened


# --- what only a connection can go wrong about -----------------------------------------------------------------------


def test_every_room_is_reachable(client: httpx2.Client) -> None:
    document = client.get("/api/v1/openapi.json").json()
    declared = {o.id for r in ROOMS for o in operations_of(room_class(r)).values()}
    assert {e["operationId"] for path in document["paths"].values() for e in path.values()} == declared


def test_a_wrong_token_and_an_unknown_project(server: Running, tmp_path: Path) -> None:
    wrong = RemoteWorkspace(server.url, token="wrong" * 10, project="both", spool=tmp_path)
    with wrong, pytest.raises(Unauthenticated):
        wrong.data.list_datasets()
    other = RemoteWorkspace(server.url, token=server.token, project="other", spool=tmp_path)
    with other, pytest.raises(NotFound, match="project"):
        other.data.list_datasets()


def test_a_retried_change_happens_once(client: httpx2.Client, here: Workspace) -> None:
    _register(here)
    headers = {"idempotency-key": "k1"}
    body = {"model": "rent", "alias": "champion", "version": 1, "reason": "first"}
    answers = [client.post("/api/v1/both/models/set_alias", json=body, headers=headers) for _ in range(3)]
    assert {a.status_code for a in answers} == {200}
    assert len({a.content for a in answers}) == 1
    assert len(here.models.list_alias_moves(model="rent")) == 1
    other = client.post("/api/v1/both/models/set_alias", json=body | {"reason": "another"}, headers=headers)
    assert other.status_code == Conflict.status


def test_errors_say_the_same_here_and_there(here: Workspace, remote: RemoteWorkspace) -> None:
    told = []
    for workspace in (here, remote):
        with pytest.raises(NotFound) as error:
            workspace.models.get_version(model="rents", selector="1")
        told.append(error.value.to_dict())
    assert told[0] == told[1]


def test_what_a_dead_process_logged_reaches_its_own_server(server: Running, tmp_path: Path) -> None:
    """A remote client spools per server and project, so a later one can ship what was left."""
    import subprocess
    import sys

    script = f"""
import os
from pathlib import Path
from mainspring.remote import RemoteWorkspace
workspace = RemoteWorkspace("http://127.0.0.1:9", token="x" * 40, project="both", spool=Path({str(tmp_path / "spool")!r}))
run = workspace.tracking.start_run(capture=False)
run.log_metric("loss", 0.5)
print(run.id, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    ident = done.stdout.strip()
    with RemoteWorkspace(server.url, token=server.token, project="both", spool=tmp_path / "spool") as later:
        assert list(later.tracking.recover()) == [ident]
        assert later.tracking.get_run(run=ident).metrics["loss"].value == 0.5
        assert later.tracking.recover() == {}


def test_spools_of_two_servers_are_apart() -> None:
    first = RemoteWorkspace("http://a:1", token="t", project="p")
    second = RemoteWorkspace("http://b:1", token="t", project="p")
    third = RemoteWorkspace("http://a:1", token="t", project="q")
    assert len({w.tracking.spool for w in (first, second, third)}) == 3
    for workspace in (first, second, third):
        workspace.close()
