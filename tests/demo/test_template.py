"""The project template as a user has it: a workspace, real flights, a run, a registered version."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

import mainspring
from mainspring.demo.world import World
from mainspring.errors import CheckFailed
from mainspring.workspace import open_workspace

# In a process of its own: the loader walks every loaded module, and pytest's own are not to be walked.
RUN = """
import json, sys
from mainspring.pipelines import Runner
from mainspring.workspace import open_workspace
root, params = sys.argv[1], json.loads(sys.argv[2])
if __name__ == "__main__":
    with open_workspace(root) as workspace:
        opener = {"opener": "mainspring.workspace:open_workspace", "workspace": {"root": root}}
        print(Runner(workspace.base, workspace.pipelines, root=root, **opener).run("pipelines/train.py:train", params).id)
"""

TEMPLATE = Path(mainspring.__file__).parent / "templates" / "flights"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    shutil.copytree(TEMPLATE, root, ignore=shutil.ignore_patterns("__pycache__"))
    world = World.load()
    for n in range(1, 29):
        world.deliver(date(2013, 1, 1) + timedelta(days=n), root / "feed")
    return root


def _run(project: Path, params: dict[str, object]) -> str:
    script = project / "run_it.py"
    script.write_text(RUN)
    done = subprocess.run(
        [sys.executable, str(script), str(project), json.dumps(params)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_run_registers_a_version_with_all_it_came_from(project: Path) -> None:
    params = {
        "until": "2013-01-28T00:00:00+00:00",
        "feed": str(project / "feed"),
        "trials": 3,
        "holdout_days": 6,
    }
    first = _run(project, params)
    with open_workspace(project) as workspace:
        version = workspace.models.get_version(model="delay")
        assert (version.version, version.run, version.label) == (1, first, "late")
        assert version.metrics["auc"] > 0.55
        assert version.format == "onnx"  # the fast form
        training = workspace.data.get_version_by_id(version.dataset_version)
        holdout = workspace.data.get_version_by_id(version.holdout)
        assert training.rows > 10_000
        assert max(workspace.data.read("delay-train")["label_arrived_at"].to_pylist()) <= min(
            workspace.data.read("delay-holdout")["event_time"].to_pylist()
        )
        assert workspace.training.get_holdout(dataset_version=holdout.id).uses == 1
    again = _run(project, params)
    with open_workspace(project) as workspace:
        states = {step.step: step.state for step in workspace.pipelines.list_steps(run=again)}
        assert states["tune"] == "cached"
        assert workspace.models.get_version(model="delay").run == again


def test_the_templates_hold_what_only_their_author_knows() -> None:
    """Profile, lock, evaluation, registration and edges follow from types: no line of a template does them."""
    limits = {"flights": 130, "basic": 60}
    for name, limit in limits.items():
        text = (TEMPLATE.parent / name / "pipelines" / "train.py").read_text()
        assert len(text.splitlines()) < limit, name
        assert not re.search(
            r"save_and_register|lock_holdout|use_holdout|record_evaluation|get_profile|workspace", text
        )


def test_a_corrupted_batch_is_refused_with_its_rows(project: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_workspace(project) as workspace:
        checks = workspace.settings.config.data["flights"].checks
        good = pq.read_table(project / "feed" / "2013-01-10.parquet")
        workspace.data.commit("flights", good, checks=checks)
        distance = pa.array([-5.0, *good["distance"].to_pylist()[1:]])
        bad = good.set_column(good.schema.get_field_index("distance"), "distance", distance)
        with pytest.raises(CheckFailed, match="range"):
            workspace.data.commit("flights", bad, checks=checks)
        assert len(workspace.data.list_versions("flights").items) == 1
        (report,) = workspace.data.list_refusals("flights")
        assert report.findings[0].sample[0].values["distance"] == -5.0
