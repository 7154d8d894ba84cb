"""A reference profile cut into bins, so that windows are compared (and added up) as plain counts.

Numbers fall into bins cut at the reference's quantiles. Categories cannot be chosen on the reference: those that it
happens to hold often would be rarer in any other data. They are kept by name and by hash (data/categories.py), and the
bins are made when a comparison is made, from both sides together (:meth:`BinnedColumn.align`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mainspring.data.categories import BUCKETS, EVERY, Tally, bucket_counts, hashes
from mainspring.data.profile import CATEGORICAL, NUMERIC, finite
from mainspring.data.readings import truth_of
from mainspring.data.sketches import Weighted, weighted
from mainspring.monitoring.statistics import Floats
from mainspring.records.profile import ColumnProfile, Profile

MAX_CATEGORIES = 50
MISSING = "missing"
OTHER = "other"

_HEAVY = 0.02
"""A category of a profile that dropped some gets a bin of its own from this share of the rows of both sides on: a side that does not
name it has it in less than 1/256 of its values."""
_PER_GROUP = 10.0
"""Rows that a group of rare categories should be expected to have on the smaller side."""
_SINGLE = 2.0**-22
_NEAR = 8
"""Two floats closer than so many units in the last place are one number computed in two ways (0.1 + 0.2 and 0.3)."""


@dataclass(frozen=True)
class Cells:
    """What was counted of one column, before the bins of a comparison are known. They add up.

    ``missing``: nulls and invalid values. ``numeric``: counts in the reference's bins of numbers; ``evidence`` the same in
    rows' worth (a sketch's own error counts as lost rows). ``named`` and ``rest``: categories by name and, for those that
    the profile dropped, by hash (None: an older profile does not say); ``other`` adds the latter up. ``unread_*``: values that
    do not read as the reference's type; ``fits``: these are categories as the reference has them, not numbers. ``sample``:
    whole counts, by hash, of the categories whose hash is below ``below`` (None: ``named`` has them all).
    """

    missing: float = 0.0
    numeric: Floats | None = None
    evidence: Floats | None = None
    unread_numeric: float = 0.0
    named: Mapping[str, float] = field(default_factory=dict)
    rest: Floats | None = field(default_factory=lambda: np.zeros(BUCKETS))
    other: float = 0.0
    unread_named: float = 0.0
    fits: bool = True
    sample: Mapping[int, float] | None = None
    below: int = EVERY

    def sampled(self, below: int) -> dict[int, float]:
        """Counts of every category whose hash is below ``below``, by hash."""
        found = self.sample
        if found is None:
            named: dict[int, float] = {}
            for h, count in zip(hashes(self.named).tolist(), self.named.values(), strict=True):
                named[h] = named.get(h, 0.0) + count
            found = named
        return {h: count for h, count in found.items() if h < below}

    def __add__(self, more: Cells) -> Cells:
        named = dict(self.named)
        for key, count in more.named.items():
            named[key] = named.get(key, 0.0) + count
        below, sample = min(self.below, more.below), None
        if self.other or more.other:
            sample = self.sampled(below)
            for h, count in more.sampled(below).items():
                sample[h] = sample.get(h, 0.0) + count
        return Cells(
            missing=self.missing + more.missing,
            numeric=_sum(self.numeric, more.numeric),
            evidence=_sum(self.evidence, more.evidence),
            unread_numeric=self.unread_numeric + more.unread_numeric,
            named=named,
            rest=_sum(self.rest, more.rest),
            other=self.other + more.other,
            unread_named=self.unread_named + more.unread_named,
            fits=self.fits and more.fits,
            sample=sample,
            below=below,
        )


class Aligned(NamedTuple):
    """Both sides in the same bins: counts, and the same in rows' worth, for tests."""

    labels: list[str]
    reference: Floats
    parts: list[Floats]
    evidence_reference: Floats
    evidence: Floats
    fine: tuple[Floats, Floats] | None = None
    """Categories: reference and window in as many cells as can be told apart, most of them sparse."""


class BinnedColumn:
    """One reference column: bin 0 holds nulls and what cannot be read, the rest its quantile bins or its categories.

    A value so frequent that it fills a quantile bin alone gets a bin of exactly itself (within the precision of a
    float32), so constants and few-valued numbers work. ``declared`` is the type in the model's signature, if known: text that
    reads wholly as numbers is compared as numbers where the signature says so, or where a window holds numbers.
    ``reason`` says why the column cannot be compared, if so.
    """

    def __init__(self, column: ColumnProfile, bins: int, declared: str | None = None) -> None:
        self.name = column.name
        self.type = column.type
        self.profile = column
        self.reason = ""
        self.edges: list[float] | None = None
        self._truths: dict[bool, str] = {}
        numeric = weighted(column)
        if finite(column) <= 0:
            self.reason = "the reference holds no value of it"
        elif column.type not in NUMERIC | CATEGORICAL:
            self.reason = f"columns of type {column.type} are not compared"
        elif numeric is not None and not numeric.unread:
            self.edges = cut_points(numeric, bins, column.type)
        self.categorical = column.type in CATEGORICAL and not (declared in NUMERIC and self.edges is not None)
        if column.type in CATEGORICAL and not column.other:
            read = {key: truth_of(key) for key in column.counts}
            if all(truth is not None for truth in read.values()):
                self._truths = {truth: key for key, truth in read.items() if truth is not None}
        self.reference = self.count(column)

    def count(self, column: ColumnProfile | None) -> Cells:
        """What a window's column holds, read as the reference's type; an absent column holds nothing."""
        numeric: Floats | None = np.zeros(len(self.edges) + 1) if self.edges is not None else None
        evidence = numeric
        if column is None or self.reason:
            return Cells(numeric=numeric, evidence=evidence)
        values = float(max(0, finite(column)))
        unread = 0.0
        if self.edges is not None and values:
            found = weighted(column, times=self.type == "timestamp")
            unread = values
            if found is not None:
                where = np.searchsorted(np.array(self.edges), found.values, side="right")
                counted = np.bincount(where, weights=found.weights, minlength=len(self.edges) + 1).astype(
                    np.float64
                )
                numeric, evidence, unread = counted, counted * found.worth, found.unread
        named, rest, other = self._categories(column)
        read = sum(named.values()) + other
        sample, below = None, EVERY
        if other:
            tally = Tally.of(column)
            sample = {h: float(n) for h, n in tally.sampled().items()} if tally.known else {}
            below = tally.below if tally.known else 0
        return Cells(
            missing=float(column.nulls + column.invalid),
            numeric=numeric,
            evidence=evidence,
            unread_numeric=unread,
            named=named,
            rest=rest,
            other=other,
            sample=sample,
            below=below,
            unread_named=max(0.0, values - read),
            fits=not values or read > 0,
        )

    def align(self, parts: Sequence[Cells]) -> Aligned:
        """The reference and the parts of a window in the same bins.

        Which categories get a bin of their own follows from the counts of both sides *together*: under "nothing
        changed" that says nothing about which side they are from, so a test on the bins is fair. The rarer ones are
        grouped by hash, in as many groups as the smaller side has rows for.
        """
        sides = [self.reference, *parts]
        fine = None
        if self._by_name(sides):
            labels, inside = _by_category(sides)
            fine = _each_category(self.reference, sum(parts, Cells()), labels)
            missing = [s.missing + s.unread_named for s in sides]
            counted = [np.concatenate(([m], v)) for m, v in zip(missing, inside, strict=True)]
            worth = counted
        else:
            edges = self.edges or []
            labels, missing = _interval_labels(edges), [s.missing + s.unread_numeric for s in sides]
            counted = [np.concatenate(([m], _given(s.numeric))) for m, s in zip(missing, sides, strict=True)]
            worth = [np.concatenate(([m], _given(s.evidence))) for m, s in zip(missing, sides, strict=True)]
        nothing = np.zeros(len(labels) + 1)
        return Aligned(
            [MISSING, *labels], counted[0], counted[1:], worth[0], np.sum([nothing, *worth[1:]], axis=0), fine
        )

    def unread(self, cells: Cells) -> float:
        """How many values of a window do not read as the reference's type."""
        return cells.unread_named if self._by_name([cells]) else cells.unread_numeric

    def _by_name(self, sides: Sequence[Cells]) -> bool:
        return self.categorical and (self.edges is None or all(s.fits for s in sides))

    def _categories(self, column: ColumnProfile) -> tuple[dict[str, float], Floats | None, float]:
        """Categories by name, those dropped by hash, and their sum; nothing if they are not of this column's kind."""
        nothing = np.zeros(BUCKETS)
        if not self.categorical:
            return {}, nothing, 0.0
        if column.type == "string" and self.type == "string":
            tally = Tally.of(column)
            rest = (
                nothing if not column.other else None if tally.rest is None else tally.rest.astype(np.float64)
            )
            return {k: float(n) for k, n in column.counts.items()}, rest, float(column.other)
        truths: dict[bool, float] = {}
        if column.type in CATEGORICAL:
            for key, count in column.counts.items():
                if (truth := truth_of(key)) is not None:
                    truths[truth] = truths.get(truth, 0.0) + count
        elif self.type == "bool" and (found := weighted(column)) is not None:
            pairs = zip(found.values.tolist(), found.weights.tolist(), strict=True)
            truths = {bool(v): w for v, w in pairs if v in {0.0, 1.0}}
        if self.type != "bool" and not self._truths:
            truths = {}
        return (
            {self._truths.get(t, "true" if t else "false"): n for t, n in truths.items() if n},
            nothing,
            0.0,
        )


class Reference:
    """All comparable columns of a reference profile. ``types``: those of the model's signature, by name."""

    def __init__(
        self,
        profile: Profile,
        *,
        name: str,
        bins: int,
        only: Collection[str] | None = None,
        ignore: Collection[str] = (),
        types: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.rows = profile.rows
        self.columns = {
            c.name: BinnedColumn(c, bins, (types or {}).get(c.name))
            for c in profile.columns
            if c.name not in ignore and (only is None or c.name in only)
        }

    def count(self, profiles: Sequence[Profile]) -> dict[str, Cells]:
        """Counts of several parts of a window, added up."""
        out = {name: column.count(None) for name, column in self.columns.items()}
        for profile in profiles:
            present = {c.name: c for c in profile.columns}
            for name, column in self.columns.items():
                got = present.get(name)
                if got is not None:
                    out[name] = out[name] + column.count(got)
                else:  # a column that is not there is missing in every row
                    out[name] = replace(out[name], missing=out[name].missing + profile.rows)
        return out


# --- numbers ---------------------------------------------------------------------------------------------------------


def cut_points(column: Weighted, bins: int, kind: str = "float64") -> list[float]:
    """Finite, increasing cut points near the quantiles ``1/bins ..``, each between two values and never on one.

    So a number that was computed or sent with another rounding stays in its bin. A value with a bin's share of the rows or
    more gets two cuts, around itself: as far as its float32 may be from it, and at most half way to the next value.
    """
    groups = _distinct(column.values)
    low, high = column.values[groups], column.values[np.r_[groups[1:] - 1, len(column.values) - 1]]
    weights = np.add.reduceat(column.weights, groups)
    below = np.cumsum(weights)
    wanted = np.searchsorted(below, below[-1] * np.arange(1, bins) / bins, side="left")
    frequent = np.flatnonzero(weights * bins >= below[-1])
    cuts: set[float] = set()
    for i in sorted({*wanted.tolist(), *frequent.tolist()}):
        before = _between(high[i - 1], low[i]) if i else -math.inf
        after = _between(high[i], low[i + 1]) if i + 1 < len(low) else math.inf
        if weights[i] * bins >= below[-1]:
            before = max(before, low[i] - _slack(low[i], kind, column.values))
            after = min(after, math.nextafter(high[i] + _slack(high[i], kind, column.values), math.inf))
            cuts.add(after)
        cuts.add(before)
    return sorted(c for c in cuts if math.isfinite(c))


def usual_share(column: ColumnProfile) -> float:
    """Share of the most frequent value among all; 1 if there is none."""
    if column.type in CATEGORICAL:
        return max(column.counts.values(), default=0) / max(1, finite(column))
    found = weighted(column)
    if found is None:
        return 1.0
    return float(np.add.reduceat(found.weights, _distinct(found.values)).max() / found.weights.sum())


def range_of(column: ColumnProfile) -> tuple[float, float]:
    """From the smallest value (at or above the first) to the largest (below the second), allowing for a float32 of either."""
    low, high = column.low or 0.0, column.high or 0.0
    ends = np.array([low, high])
    return low - _slack(low, column.type, ends), math.nextafter(
        high + _slack(high, column.type, ends), math.inf
    )


def _distinct(values: Floats) -> npt.NDArray[np.int64]:
    """Where runs of values that are one number begin: equal but for the last places, or one the float32 of the other."""
    a, b = values[:-1], values[1:]
    with np.errstate(over="ignore"):
        single = (a.astype(np.float32) == b) | (b.astype(np.float32) == a)
    near = b - a <= _NEAR * np.spacing(np.maximum(np.abs(a), np.abs(b)))
    whole = (a == np.floor(a)) & (b == np.floor(b))
    return np.flatnonzero(np.r_[True, ~((single | near) & ~whole)])


def _between(a: float, b: float) -> float:
    """A cut between two values: values up to ``a`` are below it, from ``b`` on at or above it."""
    middle = float(a / 2 + b / 2)
    return middle if a < middle <= b else float(b)


def _slack(value: float, kind: str, values: Floats) -> float:
    """How far from a value a number is still the same one."""
    size = abs(float(value))
    exact = _NEAR * max(float(np.spacing(size)), float(np.spacing(max(abs(values[0]), abs(values[-1])))) / 16)
    whole = value == math.floor(value)
    if kind != "float64":
        return min(exact, 0.25) if whole else exact
    if (
        whole and size >= 2.0**22
    ):  # neighbouring whole numbers are two numbers: only its own float32 is the same
        with np.errstate(over="ignore"):
            single = float(np.float32(value))
        return (
            min(exact, 0.25)
            if not math.isfinite(single)
            else max(min(exact, 0.25), abs(single - float(value)))
        )
    return max(exact, size * _SINGLE)


def _interval_labels(edges: Sequence[float]) -> list[str]:
    if not edges:
        return ["any"]
    shown = [f"{e:.6g}" for e in edges]
    return [f"< {shown[0]}", *(f"[{a}, {b})" for a, b in pairwise(shown)), f">= {shown[-1]}"]


# --- categories ------------------------------------------------------------------------------------------------------


def _by_category(sides: Sequence[Cells]) -> tuple[list[str], list[Floats]]:
    """Labels and counts of each side (the first is the reference): chosen categories by name, the others by hash."""
    sizes = [sum(s.named.values()) + s.other for s in sides]
    total = sum(sizes)
    together: Counter[str] = Counter()
    for side in sides:
        for key, count in side.named.items():
            together[key] += count  # type: ignore[assignment]
    order = sorted(together, key=lambda k: (-together[k], k))
    if any(s.other for s in sides):
        order = [k for k in order if together[k] >= _HEAVY * total]
    chosen = order[:MAX_CATEGORIES]
    inside = set(chosen)
    rare = [{k: n for k, n in s.named.items() if k not in inside} for s in sides]
    left = sum(sum(r.values()) for r in rare) + sum(s.other for s in sides)
    if not left:
        return chosen, [np.array([s.named.get(k, 0.0) for k in chosen]) for s in sides]
    smaller = min(sizes[0], total - sizes[0])
    groups = 1
    if all(s.rest is not None for s in sides):
        while groups < BUCKETS and left / total * smaller >= _PER_GROUP * groups * 2:
            groups *= 2
    out = []
    for side, others in zip(sides, rare, strict=True):
        grouped = bucket_counts(others, groups)
        if side.other:
            rest = side.rest if side.rest is not None and groups > 1 else np.array([side.other])
            grouped = grouped + rest.reshape(-1, groups).sum(axis=0)
        out.append(np.concatenate(([side.named.get(k, 0.0) for k in chosen], grouped)))
    named = [OTHER] if groups == 1 else [f"{OTHER} {i + 1}/{groups}" for i in range(groups)]
    return [*chosen, *named], out


def _each_category(reference: Cells, window: Cells, chosen: Sequence[str]) -> tuple[Floats, Floats]:
    """Both sides by single category, as far as each is counted whole: all, or those of the sample; the others by hash."""
    sides = (reference, window)
    if not any(s.other for s in sides):
        keys = dict.fromkeys([*reference.named, *window.named])
        cells = [np.array([s.named.get(k, 0.0) for k in keys]) for s in sides]
    else:
        below = min(s.below for s in sides)
        own = [k for k in chosen if any(k in s.named for s in sides)]
        hashed = set(hashes(own).tolist())
        samples = [{h: n for h, n in s.sampled(below).items() if h not in hashed} for s in sides]
        keys_of = dict.fromkeys([*samples[0], *samples[1]])
        known = all(s.rest is not None for s in sides)
        cells = []
        for side, sample in zip(sides, samples, strict=True):
            mine = np.array([side.named.get(k, 0.0) for k in own])
            theirs = np.array([sample.get(h, 0.0) for h in keys_of])
            left = bucket_counts({k: n for k, n in side.named.items() if k not in own})
            left = left + (_given(side.rest) if known else np.eye(1, BUCKETS)[0] * side.other)
            where = np.array(list(keys_of), dtype=np.int64) & (BUCKETS - 1)
            left = left - np.bincount(where, weights=theirs, minlength=BUCKETS)
            cells.append(np.concatenate((mine, theirs, np.maximum(left, 0.0) if known else [left.sum()])))
    outside = [s.missing + s.unread_named for s in sides]
    one, two = (np.concatenate(([o], c)) for o, c in zip(outside, cells, strict=True))
    return one, two


def _sum(a: Floats | None, b: Floats | None) -> Floats | None:
    return None if a is None or b is None else a + b


def _given(counts: Floats | None) -> Floats:
    return np.zeros(1) if counts is None else counts
