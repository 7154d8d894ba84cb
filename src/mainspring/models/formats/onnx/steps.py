"""How many nodes of its trees a row can visit, at most: what a tree ensemble costs depends on where the row turns.

ONNX Runtime accepts trees whose branches lead back, so that some rows never arrive, and chains of thousands of nodes that the
sample leaves at the first one. So the ensembles are followed here: every node has at most one branch leading to it, each is reached
from a root, and the longest way is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Bytes: TypeAlias = "memoryview | bytes"
_MEMBER = 6
_MAX_BYTES = 64 << 20
_MAX_DEPTH = 256 << 10
"""Nodes on one way: more than ONNX Runtime can load."""


@dataclass(frozen=True, slots=True)
class Steps:
    """``per_row``: nodes that one row visits at most, all trees together. ``deepest``: in one tree."""

    per_row: int
    deepest: int


@dataclass(frozen=True, slots=True)
class Read:
    """How an attribute is read: its whole numbers, whether each of its strings is ``LEAF``, the raw bytes of its tensor."""

    ints: Callable[[memoryview], Any]
    leaves: Callable[[memoryview], Any]
    tensor: Callable[[memoryview], tuple[int, Bytes]]


def tree_steps(attributes: Mapping[str, memoryview], read: Read) -> Steps | None:
    """The longest ways through an ensemble; None if they are not known: not trees, or written in a way that is not read here."""
    if sum(map(len, attributes.values())) > _MAX_BYTES:
        return None
    try:
        found = _indexed(attributes, read) if "tree_roots" in attributes else _named(attributes, read)
    except (KeyError, ValueError, IndexError):
        return None
    return None if found is None else _longest(*found)


def _indexed(attributes: Mapping[str, memoryview], read: Read) -> tuple[Any, Any, Any, Any] | None:
    """``TreeEnsemble`` of opset 5: branches are positions of nodes or of leaves."""
    import numpy as np

    names = ("nodes_truenodeids", "nodes_falsenodeids", "nodes_trueleafs", "nodes_falseleafs")
    true, false, true_leaf, false_leaf = (read.ints(attributes[name]) for name in names)
    count = len(true)
    weights = np.ones(count, dtype=np.int64)
    kind, raw = read.tensor(attributes["nodes_modes"])
    modes = np.frombuffer(raw, dtype=np.uint8)
    if len({count, len(false), len(true_leaf), len(false_leaf), len(modes)}) != 1:
        return None
    if "membership_values" in attributes:
        kind, raw = read.tensor(attributes["membership_values"])
        ends = np.flatnonzero(np.isnan(np.frombuffer(raw, dtype=np.float64 if kind == 11 else np.float32)))
        sets = np.flatnonzero(modes == _MEMBER)
        if kind not in (1, 11) or len(ends) != len(sets):
            return None
        weights[sets] = np.diff(ends, prepend=-1)  # ONNX Runtime makes a chain of a set
    nodes = np.arange(count)
    parents = np.concatenate([nodes[true_leaf == 0], nodes[false_leaf == 0]])
    children = np.concatenate([true[true_leaf == 0], false[false_leaf == 0]])
    return parents, children, weights, read.ints(attributes["tree_roots"])


def _named(attributes: Mapping[str, memoryview], read: Read) -> tuple[Any, Any, Any, Any] | None:
    """``TreeEnsembleClassifier`` and ``Regressor``: nodes have an id within their tree."""
    import numpy as np

    tree, node, true, false = (
        read.ints(attributes[f"nodes_{name}"])
        for name in ("treeids", "nodeids", "truenodeids", "falsenodeids")
    )
    inner = ~read.leaves(attributes["nodes_modes"])
    count = len(tree)
    if len({count, len(node), len(true), len(false), len(inner)}) != 1 or not count:
        return None
    low, high = min(tree.min(), node.min()), max(int(v.max()) for v in (tree, node, true, false))
    if low < 0 or high >= 1 << 31:
        return None
    keys = tree << 31 | node
    order = np.argsort(keys)
    ordered = keys[order]
    if (ordered[1:] == ordered[:-1]).any():
        return None
    wanted = np.concatenate([(tree << 31 | true)[inner], (tree << 31 | false)[inner]])
    at = np.minimum(np.searchsorted(ordered, wanted), count - 1)
    if (ordered[at] != wanted).any():
        return None
    places = np.flatnonzero(inner)
    children = order[at]
    roots = np.flatnonzero(np.bincount(children, minlength=count) == 0)
    return np.concatenate([places, places]), children, np.ones(count, dtype=np.int64), roots


def _longest(parents: Any, children: Any, weights: Any, roots: Any) -> Steps | None:
    """Level by level from the roots; None unless each node is met once."""
    import numpy as np

    count = len(weights)
    if len(children) and (children.min() < 0 or children.max() >= count):
        return None
    arrivals = np.bincount(children, minlength=count)
    starts = np.flatnonzero(arrivals == 0)
    if (arrivals > 1).any() or not np.array_equal(np.sort(roots), starts):
        return None
    order = np.argsort(parents, kind="stable")
    children = children[order]
    first = np.searchsorted(parents[order], np.arange(count + 1))
    owner, reach = np.zeros(count, dtype=np.int64), weights.copy()
    owner[starts] = np.arange(len(starts))
    level, met, depth = starts, len(starts), 0
    while len(level) and depth < _MAX_DEPTH:
        depth += 1
        begins, many = first[level], first[level + 1] - first[level]
        offsets = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        below = children[np.repeat(begins, many) + offsets]
        above = np.repeat(level, many)
        owner[below] = owner[above]
        reach[below] += reach[above]
        level = below
        met += len(below)
    if met != count:
        return None  # the rest leads round in circles
    longest = np.zeros(len(starts), dtype=np.int64)
    np.maximum.at(longest, owner, reach)
    return Steps(per_row=int(longest.sum()), deepest=int(longest.max(initial=0)))


def varints(data: Bytes) -> Any:
    """The numbers of a run of protobuf varints, as int64."""
    import numpy as np

    octets = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    found = np.zeros(len(ends), dtype=np.uint64)
    for place in range(int((ends - starts).max(initial=-1)) + 1):
        longer = ends - starts >= place
        part = (octets[starts[longer] + place] & 0x7F).astype(np.uint64)
        found[longer] |= part << np.uint64(7 * place)
    return found.view(np.int64)
