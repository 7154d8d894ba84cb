"""The libraries' own forms where the libraries are not installed: checked all the same, and opened only with their extra.

What the libraries themselves answer is in ``tests/engines`` (``make test-engines``).
"""

from __future__ import annotations

import builtins
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from mainspring.errors import MissingExtra, UnsafeFormat
from mainspring.models import formats
from mainspring.models.formats.boosters import catboost_json, lightgbm_text, xgboost_json
from mainspring.records.models import Column, Package, Signature, Task

TEXT = b"""tree
version=v4
num_class=1
num_tree_per_iteration=1
label_index=0
max_feature_idx=1
objective=binary sigmoid:1
feature_names=f0 f1
feature_infos=none none

Tree=0
num_leaves=3
num_cat=0
split_feature=0 1
threshold=0.5 inf
decision_type=2 8
left_child=1 -1
right_child=-3 -2
leaf_value=0.25 -1 2
is_linear=0
shrinkage=1


end of trees

categories={}
"""


def _xgboost() -> dict[str, Any]:
    tree = {
        "left_children": [1, -1, -1], "right_children": [2, -1, -1], "parents": [2147483647, 0, 0], "split_indices": [1, 0, 0],
        "split_type": [0, 0, 0], "default_left": [1, 0, 0], "categories": [], "categories_nodes": [], "categories_segments": [],
        "categories_sizes": [], "split_conditions": [0.5, -1.0, 1.0], "base_weights": [0.0, -1.0, 1.0],
        "tree_param": {"num_deleted": "0", "num_feature": "2", "num_nodes": "3", "size_leaf_vector": "1"},
    }  # fmt: skip
    model = {
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": "1"}, "iteration_indptr": [0, 1], "tree_info": [0], "trees": [tree],
    }  # fmt: skip
    head = {
        "base_score": "5E-1",
        "boost_from_average": "1",
        "num_class": "0",
        "num_feature": "2",
        "num_target": "1",
    }
    objective = {"name": "binary:logistic", "reg_loss_param": {"scale_pos_weight": "1"}}
    learner = {
        "attributes": {"best_iteration": "0"}, "feature_names": ["a", "b"], "feature_types": [],
        "gradient_booster": {"model": model, "name": "gbtree"}, "learner_model_param": head, "objective": objective,
    }  # fmt: skip
    return {"learner": learner, "version": [3, 2, 0]}


def _catboost() -> dict[str, Any]:
    numbers = [
        {"borders": [0.5], "feature_index": i, "flat_feature_index": i, "has_nans": False, "nan_value_treatment": "AsIs"} for i in range(2)
    ]  # fmt: skip
    split = {"border": 0.5, "float_feature_index": 1, "split_index": 1, "split_type": "FloatFeature"}
    tree = {"leaf_values": [-1.0, 1.0], "leaf_weights": [1, 1], "splits": [split]}
    return {
        "features_info": {"float_features": numbers},
        "oblivious_trees": [tree],
        "scale_and_bias": [1, [0.25]],
    }


FILES = {
    "lightgbm": ("booster.txt", TEXT),
    "xgboost": ("booster.json", xgboost_json.canonical(_xgboost())),
    "catboost": ("booster.json", catboost_json.canonical(_catboost(), "sigmoid")),
}
PACKAGE = Package(
    format="lightgbm",
    signature=Signature(
        inputs=[Column(name="a", type="float64"), Column(name="b", type="float64", nullable=True)],
        task=Task.BINARY,
        classes=["fine", "late"],
    ),
    files=[],
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def _package(name: str) -> tuple[Package, dict[str, bytes]]:
    import msgspec

    file, data = FILES[name]
    return msgspec.structs.replace(PACKAGE, format=name), {file: data}


@pytest.mark.parametrize("name", FILES)
def test_a_library_that_is_missing_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, payloads = _package(name)
    formats.check_payload(package, payloads)
    found = builtins.__import__

    def fail(wanted: str, *rest: Any, **more: Any) -> Any:
        if wanted == name:
            raise ImportError(name=wanted)
        return found(wanted, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(MissingExtra, match=r"mainspring\[boosting\]"):
        formats.open_package(package, payloads)


def test_what_is_read_of_a_text_of_lightgbm() -> None:
    ensemble = lightgbm_text.read(TEXT)
    tree = ensemble.trees[0]
    assert (ensemble.features, ensemble.outputs, ensemble.link) == (2, 1, "sigmoid")
    assert tree.left.tolist() == [1, 2, -1, -1, -1]
    assert tree.right.tolist() == [4, 3, -1, -1, -1]
    assert tree.missing_left.tolist()[:2] == [
        True,
        False,
    ]  # NaN is 0 at the first node, and goes right at the second


def test_what_is_read_of_a_file_of_xgboost() -> None:
    """``x < 0.5`` is ``x <= `` the float32 before 0.5; the base score is a probability."""
    ensemble = xgboost_json.read(FILES["xgboost"][1])
    assert ensemble.trees[0].threshold[0] == 0.4999999701976776
    assert ensemble.trees[0].missing_left.tolist() == [True, False, False]
    assert ensemble.start == [0.0]
    assert json.loads(FILES["xgboost"][1])["learner"]["attributes"] == {}


def test_what_is_read_of_a_file_of_catboost() -> None:
    ensemble = catboost_json.read(FILES["catboost"][1])
    assert ensemble.start == [0.25]
    assert ensemble.trees[0].feature[0] == 1
    assert ensemble.trees[0].value.tolist() == [0.0, -1.0, 1.0]


@pytest.mark.parametrize("name", FILES)
def test_what_is_not_such_a_file_is_refused(name: str) -> None:
    package, payloads = _package(name)
    file, good = FILES[name]
    for bad in (
        b"",
        b"{}",
        b"null",
        good[:-20],
        good + b" ",
        good.replace(b"0.5", b"0.5x"),
        b"\xff",
        b"[" * 50_000,
    ):
        with pytest.raises(UnsafeFormat):
            formats.check_payload(package, {**payloads, file: bad})
