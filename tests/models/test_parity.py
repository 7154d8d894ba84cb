"""What a save compares, what it refuses, and what it stores about refusals."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.errors import InvalidInput, UnsafeFormat
from mainspring.models import formats
from mainspring.models.formats.parity import NULL, REAL, UNSEEN, make_rows
from mainspring.models.formats.saving import ParityFailed
from mainspring.records.models import Column, Signature, Task
from mainspring.records.scores import class_of, classes_of


def _signature(*columns: Column, task: Task = Task.BINARY, classes: list[str] | None = None) -> Signature:
    return Signature(inputs=list(columns), task=task, classes=classes or [])


def _floats(names: str, *, nullable: bool = False) -> list[Column]:
    return [Column(name=n, type="float64", nullable=nullable) for n in names]


# --- the estimator on the data as given


@pytest.mark.parametrize("form", ["auto", "skops"])
def test_a_forest_that_learned_from_nan_answers_nan_as_it_learned(form: str, tmp_path: Path) -> None:
    """Seen red in 0.1: the sample held no null, parity said 3e-7, and most rows with a null were answered otherwise."""
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(10)
    x = rng.normal(size=(500, 5))
    y = (x[:, 0] - x[:, 1] > 0).astype(int)
    x[rng.random(x.shape) < 0.2] = np.nan
    forest = RandomForestClassifier(25, max_depth=6, random_state=1).fit(x, y)
    whole = x[~np.isnan(x).any(axis=1)][:60]
    formats.save(
        forest, tmp_path / "p", signature=_signature(*_floats("abcde", nullable=True)),
        sample=dict(zip("abcde", whole.T, strict=True)), format=form,
    )  # fmt: skip
    scores = formats.load(tmp_path / "p").compute_scores(dict(zip("abcde", x.T, strict=True)))
    np.testing.assert_array_equal(scores, forest.predict_proba(x)[:, 1])


@pytest.mark.parametrize("form", ["onnx", "skops"])
@pytest.mark.parametrize("null", ["pandas", "None", "NaN"])
def test_a_null_text_is_what_it_was_in_training(null: str, form: str, tmp_path: Path) -> None:
    """Seen red in 0.1: the reference itself was given "" for null, so that parity said 0 and labels were wrong."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(11)
    town = np.array([None, "u", "v", ""], dtype=object)[rng.choice(4, 400, p=[0.4, 0.3, 0.25, 0.05])]
    is_null = np.array([t is None for t in town])
    y = np.where(rng.random(400) < 0.1, ~is_null, is_null).astype(int)
    frame = pd.DataFrame({"x": rng.normal(size=400), "town": town})
    if null == "None":
        frame["town"] = pd.Series(town, dtype=object)
    elif null == "NaN":
        frame["town"] = pd.Series([np.nan if t is None else t for t in town], dtype=object)
    encode = ColumnTransformer(
        [("t", OneHotEncoder(handle_unknown="ignore"), ["town"]), ("x", StandardScaler(), ["x"])]
    )
    estimator = make_pipeline(encode, LogisticRegression()).fit(frame, y)
    columns = {"x": frame.x.tolist(), "town": list(town)}
    signature = _signature(
        Column(name="x", type="float64"), Column(name="town", type="string", nullable=True)
    )
    formats.save(estimator, tmp_path / "p", signature=signature, sample=columns, format=form)
    loaded = formats.load(tmp_path / "p")
    expected = estimator.predict_proba(frame)[:, 1]
    np.testing.assert_allclose(loaded.compute_scores(columns), expected, rtol=0, atol=1e-12)
    one = int(np.flatnonzero(is_null)[0])
    without = loaded.compute_scores({"x": [columns["x"][one]]})
    np.testing.assert_allclose(without, expected[[one]], rtol=0, atol=1e-12)


def test_scaled_boosted_trees_repeat_on_all_training_rows(tmp_path: Path) -> None:
    """Seen red in 0.1: 300 rows passed, and hundreds of others crossed a split, also where thresholds had been moved."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(12)
    x = rng.gamma(2.0, 1000.0, size=(2000, 4)).round(2)
    y = (np.sin(x[:, 0] * 7) + np.sin(x[:, 1] * 5) > 0).astype(int)
    estimator = make_pipeline(
        StandardScaler(), HistGradientBoostingClassifier(max_iter=40, min_samples_leaf=2)
    )
    estimator.fit(x, y)
    columns = dict(zip("abcd", x.T, strict=True))
    package = formats.save(
        estimator, tmp_path / "p", signature=_signature(*_floats("abcd")), sample={n: v[:300] for n, v in columns.items()}
    )  # fmt: skip
    assert package.format == "onnx"
    scores = formats.load(tmp_path / "p").compute_scores(columns)
    np.testing.assert_allclose(scores, estimator.predict_proba(x)[:, 1], rtol=0, atol=1e-12)
    single = _convert_to_float32(estimator, x.shape[1])
    assert np.abs(_onnx_scores(single, x) - scores).max() > 1e-3, "float32 would have been another model"


def _convert_to_float32(estimator: Any, columns: int) -> bytes:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    with warnings.catch_warnings():  # skl2onnx sets an int attribute to a bool, which protobuf 6 deprecates
        warnings.simplefilter("ignore")
        model = convert_sklearn(
            estimator,
            initial_types=[("numeric", FloatTensorType([None, columns]))],
            options={"zipmap": False},
        )
    data: bytes = model.SerializeToString()
    return data


def _onnx_scores(data: bytes, x: Any) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"numeric": x.astype(np.float32)})[-1][:, 1]


def test_a_regression_is_measured_against_its_spread(tmp_path: Path) -> None:
    """Seen red in 0.1: float32 keeps 24 bits of 1.7e9, and 60 of spread passed as 4e-8 of the size."""
    from sklearn.linear_model import LinearRegression

    x = np.random.default_rng(13).normal(size=600)
    y = 1.7e9 + 60 * x
    estimator = LinearRegression().fit(x[:, None], y)
    signature = _signature(Column(name="x", type="float64"), task=Task.REGRESSION)
    package = formats.save(estimator, tmp_path / "p", signature=signature, sample={"x": x[:50]})
    assert np.abs(formats.load(tmp_path / "p").compute_scores({"x": x}) - y).max() < 1e-5
    assert package.parity is not None
    assert package.parity.max_abs_difference < 1e-6


def test_a_float32_form_of_a_far_target_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same yardstick refuses: float32 alone cannot hold its answers."""
    from sklearn.linear_model import LinearRegression

    from mainspring.models.formats.onnx import convert

    every = convert.list_forms
    monkeypatch.setattr(convert, "list_forms", lambda *a: [f for f in every(*a) if "float32" in f[0]])
    x = np.random.default_rng(14).normal(size=200)
    estimator = LinearRegression().fit(x[:, None], 1.7e9 + 60 * x)
    signature = _signature(Column(name="x", type="float64"), task=Task.REGRESSION)
    with pytest.raises(ParityFailed, match="does not repeat") as caught:
        formats.save(estimator, tmp_path / "p", signature=signature, sample={"x": x[:50]}, format="onnx")
    assert caught.value.parity is not None
    assert caught.value.parity.max_abs_difference > 0.01
    assert not (tmp_path / "p").exists()


# --- labels


def test_an_exact_tie_has_the_first_class(tmp_path: Path) -> None:
    """A score of exactly 0.5 stays exactly that, and its label is scikit-learn's. The rule's own red is in the next tests."""
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(15)
    x = rng.integers(0, 4, size=(300, 3)).astype(float)
    forest = RandomForestClassifier(4, max_depth=3, bootstrap=True, random_state=0)
    forest.fit(x, np.where(rng.random(300) < 0.5, "no", "yes"))
    columns = dict(zip("abc", x.T, strict=True))
    tree = forest.estimators_[0]
    forest.estimators_ = [tree, tree]
    for side in (0, 1):  # two trees of opposite answers tie on every row
        forest.estimators_[side] = _with_leaves(tree, 1.0 - side, float(side))
    formats.save(forest, tmp_path / "p", signature=_signature(*_floats("abc")), sample=columns)
    model = formats.load(tmp_path / "p")
    assert set(model.compute_scores(columns).tolist()) == {0.5}
    assert model.predict(columns).tolist() == forest.predict(x).tolist() == ["no"] * 300


def _with_leaves(tree: Any, first: float, second: float) -> Any:
    import copy

    made = copy.deepcopy(tree)
    made.tree_.value[:, 0, 0], made.tree_.value[:, 0, 1] = first, second
    return made


def test_one_rule_gives_a_label_one_row_or_many() -> None:
    scores = np.array([0.0, 0.5, np.nextafter(0.5, 1), 1.0])
    assert classes_of(scores).tolist() == [class_of(s) for s in scores.tolist()] == [0, 0, 1, 1]
    wide = [[0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3]]
    assert classes_of(wide).tolist() == [class_of(row) for row in wide] == [0, 2, 0]


def test_serving_gives_the_same_labels() -> None:
    """Seen red in 0.1: a score of 0.5 was answered as the positive class."""
    from mainspring.serving.answers import AnswerEncoder

    encoder = AnswerEncoder(_signature(classes=["no", "yes"]))
    assert encoder.list_labels([0.5, 0.6]) == ["no", "yes"]
    assert encoder.encode_predictions([0.5]) == b'[{"label":"no","score":0.5}]'


@pytest.mark.parametrize(
    ("labels", "names", "fits"),
    [
        (["no", "yes"], ["yes", "nope"], False),
        (["no", "yes"], ["yes", "no"], False),
        (["no", "yes"], ["fine", "late"], False),
        (["no", "yes"], ["no", "yes"], True),
        ([0, 1], ["1", "0"], False),
        ([0, 1], ["0", "late"], False),
        ([0, 1], ["late", "late"], False),
        ([1, 2], ["fine", "late"], False),
        ([0, 1], ["fine", "late"], True),
        ([False, True], ["fine", "late"], True),
        ([1.0, 2.0], [], True),
    ],
)
def test_the_classes_are_the_estimators_or_names_of_its_codes(
    labels: list[Any], names: list[str], fits: bool, tmp_path: Path
) -> None:
    """Seen red in 0.1: ["yes", "nope"] for no and yes made yes the negative class."""
    from sklearn.linear_model import LogisticRegression

    x = np.linspace(-1, 1, 40)
    estimator = LogisticRegression().fit(x[:, None], np.array(labels)[(x > 0).astype(int)])
    signature = _signature(Column(name="x", type="float64"), classes=names)
    if fits:
        package = formats.save(estimator, tmp_path / "p", signature=signature, sample={"x": x})
        assert package.signature.classes == (names or [str(label) for label in labels])
        return
    with pytest.raises(InvalidInput, match="in its order") as caught:
        formats.save(estimator, tmp_path / "p", signature=signature, sample={"x": x})
    assert "Leave the classes" in str(caught.value.next_step)


# --- rows that are made


def _rows_for(estimator: Any = None, **changes: Any) -> Any:
    signature = _signature(
        Column(name="x", type="float64", nullable=True), Column(name="n", type="int64"),
        Column(name="t", type="string", nullable=True), Column(name="b", type="bool"),
    )  # fmt: skip
    sample = {"x": [1.0, 2.5, None], "n": [3, 4, 5], "t": ["u", "u", "v"], "b": [True, True, True]} | changes
    return make_rows(estimator, signature, sample, None, "none")


def test_the_rows_cover_what_the_signature_admits() -> None:
    rows = _rows_for()
    by_kind: dict[str, list[Any]] = {}
    for i, (kind, column) in enumerate(rows.kinds):
        by_kind.setdefault(kind, []).append((column, {n: v[i] for n, v in rows.columns.items()}))
    assert rows.real == 3
    assert [k for k, _ in rows.kinds[:4]] == [REAL] * 3 + [NULL]
    alone = {c for c, row in by_kind[NULL] if row[c.split(", ")[0]] is None}
    assert alone == {"x", "t", "x, t"}
    assert any(row["x"] is None and row["t"] is None for c, row in by_kind[NULL] if c == "x, t")
    unseen = {c: row[c] for c, row in by_kind[UNSEEN]}
    assert unseen["t"] not in ("u", "v")
    assert unseen["b"] is False
    whole = [row["n"] for c, row in by_kind["number"] if c == "n"]
    assert {0, -1, 2**24 + 1, 2**53 + 1} <= set(whole)
    assert {"", "v"} <= {row["t"] for c, row in by_kind["odd text"] + by_kind["rare category"]}
    assert max(len(row["t"]) for _, row in by_kind["odd text"]) > 4000
    extremes = [row["x"] for c, row in by_kind["extreme number"] if c == "x"]
    assert max(extremes) == sys.float_info.max == -min(extremes)
    assert rows.columns == _rows_for().columns, "the same save compares the same rows"


def test_rows_stand_on_both_sides_of_every_threshold_behind_a_scaler() -> None:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    x = np.random.default_rng(16).normal(50, 9, size=(200, 2))
    estimator = make_pipeline(StandardScaler(), DecisionTreeClassifier(max_depth=4, random_state=0))
    estimator.fit(x, x[:, 0] * x[:, 1] > 2500)
    sample = dict(zip("ab", x.T, strict=True))
    rows = make_rows(estimator, _signature(*_floats("ab")), sample, None, "none")
    beside = [i for i, (kind, _) in enumerate(rows.kinds) if kind == "value beside a tree threshold"]
    seen = estimator[0].transform(np.array([[rows.columns[c][i] for c in "ab"] for i in beside]))
    tree = estimator[1].tree_
    for feature, threshold in zip(tree.feature, tree.threshold, strict=True):
        if feature < 0:
            continue
        near = seen[:, feature][np.abs(seen[:, feature] - threshold) < 1e-6].astype(np.float32)
        assert (near <= threshold).any()
        assert (near > threshold).any()


def test_all_training_rows_count_and_half_of_the_rows_choose_nothing(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    x = np.random.default_rng(17).normal(size=1000)
    estimator = LogisticRegression().fit(x[:, None], x > 0)
    kept: dict[str, Any] = {
        "signature": _signature(Column(name="x", type="float64")),
        "sample": {"x": x[:10]},
    }
    few = formats.save(estimator, tmp_path / "few", **kept).parity
    many = formats.save(estimator, tmp_path / "many", **kept, training={"x": x}).parity
    assert few is not None
    assert many is not None
    assert many.rows - few.rows == 1000
    assert abs(many.judged - many.rows / 2) <= 1


# --- where the estimator raises


def test_a_null_that_the_estimator_refuses_is_refused_at_save(tmp_path: Path) -> None:
    """Seen red in 0.1: it was saved, and answered NaN."""
    from sklearn.linear_model import LogisticRegression

    x = np.linspace(-1, 1, 40)
    estimator = LogisticRegression().fit(x[:, None], x > 0)
    for form in ("auto", "onnx", "skops"):
        with pytest.raises(InvalidInput, match="admits null") as caught:
            formats.save(
                estimator, tmp_path / "p", signature=_signature(Column(name="x", type="float64", nullable=True)), sample={"x": x}, format=form
            )  # fmt: skip
        assert caught.value.value == "x"
        assert "nullable=False" in str(caught.value.next_step)


@pytest.mark.parametrize("form", ["onnx", "skops"])
def test_a_value_that_the_encoder_refuses_is_refused_by_the_stored_model(form: str, tmp_path: Path) -> None:
    """Seen red in 0.1: ONNX Runtime's own words at load, since an empty text is no category either."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rng = np.random.default_rng(18)
    frame = pd.DataFrame({"t": rng.choice(["u", "v", "w"], 200), "hour": rng.choice([6, 12, 18], 200)})
    encode = ColumnTransformer([("t", OneHotEncoder(), ["t", "hour"])])
    estimator = make_pipeline(encode, LogisticRegression()).fit(frame, (frame.t == "u") ^ (frame.hour == 12))
    package = formats.save(
        estimator, tmp_path / "p", signature=formats.infer_signature(frame, task="binary"), sample=frame[:40], format=form
    )  # fmt: skip
    assert {n: sorted(v) for n, v in package.known.items()} == {
        "t": ["u", "v", "w"],
        "hour": [6.0, 12.0, 18.0],
    }
    loaded = formats.load(tmp_path / "p")
    np.testing.assert_allclose(
        loaded.compute_scores({c: frame[c].tolist() for c in frame}),
        estimator.predict_proba(frame)[:, 1],
        atol=1e-12,
    )
    for bad, column in (({"t": ["x"], "hour": [6]}, "t"), ({"t": ["u"], "hour": [7]}, "hour")):
        with pytest.raises(InvalidInput, match="no such value") as caught:
            loaded.compute_scores(bad)
        assert column in str(caught.value.place)


@pytest.mark.parametrize("family", ["forest", "polynomial"])
def test_a_number_on_which_the_estimator_raises_gets_no_number(family: str, tmp_path: Path) -> None:
    """Seen red in 0.1: beyond float32 a forest raises, its ONNX answered."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    x = np.random.default_rng(19).normal(size=(100, 2))
    estimator = {
        "forest": lambda: RandomForestClassifier(5, random_state=0),
        "polynomial": lambda: make_pipeline(PolynomialFeatures(2), LogisticRegression()),
    }[family]().fit(x, x[:, 0] > 0)
    package = formats.save(
        estimator, tmp_path / "p", signature=_signature(*_floats("ab")), sample=dict(zip("ab", x.T, strict=True)), format="onnx"
    )  # fmt: skip
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"infinity|too large"):
        estimator.predict_proba([[1e300, 0.0]])
    scores = formats.load(tmp_path / "p").compute_scores({"a": [1e300, 1.0], "b": [0.0, 0.0]})
    assert np.isnan(scores[0])
    np.testing.assert_allclose(scores[1], estimator.predict_proba([[1.0, 0.0]])[0, 1], rtol=0, atol=1e-12)
    assert package.parity is not None
    assert package.parity.refused > 0


# --- where no format takes it


def test_auto_says_why_each_format_refused_and_points_out_of_the_circle(tmp_path: Path) -> None:
    """Seen red in 0.1: only the last refusal, whose next step was the first."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    x = np.random.default_rng(20).normal(size=(120, 2))
    sample = dict(zip("ab", x.T, strict=True))
    signature = _signature(*_floats("ab"))
    estimator = SVC(kernel=lambda a, b: a @ b.T).fit(x, x[:, 0] > 0)
    with pytest.raises(InvalidInput) as caught:
        formats.save(estimator, tmp_path / "p", signature=signature, sample=sample)
    text = str(caught.value)
    for reason in ("a kernel of your own", "skl2onnx in float64", "skops"):
        assert reason in text
    assert caught.value.next_step == (
        "Use LinearSVC in CalibratedClassifierCV, or Nystroem with LogisticRegression."
    )
    brute = KNeighborsClassifier(5, weights="distance", algorithm="brute").fit(x, x[:, 0] > 0)
    package = formats.save(brute, tmp_path / "p", signature=signature, sample=sample)
    assert package.format == "skops"
    assert "onnx (float64, exact)" in package.notes["refused"]


def test_a_function_of_the_users_own_is_never_stored(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    x = np.linspace(-1, 1, 40)
    estimator = make_pipeline(FunctionTransformer(lambda v: v * 2), LogisticRegression()).fit(
        x[:, None], x > 0
    )
    for form in ("auto", "onnx", "skops"):
        with pytest.raises(InvalidInput):
            formats.save(
                estimator, tmp_path / "p", signature=_signature(Column(name="x", type="float64")), sample={"x": x}, format=form
            )  # fmt: skip


def test_a_numpy_function_is_stored_by_name_and_others_are_refused(tmp_path: Path) -> None:
    """Seen red with the table of functions opened: the file then names what it likes."""
    import io
    import json
    import zipfile

    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    from mainspring.models.formats.skops.schema import check_skops

    x = np.linspace(0.1, 1, 40)
    estimator = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()).fit(x[:, None], x > 0.5)
    formats.save(
        estimator, tmp_path / "p", signature=_signature(Column(name="x", type="float64")), sample={"x": x}, format="skops"
    )  # fmt: skip
    fresh = np.linspace(0.2, 3, 30)
    np.testing.assert_array_equal(
        formats.load(tmp_path / "p").compute_scores({"x": fresh}),
        estimator.predict_proba(fresh[:, None])[:, 1],
    )
    good = (tmp_path / "p" / "model.skops").read_bytes()

    def changed(**fields: Any) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if name == "schema.json":
                    schema = json.loads(data)
                    _function_nodes(schema)[0].update(fields)
                    data = json.dumps(schema | {"protocol": 0}).encode()
                new.writestr(name, data)
        return out.getvalue()

    for fields in (
        {"__module__": "os", "__class__": "system"},
        {"__module__": "numpy", "__class__": "load"},
        {"__module__": "numpy", "__class__": "fromfile"},
        {"content": {"module_path": "os", "function": "system"}},  # what skops' first protocol reads
    ):
        with pytest.raises(UnsafeFormat):
            check_skops(changed(**fields))


def _function_nodes(node: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if isinstance(node, dict):
        if node.get("__loader__") == "FunctionNode":
            found.append(node)
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            found += _function_nodes(child)
    return found


@pytest.mark.timeout(600)
def test_without_pandas_a_named_estimator_gets_another_frame(tmp_path: Path) -> None:
    """In a process that cannot import pandas: saved and answered all the same."""
    program = f"""
import sys

import importlib.machinery

class NoPandas:
    # found, as installed libraries are, and not importable
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] == "pandas" else None

    def create_module(self, spec):
        raise ImportError(spec.name)

    def exec_module(self, module):
        raise AssertionError

sys.meta_path.insert(0, NoPandas())
import numpy as np, polars as pl
from pathlib import Path
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from mainspring.models import formats

frame = pl.DataFrame({{"x": np.linspace(-1, 1, 60), "t": ["u", "v", None] * 20}})
encode = ColumnTransformer([("t", OneHotEncoder(handle_unknown="ignore"), ["t"])], remainder="passthrough")
estimator = make_pipeline(encode, LogisticRegression()).fit(frame, np.linspace(-1, 1, 60) > 0)
columns = frame.to_dict(as_series=False)
signature = formats.infer_signature(frame, task="binary")
for form in ("onnx", "skops"):
    folder = Path({str(tmp_path)!r}) / form
    formats.save(estimator, folder, signature=signature, sample=columns, format=form)
    scores = formats.load(folder).compute_scores(columns)
    np.testing.assert_allclose(scores, estimator.predict_proba(frame)[:, 1], rtol=0, atol=1e-12)
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=550)


def test_a_package_of_the_first_version_loads_and_answers(tmp_path: Path) -> None:
    """float32 inputs, two columns of probabilities, null text as "": what 0.1 wrote."""
    from datetime import UTC, datetime

    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LogisticRegression

    from mainspring.models.formats.package import describe_file, write_package
    from mainspring.records.models import Package

    x = np.random.default_rng(21).normal(size=(60, 2))
    estimator = LogisticRegression().fit(x, x[:, 0] > 0)
    model = convert_sklearn(
        estimator, initial_types=[("numeric", FloatTensorType([None, 2]))], options={"zipmap": False}
    )
    data = model.SerializeToString()
    package = Package(
        format="onnx", signature=_signature(*_floats("ab"), classes=["no", "yes"]), files=[describe_file("model.onnx", data)],
        created_at=datetime.now(UTC),
    )  # fmt: skip
    write_package(tmp_path / "p", package, {"model.onnx": data})
    loaded: Any = formats.load(tmp_path / "p")
    expected = estimator.predict_proba(x)[:, 1]
    np.testing.assert_allclose(loaded.compute_scores(dict(zip("ab", x.T, strict=True))), expected, atol=1e-6)
    np.testing.assert_allclose(loaded.predictor.row_scorer()(x[0].tolist()), expected[0], atol=1e-6)
