"""The libraries' own forms in the hands of somebody else: every number that the library would follow unchecked, and what does not belong there."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pytest
import xgboost
from tests.engines.test_columns import make_frame, make_labels

from mainspring.errors import UnsafeFormat
from mainspring.models import formats
from mainspring.models.formats.boosters import catboost_json, lightgbm_model, lightgbm_text, xgboost_json
from mainspring.models.formats.package import describe_file
from mainspring.models.formats.table import model_format
from mainspring.records.base import to_json
from mainspring.testing.formats import FormatContract

_C: dict[str, Any] = {
    "iterations": 10,
    "depth": 3,
    "verbose": 0,
    "allow_writing_files": False,
    "thread_count": 1,
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of each form: sets of categories, several classes, statistics of the target by category."""
    folder = tmp_path_factory.mktemp("stored")
    frame = make_frame(400, 1)
    y = make_labels(frame)
    codes = np.unique(y, return_inverse=True)[1]
    texts = frame.assign(color=frame["color"].astype(object).fillna("none"), zone=frame["zone"].astype(int))
    light = lightgbm.LGBMClassifier(
        n_estimators=4, num_leaves=6, verbose=-1, n_jobs=1, min_child_samples=5, max_cat_to_onehot=1
    )
    xgb = xgboost.XGBClassifier(
        n_estimators=4, max_depth=3, n_jobs=1, enable_categorical=True, max_cat_to_onehot=1
    )
    cat = catboost.CatBoostClassifier(cat_features=["color", "zone"], **_C)
    for name, model, rows in (
        ("lightgbm", light.fit(frame, y), frame), ("xgboost", xgb.fit(frame, codes), frame), ("catboost", cat.fit(texts, y), texts),
    ):  # fmt: skip
        formats.save(model, folder / name, sample=rows, format=name)
    return {name: folder / name for name in ("lightgbm", "xgboost", "catboost")}


def payload(package: Path) -> Path:
    """The file of the trees."""
    return next(p for p in package.iterdir() if p.name != formats.MANIFEST)


def replace_line(key: str, change: Callable[[str], str]) -> Callable[[str], str]:
    """A change of the value of the first line with this key."""
    return lambda text: re.sub(
        rf"^{key}=(.*)$", lambda m: f"{key}={change(m[1])}", text, count=1, flags=re.MULTILINE
    )


def first(value: object) -> Callable[[str], str]:
    """Another first number in a list."""
    return lambda listed: " ".join([str(value), *listed.split(" ")[1:]])


TEXTS: dict[str, Callable[[str], str]] = {
    "a branch beyond the tree": replace_line("left_child", first(999999)),
    "a branch before the tree": replace_line("right_child", first(-999999)),
    "a circle": replace_line("left_child", first(0)),
    "a feature that there is not": replace_line("split_feature", first(999)),
    "a negative feature": replace_line("split_feature", first(-1)),
    "fewer leaves than said": replace_line("num_leaves", lambda _: "5000"),
    "no leaves": replace_line("num_leaves", lambda _: "0"),
    "an unknown decision": replace_line("decision_type", first(77)),
    "a set that there is not": lambda t: re.sub(r"^num_cat=[1-9]\d*$", "num_cat=0", t, count=1, flags=re.MULTILINE),
    "sets beyond the words": lambda t: re.sub(r"^cat_boundaries=.*$", lambda m: m[0] + "000", t, count=1, flags=re.MULTILINE),
    "more classes than trees": replace_line("num_tree_per_iteration", lambda _: "7"),
    "features without end": replace_line("max_feature_idx", lambda _: "2000000000"),
    "fewer features than the trees ask for": replace_line("max_feature_idx", lambda _: "0"),
    "a leaf that is no number": replace_line("leaf_value", first("nan")),
    "an objective that is not known": replace_line("objective", lambda _: "mine alpha:1"),
    "an argument of the objective": replace_line("objective", lambda v: v + " file:/etc/passwd"),
    "positions in the text": lambda t: t.replace("\n\nTree=0", "\ntree_sizes=1 2 3 4\n\nTree=0"),
    "parameters with files": lambda t: t.replace("end of trees", "end of trees\n\nparameters:\n[data: /etc/passwd]\nend of parameters"),
    "a line that is there twice": lambda t: t.replace("\nleaf_value=", "\nleaf_value=0\nleaf_value=", 1),
    "linear leaves without numbers": replace_line("is_linear", lambda _: "1"),
    "categories of a feature that there is not": lambda t: t.replace('categories={"2"', 'categories={"77"'),
    "a feature with an exponent": replace_line("split_feature", first("2000000000e-9")),
    "a feature with a fraction": replace_line("split_feature", first("1.0")),
    "a line within a line": replace_line("label_index", lambda v: v + "\rnum_tree_per_iteration=1"),
    "a line within a line of a tree": replace_line("shrinkage", lambda v: v + "\rsplit_feature=999"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_x_a_text_of_lightgbm_is_checked_before_lightgbm_reads_it(name: str, stored: dict[str, Path]) -> None:
    """Seen red with ``check_tree`` emptied: circles and features that there are not. The last four, which LightGBM followed out of its
    memory, were red before whole numbers and the characters of the text were checked.
    """
    good = payload(stored["lightgbm"]).read_text()
    lightgbm_text.check(good.encode())
    bad = TEXTS[name](good)
    assert bad != good
    with pytest.raises(UnsafeFormat):
        lightgbm_text.check(bad.encode())


_Change = Callable[[Any], None]


CLASSES: dict[str, Callable[[str], str]] = {
    "fewer classes than trees in a round": replace_line("num_class", lambda _: "1"),
    "an objective of more classes": replace_line("objective", lambda _: "multiclass num_class:3000000"),
    "an objective of one answer": replace_line("objective", lambda _: "regression"),
    "an objective of no number of classes": replace_line("objective", lambda _: "multiclass"),
    "an argument that is there twice": replace_line("objective", lambda v: v + " num_class:3000000"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_x_the_objective_of_lightgbm_has_as_many_classes_as_the_trees(name: str, numbers: Any) -> None:
    """LightGBM writes as many answers as the objective says into the place of as many as there are trees: memory behind it was overwritten.

    Seen red before the objective was checked.
    """
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1)
    good = lightgbm_model.dump(model.fit(numbers, np.arange(len(numbers)) % 3)).decode()
    lightgbm_text.check(good.encode())
    bad = CLASSES[name](good)
    assert bad != good
    with pytest.raises(UnsafeFormat):
        lightgbm_text.check(bad.encode())


def _set(*path: str | int, to: object) -> _Change:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        assert path[-1] in value or isinstance(value, list) or to is not None
        value[path[-1]] = to

    return change


def _first_leaf(model: Any, value: int) -> None:
    left = model["learner"]["gradient_booster"]["model"]["trees"][0]["left_children"]
    left[left.index(-1)] = value


_MODEL = ("learner", "gradient_booster", "model")
_TREE = (*_MODEL, "trees", 0)
JSONS: dict[str, _Change] = {
    "a branch beyond the tree": _set(*_TREE, "left_children", 0, to=99999),
    "a circle": _set(*_TREE, "left_children", 0, to=0),
    "a leaf that is none to xgboost": lambda model: _first_leaf(model, -2),
    "another parent": _set(*_TREE, "parents", 1, to=2),
    "a feature that there is not": _set(*_TREE, "split_indices", 0, to=99),
    "more nodes than said": _set(*_TREE, "tree_param", "num_nodes", to="3"),
    "a tree of more features": _set(*_TREE, "tree_param", "num_feature", to="99"),
    "several numbers in a leaf": _set(*_TREE, "tree_param", "size_leaf_vector", to="9"),
    "an unknown parameter of a tree": _set(*_TREE, "tree_param", "path", to="/etc/passwd"),
    "a set beyond the categories": _set(*_TREE, "categories_sizes", to=[99]),
    "a category beyond all": _set(*_TREE, "categories", 0, to=2**31),
    "a list that is shorter": _set(*_TREE, "default_left", to=[0]),
    "a number as a text": _set(*_TREE, "split_conditions", 0, to="1"),
    "a class that there is not": _set(*_MODEL, "tree_info", 0, to=7),
    "a negative class": _set(*_MODEL, "tree_info", 0, to=-1),
    "rounds beyond the trees": _set(*_MODEL, "iteration_indptr", 1, to=99),
    "more trees than there are": _set(*_MODEL, "gbtree_model_param", "num_trees", to="99"),
    "categories that do not fit": _set(*_MODEL, "cats", "feature_segments", to=[0, 0, 9]),
    "an order beyond the categories": _set(*_MODEL, "cats", "sorted_idx", 0, to=99),
    "texts beyond the bytes": _set(*_MODEL, "cats", "enc", 2, "offsets", 1, to=99),
    "features without end": _set("learner", "learner_model_param", "num_feature", to="2000000000"),
    "classes without end": _set("learner", "learner_model_param", "num_class", to="2000000000"),
    "an unknown parameter": _set("learner", "learner_model_param", "path", to="/etc/passwd"),
    "a start that is no number": _set("learner", "learner_model_param", "base_score", to="[nan]"),
    "an objective that is not known": _set("learner", "objective", "name", to="mine"),
    "attributes": _set("learner", "attributes", to={"best_iteration": "1"}),
    "types that do not fit": _set("learner", "feature_types", to=["c"]),
    "another kind of booster": _set("learner", "gradient_booster", "name", to="gbforest"),
    "a further key": _set("code", to="import os"),
}


@pytest.mark.parametrize("name", JSONS)
def test_x_a_file_of_xgboost_is_checked_before_xgboost_reads_it(name: str, stored: dict[str, Path]) -> None:
    """Seen red with ``check_tree`` emptied: branches beyond the tree, and features that there are not. With a leaf written as -2, which
    XGBoost follows out of the tree, red before branches below -1 were refused.
    """
    good = json.loads(payload(stored["xgboost"]).read_bytes())
    xgboost_json.check(json.dumps(good, separators=(",", ":")).encode())
    JSONS[name](good)
    with pytest.raises(UnsafeFormat):
        xgboost_json.check(json.dumps(good, separators=(",", ":")).encode())


def _first_split(kind: str, **changes: object) -> _Change:
    def change(model: Any) -> None:
        found = [s for t in model["oblivious_trees"] for s in t["splits"] if s["split_type"] == kind]
        found[0].update(changes)

    return change


def _table(**changes: object) -> _Change:
    return lambda model: next(iter(model["ctr_data"].values())).update(changes)


def _ctr(**changes: object) -> _Change:
    return lambda model: model["features_info"]["ctrs"][0].update(changes)


def _widen(model: Any) -> None:
    """Let the first statistic name a table of more classes than its own, and ask for the last of them."""
    ctr, tables = model["features_info"]["ctrs"][0], model["ctr_data"]
    named = json.loads(ctr["identifier"])
    named["identifier"] = [*named["identifier"], *named["identifier"]]
    wider = json.dumps(named)
    tables[wider] = {"counter_denominator": 0, "hash_map": ["5", *[1] * 999], "hash_stride": 1000}
    ctr |= {"identifier": wider, "target_border_idx": 998}
    listed = catboost_json._Splits(model)._listed
    for split in (s for tree in model["oblivious_trees"] for s in tree["splits"]):
        if split["split_type"] == "OnlineCtr":
            split["ctr_target_border_idx"] = listed[split["split_index"]][1]


CATS: dict[str, _Change] = {
    "fewer leaves": _set("oblivious_trees", 0, "leaf_values", to=[0.5]),
    "a leaf that is no number": _set("oblivious_trees", 0, "leaf_values", 0, to="1"),
    "a feature that there is not": _first_split("FloatFeature", float_feature_index=99),
    "a negative feature": _first_split("FloatFeature", float_feature_index=-1),
    "a split of an unknown kind": _first_split("FloatFeature", split_type="EstimatedFeature"),
    "a border of its own": _first_split("FloatFeature", border=123.5),
    "a split of a statistic that there is not": _first_split("OnlineCtr", split_index=10**6),
    "a split of another statistic": _first_split("OnlineCtr", split_index=0),
    "borders without order": _set("features_info", "float_features", 0, "borders", to=[2.0, 1.0]),
    "features with one position": _set("features_info", "float_features", 0, "flat_feature_index", to=1),
    "a feature beyond all": _set("features_info", "categorical_features", 0, "flat_feature_index", to=10**9),
    "an unknown treatment of null": _set(
        "features_info", "float_features", 0, "nan_value_treatment", to="AsCode"
    ),
    "features of texts": _set("features_info", "text_features", to=[{}]),
    "a table without whole rows": _table(hash_stride=7),
    "a table without a width": _table(hash_stride=0),
    "a key that is no number": _table(hash_map=["x", 1, 2]),
    "a negative count": _table(counter_denominator=-1),
    "an unknown statistic": _ctr(ctr_type="Mine"),
    "a statistic without a table": _ctr(identifier="{}"),
    "a statistic over a feature that there is not": _ctr(
        elements=[{"cat_feature_index": 99, "combination_element": "cat_feature_value"}]
    ),
    "a class that the table does not have": _ctr(target_border_idx=99),
    "a statistic of a wider table": _widen,
    "starts of other outputs": _set("scale_and_bias", to=[1, [0, 0]]),
    "another link": _set("link", to="code"),
    "parameters": _set("model_info", to={"params": {"train_dir": "/etc"}}),
}


@pytest.mark.parametrize("name", CATS)
def test_x_a_file_of_catboost_is_checked_before_catboost_reads_it(name: str, stored: dict[str, Path]) -> None:
    """Seen red with ``_check_tables`` emptied: tables and statistics that do not fit each other. The wider table, in whose place CatBoost
    looks the narrow one up, was red before the identifier was compared with the statistic.
    """
    good = json.loads(payload(stored["catboost"]).read_bytes())
    catboost_json.check(_sorted(good))
    CATS[name](good)
    with pytest.raises(UnsafeFormat):
        catboost_json.check(_sorted(good))


def _sorted(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "catboost"])
def test_x_a_package_with_a_bad_payload_is_refused_when_it_is_loaded(
    name: str, stored: dict[str, Path], tmp_path: Path
) -> None:
    """Under a true digest, by the registry's check and by ``load``."""
    folder = tmp_path / "p"
    folder.mkdir()
    source = payload(stored[name])
    data = source.read_bytes().replace(b"0", b"9")
    (folder / source.name).write_bytes(data)
    manifest = json.loads((stored[name] / formats.MANIFEST).read_bytes())
    manifest["files"] = [json.loads(to_json(describe_file(source.name, data)))]
    (folder / formats.MANIFEST).write_text(json.dumps(manifest))
    package = formats.verify(folder)
    for bad in (data, b"", b"{}", b"tree\n", b"[" * 100_000, b"\x80\x04K\x01."):
        with pytest.raises(UnsafeFormat):
            model_format(name).check(package, {source.name: bad}, trust=formats.DEFAULT)
    with pytest.raises(UnsafeFormat):
        formats.load(folder)


_FUZZ = """
    import sys
    from pathlib import Path
    from mainspring.errors import MainspringError
    from mainspring.models import formats
    from mainspring.models.formats.package import parse_manifest
    manifest, name, rows, *files = sys.argv[1:]
    package = parse_manifest(Path(manifest).read_bytes(), place="test")
    loaded = 0
    for file in files:
        try:
            predictor = formats.open_package(package, {name: Path(file).read_bytes()})
            for value in (0.0, -1.0, 1e300, None):
                row = {c.name: ["blue" if c.type == "string" else value or 0.0] * int(rows) for c in package.signature.inputs}
                predictor.compute_scores(row)
            loaded += 1
        except MainspringError:
            pass
    print(loaded)
"""


@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "catboost"])
def test_x_no_changed_file_ends_the_process(name: str, stored: dict[str, Path], tmp_path: Path) -> None:
    """Single numbers changed anywhere: either refused, or the library answers something. Some pass: another leaf is another model.

    Seen red with the check of LightGBM's text emptied: the process ended by signal 11.
    """
    good = payload(stored[name]).read_text()
    places = [m.span() for m in re.finditer(r"-?\d+(?:\.\d+)?", good)]
    draw = random.Random(5)
    files = []
    for i in range(120):
        a, b = draw.choice(places)
        new = draw.choice(["0", "-1", "1", "7", "255", "4096", "65535", "2147483647", "-2147483648", "1e30"])
        files.append(tmp_path / str(i))
        files[-1].write_text(good[:a] + new + good[b:])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_FUZZ), str(stored[name] / formats.MANIFEST), payload(stored[name]).name, "3", *map(str, files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout.split()[-1]) < len(files)


class TestCatBoost(FormatContract):
    """The contract of formats."""

    form = "catboost"

    @pytest.fixture
    def columns(self) -> dict[str, Any]:
        frame = make_frame(300, 3)
        return {
            "size": [None if v != v else v for v in frame["petal width (cm)"].tolist()],
            "count": frame["count"].to_numpy(),
            "color": frame["color"].astype(object).fillna("none").tolist(),
        }

    @pytest.fixture
    def estimator(self, columns: dict[str, Any]) -> Any:
        import pandas as pd

        frame = pd.DataFrame(columns).astype({"size": float})
        return catboost.CatBoostClassifier(cat_features=["color"], **_C).fit(
            frame, make_labels(make_frame(300, 3))
        )

    @pytest.fixture
    def expected(self, estimator: Any, columns: dict[str, Any]) -> Any:
        import pandas as pd

        return estimator.predict_proba(pd.DataFrame(columns).astype({"size": float}))[:, 1]
