"""Retrains with a real pipeline: what it is given, when its result is no improvement, and when it fails every time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from mainspring.config import load
from mainspring.execution import worker_runner
from mainspring.loop.worker import work
from mainspring.records.loop import Job
from mainspring.workspace import Workspace

POLICY = """
[project]
name = "shop"
[storage]
clock = "manual"
[model.buy]
pipeline = "train.py:train"
gate = [{ metric = "accuracy", min = 0.5 }]
[deploy.buy]
model = "buy"
stages = [{ shadow = true, min_requests = 10 }, { full = true }]
[monitor.buy]
retrain_on = ["schedule"]
every = "1m"
cooldown = "0s"
max_failures = 3
"""
PIPELINE = """
import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression

import mainspring as ms


@ms.step(isolation="inline", cache=False)
def fit(c: float, moment: str = "") -> float:
    context = ms.current()
    workspace = context.workspace()
    x = np.linspace(-1, 1, 80)
    rows = pa.table({"x": x, "y": (x > 0.2).astype(int), "moment": [moment] * 80})
    holdout = workspace.data.commit("holdout", rows)
    fitted = LogisticRegression(C=c).fit(x[:, None], rows["y"].to_numpy())
    version = workspace.models.save_and_register(
        fitted, model="buy", sample={"x": x.tolist()}, training=pa.table({"x": x}), run=context.run, holdout=holdout.id, label="y"
    )
    return float(version.version)


@ms.pipeline
def train(c: float = 1.0):
    return fit(c)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "mainspring.toml").write_text(POLICY)
    (tmp_path / "train.py").write_text(PIPELINE)
    with Workspace(load(tmp_path)) as opened:
        yield opened


def retrain(workspace: Workspace, **params: float) -> Job:
    job = workspace.loop.request_retrain(deployment="buy", reason="test", params=params)
    return do(workspace, job.id)


def do(workspace: Workspace, job: str) -> Job:
    return work(workspace, workspace.settings.config, job, worker_runner(workspace.execution))


def test_a_pipeline_without_until_is_retrained(workspace: Workspace) -> None:
    """Seen red while ``until`` was passed to every pipeline: "unknown parameter"."""
    done = retrain(workspace)
    assert (done.error, done.version) == (None, 1)


def test_until_goes_to_a_pipeline_that_declares_it(workspace: Workspace) -> None:
    file = workspace.settings.root / "train.py"
    file.write_text(
        file.read_text()
        .replace("(c: float = 1.0):", "(c: float = 1.0, until: str = ''):")
        .replace("fit(c)", "fit(c, until)")
    )
    done = retrain(workspace)
    assert (done.error, done.version) == (None, 1)
    moment = done.requested_at.isoformat()
    version = workspace.models.get_version("buy", "1")
    rows = workspace.data.read("holdout", version.holdout)
    assert rows["moment"][0].as_py() == moment
    assert workspace.tracking.get_run(run=done.run).params["until"] == moment


def test_a_version_that_answers_like_the_champion_is_not_rolled_out(workspace: Workspace) -> None:
    """Seen red without the comparison in worker.gate: it was rolled out, shadow and all."""
    retrain(workspace)
    workspace.loop.tick()
    assert workspace.models.get_version("buy", "champion").version == 1
    again = retrain(workspace)
    assert again.version == 2
    (stopped,) = workspace.loop.tick().decisions
    assert stopped.action == "gate_stop"
    assert "version 2 answers every row of the hold-out as version 1 does" in stopped.reason
    assert workspace.loop.list_rollouts(deployment="buy")[0].version == 1
    assert workspace.loop.list_verdicts("buy", 2)[0].same_as == 1
    retrain(workspace, c=0.01)
    assert [d.action for d in workspace.loop.tick().decisions] == ["gate_pass", "start"]


def test_a_retrain_that_fails_every_time_is_rarely_repeated_and_calls_a_person_once(
    workspace: Workspace,
) -> None:
    """Seen red without the wait that doubles: a retrain whenever one was due; and without the call: nobody was told."""
    retrain(workspace)
    workspace.loop.tick()
    file = workspace.settings.root / "train.py"
    file.write_text(
        file.read_text().replace("context = ms.current()", "raise RuntimeError('the feed is gone')")
    )
    begin, failed, calls = workspace.loop.get_clock(), [], []
    for second in range(70, 3600, 10):
        workspace.loop.set_clock(begin + timedelta(seconds=second))
        tick = workspace.loop.tick()
        assert tick.problems == []
        calls += [d for d in tick.decisions if d.action == "needs_human"]
        for job in tick.jobs:
            assert "the feed is gone" in (do(workspace, job).error or "")
            failed.append(second)
    assert sum(second < 70 + 180 for second in failed) <= 2
    assert len(failed) <= 9, "after the third failure: every eight minutes"
    (call,) = calls
    assert "3 retrains in a row failed" in call.reason
    assert "the feed is gone" in call.reason
    (need,) = workspace.loop.list_needs()
    assert (need.deployment, need.reason) == ("buy", call.reason)
    assert workspace.loop.replay().same
    file.write_text(PIPELINE)
    retrain(workspace, c=0.5)
    workspace.models.set_alias(model="buy", alias="champion", version=2, reason="mended by hand")
    assert workspace.loop.list_needs() == []
