"""Reads CatBoost's JSON: symmetric trees and others, over numbers and over categories, with the tables of their target statistics.

What is stored is not the file of the library but :func:`canonical`: what prediction needs, without parameters and names of columns, and
what becomes of the sums.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import numpy as np

from mainspring.errors import UnsafeFormat
from mainspring.models.formats.boosters.ensemble import (
    MAX_FEATURES,
    MAX_OUTPUTS,
    Category,
    Ensemble,
    Link,
    Tree,
    check_tree,
    refuse,
)

PLACE = "booster.json"
LINK = "link"
_KINDS = ("FloatFeature", "OneHotFeature", "OnlineCtr")
_NULLS = ("AsIs", "AsFalse", "AsTrue")
_CTRS = ("Borders", "Buckets", "BinarizedTargetMeanValue", "FloatTargetMeanValue", "Counter", "FeatureFreq")
_MAX_DEPTH = 16
_FEATURE = ("feature_index", "flat_feature_index")


def canonical(model: Any, link: Link) -> bytes:
    """The parsed JSON with nothing but what predictions need."""
    if not isinstance(model, dict):
        refuse("this is not a model of CatBoost", PLACE)
    info = model.get("features_info")
    if not isinstance(info, dict) or set(info) - {
        "float_features",
        "categorical_features",
        "ctrs",
        "cat_features_hash",
    }:
        refuse("features of a kind that is not known here", PLACE, sorted(info or {}))
    out: dict[str, Any] = {
        "features_info": {
            "float_features": [
                _kept(f, *_FEATURE, "borders", "has_nans", "nan_value_treatment") | {"feature_id": ""}
                for f in info.get("float_features", [])
            ],
        },
        LINK: link,
        "scale_and_bias": model.get("scale_and_bias"),
    }
    if "categorical_features" in info:
        out["features_info"] |= {
            "cat_features_hash": [_kept(h, "hash", "value") for h in info.get("cat_features_hash", [])],
            "categorical_features": [
                _kept(f, *_FEATURE) | _kept(f, "values", optional=True) | {"feature_id": ""} for f in info["categorical_features"]
            ],
        }  # fmt: skip
    if "ctrs" in info:
        out["features_info"]["ctrs"] = info["ctrs"]
        out["ctr_data"] = model.get("ctr_data")
    for key in ("oblivious_trees", "trees"):
        if key in model:
            out[key] = model[key]
    return json.dumps(out, separators=(",", ":"), allow_nan=False, sort_keys=True).encode()


def check(data: bytes) -> Any:
    """The parsed JSON, if it is canonical and every position in it exists."""
    try:
        model = json.loads(data)
        if not isinstance(model, dict) or model.get(LINK) not in get_args(Link):
            refuse("this is not a model of CatBoost", PLACE)
        if canonical(model, model[LINK]) != data:
            refuse("the file holds more than a model, or not in the form that is stored here", PLACE)
        _check_features(model)
        _check_tables(model)
        _read_trees(model)
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        RecursionError,
        AttributeError,
    ) as error:
        if isinstance(error, UnsafeFormat):
            raise
        refuse(f"this is not a model of CatBoost: {type(error).__name__}: {str(error)[:100]}", PLACE)
    return model


def read(data: bytes) -> Ensemble:
    """The ensemble of a canonical file. Raises :class:`~mainspring.errors.UnsafeFormat` for any other bytes.

    Raises ValueError for a model that is good and has no such arrays: one with statistics of the target by category.
    """
    model = check(data)
    if model["features_info"].get("ctrs"):
        raise ValueError("target statistics of categories")
    names = _one_hot_names(model)
    if any(
        len(f.get("values", [])) > len({h for _, h in names[f["flat_feature_index"]]})
        for f in _features(model)[1]
    ):
        raise ValueError("a category of the trees is in none of the rows that were given")
    return Ensemble(
        features=_width(model),
        outputs=len(model["scale_and_bias"][1]),
        trees=_read_trees(model),
        link=cast("Link", model[LINK]),
        start=[float(v) for v in model["scale_and_bias"][1]],
        scale=float(model["scale_and_bias"][0]),
        narrow=True,
        categories={f: [text for text, _ in listed] for f, listed in names.items()},
        coded=frozenset(names),
    )


def describe(data: bytes) -> tuple[int, Link, list[int]]:
    """Of a checked file: how many features, what becomes of the sums, which features are texts."""
    model = json.loads(data)
    texts = [f["flat_feature_index"] for f in model["features_info"].get("categorical_features", [])]
    return _width(model), model[LINK], texts


def native(data: bytes) -> bytes:
    """The part of a checked file that is for CatBoost."""
    model = json.loads(data)
    del model[LINK]
    return json.dumps(model).encode()


def _kept(value: Any, *keys: str, optional: bool = False) -> dict[str, Any]:
    return {key: value[key] for key in keys if key in value or not optional}


def _features(model: Any) -> tuple[list[Any], list[Any]]:
    info = model["features_info"]
    return info["float_features"], info.get("categorical_features", [])


def _width(model: Any) -> int:
    numbers, texts = _features(model)
    return len(numbers) + len(texts)


def _whole(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        refuse(f"a whole number of {low} to {high} is expected", PLACE, value)
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > 1e300:
        refuse("a number is expected", PLACE, str(value)[:40])
    return float(value)


def _check_features(model: Any) -> None:
    numbers, texts = _features(model)
    width = len(numbers) + len(texts)
    if not 0 < width <= MAX_FEATURES:
        refuse("a model has features", PLACE, width)
    for own in (numbers, texts):
        if [f["feature_index"] for f in own] != list(range(len(own))):
            refuse("the features are not numbered one after the other", PLACE)
    if sorted(_whole(f["flat_feature_index"], 0, width - 1) for f in numbers + texts) != list(range(width)):
        refuse("two features have one position", PLACE)
    _check_numbers(numbers)
    _check_texts(texts, model["features_info"].get("cat_features_hash", []))
    scale, bias = model["scale_and_bias"]
    _number(scale)
    if not isinstance(bias, list) or not 0 < len(bias) <= MAX_OUTPUTS:
        refuse("a start for each output is expected", PLACE)
    for value in bias:
        _number(value)
    if ("trees" in model) == ("oblivious_trees" in model):
        refuse("trees of one kind are expected", PLACE)


def _check_numbers(numbers: list[Any]) -> None:
    for feature in numbers:
        borders = [_number(b) for b in feature["borders"]]
        if (
            borders != sorted(borders)
            or feature["nan_value_treatment"] not in _NULLS
            or type(feature["has_nans"]) is not bool
        ):
            refuse("the borders of a feature are not in order", PLACE)


def _check_texts(texts: list[Any], known_texts: list[Any]) -> None:
    for feature in texts:
        for value in feature.get("values", []):
            _whole(value, -(2**31), 2**32 - 1)
    for known in known_texts:
        _whole(known["hash"], 0, 2**32 - 1)
        if not isinstance(known["value"], str):
            refuse("a category is a text", PLACE)


def _one_hot_names(model: Any) -> dict[int, list[tuple[str, int]]]:
    """Of each feature of texts: those that a tree asks for, with their hashes."""
    out: dict[int, list[tuple[str, int]]] = {}
    known = [(h["value"], h["hash"]) for h in model["features_info"].get("cat_features_hash", [])]
    for feature in _features(model)[1]:
        wanted = {v & 0xFFFFFFFF for v in feature.get("values", [])}
        out[feature["flat_feature_index"]] = [(text, value) for text, value in known if value in wanted]
    return out


class _Splits:
    """The splits of a model: what a node asks."""

    def __init__(self, model: Any) -> None:
        numbers, texts = _features(model)
        self._numbers = [(f["flat_feature_index"], f["nan_value_treatment"] != "AsTrue") for f in numbers]
        self._texts = [f["flat_feature_index"] for f in texts]
        self._names = _one_hot_names(model)
        ctrs = model["features_info"].get("ctrs", [])
        # A split is a position in this list, and CatBoost believes the position.
        self._listed: list[tuple[Any, ...]] = [
            *(("FloatFeature", f["feature_index"], b) for f in numbers for b in f["borders"]),
            *(("OneHotFeature", f["feature_index"], v) for f in texts for v in f.get("values", [])),
            *(("OnlineCtr", c["target_border_idx"], b) for c in ctrs for b in c["borders"]),
        ]

    def ask(self, split: Any) -> tuple[int, float, bool, list[int] | None]:
        """(feature, border, whether null is on the lower side, the codes of the upper side or None)."""
        kind = split["split_type"]
        if kind not in _KINDS:
            refuse("a split of a kind that is not known here", PLACE, str(kind)[:40])
        position = _whole(split["split_index"], 0, len(self._listed) - 1)
        own, value = {"FloatFeature": ("float_feature_index", "border"), "OneHotFeature": ("cat_feature_index", "value"),
                      "OnlineCtr": ("ctr_target_border_idx", "border")}[kind]  # fmt: skip
        if (kind, split[own], split[value]) != self._listed[position]:
            refuse("a split is not the one of its position", PLACE, position)
        if kind == "FloatFeature":
            feature, low = self._numbers[_whole(split["float_feature_index"], 0, len(self._numbers) - 1)]
            return feature, _number(split["border"]), low, None
        if kind == "OnlineCtr":
            return self._texts[0], 0.0, False, [-1]
        feature = self._texts[_whole(split["cat_feature_index"], 0, len(self._texts) - 1)]
        code = _whole(split["value"], -(2**31), 2**32 - 1) & 0xFFFFFFFF
        return feature, 0.0, False, [i for i, (_, h) in enumerate(self._names[feature]) if h == code]


def _read_trees(model: Any) -> list[Tree]:
    outputs, features = len(model["scale_and_bias"][1]), _width(model)
    splits, trees = _Splits(model), []
    for raw in model.get("oblivious_trees", model.get("trees")):
        made = (_symmetric if "oblivious_trees" in model else _any_shape)(raw, splits, outputs)
        check_tree(made[0], features, place=PLACE)
        trees += made
    return trees


def _symmetric(raw: Any, splits: _Splits, outputs: int) -> list[Tree]:
    """A tree that asks the same on each level: the answers are the bits of the number of a leaf, the first split the lowest."""
    asked = [splits.ask(s) for s in raw.get("splits") or []][::-1]
    if len(asked) > _MAX_DEPTH or len(raw["leaf_values"]) != outputs << len(asked):
        refuse("a leaf for each combination of answers is expected", PLACE)
    values = np.array([_number(v) for v in raw["leaf_values"]]).reshape(-1, outputs)
    inner = (1 << len(asked)) - 1
    questions = [a for level, a in enumerate(asked) for _ in range(1 << level)]
    low = [2 * k + 1 for k in range(inner)] + [-1] * len(values)
    high = [2 * k + 2 for k in range(inner)] + [-1] * len(values)
    return _make(low, high, questions, np.concatenate([np.zeros((inner, outputs)), values]))


def _any_shape(raw: Any, splits: _Splits, outputs: int) -> list[Tree]:
    low: list[int] = []
    high: list[int] = []
    questions: list[Any] = []
    values: list[list[float]] = []
    waiting = [(raw, low, -1)]
    while waiting:
        node, side, parent = waiting.pop()
        number = len(low)
        if parent >= 0:
            side[parent] = number
        low.append(-1)
        high.append(-1)
        if "split" in node:
            questions.append(splits.ask(node["split"]))
            values.append([0.0] * outputs)
            waiting += [(node["left"], low, number), (node["right"], high, number)]
            continue
        questions.append((0, 0.0, False, None))
        listed = node["value"] if isinstance(node["value"], list) else [node["value"]]
        if len(listed) != outputs:
            refuse("a number for each output is expected in a leaf", PLACE)
        values.append([_number(v) for v in listed])
    return _make(low, high, questions, np.array(values))


def _make(low: Sequence[int], high: Sequence[int], questions: Sequence[Any], values: Any) -> list[Tree]:
    """One tree for each output. ``low``: the branch of a feature up to the border."""
    below, above = np.array(low, dtype=np.int64), np.array(high, dtype=np.int64)
    asked = [*questions, *[(0, 0.0, False, None)] * (len(below) - len(questions))]
    swap = np.array([a[3] is not None for a in asked])
    members: Mapping[int, Any] = {
        k: np.array(a[3], dtype=np.int64) for k, a in enumerate(asked) if a[3] is not None
    }
    return [
        Tree(
            left=np.where(swap, above, below),  # a member of a set goes left
            right=np.where(swap, below, above),
            feature=np.array([a[0] for a in asked], dtype=np.int64),
            threshold=np.array([a[1] for a in asked], dtype=np.float64),
            missing_left=np.array([a[2] for a in asked], dtype=bool),
            value=values[:, target],
            target=target,
            members=members,
        )
        for target in range(values.shape[1])
    ]


def _check_tables(model: Any) -> None:
    """The statistics of the target by category: hash tables, as texts of 64 bits and numbers behind each."""
    info = model["features_info"]
    ctrs, tables = info.get("ctrs"), model.get("ctr_data")
    if ctrs is None:
        return
    texts, numbers = len(info.get("categorical_features", [])), len(info["float_features"])
    if not isinstance(tables, dict) or not texts:
        refuse("statistics without tables", PLACE)
    for ctr in ctrs:
        known = {
            "borders",
            "ctr_type",
            "elements",
            "identifier",
            "prior_denomerator",
            "prior_numerator",
            "scale",
            "shift",
            "target_border_idx",
        }
        if set(ctr) != known or ctr["ctr_type"] not in _CTRS or ctr["identifier"] not in tables:
            refuse("a statistic of a kind that is not known here", PLACE)
        classes = (
            tables[ctr["identifier"]]["hash_stride"] - 1 if ctr["ctr_type"] in ("Borders", "Buckets") else 1
        )
        _whole(ctr["target_border_idx"], 0, classes - 1)
        # CatBoost looks the table up by these two, not by the text of the identifier.
        named = json.loads(ctr["identifier"])
        if (named["identifier"], named["type"]) != (ctr["elements"], ctr["ctr_type"]):
            refuse("a statistic of another table", PLACE)
        for value in [
            *ctr["borders"],
            *(ctr[k] for k in ("prior_denomerator", "prior_numerator", "scale", "shift")),
        ]:
            _number(value)
        for element in ctr["elements"]:
            _check_element(element, texts, numbers)
    for name, table in tables.items():
        identifier = json.loads(name)
        if (
            set(identifier) != {"identifier", "type"}
            or identifier["type"] not in _CTRS
            or set(table) != {"counter_denominator", "hash_map", "hash_stride"}
        ):
            refuse("a table of a kind that is not known here", PLACE)
        for element in identifier["identifier"]:
            _check_element(element, texts, numbers)
        _check_table(table, identifier["type"])


def _check_element(element: Any, texts: int, numbers: int) -> None:
    kind = element["combination_element"]
    if kind == "float_feature":
        _whole(element["float_feature_index"], 0, numbers - 1)
        _number(element["border"])
    elif kind in ("cat_feature_value", "cat_feature_exact_value"):
        _whole(element["cat_feature_index"], 0, texts - 1)
        if kind == "cat_feature_exact_value":
            _whole(element["value"], -(2**31), 2**32 - 1)
    else:
        refuse("a statistic over something that is not known here", PLACE, str(kind)[:40])


def _check_table(table: Any, kind: str) -> None:
    stride = _whole(table["hash_stride"], 2, 1 << 16)
    cells = table["hash_map"]
    _whole(table["counter_denominator"], 0, 2**31 - 1)
    fits = 2 if kind in ("Counter", "FeatureFreq") else 3 if "Mean" in kind else stride
    if not isinstance(cells, list) or len(cells) % stride or stride < 2 or stride != fits:
        refuse("a table does not have whole rows", PLACE)
    for position in range(0, len(cells), stride):
        key = cells[position]
        if (
            not isinstance(key, str)
            or not key.isascii()
            or not key.isdigit()
            or len(key) > 20
            or int(key) >= 1 << 64
        ):
            refuse("the key of a table is a number of 64 bits as a text", PLACE)
        for value in cells[position + 1 : position + stride]:
            _number(value)


__all__ = ["Category", "canonical", "check", "describe", "native", "read"]
