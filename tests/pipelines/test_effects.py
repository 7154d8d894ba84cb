"""Steps that commit data or register models are taken from the cache as what they left, or not at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from mainspring.errors import NotFound
from mainspring.loop.worker import registered_by
from mainspring.pipelines.loading import forget_projects
from mainspring.workspace import Workspace, open_workspace

pytestmark = pytest.mark.timeout(1800)

PIPELINE = """
import numpy as np
import pyarrow as pa
import mainspring as ms
from mainspring.records.models import Column, Signature, Task

@ms.step
def clean(rows: pa.Table, least: int) -> pa.Table:
    import pyarrow.compute as pc
    return rows.filter(pc.greater_equal(rows["x"], least))

@ms.step(isolation=ISOLATION)
def fit(rows: pa.Table) -> dict[str, int]:
    from sklearn.linear_model import LinearRegression
    context = ms.current()
    workspace = context.workspace()
    data = workspace.data.commit("clean", rows, inputs=[context.run_ref])
    x = np.array(rows["x"].to_pylist(), dtype=float).reshape(-1, 1)
    version = workspace.models.save_and_register(
        LinearRegression().fit(x, 2 * x[:, 0]), model="twice", run=context.run, dataset_version=data.id,
        signature=Signature(inputs=[Column(name="x", type="float64")], task=Task.REGRESSION),
        sample={"x": rows["x"].to_pylist()},
    )
    workspace.tracking.operations.log_artifact(
        run=context.run, path="profile.json", digest=workspace.data.get_profile_object("clean").digest,
        size=workspace.data.get_profile_object("clean").size,
    )
    return {"version": version.version}

@ms.step
def decide(version: int) -> int:
    ms.current().workspace().models.approve(model="twice", version=version, reason="by the pipeline")
    return version

@ms.pipeline
def train(least: int = 0, version: str = "latest"):
    fit(clean(ms.dataset("numbers", version), least))

@ms.pipeline
def approved():
    decide(1)
"""


@pytest.fixture(params=["process", "inline"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    root = tmp_path / "project"
    root.mkdir()
    (root / "mainspring.toml").write_text('[project]\nname = "numbers"\n')
    (root / "p.py").write_text(PIPELINE.replace("ISOLATION", repr(request.param)))
    forget_projects(root)
    with open_workspace(root) as opened:
        opened.data.commit("numbers", pa.table({"x": list(range(20))}))
        yield opened


def _states(workspace: Workspace, run: str) -> dict[str, str]:
    return {s.step: s.state for s in workspace.pipelines.list_steps(run=run)}


def test_a_hit_returns_the_same_versions_and_leads_to_them(workspace: Workspace) -> None:
    """Seen red on 0.1: no effects were known, so the second run led to no version at all."""
    first = workspace.execution.run("p.py:train")
    made = workspace.models.get_version(model="twice")
    second = workspace.execution.run("p.py:train")
    assert _states(workspace, second.id) == {"clean": "cached", "fit": "cached"}
    assert workspace.models.get_version(model="twice") == made
    assert len(workspace.data.list_versions("clean").items) == 1
    told = {(e.effect.kind, e.effect.ref): e.reused for e in workspace.pipelines.get_effects(run=second.id)}
    data = workspace.data.get_version("clean")
    assert told[("model_version", "model_version:twice@1")] is True
    assert told[("dataset_version", f"dataset_version:{data.id}")] is True
    assert not any(e.reused for e in workspace.pipelines.get_effects(run=first.id))
    into = {(e.source, e.kind) for e in workspace.lineage.get_origin(ref=f"run:{second.id}", depth=1).edges}
    assert ("model_version:twice@1", "reused") in into
    # A retrain that found everything as it was has a version to judge. Seen red on 0.1: "registered no version".
    assert registered_by(workspace, "twice", second.id) == made
    # The artifact of the step stands in the new run too.
    kept = workspace.tracking.list_artifacts(run=second.id).items
    assert [a.path for a in kept] == ["profile.json"]
    # The new run caused nothing of what it took.
    causes = {n.ref for n in workspace.lineage.get_origin(ref="model_version:twice@1").nodes}
    assert f"run:{first.id}" in causes
    assert f"run:{second.id}" not in causes
    assert workspace.lineage.verify().ok


def test_a_hit_whose_versions_were_deleted_is_a_miss_that_says_so(workspace: Workspace) -> None:
    workspace.execution.run("p.py:train")
    workspace.data.delete_version("clean", "latest", reason="wrong", force=True)
    why = {w.step: w for w in workspace.execution.plan("p.py:train")}
    assert why["clean"].hit
    assert not why["fit"].hit
    assert why["fit"].reason == "version 1 of dataset clean, which it committed, was deleted"
    second = workspace.execution.run("p.py:train")
    assert _states(workspace, second.id) == {"clean": "cached", "fit": "finished"}
    assert workspace.models.get_version(model="twice").run == second.id


def test_what_no_reference_can_stand_for_is_done_again(workspace: Workspace) -> None:
    workspace.execution.run("p.py:train")
    for _ in range(2):
        workspace.execution.run("p.py:approved")
    assert len(workspace.models.list_approvals(model="twice", version=1)) == 2
    why = workspace.execution.plan("p.py:approved")[0]
    assert (why.hit, why.reason) == (False, "it called models.approve, which no earlier result can replace")


def test_a_dataset_is_read_by_version_and_stands_in_the_graph(workspace: Workspace) -> None:
    first = workspace.data.get_version("numbers")
    run = workspace.execution.run("p.py:train")
    assert any("dataset numbers" in w.reason for w in workspace.execution.plan("p.py:train"))
    second = workspace.data.commit("numbers", pa.table({"x": list(range(30))}))
    why = workspace.execution.plan("p.py:train")[0]
    assert (why.hit, why.reason) == (False, "input numbers changed")
    again = workspace.execution.run("p.py:train")
    assert workspace.models.get_version(model="twice").version == 2
    pinned = workspace.execution.run("p.py:train", {"version": "1"})
    assert set(_states(workspace, pinned.id).values()) == {"cached"}
    for number, made, taken in ((1, run, first), (2, again, second)):
        graph = workspace.lineage.get_origin(ref=f"model_version:twice@{number}")
        refs = {n.ref for n in graph.nodes}
        assert {f"run:{made.id}", f"dataset_version:{taken.id}"} <= refs
    reached = {n.ref for n in workspace.lineage.get_blast_radius(ref=f"dataset_version:{first.id}").nodes}
    assert "model_version:twice@1" in reached
    assert "model_version:twice@2" not in reached


def test_an_interrupted_run_reads_the_version_that_it_began_with(workspace: Workspace) -> None:
    """Seen red with the selector resolved again on resume."""
    root = workspace.settings.root
    (root / "q.py").write_text(
        "from pathlib import Path\nimport pyarrow as pa\nimport mainspring as ms\n"
        "@ms.step(cache=False, paths=False)\ndef first(file: str) -> int:\n    return len(Path(file).read_text())\n"
        "@ms.step(cache=False)\ndef second(n: int, rows: pa.Table) -> int:\n    return rows.num_rows\n"
        "@ms.pipeline\ndef work(file: str = 'there'):\n    second(first(file), ms.dataset('numbers'))\n"
    )
    failed = workspace.execution.run("q.py:work", check=False)
    assert failed.state == "failed"
    workspace.data.commit("numbers", pa.table({"x": [1]}))
    (root / "there").write_text("x")
    ended = workspace.execution.resume(failed.id)
    step = next(s for s in workspace.pipelines.list_steps(run=ended.id) if s.step == "second")
    assert workspace.base.objects.read(step.outputs[0].digest) == b"20"


def test_a_dataset_nobody_committed_says_what_to_type(workspace: Workspace) -> None:
    workspace.data.delete_version("numbers", "1", reason="gone", force=True)
    with pytest.raises(NotFound, match="mainspring data commit numbers FILE"):
        workspace.execution.plan("p.py:train")


def test_equal_content_from_a_later_run_has_its_first_origin(workspace: Workspace) -> None:
    """Seen red on 0.1: every run that committed the bytes again became a cause of them."""
    rows = pa.table({"y": [1, 2, 3]})
    first = workspace.data.commit("raw", rows, inputs=["run:first"])
    workspace.data.commit("raw", rows, inputs=["run:second"])
    workspace.data.commit("copy", rows, inputs=["run:third", f"dataset_version:{first.id}"])
    graph = workspace.lineage.get_origin(ref=f"dataset_version:{first.id}")
    assert {e.source for e in graph.edges} == {"run:first"}


READING = """
import mainspring as ms
@ms.step
def count(rows): return rows.num_rows
@ms.pipeline
def work(): return count(ms.dataset("numbers"))
print(work(), count(ms.dataset("numbers", 1)))
"""


def test_a_plain_call_reads_the_dataset_too(workspace: Workspace) -> None:
    script = workspace.settings.root / "plain.py"
    script.write_text(READING)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=script.parent, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["20", "20"], done.stderr
