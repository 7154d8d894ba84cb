"""What commands say at large and small sizes, and what needs a person."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mainspring
from mainspring.cli import main as command_line
from mainspring.config import load
from mainspring.errors import InvalidInput
from mainspring.loop.decide import decide
from mainspring.records.base import counted, new_id
from mainspring.records.loop import (
    DeployPolicy,
    Evidence,
    Facts,
    RetrainPolicy,
    RollbackRule,
    Rollout,
    RolloutState,
    Stage,
)
from mainspring.records.serving import LOG_PREFIX, LoggedPrediction, encode_log
from mainspring.storage.journal import JournalWriter
from mainspring.testing.server import running_server
from mainspring.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore:.* is unwatched")
"""Models are registered here without the rows that they were trained on."""

POLICY = """
[project]
name = "shop"
[model.buy]
pipeline = "train.py:train"
gate = [{ metric = "accuracy", min = 0.5 }]
[deploy.buy]
model = "buy"
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mainspring.toml").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            command_line.main([*arguments])
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return call


@pytest.fixture
def workspace(root: Path) -> Iterator[Workspace]:
    """With a champion that was registered without a profile, a hold-out and a label."""
    from sklearn.linear_model import LogisticRegression

    x = np.linspace(-1, 1, 60)
    fitted = LogisticRegression().fit(x[:, None], (x > 0).astype(int))
    with Workspace(load(root)) as opened:
        opened.models.save_and_register(fitted, model="buy", sample={"x": x.tolist()})
        opened.models.promote("buy", 1, reason="first")
        yield opened


def test_many_files_are_counted_and_not_listed(root: Path, run: Run) -> None:
    """Seen red while a checkout printed every path."""
    for number in range(300):
        (root / "many").mkdir(exist_ok=True)
        (root / "many" / f"{number}.txt").write_text(str(number))
    assert run("data", "commit", "many", "many")[0] == 0
    _, out, err = run("data", "checkout", "many", "1", "out")
    assert len(out.splitlines()) <= 40
    assert "300 files in out, of which 40 are shown" in err
    assert len(list((root / "out").iterdir())) == 300
    assert len(json.loads(run("data", "checkout", "many", "1", "again", "--json")[1])) == 300
    (root / "many" / "0.txt").unlink()
    for number in range(1, 300):
        (root / "many" / f"{number}.txt").write_text("x")
    run("data", "commit", "many", "many")
    _, out, err = run("data", "diff", "many", "1", "2")
    assert len(out.splitlines()) <= 41
    assert "299 files changed" in err


def test_a_version_without_a_profile_is_unwatched(workspace: Workspace, run: Run) -> None:
    """Seen red while nobody said so."""
    _, out, err = run("status")
    assert "unwatched" in out
    assert "profile=" in err
    assert json.loads(run("status", "--json")[1])["deployments"][0]["watched"] == "unwatched"
    assert workspace.models.get_version("buy", "1").profile is None


def test_who_is_needed_is_in_the_status(workspace: Workspace, run: Run) -> None:
    with workspace.base.store.write() as tx:
        tx.execute(
            "INSERT INTO loop_decisions (project, key, deployment, action, reason, at_us, event) VALUES (?, ?, ?, ?, ?, ?, '')",
            "shop", "failures:buy:first", "buy", "needs_human", "3 retrains in a row failed", 4_000_000_000_000_000,
        )  # fmt: skip
    _, out, err = run("status")
    assert "needs a person buy since 2096" in out
    assert "3 retrains in a row failed" in out
    assert "mainspring loop jobs" in err
    assert json.loads(run("status", "--json")[1])["needs"][0]["deployment"] == "buy"


def test_a_spent_budget_needs_nobody_after_the_next_retrain(workspace: Workspace) -> None:
    def insert(action: str, key: str, at_us: int) -> None:
        with workspace.base.store.write() as tx:
            tx.execute(
                "INSERT INTO loop_decisions (project, key, deployment, action, reason, at_us, event) VALUES (?, ?, ?, ?, ?, ?, '')",
                "shop", key, "buy", action, "spent", at_us,
            )  # fmt: skip

    insert("needs_human", "budget:buy:a", 4_000_000_000_000_000)
    assert len(workspace.loop.list_needs()) == 1
    insert("retrain", "retrain:buy:a", 4_000_000_000_000_001)
    assert workspace.loop.list_needs() == []


def test_what_a_retrain_would_stumble_over_is_said_early(workspace: Workspace, run: Run, root: Path) -> None:
    """Seen red while the first retrain said it."""
    code, out, _ = run("doctor")
    assert code == 1
    assert "FAIL retrains: [model.buy] pipeline: there is no file 'train.py'" in out
    assert "FAIL retrains: buy version 1: it was registered without holdout and label" in out
    (root / "train.py").write_text(
        "import mainspring as ms\n@ms.step\ndef f() -> int: return 1\n@ms.pipeline\ndef train(depth: int = 1): return f()\n"
    )
    file = root / "mainspring.toml"
    file.write_text(
        file.read_text().replace(
            'pipeline = "train.py:train"', 'pipeline = "train.py:train"\nparams = { deep = 2 }'
        )
    )
    assert "takes no parameter 'deep'" in run("doctor")[1]
    assert "retrains will fail: [model.buy] params" in run("plan", "buy")[2]


def test_a_run_that_registers_nothing_says_what_a_retrain_would(root: Path, run: Run) -> None:
    (root / "train.py").write_text(
        "import mainspring as ms\n@ms.step\ndef f() -> int: return 1\n@ms.pipeline\ndef train(): return f()\n"
    )
    code, out, err = run("run", "buy")
    assert code == 0
    assert "finished" in out
    assert "registered no version of the model" in err


def test_the_environment_names_a_project_of_a_server(
    workspace: Workspace, run: Run, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Seen red while MAINSPRING_PROJECT was read by nothing: commands went on with the directory's project."""
    workspace.projects.create_project(name="other")
    monkeypatch.setenv("MAINSPRING_PROJECT", "other")
    assert "nothing is deployed yet" in run("status")[2]
    assert run("plan", "buy")[0] == 2
    assert run("-C", str(root), "status")[1].startswith("deployment")
    with pytest.raises(InvalidInput, match="MAINSPRING_PROJECT"):
        mainspring.open()
    with running_server(workspace) as server, mainspring.open(server.url, token=server.token) as remote:
        assert remote.project == "other"
    monkeypatch.setenv("MAINSPRING_PROJECT", "otter")
    assert run("status")[0] == 3
    monkeypatch.setenv("MAINSPRING_PROJECT", "../x")
    assert run("status")[0] == 2


def test_one_thing_is_in_the_singular() -> None:
    """Seen red: "1 requests and 1 labels without a breach"."""
    from datetime import UTC, datetime

    assert counted(1, "request") == "1 request"
    now = datetime(2024, 1, 1, tzinfo=UTC)
    rollout: Any = Rollout(
        id="r", deployment="d", model="m", version=2, champion=1, state=RolloutState.RUNNING, stage=0,
        stages=[Stage(canary=0.5, min_requests=1), Stage(full=True)], started_at=now, stage_started_at=now,
    )  # fmt: skip
    facts = Facts(
        deployment="d",
        now=now,
        champion=1,
        champion_since=now,
        rollout=rollout,
        evidence=Evidence(requests=1, labels=1),
    )
    (taken,) = decide(
        facts, DeployPolicy(model="m", rollback=[RollbackRule(metric="error_rate", max=0.5)]), RetrainPolicy()
    )
    assert taken.reason == "1 request and 1 label without a breach"


def test_what_is_under_way_is_shown_where_a_person_watches(capsys: pytest.CaptureFixture[str]) -> None:
    """Seen red while a step of minutes showed nothing before its end."""
    import time

    from mainspring.cli.pipelines import _Progress
    from mainspring.records.pipelines import PipelineEvent

    def watch(*, watched: bool) -> str:
        progress = _Progress(watched=watched, every_s=0.01)
        shown = ""
        for kind, step in (("started", None), ("running", "fit"), ("finished", "fit"), ("ended", None)):
            progress.show(
                PipelineEvent(kind=kind, run="r", step=step, seconds=2.0 if kind == "finished" else None)
            )  # type: ignore[arg-type]
            end = time.monotonic() + 120
            while watched and kind == "running" and "> fit" not in shown:
                assert time.monotonic() < end
                shown += capsys.readouterr().err
        return shown + capsys.readouterr().err

    assert watch(watched=True).endswith("\r\x1b[K  + fit 2.0 s\n\r\x1b[K")
    assert watch(watched=False) == "run r\n  + fit 2.0 s\n"


def test_a_label_that_changes_nothing_says_what_stands(workspace: Workspace, run: Run) -> None:
    """Seen red: yes, no, yes gave "duplicate 1", "no" stood, and no option of the command could go back."""
    from mainspring.clock import to_us

    ident = new_id()
    with JournalWriter(workspace.settings.home / "bundle" / "log", prefix=LOG_PREFIX) as journal:
        when = to_us(datetime(2026, 1, 1, tzinfo=UTC))
        journal.append(
            encode_log(
                LoggedPrediction(
                    id=ident, deployment="buy", model="buy", version=1, role="champion", event_us=when,
                    arrival_us=when, latency_us=300, rows=1, columns={"x": [1.0]}, scores=[0.5],
                )
            )
        )  # fmt: skip
    workspace.monitoring.ingest()
    assert "accepted   1" in run("label", ident, "1")[1]
    assert "revised    1" in run("label", ident, "0")[1]
    _, out, err = run("label", ident, "0")
    assert "duplicate  1" in out
    assert "stands" not in err
    _, out, err = run("label", ident, "1")
    assert "duplicate  1" in out
    assert "0 since: the newer one counts" in err
    assert "--at TIME" in err
    assert "revised    1" in run("label", ident, "1", "--at", "2026-02-03T15:30:00Z")[1]
    (label,) = workspace.labels.get_labels([f"{ident}/0"])
    assert (label.value, label.at) == (1, datetime(2026, 2, 3, 15, 30, tzinfo=UTC))
    code, _, err = run("label", ident, "1", "--at", "soon")
    assert code == 2
    assert "a date or time is expected" in err


def test_a_line_that_is_no_label_says_what_one_is(root: Path, run: Run) -> None:
    (root / "labels.csv").write_text("prediction_id,value\na,1\n")
    code, _, err = run("label", "--file", "labels.csv")
    assert code == 2
    assert 'Write one JSON object on each line: {"prediction_id": "...", "value": ...}.' in err
