"""A small project with everything in it, made through the real rooms; every text that a user may choose is hostile."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mainspring.clock import to_us
from mainspring.errors import CheckFailed
from mainspring.records.base import new_id
from mainspring.records.data import NotNullRule
from mainspring.records.labels import Feedback
from mainspring.records.models import Column, Signature, Task
from mainspring.records.serving import LOG_PREFIX, LoggedPrediction, encode_log
from mainspring.records.tracking import Point
from mainspring.storage.journal import JournalWriter
from mainspring.testing.server import running_server
from mainspring.workspace import Workspace, open_workspace

START = datetime(2024, 1, 1, tzinfo=UTC)
TOKEN = "msp_" + "t" * 43
EVIL = '<script>window.__xss=1</script>{{7*7}}"><img src=x onerror="window.__xss=2">\'</title></script><svg onload=window.__xss=3>'
"""A script, a template expression, an attribute and a quote, in one text (B04)."""

POLICY = """
[project]
name = "shop"
[storage]
clock = "manual"
[model.buy]
pipeline = "pipelines/train.py:train"
[deploy.buy]
model = "buy"
freeze = "2d"
[monitor.buy]
window = "1d"
min_rows = 30
min_labels = 30
metric = "log_loss"
"""

PIPELINE = f"""
import mainspring as ms

EVIL = {EVIL!r}


@ms.step(isolation="inline")
def prepare(text: str) -> str:
    print(text)
    return text


@ms.step(isolation="inline", cache=False)
def fit(text: str) -> float:
    raise ValueError(text)


@ms.pipeline
def train(text: str = EVIL):
    return fit(prepare(text))
"""


@dataclass(frozen=True)
class Shop:
    """Where the seeded project is, and ids of what is in it."""

    root: Path
    run: str
    other_run: str
    pipeline_run: str
    prediction: str
    dataset_version: str

    @property
    def paths(self) -> list[str]:
        """Every kind of page."""
        return [
            "/", "/models", "/models/buy", "/models/buy/versions/1", "/models/buy/versions/2", "/deployments", "/deployments/buy",
            "/deployments/buy/monitoring", "/runs", f"/runs/{self.run}", f"/runs/compare?run={self.run}&run={self.other_run}",
            "/pipelines", f"/pipelines/{self.pipeline_run}", f"/pipelines/{self.pipeline_run}?step=prepare", "/data", "/data/people",
            "/data/people/2", "/data/people/1..2", f"/versions/{self.dataset_version}", "/timeline", "/timeline?kind=model.", "/lineage",
            "/lineage?ref=model_version:buy@1", f"/lineage?ref=prediction:{self.prediction}", f"/predictions/{self.prediction}",
        ]  # fmt: skip


def _people(count: int, seed: int, *, shift: float = 0.0) -> dict[str, list[Any]]:
    rng = random.Random(seed)
    return {
        "age": [rng.gauss(40 + shift, 10) for _ in range(count)],
        EVIL: [rng.choice([EVIL, "Oslo", "Bergen"]) for _ in range(count)],
        "yes": [rng.random() < 0.5 for _ in range(count)],
    }


def _train(workspace: Workspace, seed: int, version_id: str) -> None:
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rows = _people(300, seed)
    x = np.array(list(zip(rows["age"], rows[EVIL], strict=True)), dtype=object)
    prepare = ColumnTransformer(
        [
            ("n", StandardScaler(), [0]),
            ("t", OneHotEncoder(handle_unknown="ignore", sparse_output=False), [1]),
        ]
    )
    fitted = make_pipeline(prepare, LogisticRegression()).fit(x, np.array(rows["yes"]))
    signature = Signature(
        inputs=[Column(name="age", type="float64"), Column(name=EVIL, type="string")],
        task=Task.BINARY,
        classes=["no", EVIL],
    )
    workspace.models.save_and_register(
        fitted, model="buy", format="skops", signature=signature, sample={k: rows[k] for k in ("age", EVIL)}, dataset_version=version_id,
        label="yes", profile=workspace.data.get_profile_object("people", 1).digest, metrics={"log_loss": 0.6, EVIL: 0.5},
        tags={"caveats": EVIL},
    )  # fmt: skip


def _traffic(workspace: Workspace) -> str:
    """Five days of requests, drifting on the last; all but the last labelled. Returns a prediction's id."""
    writer = JournalWriter(workspace.settings.home / "bundle" / "log", prefix=LOG_PREFIX)
    first = ""
    for day in range(5):
        rows = _people(60, 10 + day, shift=25.0 if day == 4 else 0.0)
        items = []
        for i in range(60):
            at = START + timedelta(days=day, minutes=i)
            ident = new_id()
            first = first or f"{ident}/0"
            writer.append(
                encode_log(
                    LoggedPrediction(
                        id=ident, deployment="buy", model="buy", version=1, role="champion", event_us=to_us(at), arrival_us=to_us(at),
                        latency_us=300 + i, columns={k: [rows[k][i]] for k in ("age", EVIL)}, scores=[0.3 + i / 150],
                        routes=1,
                    )
                )
            )  # fmt: skip
            items.append(Feedback(prediction_id=f"{ident}/0", value=rows["yes"][i], source=EVIL))
        writer.sync()
        workspace.loop.set_clock(now=START + timedelta(days=day + 1))
        workspace.monitoring.ingest()
        if day < 4:
            workspace.labels.record_feedback(items=items)
        workspace.monitoring.evaluate_windows()
    writer.close()
    return first


def _seed(root: Path) -> Shop:
    import pyarrow as pa

    (root / "pipelines").mkdir(parents=True)
    (root / "mainspring.toml").write_text(POLICY)
    (root / "pipelines" / "train.py").write_text(PIPELINE)
    with open_workspace(root) as workspace:
        workspace.loop.set_clock(now=START)
        first = workspace.data.commit("people", pa.table(_people(300, 1)), message=EVIL)
        second = workspace.data.commit("people", pa.table(_people(310, 2)), message=EVIL)
        with contextlib.suppress(CheckFailed):
            broken = pa.table({"age": [1.0, None], EVIL: [EVIL, EVIL]})
            workspace.data.commit("people", broken, checks=[NotNullRule(column="age")])
        _train(workspace, 1, first.id)
        _train(workspace, 2, second.id)
        models = workspace.models
        for version in (2, 1):
            models.set_alias(model="buy", alias="champion", version=version, reason=EVIL)
        models.approve(model="buy", version=1, reason=EVIL)
        workspace.deploy.deploy(deployment="buy", model="buy", version=1, reason=EVIL)
        tracking = workspace.tracking.operations
        runs = []
        for i in range(2):
            run = tracking.create_run(
                experiment="tries",
                name=EVIL,
                params={EVIL[:100]: EVIL, "seed": str(i)},
                tags={EVIL[:100]: EVIL},
            )
            points = [Point.of(EVIL[:100], 1 / (s + 1), step=s) for s in range(20)] + [
                Point.of("nan", float("nan"))
            ]
            tracking.log_batch(run=run.id, batch_id=f"b{i}", metrics=points)
            runs.append(tracking.finish_run(run=run.id))
        ended = workspace.execution.run("pipelines/train.py:train", check=False)
        prediction = _traffic(workspace)
        workspace.loop.request_retrain(deployment="buy", reason=EVIL)
    return Shop(root, runs[0].id, runs[1].id, ended.id, prediction, first.id)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The seeded project."""
    return _seed(tmp_path_factory.mktemp("pages") / "shop")


@pytest.fixture(scope="session")
def shop_workspace(shop: Shop) -> Iterator[Workspace]:
    with open_workspace(shop.root) as workspace:
        yield workspace


@pytest.fixture(scope="session")
def shop_server(shop_workspace: Workspace) -> Iterator[str]:
    """The control plane on a real socket."""
    (shop_workspace.settings.home / "token").write_text(TOKEN)
    with running_server(shop_workspace) as running:
        yield running.url
