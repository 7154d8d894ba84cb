"""``ms.log_model``: from a fitted estimator and its rows to a version that records what the long way records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import make_regression
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import LinearSVC

import mainspring as ms
from mainspring.errors import InvalidInput
from mainspring.loop.worker import gate
from mainspring.records.models import ModelVersion, Task
from mainspring.testing.server import running_server
from mainspring.training.fitted import Fitted, ModelOptions
from mainspring.verification import verify
from mainspring.workspace import Workspace, open_workspace

RNG = np.random.default_rng(3)
N = 160


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mainspring.toml").write_text(
        '[project]\nname = "tiny"\n[model.churn]\npipeline = "train.py:train"\ngate = [{ metric = "accuracy", min = 0.5 }]\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workspace(project: Path) -> Iterator[Workspace]:
    with open_workspace(project) as opened:
        yield opened


def people(rows: int = N, seed: int = 0) -> pd.DataFrame:
    """Who leaves, by age and plan; with the day, an identifier and the label beside the inputs."""
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 12, rows).round(1)
    plan = rng.choice(["free", "basic", "gold"], rows)
    left = np.where(rng.random(rows) < 1 / (1 + np.exp(-((age - 40) / 5 + (plan == "free")))), "left", "here")
    day = pd.date_range("2024-01-01", periods=rows, freq="6h", tz="UTC")
    return pd.DataFrame({"customer": range(rows), "day": day, "age": age, "plan": plan, "churned": left})


def fit_people(frame: pd.DataFrame) -> Any:
    columns = make_column_transformer((OneHotEncoder(), ["plan"]), remainder=SimpleImputer())
    return make_pipeline(columns, LogisticRegression(max_iter=500)).fit(
        frame[["age", "plan"]], frame["churned"]
    )


def numbers(rows: int = N) -> tuple[Any, Any]:
    x = np.random.default_rng(5).normal(size=(rows, 3))
    return x, (x[:, 0] + 0.3 * RNG.normal(size=rows) > 0).astype(int)


# --- what is recorded -------------------------------------------------------------------------------------------------


def register_the_long_way(
    workspace: Workspace, estimator: Any, train: pd.DataFrame, holdout: pd.DataFrame
) -> ModelVersion:
    """What a user types without ``log_model``: the yardstick of the tests below."""
    with workspace.tracking.start_run(experiment="default", name="long") as run:
        run.flush()
        inputs = [f"run:{run.id}"]
        training = workspace.data.commit("long-train", train, inputs=inputs)
        judging = workspace.data.commit("long-holdout", holdout, inputs=inputs)
        run.log_inputs(training.id)
        workspace.training.lock_holdout(dataset_version=judging.id)
        workspace.training.use_holdout(dataset_version=judging.id, purpose="evaluation", by="test")
        accuracy = accuracy_score(holdout["churned"], estimator.predict(holdout[["age", "plan"]]))
        run.log_metric("accuracy", accuracy)
        run.flush()
        return workspace.models.save_and_register(
            estimator, model="long", sample=holdout[["age", "plan"]], training=train[["age", "plan"]], metrics={"accuracy": accuracy},
            run=run.id, dataset_version=training.id, holdout=judging.id, label="churned",
            profile=workspace.data.get_profile_object("long-train", training.id).digest,
        )  # fmt: skip


def test_nothing_answers_less_than_for_the_long_way(workspace: Workspace) -> None:
    """Origin, verification of all bytes, audit, gate and replay. Seen red with a run that captures no code."""
    train, holdout = people(), people(seed=1)
    estimator = fit_people(train)
    long = register_the_long_way(workspace, estimator, train, holdout)
    short = ms.log_model(estimator, train, "churned", name="churn", holdout=holdout)
    reports = {}
    for version in (long, short):
        graph = workspace.lineage.get_origin(ref=f"model_version:{version.model}@{version.version}")
        verification = verify(workspace, graph)
        assert verification.ok
        plain = {
            c.what.replace("long", "churn").split(" ")[0].partition("@")[0] for c in verification.checked
        }
        reports[version.model] = (
            {n.kind for n in graph.nodes},
            {e.kind for e in graph.edges},
            plain,
            len(verification.checked),
        )
    assert reports["churn"][0] >= reports["long"][0]
    assert reports["churn"][1] >= reports["long"][1]
    assert reports["churn"][3] >= reports["long"][3]
    for field in ("run", "dataset_version", "holdout", "label", "profile", "code", "environment"):
        assert (getattr(short, field) is None) == (getattr(long, field) is None), field
        assert getattr(short, field) is not None, field
    assert short.signature == long.signature
    assert short.metrics["accuracy"] == long.metrics["accuracy"]
    assert short.holdout == long.holdout  # the same rows: one use each
    assert workspace.training.get_holdout(dataset_version=short.holdout or "").uses == 2
    (evaluation,) = workspace.training.list_evaluations(subject="model_version:churn@1").items
    assert evaluation.metrics["accuracy"].value == short.metrics["accuracy"]
    assert gate(workspace, workspace.settings.config.model["churn"], short).passed
    assert workspace.lineage.verify().ok
    assert workspace.loop.replay().same


def test_the_same_on_a_server(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the spool of a remote run is in the user's cache
    train, holdout = people(), people(seed=1)
    with running_server(workspace) as server:
        monkeypatch.setenv("MAINSPRING_URL", server.url)
        monkeypatch.setenv("MAINSPRING_TOKEN", server.token)
        with ms.open() as there, there.tracking.start_run(experiment="by-hand") as run:
            version = ms.log_model(fit_people(train), train, "churned", name="churn", holdout=holdout)
    assert version.run == run.id
    assert None not in (version.profile, version.code, version.environment)
    assert workspace.tracking.get_run(run=run.id).metrics["accuracy"].value == version.metrics["accuracy"]
    assert (
        workspace.models.load("churn").predict(holdout).tolist()
        == fit_people(train).predict(holdout[["age", "plan"]]).tolist()
    )


# --- kinds of rows ----------------------------------------------------------------------------------------------------

KINDS = {
    "pandas": lambda x, y: (pd.DataFrame(x, columns=["a", "b", "c"]), pd.Series(y, name="y")),
    "polars": lambda x, y: (pl.DataFrame(x, schema=["a", "b", "c"]), pl.Series("y", y)),
    "arrow": lambda x, y: (pa.table(dict(zip("abc", x.T, strict=True))), pa.array(y)),
    "numpy": lambda x, y: (x, y),
    "lists": lambda x, y: (x.tolist(), y.tolist()),
    "column": lambda x, y: (pd.DataFrame(x, columns=["a", "b", "c"]).assign(y=y), "y"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_kind(kind: str, workspace: Workspace) -> None:
    """The metrics are scikit-learn's own, and the version answers as the estimator does."""
    x, y = numbers()
    rows, labels = KINDS[kind](x[:100], y[:100])
    others, truth = KINDS[kind](x[100:], y[100:])
    features = rows.drop(columns="y") if kind == "column" else rows
    estimator = LogisticRegression().fit(features, y[:100])
    version = ms.log_model(
        estimator, rows, labels, name="m", holdout=others if kind == "column" else (others, truth)
    )
    unseen = others.drop(columns="y") if kind == "column" else others
    assert version.signature.task is Task.BINARY
    assert version.metrics["log_loss"] == pytest.approx(log_loss(y[100:], estimator.predict_proba(unseen)))
    assert version.metrics["accuracy"] == pytest.approx(accuracy_score(y[100:], estimator.predict(unseen)))
    assert version.label == ("target" if kind in {"numpy", "lists", "arrow"} else "y")
    held = workspace.data.read("m-holdout", version.holdout or "")
    assert held[version.label].to_pylist() == y[100:].tolist()
    assert held.num_rows == 60


def test_texts_and_numbers_in_lists_keep_their_types(workspace: Workspace) -> None:
    """Seen red with numpy.array of the rows: every number became a text."""
    rows = [[20.0 + i, "free" if i % 2 else "gold"] for i in range(40)]
    y = [i % 2 for i in range(40)]
    columns = make_column_transformer((OneHotEncoder(), [1]), remainder="passthrough")
    estimator = make_pipeline(columns, LogisticRegression()).fit(np.array(rows, dtype=object), y)
    version = ms.log_model(estimator, rows, y, name="m", holdout=(rows, y))
    assert [c.type for c in version.signature.inputs] == ["float64", "string"]


def test_columns_that_the_estimator_does_not_use_stay_with_the_rows(workspace: Workspace) -> None:
    train, holdout = people(), people(seed=1)
    version = ms.log_model(
        fit_people(train),
        train,
        "churned",
        name="churn",
        holdout=holdout,
        time="day",
        slices=["plan"],
        nullable=["age"],
    )
    assert [(c.name, c.nullable) for c in version.signature.inputs] == [("age", True), ("plan", False)]
    assert version.tags["time_column"] == "day"
    assert workspace.data.read("churn-train").column_names == train.columns.tolist()
    (evaluation,) = workspace.training.list_evaluations(subject="model_version:churn@1").items
    assert evaluation.metrics["accuracy"].blocks == holdout["day"].dt.date.nunique()
    assert {s.value for s in evaluation.slices} == {"free", "basic", "gold"}


def test_labels_in_a_series_replace_the_column_of_their_name(workspace: Workspace) -> None:
    train, holdout = people(), people(seed=1)
    version = ms.log_model(
        fit_people(train),
        train,
        train["churned"],
        name="churn",
        holdout=(holdout, holdout["churned"].rename("other")),
    )
    assert version.label == "churned"
    assert workspace.data.read("churn-holdout").column_names.count("churned") == 1


@pytest.mark.parametrize("role", ["group", "slices"])
def test_labels_do_not_replace_the_column_by_which_rows_are_grouped(role: str, workspace: Workspace) -> None:
    """Seen red: the labels took the place of the groups, and the intervals were of two groups, one for each class."""
    train = people().assign(kind=np.arange(N) % 20)
    y = train["churned"].rename("kind")
    options: dict[str, Any] = {role: "kind" if role == "group" else ["kind"]}
    version = ms.log_model(fit_people(train), train, y, name="churn", holdout=(train, y), **options)
    assert version.label == "kind_target"
    rows = workspace.data.read("churn-train", str(version.dataset_version)).to_pandas()
    assert rows["kind"].tolist() == train["kind"].tolist()
    assert rows["kind_target"].tolist() == y.tolist()


@pytest.mark.parametrize(
    "rows",
    [
        {1: [1.0, 2.0, 3.0, 4.0], "1": [9.0, 8.0, 7.0, 6.0]},
        pd.DataFrame(np.ones((4, 2)), columns=["a", "a"]),
        pa.table([pa.array([1.0, 2.0, 3.0, 4.0])] * 2, names=["a", "a"]),
    ],
)
def test_two_columns_of_one_name_are_refused(rows: Any, workspace: Workspace) -> None:
    """Seen red for 1 and "1": the second took the place of the first, and the metrics were of other rows than the estimator's."""
    model = LogisticRegression().fit([[1.0], [2.0], [3.0], [4.0]], [0, 0, 1, 1])
    with pytest.raises(InvalidInput, match="two columns of one name"):
        ms.log_model(model, rows, [0, 0, 1, 1], name="churn")


@pytest.mark.parametrize("given", ["record", "id", "name"])
def test_the_version_that_the_rows_come_from_is_in_the_origin(given: str, workspace: Workspace) -> None:
    train, holdout = people(), people(seed=1)
    source = workspace.data.commit("people", people(400, seed=2))
    form: Any = {"record": source, "id": source.id, "name": "people@1"}[given]
    ms.log_model(fit_people(train), train, "churned", name="churn", holdout=holdout, source=form)
    origin = workspace.lineage.get_origin(ref="model_version:churn@1")
    assert f"dataset_version:{source.id}" in {n.ref for n in origin.nodes}


# --- tasks -------------------------------------------------------------------------------------------------------------


def test_a_classifier_without_probabilities_has_the_metrics_of_its_labels(workspace: Workspace) -> None:
    """Seen red with the metrics of probabilities: log-loss of decision values."""
    x, y = numbers()
    estimator = LinearSVC().fit(x[:100], y[:100])
    version = ms.log_model(estimator, x[:100], y[:100], name="m", holdout=(x[100:], y[100:]))
    assert version.signature.scores == "decision"
    assert {n for n in version.metrics if "." not in n} == {"auc", "accuracy"}
    assert version.metrics["accuracy"] == pytest.approx(estimator.score(x[100:], y[100:]))


def test_a_regression(workspace: Workspace) -> None:
    x, y = make_regression(N, 3, noise=5.0, random_state=0)
    estimator = LinearRegression().fit(x[:100], y[:100])
    version = ms.log_model(
        estimator, x[:100], y[:100], name="m", holdout=(x[100:], y[100:]), metrics=["bias"]
    )
    assert version.metrics["r2"] == pytest.approx(estimator.score(x[100:], y[100:]))
    assert "bias" in version.metrics


def test_what_has_no_labels(workspace: Workspace) -> None:
    """A transformer: profile, rows and origin, and nothing to evaluate."""
    x, _ = numbers()
    estimator = PCA(2).fit(x)
    version = ms.log_model(estimator, x, name="m")
    assert version.signature.outputs == ["pca0", "pca1"]
    assert (version.label, version.holdout, version.metrics) == (None, None, {})
    assert version.profile is not None
    with pytest.raises(InvalidInput, match="nothing that a hold-out could judge"):
        ms.log_model(estimator, x, name="m", holdout=x)


def test_several_targets(workspace: Workspace) -> None:
    x, y = make_regression(N, 3, n_targets=2, random_state=0)
    version = ms.log_model(LinearRegression().fit(x, y), x, y, name="m")
    assert version.signature.task is Task.VALUES
    assert workspace.data.read("m-train").column_names == ["x0", "x1", "x2", "target_0", "target_1"]


def test_without_a_holdout_no_gate_can_judge_and_it_says_so(workspace: Workspace) -> None:
    x, y = numbers()
    estimator = LogisticRegression().fit(x, y)
    with pytest.warns(UserWarning, match="no gate can judge"):
        version = ms.log_model(estimator, x, y, name="m")
    assert version.holdout is None
    assert version.metrics["train.accuracy"] == pytest.approx(estimator.score(x, y))
    assert all(name.startswith("train.") for name in version.metrics)
    assert workspace.training.list_evaluations(subject="model_version:m@1").items == []


# --- the run -----------------------------------------------------------------------------------------------------------


def test_it_logs_to_the_run_that_is_current(workspace: Workspace) -> None:
    """Seen red with a run begun at every call."""
    x, y = numbers()
    estimator = LogisticRegression().fit(x[:100], y[:100])
    given: Any = (estimator, x[:100], y[:100])
    outer = ms.start_run("outer")
    with ms.start_run("inner") as inner:
        assert ms.log_model(*given, name="m", holdout=(x[100:], y[100:])).run == inner.id
        assert not inner.ended
    assert ms.log_model(*given, name="m", holdout=(x[100:], y[100:]), format="skops").run == outer.id
    outer.finish()
    third = ms.log_model(*given, name="m", holdout=(x[100:], y[100:]))
    assert third.run not in {inner.id, outer.id}
    record = workspace.tracking.get_run(run=third.run or "")
    assert record.status == "finished"
    assert record.params["estimator"] == "LogisticRegression"
    assert "accuracy" in record.metrics


def test_a_run_of_another_project_is_refused(tmp_path: Path, workspace: Workspace) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mainspring.toml").write_text('[project]\nname = "other"\n')
    x, y = numbers()
    with (
        open_workspace(other) as elsewhere,
        elsewhere.tracking.start_run() as run,
        pytest.raises(InvalidInput, match="not one of this project"),
    ):
        ms.log_model(LogisticRegression().fit(x, y), x, y, name="m", run=run)
    assert workspace.models.list_models() == []


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": None}, "needs the labels"),
        ({"y": np.zeros(5)}, "5 labels for 100 rows"),
        ({"y": np.array([np.nan] + [0.0, 1.0] * 49 + [1.0])}, "have no label"),
        ({"holdout": (np.zeros((4, 3)), [0, 1, 2, 0])}, "class that the estimator does not know"),
        ({"holdout": np.zeros((4, 3))}, "labels of its own"),
        ({"holdout": (np.zeros((4, 2)), [0, 1, 0, 1])}, "lack|no such|column"),
        ({"X": np.zeros((100, 4))}, "fitted on 3 columns"),
        ({"X": np.zeros((0, 3)), "y": []}, "there are no training rows"),
        ({"X": 7}, "no table"),
        ({"time": "when"}, "no such column"),
        ({"nullable": ["nothing"]}, "may be null is an input"),
        ({"name": "no/name"}, "name"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_right_is_refused(change: dict[str, Any], message: str, workspace: Workspace) -> None:
    x, y = numbers()
    given: dict[str, Any] = {"X": x[:100], "y": y[:100], "name": "m", "holdout": (x[100:], y[100:])} | change
    with pytest.raises(InvalidInput, match=message):
        ms.log_model(LogisticRegression().fit(x, y), **given)
    assert workspace.models.list_models() == []


def test_the_options_of_log_model_are_those_of_fitted() -> None:
    fields = set(Fitted.__dataclass_fields__) - {"estimator", "train", "target", "holdout", "name"}
    assert set(ModelOptions.__annotations__) == fields
