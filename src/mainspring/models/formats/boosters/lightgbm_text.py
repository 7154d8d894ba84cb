"""Reads LightGBM's model text, which LightGBM itself reads unchecked: lengths, positions of nodes and features, keys, objectives.

What is stored is not the text of the library but :func:`canonical`: the trees and what prediction needs, without parameters (they have
names of files), importances, offsets into the text and names of columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mainspring.models.formats.boosters.ensemble import (
    MAX_FEATURES,
    MAX_OUTPUTS,
    MAX_TREES,
    Category,
    Ensemble,
    Link,
    Tree,
    categories_by_feature,
    check_tree,
    number,
    refuse,
    whole_number,
)

PLACE = "booster.txt"
_HEAD = ("version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx", "objective", "average_output", "feature_names",
         "feature_infos")  # fmt: skip
_TREE = ("num_leaves", "num_cat", "split_feature", "threshold", "decision_type", "left_child", "right_child", "leaf_value", "cat_boundaries",
         "cat_threshold", "is_linear", "leaf_const", "num_features", "leaf_features", "leaf_coeff", "shrinkage")  # fmt: skip
_NUMBERS = re.compile(r"[-+0-9.eE ]*")
_WHOLE_NUMBERS = re.compile(r" *(?:-?[0-9]+(?: +|\Z))*")
_PRINTABLE = re.compile(r"[\n -~]*")
_LINKS: dict[str, Link] = {
    **dict.fromkeys(
        ["regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg", "custom"], "identity"
    ),
    **dict.fromkeys(["poisson", "gamma", "tweedie"], "exp"),
    **dict.fromkeys(["binary", "cross_entropy"], "sigmoid"),
    "multiclass": "softmax",
    "multiclassova": "sigmoid of each",
    "cross_entropy_lambda": "log1p of exp",
}  # fmt: skip
_ARGUMENT = re.compile(r"(?:sigmoid|num_class|alpha|sqrt|c|tweedie_variance_power)(?::[-+0-9.eE]+)?")
_ZERO_IS_MISSING = 1
ZERO = float(np.float32(1e-35))
"""What LightGBM takes for 0 when it reads a row, and splits at."""
_CATEGORIES = "categories="


def canonical(text: str, categories: Mapping[int, Sequence[Category]]) -> bytes:
    """The model text with nothing but what predictions need, and a last line with the categories by feature."""
    head, trees = _split(text)
    features = whole_number(head.get("max_feature_idx", ""), PLACE, 0, MAX_FEATURES - 1) + 1
    head["feature_names"] = " ".join(f"f{i}" for i in range(features))
    head["feature_infos"] = " ".join(["none"] * features)
    lines = ["tree"]
    lines += [key if key == "average_output" else f"{key}={head[key]}" for key in _HEAD if key in head]
    for i, tree in enumerate(trees):
        lines += ["", f"Tree={i}", *(f"{key}={tree[key]}" for key in _TREE if key in tree), ""]
    lines += ["", "end of trees", "", f"{_CATEGORIES}{json.dumps(categories)}", ""]
    return "\n".join(lines).encode()


def pandas_categories(text: str) -> list[list[Category]]:
    """Of LightGBM's own text: the categories of the columns that were categorical in pandas, in the order of the columns."""
    listed = json.loads(text.rpartition("\npandas_categorical:")[2])
    return listed if isinstance(listed, list) else []


def native(data: bytes) -> str:
    """The part of a checked text that is for LightGBM."""
    return data.decode("ascii").rpartition(_CATEGORIES)[0]


def categories_of(data: bytes) -> dict[int, list[Category]]:
    """The categories of a canonical text, by feature."""
    try:
        read = json.loads(data.rpartition(_CATEGORIES.encode())[2])
        return categories_by_feature(read, PLACE)
    except (ValueError, RecursionError):
        refuse("the categories are not JSON", PLACE)


def read(data: bytes) -> Ensemble:
    """The ensemble of a canonical text. Raises :class:`~mainspring.errors.UnsafeFormat` for any other bytes.

    Raises ValueError for a model that is good and has no such arrays: one with a linear model in each leaf, or with zeros as nulls.
    """
    text = check(data)
    head, blocks = _split(text)
    features = int(head["max_feature_idx"]) + 1
    outputs = int(head["num_tree_per_iteration"])
    name, *arguments = head.get("objective", "custom").split(" ")
    given = dict(a.partition(":")[::2] for a in arguments)
    link = _LINKS[name]
    if name == "regression" and "sqrt" in given:
        link = "signed square"
    trees, coded = [], set()
    for i, block in enumerate(blocks):
        if block.get("is_linear", "0") != "0":
            raise ValueError("linear models in the leaves")
        tree, kinds = _tree(block, i % outputs)
        inner = tree.left >= 0
        if (kinds >> 2 == _ZERO_IS_MISSING).any():
            raise ValueError("zeros that mean null")
        coded |= set(tree.feature[inner][kinds & 1 == 1].tolist())
        trees.append(tree)
    return Ensemble(
        features=features,
        outputs=outputs,
        trees=trees,
        link=link,
        start=[0.0] * outputs,
        scale=1.0 / max(1, len(blocks) // outputs) if "average_output" in head else 1.0,
        sigmoid=float(given.get("sigmoid", 1.0)) if link in ("sigmoid", "sigmoid of each") and name != "cross_entropy" else 1.0,
        categories=categories_of(data),
        coded=frozenset(coded),
        zero=ZERO if any((np.abs(tree.threshold[tree.left >= 0]) <= ZERO).any() for tree in trees) else None,
    )  # fmt: skip


def check(data: bytes) -> str:
    """The text, if it is canonical and every position in it exists."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        refuse("this is not a model text of LightGBM", PLACE)
    # To LightGBM a carriage return ends a line too, and a key that follows replaces the one that was checked.
    if not _PRINTABLE.fullmatch(text):
        refuse("a model text has printable characters only", PLACE)
    if canonical(text, categories_of(data)) != data:
        refuse("the model text holds more than the trees", PLACE)
    head, blocks = _split(text)
    features = int(head["max_feature_idx"]) + 1
    if any(f >= features for f in categories_of(data)):
        refuse("categories of a feature that there is not", PLACE)
    outputs = whole_number(head.get("num_tree_per_iteration", ""), PLACE, 1, MAX_OUTPUTS)
    classes = whole_number(head.get("num_class", ""), PLACE, 1, MAX_OUTPUTS)
    if classes != outputs or len(blocks) % outputs or head.get("version") not in ("v3", "v4"):
        refuse("the trees are not those of the classes", PLACE, classes)
    whole_number(head.get("label_index", "0"), PLACE, 0, MAX_FEATURES)
    _check_objective(head.get("objective", "custom"), outputs)
    for block in blocks:
        number(block.get("shrinkage", "1"), PLACE)
        tree, _ = _tree(block, 0)
        check_tree(tree, features, place=PLACE)
        if block.get("is_linear", "0") != "0":
            _check_linear(block, features, int((tree.left < 0).sum()))
    return text


def _check_objective(text: str, outputs: int) -> None:
    """LightGBM writes as many answers to a row as the objective says, into the place of as many as there are trees in a round."""
    name, *arguments = text.split(" ")
    if name not in _LINKS or not all(_ARGUMENT.fullmatch(a) for a in arguments):
        refuse("an objective that is not known here", PLACE, name[:40])
    keys = [a.partition(":")[0] for a in arguments]
    given = dict(a.partition(":")[::2] for a in arguments)
    if len(set(keys)) != len(keys):
        refuse("an argument of the objective is there twice", PLACE, text[:80])
    wanted = outputs if name == "custom" else 1
    if name.startswith("multiclass"):
        wanted = whole_number(given.pop("num_class", ""), PLACE, 1, MAX_OUTPUTS)
    if wanted != outputs or "num_class" in given:
        refuse("the objective has another number of classes than the trees", PLACE, text[:80])


def _split(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Head and trees; other parts of LightGBM's own text are passed over."""
    body, found, _ = text.partition("\nend of trees")
    parts = body.split("\nTree=")
    if not found or not parts[0].startswith("tree\n") or len(parts) > MAX_TREES:
        refuse("this is not a model text of LightGBM", PLACE)
    return _pairs(parts[0].split("\n")[1:], _HEAD), [_pairs(p.split("\n")[1:], _TREE) for p in parts[1:]]


def _pairs(lines: list[str], known: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition("=")
        if key in pairs:
            refuse("a line is there twice", PLACE, key[:40])
        if key in known:
            pairs[key] = value
    return pairs


def _array(block: dict[str, str], key: str, kind: Any, length: int | None = None) -> Any:
    text = block.get(key, "")
    # Null against any number is a split at infinity.
    # LightGBM stops reading a whole number at its first other character: to it 20e-1 is 20.
    pattern = _WHOLE_NUMBERS if kind is np.int64 else _NUMBERS
    if not pattern.fullmatch(text.replace("inf", "0") if key == "threshold" else text):
        refuse("numbers are expected", PLACE, key)
    try:
        values = np.array(text.split(), dtype=np.float64)
    except ValueError:
        refuse("numbers are expected", PLACE, key)
    if length is not None and len(values) != length:
        refuse(f"{length} numbers are expected", PLACE, f"{key}: {len(values)}")
    if kind is np.int64 and (np.abs(values) >= 2**53).any():
        refuse("whole numbers are expected", PLACE, key)
    return values.astype(kind)


def _tree(block: dict[str, str], target: int) -> tuple[Tree, Any]:
    """A tree, and the decision types of its inner nodes: bit 0 a set, bit 1 null goes left, bits 2 and 3 what is null."""
    leaves = whole_number(block.get("num_leaves", ""), PLACE, 1, 1 << 24)
    sets = whole_number(block.get("num_cat", ""), PLACE, 0, 1 << 24)
    values = _array(block, "leaf_value", np.float64, leaves)
    inner = leaves - 1
    if not inner:
        empty = np.array([-1])
        return Tree(
            left=empty, right=empty, feature=np.array([0]), threshold=np.zeros(1), missing_left=np.zeros(1, bool), value=values, target=target
        ), np.zeros(0, dtype=np.int64)  # fmt: skip
    children = {key: _array(block, f"{key}_child", np.int64, inner) for key in ("left", "right")}
    for key, at in children.items():
        if (at >= inner).any() or (at < -leaves).any():
            refuse("a branch leads to no node", PLACE)
        # A leaf is written as -1 - its number; here leaves come after the inner nodes.
        children[key] = np.concatenate([np.where(at < 0, inner - 1 - at, at), np.full(leaves, -1)])
    kinds = _array(block, "decision_type", np.int64, inner)
    if (kinds < 0).any() or (kinds >> 2 > 2).any():
        refuse("an unknown kind of decision", PLACE)
    split = _array(block, "threshold", np.float64, inner)
    members = _read_sets(block, sets, kinds, split)
    nan_left = (split >= 0) & (kinds >> 2 == 0) | (kinds >> 2 != 0) & (kinds & 2 == 2)
    padding = np.zeros(leaves)
    tree = Tree(
        left=children["left"],
        right=children["right"],
        feature=np.concatenate([_array(block, "split_feature", np.int64, inner), padding.astype(np.int64)]),
        threshold=np.concatenate([np.where(kinds & 1 == 1, 0.0, split), padding]),
        missing_left=np.concatenate([nan_left & (kinds & 1 == 0), padding != 0]),
        value=np.concatenate([np.zeros(inner), values]),
        target=target,
        members=members,
    )
    return tree, kinds


def _read_sets(block: dict[str, str], sets: int, kinds: Any, split: Any) -> dict[int, Any]:
    """Node to the codes that go left. The threshold of such a node is the number of its set, a range of words of 32 bits."""
    nodes = np.flatnonzero(kinds & 1)
    if not sets:
        if len(nodes):
            refuse("a node asks for a set that there is not", PLACE)
        return {}
    bounds = _array(block, "cat_boundaries", np.int64, sets + 1)
    words = _array(block, "cat_threshold", np.int64)
    if (words < 0).any() or (words >= 1 << 32).any():
        refuse("a set is not in words of 32 bits", PLACE)
    if bounds[0] != 0 or (np.diff(bounds) < 1).any() or bounds[-1] != len(words):
        refuse("the ranges of the sets do not fit", PLACE)
    at = split[nodes]
    if (at % 1).any() or (at < 0).any() or (at >= sets).any():
        refuse("a node asks for a set that there is not", PLACE)
    members = {}
    for node in nodes.tolist():
        which = int(split[node])
        own = words[bounds[which] : bounds[which + 1]].astype("<u4")
        members[node] = np.flatnonzero(np.unpackbits(own.view(np.uint8), bitorder="little"))
    return members


def _check_linear(block: dict[str, str], features: int, leaves: int) -> None:
    _array(block, "leaf_const", np.float64, leaves)
    counts = _array(block, "num_features", np.int64, leaves)
    if (counts < 0).any() or (counts > features).any():
        refuse("a leaf has more numbers than there are features", PLACE)
    total = int(counts.sum())
    used = _array(block, "leaf_features", np.int64, total)
    if (used < 0).any() or (used >= features).any():
        refuse("a leaf asks for a feature that there is not", PLACE)
    _array(block, "leaf_coeff", np.float64, total)


def describe(data: bytes) -> tuple[int, str]:
    """Of a checked text: how many features, and the objective."""
    head, _ = _split(data.decode("ascii"))
    return int(head["max_feature_idx"]) + 1, head.get("objective", "custom").split(" ")[0]
