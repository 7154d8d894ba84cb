"""Boosted trees as plain arrays, whatever library grew them: what is read from a library's own file, checked, and written as ONNX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np

from mainspring.errors import UnsafeFormat

Link: TypeAlias = Literal[
    "identity", "sigmoid", "softmax", "sigmoid of each", "exp", "log1p of exp", "signed square"
]
"""How the sums of the leaves become answers."""

Category: TypeAlias = "str | float | bool"

MAX_FEATURES, MAX_OUTPUTS, MAX_TREES = 100_000, 10_000, 1_000_000


@dataclass(frozen=True)
class Tree:
    """One tree of nodes ``0..m-1``, the root first; ``left`` is -1 at a leaf.

    A row goes left if its feature is ``<= threshold``, or NaN and ``missing_left``; at a node in ``members`` if the feature is in the set.
    """

    left: Any
    right: Any
    feature: Any
    threshold: Any
    missing_left: Any
    value: Any
    """Of each leaf, float64; 0 at other nodes."""
    target: int
    members: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ensemble:
    """Trees, and what is done with their sums. ``categories``: feature to its categories, whose positions are what trees compare;
    null and every other value are NaN. ``whole``: what happens to a number that is the code of a category."""

    features: int
    outputs: int
    trees: Sequence[Tree]
    link: Link
    start: Sequence[float]
    scale: float = 1.0
    """Multiplies the sums of the leaves before ``start`` is added; of ``single`` it is 1."""
    sigmoid: float = 1.0
    """Multiplies what goes into a sigmoid."""
    single: bool = False
    """Whether the sums are of float32: XGBoost."""
    narrow: bool = False
    """Whether features are rounded to float32 before they are compared."""
    categories: Mapping[int, Sequence[Category]] = field(default_factory=dict)
    coded: frozenset[int] = frozenset()
    """Features that are codes of categories."""
    whole: Literal["truncate", "floor"] = "truncate"
    missing: float | None = None
    """A number that means null, besides NaN."""
    zero: float | None = None
    """A number of this size or smaller is 0 before it is compared."""
    finite: bool = False
    """Whether an infinite number is refused."""


def check_tree(tree: Tree, features: int, *, place: str) -> None:
    """Refuse what is not one tree: every node but the root has one parent and is reached from the root; features and numbers in range."""
    left, right = tree.left, tree.right
    count = len(left)
    if not count or any(
        len(a) != count for a in (right, tree.feature, tree.threshold, tree.missing_left, tree.value)
    ):
        refuse("the arrays of a tree have different lengths", place)
    inner = left >= 0
    if ((right >= 0) != inner).any():
        refuse("a node has one branch only", place)
    children = np.concatenate([left[inner], right[inner]])
    if len(children) and int(children.max()) >= count:
        refuse("a branch leads to no node", place)
    if (np.bincount(children, minlength=count) > 1).any():
        refuse("two branches lead to one node", place)
    used = tree.feature[inner]
    if len(used) and (int(used.min()) < 0 or int(used.max()) >= features):
        refuse("a node asks for a feature that there is not", place)
    if np.isnan(tree.threshold[inner]).any() or not np.isfinite(tree.value[~inner]).all():
        refuse("a threshold or a leaf is no number", place)
    reached, level = 1, np.array([0])
    while len(level := level[inner[level]]):
        level = np.concatenate([left[level], right[level]])
        reached += len(level)
        if reached > count:
            refuse("the branches of a tree lead in a circle", place)


def categories_by_feature(read: object, place: str) -> dict[int, list[Category]]:
    """Feature to its categories, from a JSON object."""
    if not isinstance(read, dict) or not all(
        isinstance(v, list) and all(isinstance(c, str | int | float | bool) for c in v) for v in read.values()
    ):
        refuse("categories are lists of texts or numbers by feature", place)
    return {whole_number(key, place, 0, MAX_FEATURES): values for key, values in read.items()}


def refuse(why: str, place: str, value: object = None) -> NoReturn:
    """Raise :class:`~mainspring.errors.UnsafeFormat`."""
    raise UnsafeFormat(
        why, value=value, place=place, next_step="Save the model with mainspring.models.formats.save."
    )


def number(text: str, place: str) -> float:
    """A number in decimal digits, finite."""
    try:
        value = float(text)
    except ValueError:
        refuse("a number is expected", place, text[:40])
    if not math.isfinite(value):
        refuse("a finite number is expected", place, text[:40])
    return value


def whole_number(text: str, place: str, low: int, high: int) -> int:
    """A whole number in decimal digits, in ``low..high``."""
    if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 18:
        refuse("a whole number is expected", place, text[:40])
    value = int(text)
    if not low <= value <= high:
        refuse(f"a number of {low} to {high} is expected", place, value)
    return value
