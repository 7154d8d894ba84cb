"""Frames, estimators and fitted models between steps."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from mainspring.errors import UnsafeFormat
from mainspring.pipelines import artifacts, estimators
from mainspring.pipelines.context import StepContext
from mainspring.workspace import open_workspace


def keep(value: Any, folder: Path, *, hint: object = None) -> Any:
    """A value as the next step gets it."""
    saved = artifacts.save(value, folder, name="value", number=0, hint=None, place="test")
    return artifacts.load(saved.kind, Path(saved.path), type_name=saved.type, hint=hint, place="test")


def test_a_frame_of_pandas_comes_back_as_it_was(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "n": [1.5, None, 3.0],
            "k": pd.Categorical(["a", "b", "a"]),
            "t": pd.date_range("2024-01-01", periods=3, tz="UTC"),
            "s": ["x", None, "z"],
        },
        index=pd.Index([7, 8, 9], name="id"),
    )
    back = keep(frame, tmp_path)
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)
    assert list(back["k"].cat.categories) == ["a", "b"]
    pd.testing.assert_series_equal(keep(frame["n"], tmp_path), frame["n"])


def test_a_frame_of_polars_comes_back_as_it_was(tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": [1, None, 3], "s": ["x", "y", None]})
    assert keep(frame, tmp_path).equals(frame)
    assert keep(frame.lazy(), tmp_path).collect().equals(frame)
    assert keep(frame["s"], tmp_path).equals(frame["s"])


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.Table])
def test_the_annotation_of_a_parameter_decides(tmp_path: Path, kind: type) -> None:
    """Seen red with every table given as an Arrow table."""
    for value in (pd.DataFrame({"x": [1, 2]}), pl.DataFrame({"x": [1, 2]}), pa.table({"x": [1, 2]})):
        back = keep(value, tmp_path, hint=kind)
        assert isinstance(back, kind)
        assert list(back["x"].to_pylist() if isinstance(back, pa.Table) else back["x"]) == [1, 2]


def test_a_plain_call_reads_a_dataset_as_the_annotation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same step in a test and in a run. Seen red with an Arrow table for every parameter."""
    import mainspring as ms

    (tmp_path / "mainspring.toml").write_text('[project]\nname = "tiny"\n')
    monkeypatch.chdir(tmp_path)
    ms.commit("rows", {"x": [1, 2]})

    def of_pandas(n: int, rows: pd.DataFrame) -> type:
        return type(rows)

    def of_any(rows: Any) -> type:
        return type(rows)

    # What the strings of "from __future__ import annotations" name is found in the module of the step.
    assert ms.step(of_pandas)(1, ms.dataset("rows")) is pd.DataFrame
    assert ms.step(of_pandas)(1, rows=ms.dataset("rows")) is pd.DataFrame
    assert ms.step(of_any)(ms.dataset("rows")) is pa.Table


def test_an_estimator_comes_back_as_itself_and_equal_ones_are_equal_bytes(tmp_path: Path) -> None:
    """Seen red on the bytes of skops itself, which hold addresses of memory."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 3)), rng.integers(0, 2, 80)
    made = [
        make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0)).fit(x, y) for _ in range(2)
    ]
    first, second = (estimators.to_bytes(m, place="test") for m in made)
    assert first == second
    back = keep(made[0], tmp_path)
    assert type(back) is type(made[0])
    np.testing.assert_array_equal(back.predict_proba(x), made[0].predict_proba(x))


def test_an_estimator_that_is_no_plain_data_is_refused_where_it_is_read() -> None:
    """Bytes that were changed after a step wrote them. Seen red with skops.io.load called without the check."""
    from sklearn.linear_model import LogisticRegression

    data = estimators.to_bytes(LogisticRegression().fit([[0], [1]], [0, 1]), place="test")
    with zipfile.ZipFile(BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["schema.json"] = (
        files["schema.json"]
        .replace(b'"LogisticRegression"', b'"Popen"')
        .replace(b"sklearn.linear_model._logistic", b"subprocess")
    )
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    for wrong in (out.getvalue(), pickle.dumps(LogisticRegression())):
        with pytest.raises(UnsafeFormat):
            estimators.from_bytes(wrong)


def test_a_value_may_say_what_a_step_keeps_of_it(tmp_path: Path) -> None:
    from mainspring.pipelines.execute import execute
    from mainspring.pipelines.job import Place, Task
    from mainspring.records.pipelines import StepJob

    class Thing:
        def __mainspring_output__(self, context: StepContext) -> dict[str, str]:
            return {"run": context.run}

    def make() -> tuple[Thing, int]:
        return Thing(), 2

    (tmp_path / "work").mkdir()
    job = StepJob(project="p", run="r1", execution="e1", pipeline="p", step="make", attempt=1, at="", function="", arguments={}, sources={}, params={})  # fmt: skip
    result = execute(Task(job, Place(root=str(tmp_path), scratch=str(tmp_path), inputs={})), make)
    assert result.error is None, result.error
    assert json.loads(Path(result.outputs[0].path).read_bytes()) == {"run": "r1"}


PROJECT = """
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
import mainspring as ms

@ms.step
def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(b=rows["a"] ** 2)

@ms.step
def scale(rows: pd.DataFrame) -> StandardScaler:
    return StandardScaler().fit(rows[["a", "b"]])

@ms.step
def fit(rows: pd.DataFrame, scaler: StandardScaler, seed: int) -> ms.Fitted:
    assert isinstance(scaler, StandardScaler)
    train, holdout = rows.iloc[:80], rows.iloc[80:]
    model = LogisticRegression(random_state=seed).fit(train[["a", "b"]], train["y"])
    return ms.Fitted(model, train, "y", holdout, name="m")

@ms.step
def report(made: dict) -> str:
    return f"{made['model']} {made['version']} {made['metrics']['accuracy'] > 0.5}"

@ms.step
def keep(rows: pd.DataFrame) -> str:
    return ms.commit("kept", rows).id

@ms.pipeline
def train(seed: int = 0):
    rows = prepare(ms.dataset("rows"))
    keep(rows)
    return report(fit(rows, scale(rows), seed))
"""

RUN = """
import sys
from mainspring.pipelines import Runner
from mainspring.workspace import open_workspace
if __name__ == "__main__":
    root = sys.argv[1]
    with open_workspace(root) as workspace:
        opener = {"opener": "mainspring.workspace:open_workspace", "workspace": {"root": root}}
        print(Runner(workspace.base, workspace.pipelines, root=root, **opener).run("train.py:train", {}).id)
"""


def test_a_step_that_returns_a_fitted_estimator_registers_it(tmp_path: Path) -> None:
    """Version, rows, profile, locked hold-out, evaluation and edges of the run; a second run takes the version from the cache."""
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "tiny"\n')
    (tmp_path / "train.py").write_text(PROJECT)
    (tmp_path / "run_it.py").write_text(RUN)
    a = np.random.default_rng(0).normal(size=120)
    with open_workspace(tmp_path) as workspace:
        rows = workspace.data.commit("rows", pd.DataFrame({"a": a, "y": a > 0}))

    def run() -> str:
        command = [sys.executable, str(tmp_path / "run_it.py"), str(tmp_path)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    first = run()
    with open_workspace(tmp_path) as workspace:
        version = workspace.models.get_version("m")
        steps = {s.step: s for s in workspace.pipelines.list_steps(run=first)}
        assert [(o.kind, o.type) for o in steps["scale"].outputs] == [("estimator", "sklearn.StandardScaler")]
        assert (version.version, version.run, version.label) == (1, first, "y")
        assert version.profile is not None
        assert version.signature.classes == ["False", "True"]
        assert workspace.training.get_holdout(dataset_version=version.holdout or "").uses == 1
        assert len(workspace.training.list_evaluations(subject="model_version:m@1").items) == 1
        assert steps["fit"].metrics["accuracy"] == version.metrics["accuracy"]
        origin = {n.ref for n in workspace.lineage.get_origin(ref="model_version:m@1").nodes}
        assert {f"run:{first}", f"dataset_version:{rows.id}", f"step:{steps['fit'].id}"} <= origin
        kept = {
            n.ref
            for n in workspace.lineage.get_origin(
                ref=f"dataset_version:{workspace.data.get_version('kept').id}"
            ).nodes
        }
        assert f"run:{first}" in kept  # ms.commit in a step leads to its run
        text = b"".join(workspace.objects.get(digest=steps["report"].outputs[0].digest).chunks)
        assert json.loads(text) == "m 1 True"
    second = run()
    with open_workspace(tmp_path) as workspace:
        assert {s.state for s in workspace.pipelines.list_steps(run=second)} == {"cached"}
        assert workspace.models.get_version("m").version == 1
