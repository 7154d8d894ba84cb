"""Quality of a window's rows against the reference: each anomaly is a finding, none is an exception."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from mainspring.data.profile import CATEGORICAL, NUMERIC, finite, histogram
from mainspring.monitoring.bins import Reference
from mainspring.monitoring.statistics import normal_sf
from mainspring.records.monitoring import MonitorPolicy
from mainspring.records.profile import ColumnProfile, Profile


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

    A share counts as grown when it exceeds the reference's by the policy's margin and a two-proportion z-test agrees at
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
        found.extend(_type(column, binned.profile))
        if window.rows >= policy.min_rows:
            found.extend(_shares(column, binned.profile, policy, share))
            found.extend(_constant(column, binned.profile))
    extra = sorted(name for name in present if name not in reference.columns and name not in policy.ignore)
    found.extend(
        Issue(name, "extra_column", "info", "the reference has no such column") for name in extra[:20]
    )
    return found


def _type(column: ColumnProfile, reference: ColumnProfile) -> Iterator[Issue]:
    both_numeric = column.type in NUMERIC and reference.type in NUMERIC
    if column.type not in {reference.type, "null"} and not both_numeric and reference.type != "null":
        yield Issue(
            column.name, "type", "warning", f"values are {column.type}, the reference has {reference.type}"
        )


def _shares(
    column: ColumnProfile, reference: ColumnProfile, policy: MonitorPolicy, level: float
) -> Iterator[Issue]:
    n, m = column.rows, reference.rows
    checks: list[tuple[str, float, float, float, str]] = [
        ("nulls", column.nulls / n, reference.nulls / max(1, m), policy.null_share, "of the values are null"),
        (
            "invalid",
            column.invalid / n,
            reference.invalid / max(1, m),
            policy.invalid_share,
            "of the values have a wrong type or are not finite",
        ),
    ]
    values = finite(column)
    if values > 0 and reference.counts and column.type in CATEGORICAL and not reference.other:
        known = sum(count for key, count in column.counts.items() if key in reference.counts)
        checks.append(
            (
                "unseen",
                (values - known) / n,
                0.0,
                policy.unseen_share,
                "of the values are categories never seen in the reference",
            )
        )
    if values > 0 and column.kll is not None and reference.low is not None and reference.high is not None:
        checks.append(
            (
                "outside",
                _outside(column, reference.low, reference.high) / n,
                0.0,
                policy.outside_share,
                "of the values lie outside the range of the reference",
            )
        )
    for code, now, before, margin, text in checks:
        if now - before > margin and _grew(now, n, before, m) <= level:
            yield Issue(
                column.name,
                code,
                "warning",
                f"{now:.1%} {text} (reference {before:.1%})",
                now,
                before + margin,
            )
        elif code in {"unseen", "outside"} and now > 0.001:
            yield Issue(column.name, code, "info", f"{now:.1%} {text}", now, margin)
    if column.nulls and before_is_zero(reference) and column.nulls / n <= policy.null_share:
        yield Issue(
            column.name,
            "nulls",
            "info",
            f"{column.nulls} of {n} values are null; the reference has none",
            column.nulls / n,
            policy.null_share,
        )


def before_is_zero(reference: ColumnProfile) -> bool:
    return reference.nulls == 0


def _outside(column: ColumnProfile, low: float, high: float) -> float:
    after = math.nextafter(high, math.inf)
    cuts = [c for c in (low, after) if math.isfinite(c)]
    counts = histogram(column, cuts if len(cuts) < 2 or cuts[0] < cuts[1] else cuts[:1])
    return counts[0] + (counts[-1] if math.isfinite(after) else 0.0)


def _constant(column: ColumnProfile, reference: ColumnProfile) -> Iterator[Issue]:
    if finite(column) <= 1:
        return
    one = (
        column.low == column.high if column.kll is not None else len(column.counts) == 1 and not column.other
    )
    varied = (reference.low != reference.high) if reference.kll is not None else len(reference.counts) > 1
    # A rare second value may be absent by chance: constant is news only if the reference varies enough to notice.
    usual = max(reference.counts.values(), default=0) / max(1, finite(reference))
    if one and varied and usual < 0.95:
        yield Issue(column.name, "constant", "warning", "every value is the same; in the reference they vary")


def _grew(now: float, n: int, before: float, m: int) -> float:
    """One-sided p-value that a share grew (pooled two-proportion z, half a case of continuity)."""
    pooled = (now * n + before * m) / (n + m)
    spread = math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / n + 1 / max(1, m)))
    gap = now - before - 0.5 / n
    if spread == 0:
        return 1.0 if gap <= 0 else 0.0
    return normal_sf(gap / spread)
