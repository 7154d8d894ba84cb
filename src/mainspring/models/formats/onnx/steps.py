"""Bounds how many nodes of a tree ensemble a row can visit; the cost of a prediction depends on the path that the row takes.

ONNX Runtime accepts trees with cycles, in which some rows never reach a leaf, and chains of thousands of nodes that the rows of the
sample leave at the first. So the paths are followed here: each node must have at most one branch that leads to it and be reached from
a root, and the longest path is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Bytes: TypeAlias = "memoryview | bytes"
_MEMBER = 6
_MAX_BYTES = 64 << 20
_MAX_DEPTH = 256 << 10
"""Nodes on one path: more than ONNX Runtime can load."""


@dataclass(frozen=True, slots=True)
class Steps:
    """``per_row``: nodes that one row visits at most, all trees together. ``deepest``: in one tree."""

    per_row: int
    deepest: int


@dataclass(frozen=True, slots=True)
class Read:
    """Readers of an attribute: its integers; of each of its strings whether it is ``LEAF``; type and raw bytes of its tensor."""

    ints: Callable[[memoryview], Any]
    leaves: Callable[[memoryview], Any]
    tensor: Callable[[memoryview], tuple[int, Bytes]]


def tree_steps(attributes: Mapping[str, memoryview], read: Read) -> Steps | None:
    """The longest paths through an ensemble; None if they are not known: not trees, or encoded in a way that is not read here."""
    if sum(map(len, attributes.values())) > _MAX_BYTES:
        return None
    try:
        ensemble = (
            _read_indexed(attributes, read) if "tree_roots" in attributes else _read_named(attributes, read)
        )
    except (KeyError, ValueError, IndexError):
        return None
    return None if ensemble is None else _measure_paths(*ensemble)


_Ensemble: TypeAlias = "tuple[Any, Any, Any, Any]"
"""Arrays: (parent, child) of each branch to a node, the weight of each node in steps, the positions of the roots."""


def _read_indexed(attributes: Mapping[str, memoryview], read: Read) -> _Ensemble | None:
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
        # ONNX Runtime expands a set into a chain of nodes, one for each member.
        weights[sets] = np.diff(ends, prepend=-1)
    nodes = np.arange(count)
    parents = np.concatenate([nodes[true_leaf == 0], nodes[false_leaf == 0]])
    children = np.concatenate([true[true_leaf == 0], false[false_leaf == 0]])
    return parents, children, weights, read.ints(attributes["tree_roots"])


def _read_named(attributes: Mapping[str, memoryview], read: Read) -> _Ensemble | None:
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


def _measure_paths(parents: Any, children: Any, weights: Any, roots: Any) -> Steps | None:
    """Follow all trees level by level from their roots; None unless each node is reached exactly once."""
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
    level, reached, depth = starts, len(starts), 0
    while len(level) and depth < _MAX_DEPTH:
        depth += 1
        begins, many = first[level], first[level + 1] - first[level]
        offsets = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        below = children[np.repeat(begins, many) + offsets]
        above = np.repeat(level, many)
        owner[below] = owner[above]
        reach[below] += reach[above]
        level = below
        reached += len(below)
    if reached != count:
        return None  # the other nodes are in cycles
    longest = np.zeros(len(starts), dtype=np.int64)
    np.maximum.at(longest, owner, reach)
    return Steps(per_row=int(longest.sum()), deepest=int(longest.max(initial=0)))


def varints(data: Bytes) -> Any:
    """The numbers in ``data``, protobuf varints one after the other, as int64. All are decoded at once, byte place by byte place."""
    import numpy as np

    octets = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    values = np.zeros(len(ends), dtype=np.uint64)
    for place in range(int((ends - starts).max(initial=-1)) + 1):
        longer = ends - starts >= place
        part = (octets[starts[longer] + place] & 0x7F).astype(np.uint64)
        values[longer] |= part << np.uint64(7 * place)
    return values.view(np.int64)
