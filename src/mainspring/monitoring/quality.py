"""Quality of a window's rows against the reference: each anomaly is a finding, none is an exception."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from mainspring.data.categories import EVERY, Tally
from mainspring.data.profile import CATEGORICAL, NUMERIC, finite, histogram
from mainspring.monitoring.bins import BinnedColumn, Reference, top_share, widened_range
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

    A share counts as grown when it exceeds the reference's by the policy's margin and a test is significant at
    ``level``, which is divided by the number of columns (Bonferroni).
    """
    present = {c.name: c for c in window.columns}
    problems: list[Issue] = []
    if window.rows == 0:
        return problems
    share = level / max(1, len(reference.columns))
    for name, binned in reference.columns.items():
        column = present.get(name)
        if column is None or (
            column.type == "null" and column.nulls == column.rows and finite(binned.profile) > 0
        ):
            if window.rows >= policy.min_rows or column is None:
                what = "the column is missing" if column is None else "every value is null"
                problems.append(Issue(name, "missing", "warning", what, 1.0, policy.null_share))
            continue
        unread = 0.0 if binned.reason else binned.unread(binned.count(column))
        problems.extend(_check_type(column, binned.profile, unread))
        if window.rows >= policy.min_rows:
            problems.extend(_check_shares(column, binned, unread, policy, share))
            problems.extend(_check_constant(column, binned.profile, share))
    extra = sorted(name for name in present if name not in reference.columns and name not in policy.ignore)
    problems.extend(
        Issue(name, "extra_column", "info", "the reference has no such column") for name in extra[:20]
    )
    return problems


def _check_type(column: ColumnProfile, reference: ColumnProfile, unread: float) -> Iterator[Issue]:
    both_numeric = column.type in NUMERIC and reference.type in NUMERIC
    if column.type in {reference.type, "null"} or both_numeric or reference.type == "null":
        return
    text = f"values are {column.type}, the reference has {reference.type}"
    if not unread and finite(column) and {column.type, reference.type} <= NUMERIC | CATEGORICAL:
        yield Issue(column.name, "type", "info", f"{text}; all of them read as that")
    else:
        yield Issue(column.name, "type", "warning", text)


class _Share(NamedTuple):
    """A share in the window, the share that the reference predicts (with its standard ``error``), and the margin allowed above it."""

    code: str
    now: float
    before: float
    error: float
    margin: float
    text: str
    rows: int | None = None
    """The number of rows that ``now`` is a share of, if not all."""
    cases: tuple[int, int] | None = None
    """The counts in the window and in the reference, where both shares are plain counts."""
    shown: tuple[float, float] | None = None
    """``now`` and ``before`` as shares of all rows, if they are shares of some."""


def _check_shares(
    column: ColumnProfile, binned: BinnedColumn, unread: float, policy: MonitorPolicy, level: float
) -> Iterator[Issue]:
    reference = binned.profile
    n, m = column.rows, reference.rows
    invalid = "of the values have a wrong type or are not finite"
    empty = _count_empty(reference)
    checks = [
        _share_of_rows("nulls", column.nulls, n, empty, m, policy.null_share, "of the values are null"),
        _share_of_rows(
            "invalid", round(column.invalid + unread), n, reference.invalid, m, policy.invalid_share, invalid
        ),
        _share_unseen(column, reference, policy.unseen_share),
        _share_outside(column, reference, policy.outside_share),
    ]
    for check in checks:
        if check is None:
            continue
        code, margin = check.code, check.margin
        now, before = check.shown or (check.now, check.before)
        shown = f"{now:.1%} {check.text} (reference {before:.1%})"
        if now - before > margin and _growth_p_value(check, check.rows or n, m) <= level:
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


def _count_empty(reference: ColumnProfile) -> int:
    """How many values of the reference are empty. A null of a request may be NaN in the reference: a model gets the same for both."""
    return reference.nulls + (reference.invalid if reference.type in NUMERIC else 0)


def _share_of_rows(code: str, now: int, n: int, before: int, m: int, margin: float, text: str) -> _Share:
    m = max(1, m)
    # One case of each kind is added (after Agresti and Coull), so that a rate of 0 in a small reference still has an error.
    smoothed = (before + 1) / (m + 2)
    error = math.sqrt(smoothed * (1 - smoothed) / (m + 2))
    return _Share(code, now / n, before / m, error, margin, text, cases=(now, before))


def _share_unseen(column: ColumnProfile, reference: ColumnProfile, margin: float) -> _Share | None:
    """The share of values in categories that the reference does not hold, against the rate that the reference itself predicts.

    The chance that the next value is new is the share of the categories seen once (I. J. Good, *Biometrika* 40, 1953);
    the square of its error is about ``(n1 + 2 n2) / m^2`` for n1, n2 categories seen once and twice (W. Esty, *Ann.
    Statist.* 11, 1983). Where a profile dropped categories, the same is done with the categories of small hash, which both sides count in full.
    """
    m = finite(reference)
    if reference.type != column.type or column.type not in CATEGORICAL or m <= 0 or finite(column) <= 0:
        return None
    window_tally, reference_tally = Tally.of(column), Tally.of(reference)
    if not (window_tally.known and reference_tally.known):
        return None  # made by an older version: which categories it dropped is not known
    below = min(window_tally.below, reference_tally.below)
    now = {h: n for h, n in window_tally.sampled().items() if h < below}
    before = {h: n for h, n in reference_tally.sampled().items() if h < below}
    n, m = sum(now.values()), sum(before.values())
    if not n or not m:
        return None
    new = sum(count for key, count in now.items() if key not in before)
    once, twice = (sum(1 for count in before.values() if count == times) for times in (1, 2))
    # The number of categories seen once, estimated from both sides together: the reference's own may be low by chance, and its
    # error would be underestimated.
    expected = m * (once + new) / (m + n)
    error = math.sqrt(max(once, expected) + 2 * twice + 1) / m
    text = "of the values are categories never seen in the reference"
    # For the message, as shares of all values: the sampled categories are ``sampled_share`` of all hashes.
    sampled_share = below / EVERY
    shown = min(1.0, new / sampled_share / column.rows), min(1.0, once / sampled_share / finite(reference))
    return _Share("unseen", new / n, once / m, error, margin, text, rows=n, shown=shown)


def _share_outside(column: ColumnProfile, reference: ColumnProfile, margin: float) -> _Share | None:
    """The share of values beyond the reference's extremes. Without a change the next value is beyond them with probability ``2 / (m + 1)``."""
    m = finite(reference)
    if column.kll is None or reference.low is None or reference.high is None or m <= 0:
        return None
    low, high = widened_range(reference)
    cuts = [c for c in (low, high) if math.isfinite(c)]
    counts = histogram(column, cuts)
    beyond = counts[0] + (counts[-1] if math.isfinite(high) else 0.0)
    expected = 2 / (m + 1)
    text = "of the values lie outside the range of the reference"
    return _Share("outside", beyond / column.rows, expected, expected, margin, text)


def _check_constant(column: ColumnProfile, reference: ColumnProfile, level: float) -> Iterator[Issue]:
    n = finite(column)
    if n <= 1:
        return
    numeric = column.kll is not None
    single = column.low == column.high if numeric else len(column.counts) == 1 and not column.other
    if not single:
        return
    # A window may hold only the most frequent value by chance: reported only if that is unlikely.
    usual = top_share(reference)
    if usual < 1 and usual**n <= level:
        yield Issue(column.name, "constant", "warning", "every value is the same; in the reference they vary")


def _growth_p_value(share: _Share, n: int, m: int) -> float:
    """One-sided p-value that a share grew: a z-test with the errors of both sides and a continuity correction; exact for few cases."""
    if share.cases is not None and sum(share.cases) <= _FEW:
        return binomial_sf(share.cases[0], sum(share.cases), n / (n + max(1, m)))
    now, before = share.now, share.before
    pooled = min(1.0, (now + before) / 2)
    spread = math.sqrt(max(pooled * (1 - pooled), 0.0) / n + share.error**2)
    gap = now - before - 0.5 / n
    if spread == 0:
        return 1.0 if gap <= 0 else 0.0
    return normal_sf(gap / spread)
