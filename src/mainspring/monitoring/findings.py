"""Turns what was computed of a window into findings, and says which subjects it could judge."""

from __future__ import annotations

import msgspec

from mainspring.clock import from_us
from mainspring.monitoring.alerts import Subject
from mainspring.monitoring.quality import Issue
from mainspring.monitoring.spans import Span
from mainspring.monitoring.statistics import OnlineControl
from mainspring.records.base import counted, from_json
from mainspring.records.monitoring import (
    ColumnDrift,
    DecayReport,
    DriftReport,
    Finding,
    MonitorPolicy,
    Verdict,
)
from mainspring.storage.sql import Row


def window_findings(
    span: Span, drift: DriftReport | None, prediction: ColumnDrift | None, issues: list[Issue]
) -> list[Finding]:
    """Findings of quality and drift of a window."""
    out = [
        Finding(
            window=span.id, deployment=span.deployment, at=from_us(span.end_us), kind="quality",
            subject=i.subject, code=i.code, severity=i.severity, detail=i.detail, value=i.value, limit=i.limit,
        )
        for i in issues
    ]  # fmt: skip
    for column in [*(drift.columns if drift else []), *([prediction] if prediction else [])]:
        if column.verdict is Verdict.DRIFT:
            detail = f"PSI {column.psi:.3f} (limit {column.threshold:g}) on {column.n} rows, q = {column.q_value:.1e}"
            out.append(
                Finding(
                    window=span.id, deployment=span.deployment, at=from_us(span.end_us), kind="drift",
                    subject=column.column, code="drift", severity="warning", detail=detail, value=column.psi, limit=column.threshold,
                )
            )  # fmt: skip
    return out


def decay_findings(span: Span, decay: DecayReport) -> list[Finding]:
    """The finding of decay, if the report says so."""
    if decay.verdict is not Verdict.DECAY or decay.reference is None:
        return []
    detail = f"{decay.metric} {decay.value:.4f} ({decay.low:.4f} to {decay.high:.4f}) on {decay.n} labelled rows; reference {decay.reference:.4f}, tolerance {decay.tolerance:g}"
    return [
        Finding(
            window=span.id, deployment=span.deployment, at=from_us(span.end_us), kind="performance",
            subject=decay.metric, code="decay", severity="warning", detail=detail, value=decay.value, limit=decay.reference + decay.tolerance,
        )
    ]  # fmt: skip


def error_issues(parts: list[Row], policy: MonitorPolicy) -> list[Issue]:
    """An issue if too large a share of the window's requests failed: a warning with enough requests, else information."""
    requests = sum(int(p["requests"]) for p in parts)
    failed = sum(sum(from_json(p["errors"], dict[str, int]).values()) for p in parts)
    if not requests or failed / requests <= policy.error_rate:
        return []
    detail = f"{failed} of {counted(requests, 'request')} failed"
    enough = requests >= policy.min_rows
    return [
        Issue(
            "requests",
            "errors",
            "warning" if enough else "info",
            detail,
            failed / requests,
            policy.error_rate,
        )
    ]


def judge_column(column: ColumnDrift, control: OnlineControl | None, policy: MonitorPolicy) -> ColumnDrift:
    """Judge a column by itself: at the next level of its stream (``control``), or at ``policy.alpha`` where it is judged again."""
    if column.p_value is None or column.psi is None:
        return column
    level = control.level() if control else policy.alpha
    drifts = column.p_value <= level and column.psi >= (column.threshold or policy.psi)
    if control:
        control.test(column.p_value if drifts else 1.0)
    return msgspec.structs.replace(
        column, q_value=column.p_value, verdict=Verdict.DRIFT if drifts else Verdict.OK
    )


def judged_subjects(
    drift: DriftReport | None, prediction: ColumnDrift | None, parts: list[Row], policy: MonitorPolicy
) -> set[Subject] | None:
    """The subjects that this window could judge. With enough rows quality of every column is judged, so no finding clears an alert."""
    columns = [*(drift.columns if drift else []), *([prediction] if prediction else [])]
    subjects = {("drift", c.column) for c in columns if c.verdict in {Verdict.OK, Verdict.DRIFT}}
    if sum(int(p["rows_n"]) for p in parts) >= policy.min_rows:
        subjects |= {("quality", c.column) for c in columns} | {("quality", "requests")}
    return subjects
