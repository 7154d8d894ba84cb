"""From rows to a registered version: on sklearn's own small datasets, in a real workspace."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mainspring.errors import InvalidInput, NothingPredicts
from mainspring.records.models import Task
from mainspring.training.automl import engine
from mainspring.training.automl.board import TrainedVersion
from mainspring.workspace import Workspace, open_workspace

RNG = np.random.default_rng(17)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "tiny"\n')
    with open_workspace(tmp_path) as opened:
        yield opened


def people(rows: int = 240) -> pd.DataFrame:
    """Who leaves: by age, plan and month; with gaps, an identifier, and a column that is filled in only once somebody has left."""
    age = RNG.normal(40, 12, rows).round(1)
    plan = RNG.choice(["free", "basic", "gold"], rows)
    left = RNG.random(rows) < 1 / (1 + np.exp(-((age - 40) / 5 + (plan == "free"))))
    age[::11] = np.nan
    plan = plan.astype(object)
    plan[::13] = None
    return pd.DataFrame(
        {
            "customer_id": [f"c{i:05d}" for i in range(rows)],
            "signed_up": pd.date_range("2024-01-01", periods=rows, freq="7h"),
            "age": age,
            "plan": plan,
            "left_on": [f"day {i % 9}" if gone else None for i, gone in enumerate(left)],
            "churned": left,
        }
    )


def train(workspace: Workspace, frame: pd.DataFrame, **options: Any) -> TrainedVersion:
    version = workspace.data.commit(options.pop("dataset", "churn"), frame)
    given = {"budget": 1e9, "max_trials": 2, "families": ["linear", "knn"]} | options
    return engine.train(workspace, version, **given)


def artifact(workspace: Workspace, run: str, path: str) -> bytes:
    return b"".join(workspace.tracking.download_artifact(run=run, path=path).chunks)


def test_all_that_the_long_way_records(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The version leads to its run, both parts and the source; the hold-out was used once; the script repeats the predictions."""
    frame = people()
    found = train(workspace, frame, target="churned", time="signed_up")
    source = workspace.data.get_version("churn")
    assert found.signature.task is Task.BINARY
    nullable = {c.name: c.nullable for c in found.signature.inputs}
    assert nullable == {
        "signed_up": False,
        "age": True,
        "plan": True,
    }
    assert found.signature.classes == ["False", "True"]

    board = found.leaderboard
    assert "gives the target away" in board.left_out["left_on"]
    assert "identifier" in board.left_out["customer_id"]
    assert {e.candidate for e in board.entries} == {"dummy", "linear-1", "knn-1"}
    assert all(e.worse_by is not None for e in board.entries[1:])
    assert found.run is not None
    kept = json.loads(artifact(workspace, found.run, "leaderboard.json"))
    assert kept["selected"] == board.selected == found.tags["candidate"]
    assert "| **" in artifact(workspace, found.run, "leaderboard.md").decode()

    run = workspace.tracking.get_run(run=found.run)
    assert run.status == "finished"
    assert run.params["target"] == "churned"
    assert {f"candidate.{e.candidate}.log_loss" for e in board.entries} <= set(run.metrics)
    assert {"log_loss", "log_loss.low", "auc", "auc.high"} <= set(found.metrics)
    assert run.code is not None
    assert found.code == run.code

    refs = {
        node.ref for node in workspace.lineage.get_origin(ref=f"model_version:churn@{found.version}").nodes
    }
    assert {
        f"run:{found.run}",
        f"dataset_version:{found.dataset_version}",
        f"dataset_version:{source.id}",
    } <= refs
    assert found.holdout is not None
    assert workspace.training.get_holdout(dataset_version=found.holdout).uses == 1
    held = workspace.data.read("churn-holdout", found.holdout)
    assert held["signed_up"].to_pylist() == sorted(frame["signed_up"].dt.tz_localize("UTC"))[-48:]
    origin_of_holdout = workspace.lineage.get_origin(ref=f"dataset_version:{found.holdout}").nodes
    assert f"dataset_version:{source.id}" in {node.ref for node in origin_of_holdout}
    evaluations = workspace.training.list_evaluations(subject=f"model_version:churn@{found.version}").items
    assert [e.dataset_version for e in evaluations] == [found.holdout]
    assert found.profile is not None
    assert found.tags["time_column"] == "signed_up"

    script = tmp_path / "again.py"
    script.write_bytes(artifact(workspace, found.run, "train.py"))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    again = workspace.models.get_version("churn", "latest")
    assert again.version == found.version + 1
    assert again.metrics == found.metrics
    rows = {c.name: held[c.name].to_pylist() for c in found.signature.inputs}
    first, second = (
        workspace.models.load("churn", v).compute_scores(rows) for v in (found.version, again.version)
    )
    assert np.array_equal(first, second)
    strange = {c.name: [None] if c.nullable else [3.0] for c in found.signature.inputs} | {
        "plan": ["platinum"]
    }
    assert 0 < float(workspace.models.load("churn", found.version).compute_scores(strange)[0]) < 1


def test_noise_is_refused_and_nothing_is_registered(workspace: Workspace) -> None:
    """Seen red with candidates that need not lead the dummy: a version of noise was registered."""
    frame = pd.DataFrame({"a": RNG.normal(size=150), "b": RNG.normal(size=150), "y": RNG.integers(0, 2, 150)})
    with pytest.raises(NothingPredicts, match="nothing here is shown to predict 'y'") as caught:
        train(workspace, frame, target="y", dataset="noise")
    assert caught.value.code == "nothing_predicts"
    board = caught.value.leaderboard
    assert board.selected is None
    assert {e.candidate for e in board.entries} == {"dummy", "linear-1", "knn-1"}
    assert workspace.models.list_models() == []
    run = workspace.tracking.search_runs(experiments=["automl"]).items[0]
    assert run.status == "failed"
    assert json.loads(artifact(workspace, run.id, "leaderboard.json"))["selected"] is None


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_noise_is_never_taken_for_a_model(task: str) -> None:
    """Six seeds of each task, with real estimators (those of ``test_selection`` only guess)."""
    from mainspring.metrics.registry import metric
    from mainspring.training.automl.families import build, propose
    from mainspring.training.automl.rungs import Search
    from mainspring.training.automl.selection import select
    from mainspring.training.splits import stratified_folds

    kind = Task(task)
    chosen = metric("rmse" if kind is Task.REGRESSION else "log_loss", kind)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        inputs = {f"x{i}": rng.normal(size=120) for i in range(4)}
        truth = rng.normal(size=120) if kind is Task.REGRESSION else rng.integers(0, 2, 120).astype(float)
        outcome = Search(
            inputs=pa.table(inputs), truth=truth, folds=stratified_folds(np.zeros(120), folds=5, seed=seed), task=kind, classes=2,
            metric=chosen, seed=seed, seconds=1e9,
            make=lambda c: build(c, task=kind, numbers=["x0", "x1", "x2", "x3"], texts=[], dates={}, seed=0),
        ).run(propose(4, seed=seed, families=["linear", "knn"]))  # fmt: skip
        assert not select(outcome, metric=chosen, task=kind, blocks=None, target="y").ranked, seed


def test_what_cannot_be_stored_leaves_its_place_to_the_next(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of a class that no format knows."""
    from sklearn.linear_model import LogisticRegression

    from mainspring.training.automl import families

    class Homemade(LogisticRegression):
        pass

    known = families._MODELS["linear"]
    monkeypatch.setitem(families._MODELS, "linear", lambda *given: Homemade(**known(*given).get_params()))
    found = train(workspace, people(), target="churned", metric="auc")
    assert found.tags["candidate"] == "knn-1"
    assert found.leaderboard.selected == "knn-1"
    reasons = {e.candidate: e.reason for e in found.leaderboard.entries}
    assert reasons["linear-1"].startswith("cannot be stored")
    assert "auc" in found.metrics


def test_a_suspect_is_kept_on_request_and_a_seed_repeats_a_search(workspace: Workspace) -> None:
    """Three points of the linear family, one of them the usual start."""
    frame = people()
    options: dict[str, Any] = {
        "target": "churned",
        "families": ["linear"],
        "max_trials": 3,
        "keep": ["left_on"],
    }
    first, second = (train(workspace, frame, **options) for _ in range(2))
    assert any("'left_on' is kept, as asked" in s for s in first.leaderboard.assumed)
    assert "left_on" in {c.name for c in first.signature.inputs}

    def shown(version: TrainedVersion) -> Any:
        return [(e.candidate, e.params, e.value) for e in version.leaderboard.entries]

    assert shown(first) == shown(second)
    assert first.metrics == second.metrics


def test_a_regression_by_group(workspace: Workspace) -> None:
    from sklearn.datasets import load_diabetes

    frame = load_diabetes(as_frame=True).frame
    frame["clinic"] = [f"clinic {i % 9}" for i in range(len(frame))]
    found = train(
        workspace, frame, target="target", group="clinic", families=["linear"], max_trials=1, dataset="sugar"
    )
    assert found.signature.task is Task.REGRESSION
    assert "clinic" not in {c.name for c in found.signature.inputs}
    parts = [workspace.data.read(f"sugar-{p}")["clinic"].unique().to_pylist() for p in ("train", "holdout")]
    assert not set(parts[0]) & set(parts[1])
    assert found.metrics["rmse"] < 70


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "auk"}, "auc"),
        ({"metric": "bias", "task": "regression", "target": "row"}, "not chosen by their bias"),
        ({"budget": "soon"}, "soon"),
        ({"budget": 0}, "length of time"),
        ({"max_trials": 0}, "at least one trial"),
    ],
)
def test_options_that_cannot_be_are_refused_before_a_run_begins(
    workspace: Workspace, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        train(workspace, people(80).assign(row=range(80)), **({"target": "churned"} | options))
    assert workspace.tracking.search_runs().items == []
