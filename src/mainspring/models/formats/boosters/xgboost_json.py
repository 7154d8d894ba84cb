"""Reads XGBoost's JSON, which XGBoost itself reads with few checks: sizes, positions of nodes and features, keys, objectives.

What is stored is not the file of the library but :func:`canonical`: what prediction needs, without attributes and statistics.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mainspring.errors import UnsafeFormat
from mainspring.models.formats.boosters.ensemble import (
    MAX_FEATURES,
    MAX_OUTPUTS,
    MAX_TREES,
    Category,
    Ensemble,
    Link,
    Tree,
    check_tree,
    number,
    refuse,
    whole_number,
)

PLACE = "booster.json"
_LINKS: dict[str, Link] = {
    **dict.fromkeys(
        [
            "reg:squarederror", "reg:linear", "reg:squaredlogerror", "reg:pseudohubererror", "reg:absoluteerror", "reg:quantileerror",
            "binary:logitraw", "rank:pairwise", "rank:ndcg", "rank:map",
        ],
        "identity",
    ),
    **dict.fromkeys(["reg:logistic", "binary:logistic"], "sigmoid"),
    **dict.fromkeys(["count:poisson", "reg:gamma", "reg:tweedie", "survival:cox"], "exp"),
    **dict.fromkeys(["multi:softprob", "multi:softmax"], "softmax"),
}  # fmt: skip
_TREE_INTS = ("left_children", "right_children", "parents", "split_indices", "split_type", "default_left", "categories", "categories_nodes",
              "categories_segments", "categories_sizes")  # fmt: skip
_TREE_FLOATS = ("split_conditions", "base_weights", "loss_changes", "sum_hessian")
_PARAMETERS = frozenset(
    {"num_deleted", "num_feature", "num_nodes", "size_leaf_vector", "num_parallel_tree", "num_trees"}
)
_FLOAT32 = float(np.finfo(np.float32).max)


def canonical(model: Any) -> bytes:
    """The parsed JSON with nothing but what predictions need. Raises UnsafeFormat where it is not a model of trees or of a line."""
    learner = _object(model, "learner", optional=("version",))["learner"]
    booster = _get(learner, "gradient_booster", dict)
    name = _get(booster, "name", str)
    inner = booster
    out: dict[str, Any] = {"name": name}
    if name == "dart":
        inner = _get(booster, "gbtree", dict)
        out["weight_drop"] = _floats(booster, "weight_drop")
    elif name not in ("gbtree", "gblinear"):
        refuse("an unknown kind of booster", PLACE, name[:40])
    found = _get(inner, "model", dict)
    made: dict[str, Any]
    if name == "gblinear":
        made = {"weights": _floats(found, "weights"), "boosted_rounds": _get(found, "boosted_rounds", int)}
    else:
        made = {
            "cats": found.get("cats") or {"enc": [], "feature_segments": [], "sorted_idx": []},
            "gbtree_model_param": _strings(found, "gbtree_model_param"),
            "iteration_indptr": _ints(found, "iteration_indptr"),
            "tree_info": _ints(found, "tree_info"),
            "trees": [_plain_tree(t, i) for i, t in enumerate(_get(found, "trees", list))],
        }
    if name == "dart":
        out["gbtree"] = {"model": made, "name": "gbtree"}
    else:
        out["model"] = made
    objective = _get(learner, "objective", dict)
    parameters = {k: _strings(objective, k) for k in sorted(objective) if k != "name"}
    result = {
        "learner": {
            "attributes": {},
            "feature_names": [],
            "feature_types": [t for t in _get(learner, "feature_types", list) if isinstance(t, str)],
            "gradient_booster": out,
            "learner_model_param": _strings(learner, "learner_model_param"),
            "objective": {"name": _get(objective, "name", str), **parameters},
        },
        "version": [int(v) for v in _get(model, "version", list)][:3],
    }
    return json.dumps(result, separators=(",", ":"), allow_nan=False).encode()


def check(data: bytes) -> Any:
    """The parsed JSON, if it is canonical and every position in it exists."""
    try:
        model = json.loads(data, parse_constant=_refuse_constant)
        if canonical(model) != data:
            refuse("the file holds more than a model, or not in the form that is stored here", PLACE)
        learner = model["learner"]
        _check_head(learner)
        for ensemble in _trees_of(learner):
            _check_trees(ensemble, learner)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        if isinstance(error, UnsafeFormat):
            raise
        refuse(f"this is not a model of XGBoost: {type(error).__name__}: {str(error)[:100]}", PLACE)
    return model


def read(data: bytes) -> Ensemble:
    """The ensemble of a canonical file. Raises :class:`~mainspring.errors.UnsafeFormat` for any other bytes.

    Raises ValueError for a model that is good and has no such arrays: a linear one, or one with several numbers in each leaf.
    """
    learner = check(data)["learner"]
    booster = learner["gradient_booster"]
    if booster["name"] == "gblinear":
        raise ValueError("a linear booster")
    inner = booster["gbtree"]["model"] if booster["name"] == "dart" else booster["model"]
    drop = np.array(booster.get("weight_drop", [1.0] * len(inner["trees"])), dtype=np.float32)
    features, outputs = _sizes(learner)
    link = _LINKS[learner["objective"]["name"]]
    trees = []
    coded: set[int] = set()
    for raw, target, weight in zip(inner["trees"], inner["tree_info"], drop, strict=True):
        tree = _tree(raw, target)
        if weight != 1:
            tree = _scaled(tree, weight)
        coded |= {int(tree.feature[node]) for node in tree.members}
        trees.append(tree)
    return Ensemble(
        features=features,
        outputs=outputs,
        trees=trees,
        link=link,
        start=_starts(learner, link, outputs),
        single=True,
        narrow=True,
        categories=categories_of(inner["cats"]),
        coded=frozenset(coded),
        whole="floor",
    )


def describe(data: bytes) -> tuple[Link, dict[int, list[Category]], bool]:
    """Of a checked file: what becomes of the sums, categories by feature, whether it has trees."""
    learner = json.loads(data)["learner"]
    booster = learner["gradient_booster"]
    inner = booster.get("model") or booster["gbtree"]["model"]
    categories = categories_of(inner.get("cats") or {"enc": []})
    return _LINKS[learner["objective"]["name"]], categories, "trees" in inner


def categories_of(cats: Mapping[str, Any]) -> dict[int, list[Category]]:
    """The categories that XGBoost stores by feature: texts as bytes with offsets, numbers as they are."""
    out: dict[int, list[Category]] = {}
    for feature, encoded in enumerate(cats["enc"]):
        values = encoded["values"]
        if "offsets" in encoded:
            offsets = encoded["offsets"]
            joined = bytes(v % 256 for v in values)
            if offsets:
                if (
                    offsets[0] != 0
                    or any(b < a for a, b in itertools.pairwise(offsets))
                    or offsets[-1] != len(joined)
                ):
                    refuse("the texts of categories do not fit", PLACE)
                out[feature] = [joined[a:b].decode() for a, b in itertools.pairwise(offsets)]
        elif values:
            out[feature] = list(values)
    return out


def _refuse_constant(text: str) -> None:
    refuse("a number that is not finite", PLACE, text)


def _object(value: Any, *keys: str, optional: tuple[str, ...] = ()) -> Any:
    if not isinstance(value, dict) or not set(keys) <= set(value) or not set(value) <= {*keys, *optional}:
        refuse("this is not a model of XGBoost", PLACE)
    return value


def _get(value: Any, key: str, kind: type) -> Any:
    if (
        not isinstance(value, dict)
        or not isinstance(found := value.get(key), kind)
        or isinstance(found, bool)
    ):
        refuse("this is not a model of XGBoost", PLACE, key)
    return found


def _ints(value: Any, key: str) -> list[int]:
    listed = _get(value, key, list)
    if not all(type(v) is int and -(2**31) <= v < 2**32 for v in listed):
        refuse("whole numbers are expected", PLACE, key)
    return list(listed)


def _floats(value: Any, key: str) -> list[float]:
    listed = _get(value, key, list)
    if not all(type(v) in (int, float) and abs(v) <= _FLOAT32 * 1.0000001 for v in listed):
        refuse("numbers are expected", PLACE, key)
    return list(listed)


def _strings(value: Any, key: str) -> dict[str, str]:
    found = _get(value, key, dict)
    if not all(isinstance(v, str) and len(v) < 200_000 for v in found.values()):
        refuse("parameters are texts", PLACE, key)
    return dict(found)


def _plain_tree(tree: Any, position: int) -> dict[str, Any]:
    kept: dict[str, Any] = {key: _ints(tree, key) for key in _TREE_INTS}
    kept |= {key: _floats(tree, key) for key in ("split_conditions", "base_weights")}
    count = len(kept["left_children"])
    kept |= {"loss_changes": [0.0] * count, "sum_hessian": [0.0] * count, "id": position}
    if "leaf_weights" in tree:
        kept["leaf_weights"] = _floats(tree, "leaf_weights")
    return kept | {"tree_param": _strings(tree, "tree_param")}


def _sizes(learner: Any) -> tuple[int, int]:
    """How many features, and how many sums."""
    head = learner["learner_model_param"]
    features = whole_number(head["num_feature"], PLACE, 1, MAX_FEATURES)
    classes = whole_number(head["num_class"], PLACE, 0, MAX_OUTPUTS)
    targets = whole_number(head["num_target"], PLACE, 1, MAX_OUTPUTS)
    return features, max(1, classes) * targets


def _check_head(learner: Any) -> None:
    features, outputs = _sizes(learner)
    objective = learner["objective"]
    if objective["name"] not in _LINKS:
        refuse("an objective that is not known here", PLACE, objective["name"][:60])
    if len(learner["feature_types"]) not in (0, features) or not set(learner["feature_types"]) <= {
        "float",
        "int",
        "i",
        "q",
        "c",
    }:
        refuse("the types of the features do not fit", PLACE)
    if not set(learner["learner_model_param"]) <= {
        "base_score",
        "boost_from_average",
        "num_class",
        "num_feature",
        "num_target",
    }:
        refuse("an unknown parameter", PLACE)
    if len(_base_scores(learner)) not in (1, outputs):
        refuse("a start for each output is expected", PLACE)
    if (booster := learner["gradient_booster"])["name"] == "gblinear" and len(
        booster["model"]["weights"]
    ) != (features + 1) * outputs:
        refuse("a weight for each feature and output is expected", PLACE)


def _trees_of(learner: Any) -> Iterator[Any]:
    booster = learner["gradient_booster"]
    if booster["name"] == "dart":
        if len(booster["weight_drop"]) != len(booster["gbtree"]["model"]["trees"]):
            refuse("a weight for each tree is expected", PLACE)
        yield booster["gbtree"]["model"]
    elif booster["name"] == "gbtree":
        yield booster["model"]


def _check_trees(model: Any, learner: Any) -> None:
    features, outputs = _sizes(learner)
    trees, info, starts = model["trees"], model["tree_info"], model["iteration_indptr"]
    count = len(trees)
    param = model["gbtree_model_param"]
    if (
        count > MAX_TREES
        or len(info) != count
        or whole_number(param["num_trees"], PLACE, 0, MAX_TREES) != count
    ):
        refuse("a class for each tree is expected", PLACE)
    if not set(param) <= _PARAMETERS:
        refuse("an unknown parameter", PLACE)
    whole_number(param["num_parallel_tree"], PLACE, 1, MAX_TREES)
    if any(not 0 <= target < outputs for target in info):
        refuse("a tree for a class that there is not", PLACE)
    if (
        not starts
        or starts[0] != 0
        or starts[-1] != count
        or any(b < a for a, b in itertools.pairwise(starts))
    ):
        refuse("the rounds do not fit the trees", PLACE)
    _check_categories(model["cats"], features)
    for raw in trees:
        param = raw["tree_param"]
        width = whole_number(param["size_leaf_vector"], PLACE, 0, outputs)
        nodes = len(raw["left_children"])
        if not set(param) <= _PARAMETERS or whole_number(param["num_nodes"], PLACE, 1, 1 << 30) != nodes:
            refuse("an unknown parameter, or another number of nodes", PLACE)
        if whole_number(param["num_feature"], PLACE, 0, MAX_FEATURES) > features:
            refuse("a tree has more features than the model", PLACE)
        if width > 1:
            refuse("several numbers in each leaf", PLACE)
        _tree(raw, 0, features)


def _check_categories(cats: Any, features: int) -> None:
    _object(cats, "enc", "feature_segments", "sorted_idx")
    encoded = cats["enc"]
    if not isinstance(encoded, list) or len(encoded) not in (0, features):
        refuse("categories for each feature are expected", PLACE)
    total = 0
    segments = [0]
    for one in encoded:
        _object(one, "values", optional=("offsets", "type"))
        values = one["values"]
        if "offsets" in one:
            count = max(0, len(_ints(one, "offsets")) - 1)
            if not all(type(v) is int and -128 <= v < 256 for v in values):
                refuse("the texts of categories are bytes", PLACE)
        else:
            count = len(_floats(one, "values"))
        total += count
        segments.append(total)
    categories_of(cats)
    if _ints(cats, "feature_segments") not in ([], segments) or (
        encoded and len(cats["feature_segments"]) != len(segments)
    ):
        refuse("the ranges of the categories do not fit", PLACE)
    order = _ints(cats, "sorted_idx")
    if len(order) != total or any(
        sorted(order[a:b]) != list(range(b - a)) for a, b in itertools.pairwise(segments)
    ):
        refuse("the order of the categories does not fit", PLACE)


def _tree(raw: Any, target: int, features: int | None = None) -> Tree:
    left, right = (np.array(raw[f"{side}_children"], dtype=np.int64) for side in ("left", "right"))
    count = len(left)
    if (left < -1).any() or (right < -1).any():
        refuse("a branch leads to no node", PLACE)  # to XGBoost -1 alone is a leaf
    kinds, default = (np.array(raw[key], dtype=np.int64) for key in ("split_type", "default_left"))
    limits = np.array(raw["split_conditions"], dtype=np.float32)
    lengths = {
        len(kinds),
        len(default),
        len(limits),
        len(raw["parents"]),
        len(raw["split_indices"]),
        len(raw["base_weights"]),
        count,
    }
    if (
        lengths != {count}
        or not count
        or not np.isfinite(limits).all()
        or (kinds < 0).any()
        or (kinds > 1).any()
    ):
        refuse("the arrays of a tree have different lengths, or an unknown kind of split", PLACE)
    leaf = left < 0
    parents = np.array(raw["parents"], dtype=np.int64)
    members, wide = _sets(raw, kinds, ~leaf), ~leaf
    # A row with a category of the set goes right, one without goes left: the branches change places.
    swap = np.zeros(count, dtype=bool)
    swap[list(members)] = True
    tree = Tree(
        left=np.where(swap, right, left),
        right=np.where(swap, left, right),
        feature=np.array(raw["split_indices"], dtype=np.int64),
        # x < t is x <= the float32 before t.
        threshold=np.where(wide & ~swap, np.nextafter(limits, np.float32(-np.inf)), 0).astype(np.float64),
        missing_left=(default != 0) != swap,
        value=np.where(leaf, limits, 0).astype(np.float64),
        target=target,
        members=members,
    )
    if features is not None:
        check_tree(tree, features, place=PLACE)
        inner = np.flatnonzero(~leaf)
        if (parents[left[inner]] != inner).any() or (parents[right[inner]] != inner).any():
            refuse("a node has another parent than its branch", PLACE)
    return tree


def _sets(raw: Any, kinds: Any, inner: Any) -> dict[int, Any]:
    nodes, starts, sizes = (
        np.array(raw[f"categories_{key}"], dtype=np.int64) for key in ("nodes", "segments", "sizes")
    )
    values = np.array(raw["categories"], dtype=np.int64)
    wanted = np.flatnonzero((kinds == 1) & inner)
    if not len(nodes) == len(starts) == len(sizes) or not np.array_equal(nodes, wanted):
        refuse("a set for each split by categories is expected", PLACE)
    if (
        (starts < 0).any()
        or (sizes < 1).any()
        or (starts + sizes > len(values)).any()
        or (values < 0).any()
        or (values >= 1 << 24).any()
    ):
        refuse("the ranges of the sets do not fit", PLACE)
    return {int(n): values[a : a + k] for n, a, k in zip(nodes, starts, sizes, strict=True)}


def _scaled(tree: Tree, weight: Any) -> Tree:
    from dataclasses import replace

    return replace(tree, value=(tree.value.astype(np.float32) * weight).astype(np.float64))


def _base_scores(learner: Any) -> list[float]:
    text = learner["learner_model_param"]["base_score"]
    return [number(part, PLACE) for part in text.removeprefix("[").removesuffix("]").split(",")]


def _starts(learner: Any, link: Link, outputs: int) -> list[float]:
    """What the sums start from: the base score before the link, in float32."""
    scores = [float(np.float32(v)) for v in _base_scores(learner)]
    if link == "sigmoid":
        scores = [float(np.float32(-math.log(1.0 / v - 1.0))) for v in scores]
    elif link == "exp":
        scores = [float(np.float32(math.log(v))) for v in scores]
    return scores * outputs if len(scores) == 1 else scores
