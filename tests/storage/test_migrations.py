"""Workspaces frozen by every released schema open, and everything in them is read."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mainspring.clock import ManualClock
from mainspring.errors import NotFound
from mainspring.storage.sql.migrations import LATEST
from mainspring.workspace import Workspace, open_workspace

FROZEN = Path(__file__).parents[1] / "fixtures" / "workspaces"
NAMES = sorted(path.name.removesuffix(".tar.gz") for path in FROZEN.glob("v*.tar.gz"))
NOW = datetime(2013, 6, 1, tzinfo=UTC)


@pytest.fixture(params=NAMES)
def frozen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Workspace, dict[str, Any]]]:
    """A copy of a frozen workspace, opened, and what it must hold."""
    with tarfile.open(FROZEN / f"{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "frozen"\n')
    with open_workspace(tmp_path, clock=ManualClock(NOW)) as workspace:
        yield workspace, json.loads((FROZEN / f"{request.param}.json").read_text())


def test_every_schema_version_has_a_frozen_workspace() -> None:
    assert [int(name[1:]) for name in NAMES] == list(range(1, LATEST + 1))


def test_every_row_is_still_there(frozen: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, expected = frozen
    with workspace.base.store.read() as tx:
        assert tx.scalar("SELECT max(version) AS v FROM schema_version") == LATEST
        found = {name: tx.scalar(f"SELECT count(*) AS n FROM {name}") for name in expected["rows"]}
    if expected["schema_version"] == LATEST:
        assert found == expected["rows"]
    else:  # a migration may add rows; it loses none of what the program recorded
        assert not {n: (found[n], rows) for n, rows in expected["rows"].items() if found[n] < rows}


def test_the_chain_is_whole_and_goes_on(frozen: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, expected = frozen
    report = workspace.lineage.verify()
    assert (report.ok, report.events, report.head) == (True, expected["events"], expected["head"])
    assert len(workspace.lineage.list_events(limit=100).items) == expected["events"]
    workspace.room("models").set_alias(model="delay", alias="challenger", version=2, reason="written today")
    after = workspace.lineage.verify(anchor=f"{expected['events']}:{expected['head']}")
    assert after.ok
    assert after.events > expected["events"]


def test_every_object_is_whole(frozen: tuple[Workspace, dict[str, Any]]) -> None:
    report = frozen[0].base.objects.fsck(read_data=True)
    assert report.ok
    assert report.objects > 5


def test_datasets_are_read(frozen: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, expected = frozen
    versions = workspace.data.list_versions("flights").items
    assert [v.id for v in reversed(versions)] == expected["dataset_versions"]
    assert [workspace.data.read("flights", v.id).num_rows for v in reversed(versions)] == expected[
        "dataset_rows"
    ]
    assert workspace.data.read("flights", "first").to_pydict() == {
        "delay": [1.5, None, -3.0],
        "carrier": ["UA", "AA", None],
        "late": [True, False, False],
    }
    again = workspace.data.commit("flights", workspace.data.read("flights", "first"))
    assert again.id == expected["dataset_versions"][0], "equal content has the id that it had"


def test_runs_are_read(frozen: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, expected = frozen
    run = workspace.tracking.get_run(run=expected["run"])
    assert (run.name, run.experiment, run.status) == ("first", "freeze", "finished")
    points = workspace.tracking.get_metric_history(run=run.id, key="loss").items
    assert (
        [repr(p.number) for p in points] == expected["metric"] == ["1.0", "0.5", "nan", "inf", "-inf", "-0.0"]
    )
    stored = workspace.tracking.download_artifact(run=run.id, path="notes/a.txt")
    assert b"".join(stored.chunks) == b"kept bytes"


def test_models_and_deployments_are_read(frozen: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, expected = frozen
    events = workspace.room("models").list_alias_moves(model="delay", alias="champion")
    assert [e.version for e in sorted(events, key=lambda e: e.at)] == expected["aliases"]
    score = workspace.models.load("delay", "champion").compute_scores({"x": [0.0]})
    assert score[0] == pytest.approx(expected["score_of_zero"], abs=1e-6)
    with pytest.raises(NotFound):
        workspace.models.load("delay", "3")
    deployment = workspace.deploy.get_deployment(name="delay")
    assert [(t.model, t.version, t.weight) for t in deployment.targets] == [("delay", 1, 1.0)]
    graph = workspace.lineage.get_origin(ref="model_version:delay@1")
    assert f"run:{expected['run']}" in {node.ref for node in graph.nodes}


def test_a_second_opening_changes_no_byte_of_the_tables(
    frozen: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace, expected = frozen
    workspace.close()
    copy = tmp_path / "second"
    shutil.copytree(tmp_path / ".mainspring", copy / ".mainspring")
    (copy / "mainspring.toml").write_text('[project]\nname = "frozen"\n')
    before = (copy / ".mainspring" / "meta.db").read_bytes()
    with open_workspace(copy, clock=ManualClock(NOW)) as again:
        assert again.lineage.verify().head == expected["head"]
    assert (copy / ".mainspring" / "meta.db").read_bytes() == before
