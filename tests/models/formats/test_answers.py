"""What a model answers: labels as they were given, decision values, thresholds of one's own, several numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor, VotingClassifier
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from mainspring.errors import InvalidInput
from mainspring.metrics.registry import list_metrics, measure
from mainspring.models import formats
from mainspring.models.formats.model import Model
from mainspring.models.formats.saving import _wrong_labels
from mainspring.records.classes import LabelReader, class_labels
from mainspring.records.models import Column, Signature, Task
from mainspring.records.scores import ScoreMeaning, classes_of, meaning_of
from mainspring.serving.answers import AnswerEncoder


def _save(estimator: Any, x: Any, folder: Path, **options: Any) -> Model:
    formats.save(estimator, folder / "p", sample=x[::3], training=x, **options)
    return formats.load(folder / "p")


def _cancer() -> tuple[pd.DataFrame, pd.Series]:
    data = load_breast_cancer(as_frame=True)
    return data.data.iloc[:, :8], data.target


# --- labels and probabilities


@pytest.mark.parametrize(
    "classes", [[0, 1, 2], [1, 2, 3], ["low", "mid", "high"], [1.0, 2.0, 3.0], [-1, 0, 7]]
)
def test_labels_come_back_as_they_were_given(classes: list[Any], tmp_path: Path) -> None:
    data = load_iris(as_frame=True)
    y = np.array(classes, dtype=object if isinstance(classes[0], str) else None)[data.target]
    forest = RandomForestClassifier(10, random_state=0).fit(data.data, y)
    model = _save(forest, data.data, tmp_path)
    predicted = model.predict(data.data)
    assert predicted.tolist() == forest.predict(data.data).tolist()
    assert {type(v) for v in predicted.tolist()} == {type(classes[0])}
    assert model.classes == sorted(classes)
    probabilities = model.predict_proba(data.data)
    assert list(probabilities.columns) == sorted(classes)
    np.testing.assert_allclose(probabilities, forest.predict_proba(data.data), atol=1e-12)


@pytest.mark.parametrize("truth", [[True, False], [1, 0], ["yes", "no"]])
def test_a_binary_model_gives_both_probabilities(truth: list[Any], tmp_path: Path) -> None:
    x, y = _cancer()
    labels = np.array(truth)[y]
    logistic = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, labels)
    model = _save(logistic, x, tmp_path)
    assert model.predict(x).tolist() == logistic.predict(x).tolist()
    np.testing.assert_allclose(model.predict_proba(x), logistic.predict_proba(x), atol=1e-12)
    assert list(model.predict_proba(x).columns) == logistic.classes_.tolist()


def test_the_answer_has_the_kind_of_the_rows(tmp_path: Path) -> None:
    x, y = _cancer()
    x.index = pd.Index(range(1000, 1000 + len(x)), name="patient")
    model = _save(RandomForestClassifier(5, random_state=0).fit(x, y), x, tmp_path)
    assert model.predict(x).index.equals(x.index)
    assert model.predict_proba(x).index.equals(x.index)
    expected = model.predict(x).tolist()
    polars = pl.from_pandas(x)
    assert isinstance(model.predict(polars), pl.Series)
    assert isinstance(model.predict_proba(polars), pl.DataFrame)
    arrow = pa.Table.from_pandas(x, preserve_index=False)
    plain = {name: x[name].tolist() for name in x}
    rows = x.to_dict("records")
    for given in (polars, arrow, plain, rows, x.to_numpy()):
        assert model.predict(given).tolist() if hasattr(model.predict(given), "tolist") else True
        assert (
            list(
                pa.array(model.predict(given)).to_pylist()
                if isinstance(given, pa.Table)
                else model.predict(given)
            )
            == expected
        )


def test_further_columns_are_ignored_and_a_missing_one_is_named(tmp_path: Path) -> None:
    x, y = _cancer()
    model = _save(RandomForestClassifier(5, random_state=0).fit(x, y), x, tmp_path)
    wide = x.assign(note="a", when=pd.Timestamp("2026-01-01"))
    assert model.predict(wide).tolist() == model.predict(x).tolist()
    with pytest.raises(InvalidInput, match="mean radius"):
        model.predict(x.drop(columns="mean radius"))
    with pytest.raises(InvalidInput, match="8 columns"):
        model.predict(x.to_numpy()[:, :3])
    with pytest.raises(InvalidInput, match="no rows"):
        model.predict(7)


def test_whole_numbers_may_arrive_as_floats(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": range(100), "s": list("ab") * 50})
    estimator = LinearRegression().fit(frame[["n"]], frame.n * 2.0)
    model = _save(estimator, frame[["n"]], tmp_path)
    assert model.signature.inputs[0].type == "int64"
    assert model.predict({"n": [27.0]})[0] == pytest.approx(54.0)


# --- decision values


@pytest.mark.parametrize(
    "estimator",
    [LinearSVC(), RidgeClassifier(), Perceptron(), SGDClassifier(random_state=0),
     VotingClassifier([("a", RidgeClassifier()), ("b", RandomForestClassifier(5, random_state=0))], voting="hard")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
@pytest.mark.parametrize("several", [False, True])
def test_a_classifier_without_probabilities_is_saved(estimator: Any, several: bool, tmp_path: Path) -> None:
    data = (load_wine if several else load_breast_cancer)(as_frame=True)
    x, y = data.data.iloc[:, :6], data.target.map(lambda v: f"class {v}")
    fitted = make_pipeline(StandardScaler(), estimator).fit(x, y)
    model = _save(fitted, x, tmp_path)
    assert model.signature.scores == "decision"
    assert model.predict(x).tolist() == fitted.predict(x).tolist()
    if hasattr(fitted, "decision_function"):
        np.testing.assert_allclose(model.decision_function(x), fitted.decision_function(x), atol=1e-9)
    with pytest.raises(InvalidInput, match="gives no probabilities"):
        model.predict_proba(x)


def test_decision_values_have_no_log_loss() -> None:
    """Seen red: with the check of the meaning removed, decision values between 0 and 1 had a log-loss."""
    decisions = ScoreMeaning(probabilities=False, threshold=0.0)
    y, scores = [0, 1, 1, 0], [-0.5, 0.2, 0.7, 0.1]
    assert measure(y, scores, task=Task.BINARY, names=["accuracy"], meaning=decisions) == {"accuracy": 0.75}
    with pytest.raises(InvalidInput, match="gives decision values"):
        measure(y, scores, task=Task.BINARY, names=["log_loss"], meaning=decisions)
    names = {m.name for m in list_metrics(Task.BINARY, decisions)}
    assert {"accuracy", "auc", "f1"} <= names
    assert not names & {"log_loss", "brier", "calibration_error"}
    assert measure(y, scores, task=Task.BINARY, meaning=decisions)["auc"] == 1.0


# --- thresholds


@pytest.mark.parametrize(
    "estimator",
    [FixedThresholdClassifier(LogisticRegression(max_iter=3000), threshold=0.2),
     FixedThresholdClassifier(LinearSVC(), threshold=0.5, response_method="decision_function"),
     FixedThresholdClassifier(LogisticRegression(max_iter=3000), threshold=0.3, pos_label="benign"),
     TunedThresholdClassifierCV(LogisticRegression(max_iter=3000), scoring="balanced_accuracy")],
    ids=["probability", "decision", "first class", "tuned"],
)  # fmt: skip
def test_a_threshold_of_ones_own_is_kept(estimator: Any, tmp_path: Path) -> None:
    """Seen red: with 0.5 as the threshold of the metrics, the accuracy of the labels was another than scikit-learn's."""
    x, y = _cancer()
    labels = np.array(["benign", "malignant"])[y]
    x = (x - x.mean()) / x.std()
    estimator.fit(x, labels)
    model = _save(estimator, x, tmp_path)
    assert model.predict(x).tolist() == estimator.predict(x).tolist()
    meaning = meaning_of(model.signature)
    scores = model.compute_scores({n: x[n].to_numpy() for n in x})
    accuracy = measure(y, scores, task=Task.BINARY, names=["accuracy", "recall"], meaning=meaning)
    assert accuracy["accuracy"] == pytest.approx(np.mean(estimator.predict(x) == labels))
    encoder = AnswerEncoder(model.signature)
    assert encoder.list_labels(scores.tolist()) == estimator.predict(x).tolist()


def test_scores_at_a_threshold() -> None:
    assert classes_of([0.19, 0.2, 0.21], 0.2).tolist() == [0, 0, 1]


# --- several numbers


@pytest.mark.parametrize(
    ("estimator", "names"),
    [(LinearRegression(), ["target_0", "target_1"]), (RandomForestRegressor(5, random_state=0), ["target_0", "target_1"]),
     (PCA(2), ["pca0", "pca1"])],
    ids=["linear", "forest", "pca"],
)  # fmt: skip
def test_several_numbers_for_a_row(estimator: Any, names: list[str], tmp_path: Path) -> None:
    x, _ = _cancer()
    fitted = estimator.fit(x, np.column_stack([x.iloc[:, 0] * 2, -x.iloc[:, 1]]))
    model = _save(fitted, x, tmp_path)
    assert model.signature.task is Task.VALUES
    assert model.signature.outputs == names
    answer = model.predict(x)
    assert list(answer.columns) == names
    expected = fitted.predict(x) if hasattr(fitted, "predict") else fitted.transform(x)
    np.testing.assert_allclose(answer, expected, rtol=1e-9, atol=1e-9)
    encoded = AnswerEncoder(model.signature).encode_predictions([[1.0, 2.0]])
    assert encoded == f'[{{"values":{{"{names[0]}":1.0,"{names[1]}":2.0}}}}]'.encode()


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["a", "b", "c"]},
        {"classes": ["a", "a"]},
        {"class_values": ["0"]},
        {"task": "multiclass", "classes": []},
        {"task": "values", "classes": []},
        {"task": "values", "classes": [], "outputs": ["a", "a"]},
        {"inputs": [{"name": "x0", "type": "float64"}] * 3},
    ],
)
def test_a_signature_whose_names_no_answer_can_have_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    """Seen red: all were loaded; then answers lost a value, or could not be written."""
    x = np.random.default_rng(1).normal(size=(60, 3))
    formats.save(LogisticRegression().fit(x, (x[:, 0] > 0).astype(int)), tmp_path / "m", sample=x)
    manifest = json.loads((tmp_path / "m" / formats.MANIFEST).read_bytes())
    manifest["signature"] |= change
    (tmp_path / "m" / formats.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match="signature"):
        formats.load(tmp_path / "m")


def test_names_of_several_targets_can_be_given(tmp_path: Path) -> None:
    x, _ = _cancer()
    fitted = LinearRegression().fit(x, x.iloc[:, :2])
    signature = formats.infer_signature(x, task="values", outputs=["width", "height"])
    assert list(_save(fitted, x, tmp_path, signature=signature).predict(x).columns) == ["width", "height"]
    with pytest.raises(InvalidInput, match="answers 2 numbers"):
        wrong = formats.infer_signature(x, task="values", outputs=["width"])
        formats.save(fitted, tmp_path / "q", signature=wrong, sample=x)


def test_several_numbers_have_no_label() -> None:
    reader = LabelReader.of(
        Signature(inputs=[Column(name="x", type="float64")], task=Task.VALUES, outputs=["a"])
    )
    assert reader.read(1.0) is None
    assert "has no label" in reader.refusal(1.0).message


# --- the signature


def test_the_signature_follows_from_the_estimator_and_the_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "size": [1.5, None, 3.0, 4.0] * 10,
            "rooms": range(40),
            "kind": pd.Categorical(["b", "a", "b", "c"] * 10, categories=["c", "b", "a"]),
            "text": ["x", "y", None, "z"] * 10,
            "new": [True, False] * 20,
            "unused": ["u"] * 40,
        }
    )
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder

    columns = ["text", "size", "rooms", "kind", "new"]
    inputs = make_column_transformer(
        (SimpleImputer(), ["size"]),
        (OneHotEncoder(handle_unknown="ignore"), ["kind", "text"]),
        remainder="passthrough",
    )
    estimator = make_pipeline(inputs, RandomForestClassifier(5, random_state=0)).fit(
        frame[columns], frame.rooms % 3
    )
    model = _save(estimator, frame, tmp_path)
    described = [(c.name, c.type, c.nullable, c.categories) for c in model.signature.inputs]
    assert described == [
        ("text", "string", True, []), ("size", "float64", True, []), ("rooms", "int64", False, []),
        ("kind", "string", False, ["c", "b", "a"]), ("new", "bool", False, []),
    ]  # fmt: skip
    assert model.predict(frame).tolist() == estimator.predict(frame[columns]).tolist()


def test_an_array_has_names_of_its_own(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(80, 3))
    model = _save(LinearRegression().fit(x, x[:, 0]), x, tmp_path)
    assert [c.name for c in model.signature.inputs] == ["x0", "x1", "x2"]
    np.testing.assert_allclose(model.predict(x), x[:, 0], atol=1e-9)
    with pytest.raises(InvalidInput, match="fitted on 3 columns"):
        formats.save(LinearRegression().fit(x, x[:, 0]), tmp_path / "q", sample=x[:, :2])


def test_of_a_search_its_best_is_saved(tmp_path: Path) -> None:
    x, y = _cancer()
    search = GridSearchCV(RandomForestClassifier(5, random_state=0), {"max_depth": [1, 4]}).fit(x, y)
    model = _save(make_pipeline(StandardScaler(), search).fit(x, y), x, tmp_path)
    assert model.package.format == "onnx"
    with pytest.raises(InvalidInput, match="kept no estimator"):
        formats.save(GridSearchCV(LinearSVC(), {"C": [1]}, refit=False).fit(x, y), tmp_path / "q", sample=x)


def test_classes_of_an_old_signature_are_read_by_their_text() -> None:
    inputs = [Column(name="x", type="float64")]
    assert class_labels(Signature(inputs=inputs, task=Task.BINARY)) == [0, 1]
    assert class_labels(Signature(inputs=inputs, task=Task.MULTICLASS, classes=["1", "2"])) == [1, 2]
    named = Signature(
        inputs=inputs, task=Task.BINARY, classes=["no", "yes"], class_values=["0", "1"], class_type="int64"
    )
    assert class_labels(named) == ["no", "yes"]
    assert class_labels(Signature(inputs=inputs, task=Task.REGRESSION)) == []


@pytest.mark.parametrize(("ties", "wrong"), [(1, 0), (100, 100)])
def test_ties_excuse_few_labels(ties: int, wrong: int) -> None:
    """Seen red without the bound: an estimator that decides by something else was saved with a quarter of its labels wrong."""
    scores = np.tile([0.6, 0.3, 0.1], (400, 1))
    scores[:ties] = 1 / 3
    own = np.zeros(400, dtype=int)
    own[:ties] = 2  # the estimator names another of the classes that are equally probable
    found = _wrong_labels(scores, scores, own, np.ones(400, dtype=bool), threshold=0.5, rounding=1e-12)
    assert int(found.sum()) == wrong
