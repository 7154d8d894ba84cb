"""A reference profile cut into bins, so that windows are compared (and added up) as plain counts.

Numbers are counted in bins cut at the reference's quantiles. Bins of categories cannot be chosen from the reference alone: those
that it happens to hold often would be rarer in any other data. Categories are kept by name and by hash (data/categories.py), and
their bins are made in each comparison, from both sides together (:meth:`BinnedColumn.align`).
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
"""Where a profile dropped categories, one gets a bin of its own from this share of the rows of both sides on: a side that does not
name it has it in less than 1/256 of its values."""
_PER_GROUP = 10.0
"""Expected rows that a group of rare categories should have on the smaller side."""
_SINGLE = 2.0**-22
"""Relative distance within which two numbers count as one in single precision: four times the rounding error of a float32."""
_NEAR = 8
"""Two floats at most so many units in the last place apart are one number computed in two ways (0.1 + 0.2 and 0.3)."""


@dataclass(frozen=True)
class Cells:
    """The counts of one column, before the bins of a comparison are known. The counts of two windows add up to those of both.

    ``missing``: nulls and invalid values. ``numeric``: counts in the reference's bins of numbers; ``evidence`` the same in
    effective rows (the error of a sketch counts as lost rows). ``named`` and ``rest``: categories by name and, for those that
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
        sample = self.sample
        if sample is None:
            named: dict[int, float] = {}
            for h, count in zip(hashes(self.named).tolist(), self.named.values(), strict=True):
                named[h] = named.get(h, 0.0) + count
            sample = named
        return {h: count for h, count in sample.items() if h < below}

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
            numeric=_add(self.numeric, more.numeric),
            evidence=_add(self.evidence, more.evidence),
            unread_numeric=self.unread_numeric + more.unread_numeric,
            named=named,
            rest=_add(self.rest, more.rest),
            other=self.other + more.other,
            unread_named=self.unread_named + more.unread_named,
            fits=self.fits and more.fits,
            sample=sample,
            below=below,
        )


class Aligned(NamedTuple):
    """Both sides in the same bins: counts, and the same in effective rows, for tests. Arrays have the shape (bins,)."""

    labels: list[str]
    reference: Floats
    parts: list[Floats]
    evidence_reference: Floats
    evidence: Floats
    fine: tuple[Floats, Floats] | None = None
    """For categories: reference and window in as many cells as both sides distinguish, most of them sparse."""


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
        """Count a column of a window, its values read as the reference's type; for an absent column (None) all counts are 0."""
        numeric: Floats | None = np.zeros(len(self.edges) + 1) if self.edges is not None else None
        evidence = numeric
        if column is None or self.reason:
            return Cells(numeric=numeric, evidence=evidence)
        values = float(max(0, finite(column)))
        unread = 0.0
        if self.edges is not None and values:
            numbers = weighted(column, times=self.type == "timestamp")
            unread = values
            if numbers is not None:
                where = np.searchsorted(np.array(self.edges), numbers.values, side="right")
                counted = np.bincount(where, weights=numbers.weights, minlength=len(self.edges) + 1).astype(
                    np.float64
                )
                numeric, evidence, unread = counted, counted * numbers.worth, numbers.unread
        named, rest, other = self._read_categories(column)
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
        """Count the reference and the parts of a window in the same bins.

        Which categories get a bin of their own follows from the counts of both sides *together*: if nothing
        changed, that choice says nothing about the sides, so a test on the bins keeps its level. The rarer ones are
        grouped by hash, in as many groups as the smaller side has rows for.
        """
        sides = [self.reference, *parts]
        fine = None
        if self._compares_categories(sides):
            labels, inside = _count_by_category(sides)
            fine = _count_each_category(self.reference, sum(parts, Cells()), labels)
            missing = [s.missing + s.unread_named for s in sides]
            counted = [np.concatenate(([m], v)) for m, v in zip(missing, inside, strict=True)]
            worth = counted
        else:
            edges = self.edges or []
            labels, missing = _interval_labels(edges), [s.missing + s.unread_numeric for s in sides]
            counted = [
                np.concatenate(([m], _or_zero(s.numeric))) for m, s in zip(missing, sides, strict=True)
            ]
            worth = [np.concatenate(([m], _or_zero(s.evidence))) for m, s in zip(missing, sides, strict=True)]
        zeros = np.zeros(len(labels) + 1)
        return Aligned(
            [MISSING, *labels], counted[0], counted[1:], worth[0], np.sum([zeros, *worth[1:]], axis=0), fine
        )

    def unread(self, cells: Cells) -> float:
        """How many values of a window cannot be read as the reference's type."""
        return cells.unread_named if self._compares_categories([cells]) else cells.unread_numeric

    def _compares_categories(self, sides: Sequence[Cells]) -> bool:
        return self.categorical and (self.edges is None or all(s.fits for s in sides))

    def _read_categories(self, column: ColumnProfile) -> tuple[dict[str, float], Floats | None, float]:
        """Categories by name, those that the profile dropped by hash, and the sum of the latter; zeros if this column is not categorical."""
        zeros = np.zeros(BUCKETS)
        if not self.categorical:
            return {}, zeros, 0.0
        if column.type == "string" and self.type == "string":
            tally = Tally.of(column)
            rest = (
                zeros if not column.other else None if tally.rest is None else tally.rest.astype(np.float64)
            )
            return {k: float(n) for k, n in column.counts.items()}, rest, float(column.other)
        truths: dict[bool, float] = {}
        if column.type in CATEGORICAL:
            for key, count in column.counts.items():
                if (truth := truth_of(key)) is not None:
                    truths[truth] = truths.get(truth, 0.0) + count
        elif self.type == "bool" and (numbers := weighted(column)) is not None:
            pairs = zip(numbers.values.tolist(), numbers.weights.tolist(), strict=True)
            truths = {bool(v): w for v, w in pairs if v in {0.0, 1.0}}
        if self.type != "bool" and not self._truths:
            truths = {}
        return (
            {self._truths.get(t, "true" if t else "false"): n for t, n in truths.items() if n},
            zeros,
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
                part = present.get(name)
                if part is not None:
                    out[name] = out[name] + column.count(part)
                else:  # an absent column is missing in every row
                    out[name] = replace(out[name], missing=out[name].missing + profile.rows)
        return out


# --- numbers ---------------------------------------------------------------------------------------------------------


def cut_points(column: Weighted, bins: int, kind: str = "float64") -> list[float]:
    """Finite, increasing cut points near the quantiles ``1/bins ..``, each between two values and never on one.

    So a number that was computed or sent with another rounding is counted in the same bin. A value with a bin's share of the rows or
    more gets two cuts, around itself: as far as its float32 may be from it, and at most half way to the next value.
    """
    groups = _distinct_starts(column.values)
    low, high = column.values[groups], column.values[np.r_[groups[1:] - 1, len(column.values) - 1]]
    weights = np.add.reduceat(column.weights, groups)
    below = np.cumsum(weights)
    wanted = np.searchsorted(below, below[-1] * np.arange(1, bins) / bins, side="left")
    frequent = np.flatnonzero(weights * bins >= below[-1])
    cuts: set[float] = set()
    for i in sorted({*wanted.tolist(), *frequent.tolist()}):
        before = _cut_between(high[i - 1], low[i]) if i else -math.inf
        after = _cut_between(high[i], low[i + 1]) if i + 1 < len(low) else math.inf
        if weights[i] * bins >= below[-1]:
            before = max(before, low[i] - _tolerance(low[i], kind, column.values))
            after = min(after, math.nextafter(high[i] + _tolerance(high[i], kind, column.values), math.inf))
            cuts.add(after)
        cuts.add(before)
    return sorted(c for c in cuts if math.isfinite(c))


def top_share(column: ColumnProfile) -> float:
    """Share of the most frequent value among all values of the column; 1 if there is none."""
    if column.type in CATEGORICAL:
        return max(column.counts.values(), default=0) / max(1, finite(column))
    numbers = weighted(column)
    if numbers is None:
        return 1.0
    return float(
        np.add.reduceat(numbers.weights, _distinct_starts(numbers.values)).max() / numbers.weights.sum()
    )


def widened_range(column: ColumnProfile) -> tuple[float, float]:
    """Two cuts around all values: at most the smallest and above the largest, widened by the rounding to a float32."""
    low, high = column.low or 0.0, column.high or 0.0
    ends = np.array([low, high])
    return low - _tolerance(low, column.type, ends), math.nextafter(
        high + _tolerance(high, column.type, ends), math.inf
    )


def _distinct_starts(values: Floats) -> npt.NDArray[np.int64]:
    """The indices at which groups of equal numbers begin in sorted values: equal but for the last places, or one the float32 of the other."""
    a, b = values[:-1], values[1:]
    with np.errstate(over="ignore"):
        same_float32 = (a.astype(np.float32) == b) | (b.astype(np.float32) == a)
    close = b - a <= _NEAR * np.spacing(np.maximum(np.abs(a), np.abs(b)))
    integers = (a == np.floor(a)) & (b == np.floor(b))
    return np.flatnonzero(np.r_[True, ~((same_float32 | close) & ~integers)])


def _cut_between(a: float, b: float) -> float:
    """A cut between two values: values up to ``a`` are below it, from ``b`` on at or above it."""
    middle = float(a / 2 + b / 2)
    return middle if a < middle <= b else float(b)


def _tolerance(value: float, kind: str, values: Floats) -> float:
    """How far from a value another number may be and count as the same."""
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


def _count_by_category(sides: Sequence[Cells]) -> tuple[list[str], list[Floats]]:
    """Labels, and the counts of each side (the first is the reference): chosen categories by name, the others grouped by hash."""
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


def _count_each_category(reference: Cells, window: Cells, chosen: Sequence[str]) -> tuple[Floats, Floats]:
    """Counts of both sides by single category where each is counted in full (all, or those of the samples); the others by hash."""
    sides = (reference, window)
    if not any(s.other for s in sides):
        keys = dict.fromkeys([*reference.named, *window.named])
        cells = [np.array([s.named.get(k, 0.0) for k in keys]) for s in sides]
    else:
        below = min(s.below for s in sides)
        names = [k for k in chosen if any(k in s.named for s in sides)]
        hashed = set(hashes(names).tolist())
        samples = [{h: n for h, n in s.sampled(below).items() if h not in hashed} for s in sides]
        keys_of = dict.fromkeys([*samples[0], *samples[1]])
        known = all(s.rest is not None for s in sides)
        cells = []
        for side, sample in zip(sides, samples, strict=True):
            own_counts = np.array([side.named.get(k, 0.0) for k in names])
            sample_counts = np.array([sample.get(h, 0.0) for h in keys_of])
            left = bucket_counts({k: n for k, n in side.named.items() if k not in names})
            left = left + (_or_zero(side.rest) if known else np.eye(1, BUCKETS)[0] * side.other)
            where = np.array(list(keys_of), dtype=np.int64) & (BUCKETS - 1)
            left = left - np.bincount(where, weights=sample_counts, minlength=BUCKETS)
            cells.append(
                np.concatenate((own_counts, sample_counts, np.maximum(left, 0.0) if known else [left.sum()]))
            )
    outside = [s.missing + s.unread_named for s in sides]
    reference_counts, window_counts = (np.concatenate(([o], c)) for o, c in zip(outside, cells, strict=True))
    return reference_counts, window_counts


def _add(a: Floats | None, b: Floats | None) -> Floats | None:
    return None if a is None or b is None else a + b


def _or_zero(counts: Floats | None) -> Floats:
    return np.zeros(1) if counts is None else counts
