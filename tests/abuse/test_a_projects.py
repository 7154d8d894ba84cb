"""Two projects in one database: what is of one is not there for the other (SAFETY A03, A04)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mainspring.config import load
from mainspring.errors import MainspringError
from mainspring.operations import Download, Kind, operations_of
from mainspring.records.base import to_json
from mainspring.records.loop import RuleResult
from mainspring.records.models import Column, Signature, Task
from mainspring.records.pipelines import StepResult
from mainspring.rooms import ROOMS, room_class
from mainspring.workspace import Workspace

POLICY = """
[project]
name = "one"
[model.buy]
pipeline = "pipelines/train.py:train"
[deploy.buy]
model = "buy"
"""
CANARY = "canary-5f1e"
SIGNATURE = Signature(inputs=[Column(name="x", type="float64")], task=Task.BINARY, classes=["no", "yes"])


@pytest.fixture
def projects(tmp_path: Path) -> Iterator[tuple[Workspace, Workspace]]:
    (tmp_path / "mainspring.toml").write_text(POLICY)
    with Workspace(load(tmp_path)) as one, Workspace(load(tmp_path), project="two") as two:
        yield one, two


def fill(one: Workspace) -> dict[str, Any]:
    """A thing of every kind in the project, and by which arguments they are asked for."""
    from sklearn.linear_model import LogisticRegression

    x = np.linspace(-1, 1, 60).reshape(-1, 1)
    fitted = LogisticRegression().fit(x, (x[:, 0] > 0).astype(int))
    data = one.data.commit("flats", pa.table({"size": [1, 2, 3]}), message=CANARY)
    one.training.lock_holdout(dataset_version=data.id)
    run = one.tracking.create_run(experiment="e", name=CANARY)
    rows = {"x": x[:, 0].tolist()}
    one.models.save_and_register(fitted, model="buy", signature=SIGNATURE, sample=rows, training=rows)
    one.models.set_alias(model="buy", alias="champion", version=1, reason=CANARY)
    one.deploy.deploy(deployment="buy", model="buy", reason=CANARY)
    rules = [RuleResult(rule={"metric": "auc"}, passed=True, value=0.7, reason=CANARY)]
    verdict = one.loop.record_verdict(model="buy", version=1, champion=None, gate="0" * 64, rules=rules)
    job = one.loop.request_retrain(deployment="buy", reason=CANARY)
    digest = one.objects.put(body=iter([CANARY.encode()])).digest
    return {
        "dataset": "flats", "selector": "latest", "before": "latest", "after": "latest", "dataset_version": data.id, "id": data.id,
        "run": run.id, "key": "loss", "path": "x", "model": "buy", "version": 1, "alias": "champion", "deployment": "buy", "name": "buy",
        "verdict": verdict.id, "job": job.id, "attempt": 1, "digest": digest, "package": digest, "ref": f"run:{run.id}", "refs": [f"run:{run.id}"], "reason": "r",
        "purpose": "p", "tag": "t", "tags": {}, "alive_s": 1.0, "size": len(CANARY), "a": "1", "b": "1", "metric": "auc", "window": "w",
        "step": "s", "predictions": ["x"], "prediction_id": "x", "policy": {}, "inputs": [f"dataset_version:{data.id}"], "batch_id": "b",
        "execution": run.id, "worker": "w", "token": "t", "result": StepResult(), "consumer": "told", "seq": 1,
        "items": [], "gate": "0" * 64, "rules": [], "champion": None, "targets": [], "files": {},
    }  # fmt: skip


def rows_of(workspace: Workspace, project: str) -> dict[str, list[Any]]:
    """Everything that a project has in the database, but what any reader leaves (access counts have rows of their own)."""
    found = {}
    with workspace.base.store.read() as tx:
        for table in [
            r["name"] for r in tx.all("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]:
            columns = {c["name"] for c in tx.all(f"SELECT name FROM pragma_table_info('{table}')")}
            if "project" in columns:
                rows = tx.all(f"SELECT * FROM {table} WHERE project = ?", project)
                found[table] = sorted(repr(sorted(r.items())) for r in rows)
    return found


def test_a03_ids_of_another_project_open_and_change_nothing(projects: tuple[Workspace, Workspace]) -> None:
    """A03, A04, for every operation of every room: no answer holds a word of the other project, and no row of it changes.

    Seen red with ``project = ?`` without effect in the look-up of a run, and in that of an object's references.
    """
    one, two = projects
    known = fill(one)
    before = rows_of(one, "one")
    tried = 0
    for name in ROOMS:
        for operation in operations_of(room_class(name)).values():
            if operation.policy.kind is Kind.UPLOAD or operation.id == "loop.set_clock":
                continue
            needed = [n for n, p in operation.parameters.items() if p.default is p.empty]
            optional = [n for n in ("run", "dataset", "model", "deployment") if n in operation.parameters]
            if set(needed) - set(known) - {"evaluation"}:
                pytest.fail(f"{operation.id}: say in fill() what to ask for: {set(needed) - set(known)}")
            if "evaluation" in needed:
                continue
            arguments = {n: known[n] for n in {*needed, *optional}}
            tried += 1
            try:
                result = getattr(two.room(name), operation.name)(**arguments)
                told = b"".join(result.chunks) if isinstance(result, Download) else to_json(result)
            except MainspringError as error:
                told = str(error).encode()
            assert CANARY.encode() not in told, operation.id
    assert tried > 60
    assert rows_of(one, "one") == before
