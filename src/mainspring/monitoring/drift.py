"""Columns of a window against the reference: effect, evidence, verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from mainspring.monitoring.bins import BinnedColumn, Cells, Reference
from mainspring.monitoring.statistics import (
    OnlineControl,
    benjamini_hochberg,
    design_effect,
    design_spread,
    homogeneity,
    js_distance,
    pool,
    pooled_bins,
    psi,
    psi_bias,
    sparse_effect,
    sparse_homogeneity,
)
from mainspring.records.monitoring import ColumnDrift, DriftReport, MonitorPolicy, Verdict
from mainspring.records.profile import Profile


def compare_column(
    binned: BinnedColumn, parts: Sequence[Cells], *, threshold: float, min_rows: int, min_windows: int = 1
) -> ColumnDrift:
    """Compare one column over one or several windows (``parts``: the counts of each) with the reference.

    The verdict is provisional: OK, insufficient or not computable; :func:`judge` turns OK into DRIFT where effect and evidence agree.
    """
    base = ColumnDrift(column=binned.name, verdict=Verdict.OK, threshold=threshold)
    labels, reference, counted, worth_reference, worth, fine = binned.align(parts)
    current = np.sum(counted, axis=0) if counted else np.zeros_like(reference)
    n, m = float(current.sum()), float(reference.sum())
    base = msgspec.structs.replace(base, n=round(n), n_reference=round(m))
    if binned.reason:
        return msgspec.structs.replace(
            base, verdict=Verdict.NOT_COMPUTABLE, reason=binned.reason, n_reference=binned.profile.rows
        )
    short = _too_few(n, m, len(parts), min_rows, min_windows)
    if short:
        return msgspec.structs.replace(base, verdict=Verdict.INSUFFICIENT_DATA, reason=short)
    # Effect and evidence are computed on the same bins: those with enough rows for both.
    groups = pooled_bins(np.stack([current, reference]))
    cur, ref = pool(current, groups), pool(reference, groups)
    table = np.stack([pool(p, groups) for p in counted])
    effect, spread = (design_effect(table), design_spread(table)) if len(parts) > 1 else (1.0, 1.0)
    bias = psi_bias(len(groups), n, m, effect)
    raw = psi(cur, ref)
    p = homogeneity(pool(worth, groups), pool(worth_reference, groups), effect, spread)
    corrected = max(0.0, raw - bias)
    if fine is not None and np.count_nonzero(fine[0] + fine[1]) > len(groups):
        # Bins of many categories dilute a change that makes some of them rarer and others more frequent, so a test over single
        # categories is added; the smaller of two p-values is doubled (Bonferroni).
        corrected = max(corrected, sparse_effect(fine[1], fine[0], effect))
        sparse_p = sparse_homogeneity(fine[1], fine[0], effect, spread)
        p_values = [x for x in (p, sparse_p) if x is not None]
        p = min(1.0, min(p_values) * len(p_values)) if p_values else None
    return msgspec.structs.replace(
        base,
        verdict=Verdict.OK if p is not None else Verdict.INSUFFICIENT_DATA,
        reason="" if p is not None else "too few rows per bin for a test",
        psi=corrected,
        psi_raw=raw,
        js=js_distance(cur, ref, bias),
        p_value=p,
        design_effect=effect,
        bins=[labels[g[0]] if len(g) == 1 else f"{len(g)} rare bins" for g in groups],
        current=[float(v) for v in cur / n],
        reference=[float(v) for v in ref / m],
    )


def _too_few(n: float, m: float, windows: int, min_rows: int, min_windows: int) -> str:
    if n < min_rows or m < min_rows:
        short = "window" if n < min_rows else "reference"
        return f"{round(min(n, m))} rows in the {short}, {min_rows} are needed"
    if windows < min_windows:
        return f"{windows} windows; {min_windows} are needed to know how much windows differ by themselves"
    return ""


def judge(
    columns: list[ColumnDrift],
    *,
    rows: int,
    reference: str,
    windows: int,
    control: OnlineControl | None,
    level: float,
) -> DriftReport:
    """Judge all columns together: false discoveries are controlled over columns (Benjamini-Hochberg) and over time (``control``).

    A column drifts if its effect reaches its threshold and its q-value the window's level. Only columns with a large
    enough effect can be reported, yet all of them count in the correction: choosing them by their effect first would void it.
    ``control`` None: judge again with the recorded ``level`` (a revision is not a new test).
    """
    tested = [c for c in columns if c.p_value is not None]
    q = benjamini_hochberg([c.p_value for c in tested if c.p_value is not None])
    by_name = {c.column: value for c, value in zip(tested, q, strict=True)}
    smallest = min(q, default=None)
    if control is not None and smallest is not None:
        level = control.level()
    judged = []
    for column in columns:
        value = by_name.get(column.column)
        drifts = (
            value is not None
            and column.psi is not None
            and column.threshold is not None
            and value <= level
            and column.psi >= column.threshold
        )
        judged.append(
            msgspec.structs.replace(
                column, q_value=value, verdict=Verdict.DRIFT if drifts else column.verdict
            )
        )
    any_drift = any(c.verdict is Verdict.DRIFT for c in judged)
    if control is not None and smallest is not None:
        # Only an alert counts as a discovery: significance without a large enough effect earns no error budget.
        control.test(smallest if any_drift else 1.0)
    verdict = (
        Verdict.DRIFT
        if any_drift
        else Verdict.OK
        if tested
        else Verdict.INSUFFICIENT_DATA
        if columns
        else Verdict.NOT_COMPUTABLE
    )
    judged.sort(
        key=lambda c: (c.verdict is not Verdict.DRIFT, -(c.psi if c.psi is not None else -1.0), c.column)
    )
    return DriftReport(
        verdict=verdict,
        rows=rows,
        reference=reference,
        windows=windows,
        level=level,
        p_value=smallest,
        columns=judged,
    )


def drift_report(
    reference: Reference,
    parts: Sequence[Mapping[str, Cells]],
    *,
    rows: int,
    policy: MonitorPolicy,
    control: OnlineControl | None = None,
    level: float | None = None,
    min_windows: int = 1,
) -> DriftReport:
    """Compare windows (for each its counts by column, newest last) with the reference. ``level``: see :func:`judge`."""
    columns = [
        compare_column(
            binned,
            [p[name] for p in parts],
            threshold=policy.columns.get(name, policy.psi),
            min_rows=policy.min_rows,
            min_windows=min_windows,
        )
        for name, binned in reference.columns.items()
    ]
    test_level = policy.alpha if level is None else level
    return judge(
        columns, rows=rows, reference=reference.name, windows=len(parts), control=control, level=test_level
    )


def compare_profiles(
    current: Profile, reference: Profile, *, policy: MonitorPolicy | None = None
) -> DriftReport:
    """A one-off drift report of one profile against another, at level ``policy.alpha``.

    >>> from mainspring.data.profile import ProfileBuilder
    >>> a = ProfileBuilder().add({"x": [float(i % 50) for i in range(500)]}).build()
    >>> b = ProfileBuilder().add({"x": [float(i % 50) + 30 for i in range(500)]}).build()
    >>> compare_profiles(a, a).verdict.value, compare_profiles(b, a).verdict.value
    ('ok', 'drift')
    """
    chosen = policy or MonitorPolicy()
    binned = Reference(reference, name="given", bins=chosen.bins, ignore=chosen.ignore)
    return drift_report(binned, [binned.count([current])], rows=current.rows, policy=chosen)
