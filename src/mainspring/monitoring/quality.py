"""Quality of a window's rows against the reference: each anomaly is a finding, none is an exception."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from mainspring.data.categories import EVERY, Tally
from mainspring.data.profile import CATEGORICAL, NUMERIC, finite, histogram
from mainspring.monitoring.bins import BinnedColumn, Reference, range_of, usual_share
from mainspring.monitoring.statistics import binomial_sf, normal_sf
from mainspring.records.monitoring import MonitorPolicy
from mainspring.records.profile import ColumnProfile, Profile

_FEW = 500


class Issue(NamedTuple):
    """What is wrong with ``subject``: ``value`` went beyond ``limit``."""

    subject: str
    code: str
    severity: Literal["info", "warning"]
    detail: str
    value: float | None = None
    limit: float | None = None


def issues(
    window: Profile, reference: Reference, policy: MonitorPolicy, *, level: float = 0.001
) -> list[Issue]:
    """Everything wrong with the window's columns. Below ``min_rows`` only what needs no statistics is reported.

    A share counts as grown when it exceeds what the reference says of it by the policy's margin and a z-test agrees at
    ``level`` (shared over columns: Bonferroni).
    """
    present = {c.name: c for c in window.columns}
    found: list[Issue] = []
    if window.rows == 0:
        return found
    share = level / max(1, len(reference.columns))
    for name, binned in reference.columns.items():
        column = present.get(name)
        if column is None or (
            column.type == "null" and column.nulls == column.rows and finite(binned.profile) > 0
        ):
            if window.rows >= policy.min_rows or column is None:
                what = "the column is missing" if column is None else "every value is null"
                found.append(Issue(name, "missing", "warning", what, 1.0, policy.null_share))
            continue
        unread = 0.0 if binned.reason else binned.unread(binned.count(column))
        found.extend(_type(column, binned.profile, unread))
        if window.rows >= policy.min_rows:
            found.extend(_shares(column, binned, unread, policy, share))
            found.extend(_constant(column, binned.profile, share))
    extra = sorted(name for name in present if name not in reference.columns and name not in policy.ignore)
    found.extend(
        Issue(name, "extra_column", "info", "the reference has no such column") for name in extra[:20]
    )
    return found


def _type(column: ColumnProfile, reference: ColumnProfile, unread: float) -> Iterator[Issue]:
    both_numeric = column.type in NUMERIC and reference.type in NUMERIC
    if column.type in {reference.type, "null"} or both_numeric or reference.type == "null":
        return
    text = f"values are {column.type}, the reference has {reference.type}"
    if not unread and finite(column) and {column.type, reference.type} <= NUMERIC | CATEGORICAL:
        yield Issue(column.name, "type", "info", f"{text}; all of them read as that")
    else:
        yield Issue(column.name, "type", "warning", text)


class _Share(NamedTuple):
    """A share now, what the reference says of it (``error``: of that figure), and how much more is too much."""

    code: str
    now: float
    before: float
    error: float
    margin: float
    text: str
    rows: int | None = None
    """Of how many rows ``now`` is a share, if not of all."""
    cases: tuple[int, int] | None = None
    """How many now and in the reference, where both are plain counts."""
    shown: tuple[float, float] | None = None
    """``now`` and ``before`` as shares of all rows, if they are of some."""


def _shares(
    column: ColumnProfile, binned: BinnedColumn, unread: float, policy: MonitorPolicy, level: float
) -> Iterator[Issue]:
    reference = binned.profile
    n, m = column.rows, reference.rows
    invalid = "of the values have a wrong type or are not finite"
    empty = _empty(reference)
    checks = [
        _rate("nulls", column.nulls, n, empty, m, policy.null_share, "of the values are null"),
        _rate(
            "invalid", round(column.invalid + unread), n, reference.invalid, m, policy.invalid_share, invalid
        ),
        _unseen(column, reference, policy.unseen_share),
        _outside(column, reference, policy.outside_share),
    ]
    for check in checks:
        if check is None:
            continue
        code, margin = check.code, check.margin
        now, before = check.shown or (check.now, check.before)
        shown = f"{now:.1%} {check.text} (reference {before:.1%})"
        if now - before > margin and _grew(check, check.rows or n, m) <= level:
            yield Issue(column.name, code, "warning", shown, now, before + margin)
        elif code in {"unseen", "outside"} and now > 0.001:
            yield Issue(column.name, code, "info", shown, now, before + margin)
    if column.nulls and empty == 0 and column.nulls / n <= policy.null_share:
        yield Issue(
            column.name,
            "nulls",
            "info",
            f"{column.nulls} of {n} values are null; the reference has none",
            column.nulls / n,
            policy.null_share,
        )


def _empty(reference: ColumnProfile) -> int:
    """How often the reference held no value. What a request says as null may be NaN there: a model gets the same for both."""
    return reference.nulls + (reference.invalid if reference.type in NUMERIC else 0)


def _rate(code: str, now: int, n: int, before: int, m: int, margin: float, text: str) -> _Share:
    m = max(1, m)
    # Agresti and Coull: one case of each kind more, so that a rate of 0 in a small reference is not taken for certain.
    smoothed = (before + 1) / (m + 2)
    error = math.sqrt(smoothed * (1 - smoothed) / (m + 2))
    return _Share(code, now / n, before / m, error, margin, text, cases=(now, before))


def _unseen(column: ColumnProfile, reference: ColumnProfile, margin: float) -> _Share | None:
    """Values in categories that the reference does not hold, against the rate that it predicts itself.

    The chance that the next value is new is the share of the categories seen once (I. J. Good, *Biometrika* 40, 1953);
    the square of its error is about ``(n1 + 2 n2) / m^2`` for n1, n2 categories seen once and twice (W. Esty, *Ann.
    Statist.* 11, 1983). Where a profile dropped categories the same is done on those of small hash: whole on both sides.
    """
    m = finite(reference)
    if reference.type != column.type or column.type not in CATEGORICAL or m <= 0 or finite(column) <= 0:
        return None
    mine, theirs = Tally.of(column), Tally.of(reference)
    if not (mine.known and theirs.known):
        return None  # made by an older version: which categories it dropped is not known
    below = min(mine.below, theirs.below)
    now = {h: n for h, n in mine.sampled().items() if h < below}
    before = {h: n for h, n in theirs.sampled().items() if h < below}
    n, m = sum(now.values()), sum(before.values())
    if not n or not m:
        return None
    new = sum(count for key, count in now.items() if key not in before)
    once, twice = (sum(1 for count in before.values() if count == times) for times in (1, 2))
    # The number seen once as both sides together say it: the reference's own, if low by chance, would claim to be sure.
    expected = m * (once + new) / (m + n)
    error = math.sqrt(max(once, expected) + 2 * twice + 1) / m
    text = "of the values are categories never seen in the reference"
    # Of all values, not of those of the sampled categories: these are as many as their share of all hashes.
    part = below / EVERY
    shown = min(1.0, new / part / column.rows), min(1.0, once / part / finite(reference))
    return _Share("unseen", new / n, once / m, error, margin, text, rows=n, shown=shown)


def _outside(column: ColumnProfile, reference: ColumnProfile, margin: float) -> _Share | None:
    """Values beyond the reference's extremes; the next value is with a chance of ``2 / (m + 1)``."""
    m = finite(reference)
    if column.kll is None or reference.low is None or reference.high is None or m <= 0:
        return None
    low, high = range_of(reference)
    cuts = [c for c in (low, high) if math.isfinite(c)]
    counts = histogram(column, cuts)
    beyond = counts[0] + (counts[-1] if math.isfinite(high) else 0.0)
    expected = 2 / (m + 1)
    text = "of the values lie outside the range of the reference"
    return _Share("outside", beyond / column.rows, expected, expected, margin, text)


def _constant(column: ColumnProfile, reference: ColumnProfile, level: float) -> Iterator[Issue]:
    n = finite(column)
    if n <= 1:
        return
    numeric = column.kll is not None
    one = column.low == column.high if numeric else len(column.counts) == 1 and not column.other
    if not one:
        return
    # The most frequent value may be all that a window shows by chance: news only if that is unlikely.
    usual = usual_share(reference)
    if usual < 1 and usual**n <= level:
        yield Issue(column.name, "constant", "warning", "every value is the same; in the reference they vary")


def _grew(share: _Share, n: int, m: int) -> float:
    """One-sided p-value that a share grew: normal, both sides' errors, half a case of continuity; of few cases, exact."""
    if share.cases is not None and sum(share.cases) <= _FEW:
        return binomial_sf(share.cases[0], sum(share.cases), n / (n + max(1, m)))
    now, before = share.now, share.before
    pooled = min(1.0, (now + before) / 2)
    spread = math.sqrt(max(pooled * (1 - pooled), 0.0) / n + share.error**2)
    gap = now - before - 0.5 / n
    if spread == 0:
        return 1.0 if gap <= 0 else 0.0
    return normal_sf(gap / spread)
