"""One story through all rooms, in real processes: train, gate, deploy, serve, label, drift, retrain, canary, roll back.

The control plane and the inference server are processes of their own; this test only talks HTTP to them. It is told
twice, on SQLite with local objects and on PostgreSQL with S3: the project is the same, the environment differs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mainspring.remote import RemoteWorkspace

START = datetime(2024, 1, 1, tzinfo=UTC)

POLICY = """
[project]
name = "shop"
[storage]
clock = "manual"
[model.buy]
pipeline = "pipelines/train.py:train"
label_delay = "1d"
gate = [
  { metric = "auc", min = 0.6 },
  { metric = "log_loss", versus = "champion", max_worse = 0.05, test = "point" },
]
[deploy.buy]
model = "buy"
stages = [{ shadow = true, min_requests = 40 }, { canary = 0.5, min_labels = 60, max_for = "30d" }, { full = true }]
rollback = [{ metric = "error_rate", max = 0.01 }, { metric = "log_loss", versus = "champion", max_worse = 0.02, min_rows = 40 }]
freeze = "1d"
[monitor.buy]
window = "1d"
min_rows = 30
min_labels = 30
psi = 0.2
metric = "log_loss"
retrain_on = ["drift", "performance"]
cooldown = "3d"
"""

PIPELINE = """
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import mainspring as ms
from mainspring.records.models import Column, Signature, Task

SIGNATURE = Signature(
    inputs=[Column(name="age", type="float64"), Column(name="town", type="string")], task=Task.BINARY, classes=["no", "yes"]
)


@ms.step(cache=False)
def collect(until: str) -> pa.Table:
    moment = pa.scalar(datetime.fromisoformat(until), pa.timestamp("us", "UTC"))
    rows = pa.concat_tables([pq.read_table(f) for f in sorted(Path("feed").glob("*.parquet"))])
    return rows.filter(pc.less_equal(rows["label_arrived_at"], moment)).sort_by("event_time")


@ms.step
def fit(rows: pa.Table, invert: bool) -> dict[str, float]:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    workspace = ms.current().workspace()
    holdout, training = rows.slice(rows.num_rows - 200), rows.slice(0, rows.num_rows - 200)
    kept = [workspace.data.commit("shop-train", training), workspace.data.commit("shop-holdout", holdout)]
    x = np.array(list(zip(training["age"].to_pylist(), training["town"].to_pylist())), dtype=object)
    y = np.array(training["yes"].to_pylist())
    prepare = ColumnTransformer([("n", StandardScaler(), [0]), ("t", OneHotEncoder(handle_unknown="ignore", sparse_output=False), [1])])
    fitted = make_pipeline(prepare, LogisticRegression()).fit(x, y)
    version = workspace.models.save_and_register(
        fitted, model="buy", signature=SIGNATURE, sample={c: holdout[c].to_pylist() for c in ("age", "town")}, run=ms.current().run,
        dataset_version=kept[0].id, holdout=kept[1].id, label="yes", profile=workspace.data.get_profile_object("shop-train", kept[0].id).digest,
    )
    return {"version": float(version.version)}


@ms.pipeline
def train(until: str, invert: bool = False):
    return fit(collect(until), invert)
"""


def _rows(day: datetime, count: int, rng: random.Random, *, shift: float = 0.0) -> dict[str, list[Any]]:
    ages = [min(90.0, max(18.0, rng.gauss(40 + shift, 12))) for _ in range(count)]
    towns = [rng.choice(["Oslo", "Bergen", "Trondheim"]) for _ in range(count)]
    chance = [
        1 / (1 + 2.718281828 ** -((age - 40 - shift) / 8 + (1 if town == "Oslo" else 0)))
        for age, town in zip(ages, towns, strict=True)
    ]
    return {
        "event_time": [day + timedelta(minutes=i) for i in range(count)],
        "label_arrived_at": [day + timedelta(days=1, minutes=i) for i in range(count)],
        "age": ages,
        "town": towns,
        "yes": [rng.random() < c for c in chance],
    }


def _deliver(root: Path, day: datetime, rows: dict[str, list[Any]]) -> None:
    table = pa.table(rows)
    for name in ("event_time", "label_arrived_at"):
        table = table.set_column(
            table.schema.get_field_index(name), name, table[name].cast(pa.timestamp("us", "UTC"))
        )
    pq.write_table(table, root / "feed" / f"{day:%Y-%m-%d}.parquet")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    (root / "pipelines").mkdir(parents=True)
    (root / "feed").mkdir()
    (root / "mainspring.toml").write_text(POLICY)
    (root / "pipelines" / "train.py").write_text(PIPELINE)
    return root


@pytest.fixture
def running(project: Path, storage: dict[str, str]) -> Iterator[dict[str, Any]]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mainspring.cli",
            "-C",
            str(project),
            "up",
            "--json",
            "--port",
            "0",
            "--serving-port",
            "0",
            "--tick",
            "0",
            "--poll",
            "0.1",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAINSPRING")} | storage,
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        with process.stdout:
            assert process.wait(timeout=30) == 0


class Traffic:
    """Requests by day, and their labels the day after."""

    def __init__(self, inference: str) -> None:
        self._client = httpx2.Client(base_url=inference, trust_env=False)
        self.failed = 0
        self.sent: list[tuple[str, bool]] = []

    def day(self, rows: dict[str, list[Any]]) -> None:
        self.sent = []
        for at, age, town, truth in zip(
            rows["event_time"], rows["age"], rows["town"], rows["yes"], strict=True
        ):
            answer = self._client.post(
                "/v1/deployments/buy/predict",
                json={"rows": [{"age": age, "town": town}], "event_time": at.isoformat()},
            )
            if answer.status_code != 200:
                self.failed += 1
            else:
                self.sent.append((answer.json()["prediction_id"], truth))

    def close(self) -> None:
        self._client.close()


def _job(workspace: RemoteWorkspace, ident: str) -> Any:
    for _ in range(600):
        job = workspace.loop.get_job(job=ident)
        if job.state.value in {"finished", "failed"}:
            assert job.error is None, job.error
            return job
        time.sleep(0.1)
    raise AssertionError("the job did not end")


def _wait_for_routes(inference: str, number: int) -> None:
    for _ in range(200):
        if httpx2.get(f"{inference}/v1/status", trust_env=False).json()["routes"] >= number:
            return
        time.sleep(0.05)
    raise AssertionError("the inference server did not take the new routes")


@pytest.mark.timeout(300)
def test_the_loop_turns(project: Path, running: dict[str, Any]) -> None:
    rng = random.Random(7)
    token = (project / ".mainspring" / "token").read_text()
    for offset in range(5):
        _deliver(project, START + timedelta(days=offset), _rows(START + timedelta(days=offset), 200, rng))
    with RemoteWorkspace(running["url"], token=token, project="shop") as workspace:
        traffic = Traffic(running["inference"])
        now = START + timedelta(days=7)
        workspace.loop.set_clock(now=now)

        # The first version: trained, judged, deployed.
        first = _job(workspace, workspace.loop.request_retrain(deployment="buy", reason="first model").id)
        taken = [d.action for d in workspace.loop.tick().decisions]
        assert taken == ["gate_pass", "start", "promote"]
        assert workspace.loop.get_verdict(verdict=first.verdict).passed

        # A quiet stretch, then the people who come get 25 years older: drift.
        actions: list[str] = []
        jobs: set[str] = {first.id}
        prediction = ""
        for offset in range(16):
            day = now + timedelta(days=offset)
            rows = _rows(day, 120, rng, shift=0.0 if offset < 3 else 25.0)
            _deliver(project, day, rows)
            table = workspace.deploy.publish()
            _wait_for_routes(running["inference"], table.number)
            labels, traffic.sent = traffic.sent, []
            if labels:
                items = [{"prediction_id": p, "value": truth} for p, truth in labels]
                counts = workspace.labels.record_feedback(items=items)  # type: ignore[arg-type]
                assert counts.accepted + counts.parked == len(items)
            traffic.day(rows)
            prediction = prediction or traffic.sent[0][0]
            workspace.loop.set_clock(now=day + timedelta(days=1))
            result = workspace.loop.tick()
            actions += [d.action for d in result.decisions]
            for ident in set(result.jobs) - jobs:
                jobs.add(ident)
                _job(workspace, ident)
                actions += [d.action for d in workspace.loop.tick().decisions]
        traffic.close()

        assert traffic.failed == 0
        assert "retrain" in actions
        assert (
            actions.index("retrain")
            < actions.index("gate_pass")
            < actions.index("start")
            < actions.index("advance")
            < actions.index("promote")
        ), actions
        assert workspace.models.get_version(model="buy", selector="champion").version >= 2
        assert workspace.monitoring.get_counts(deployment="buy").requests == 16 * 120

        # From a prediction to the bytes that caused it, and back.
        origin = workspace.lineage.get_origin(ref=f"prediction:{prediction}")
        kinds = {n.kind for n in origin.nodes}
        assert {"model_version", "run", "dataset_version", "code", "environment"} <= kinds, kinds
        training = next(
            n for n in origin.nodes if n.kind == "dataset_version" and n.facts["dataset"] == "shop-train"
        )
        reach = workspace.lineage.get_blast_radius(ref=training.ref)
        assert "model_version:buy@1" in {n.ref for n in reach.nodes}

        # What was decided can be decided again; nothing was altered.
        replayed = workspace.loop.replay()
        assert replayed.same, replayed.differences
        assert replayed.decisions >= len(actions)
        assert workspace.lineage.verify().ok
