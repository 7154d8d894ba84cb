"""Closes windows whose time has come, judges them, and revises what late labels changed. One transaction; repeating it changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mainspring.data.profile import column_of, merge, quantiles
from mainspring.lineage import Foundation
from mainspring.lineage.ledger import Decision
from mainspring.monitoring import alerts, scores
from mainspring.monitoring.bins import BinnedColumn, Cells, Reference
from mainspring.monitoring.drift import compare_column, drift_report
from mainspring.monitoring.findings import (
    decay_findings,
    error_issues,
    judge_column,
    judged_subjects,
    window_findings,
)
from mainspring.monitoring.ingest import LATENCY, PREDICTION
from mainspring.monitoring.quality import Issue, issues
from mainspring.monitoring.references import References
from mainspring.monitoring.spans import Span, length_us, span_of
from mainspring.monitoring.statistics import OnlineControl
from mainspring.records.base import from_json, seconds, to_json
from mainspring.records.monitoring import (
    ColumnDrift,
    DriftReport,
    EvaluateReport,
    Finding,
    MonitorPolicy,
    Verdict,
    Vitals,
    WindowReport,
)
from mainspring.records.profile import Profile
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.sql import Row, Writer

declare("monitoring.window.closed", "monitoring.evaluated")

_MAX_WINDOWS = 64
_MAX_LABELS = 50_000
_MAX_LOOKBACK = 400


@dataclass
class _Outcome:
    closed: list[str] = field(default_factory=list)
    revised: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    late_labels: int = 0
    more: bool = False

    def report(self) -> EvaluateReport:
        return EvaluateReport(
            closed=self.closed,
            revised=self.revised,
            opened=self.opened,
            resolved=self.resolved,
            late_labels=self.late_labels,
            more=self.more,
        )


class Evaluation:
    """One evaluation inside one decision."""

    def __init__(
        self,
        base: Foundation,
        d: Decision,
        policies: dict[str, MonitorPolicy],
        references: References,
        now_us: int,
    ) -> None:
        self._base = base
        self._d = d
        self._tx: Writer = d.tx
        self._project = base.project
        self._policies = policies
        self._references = references
        self._now = now_us
        self._out = _Outcome()

    def run(self) -> EvaluateReport:
        touched = self._windows_with_labels()
        for row in self._due_windows():
            span = Span(row["deployment"], row["start_us"], row["end_us"])
            self._judge_window(row, span)
            touched.setdefault(span.id, span)
        labelled: list[Span] = []
        for span in sorted(touched.values(), key=lambda s: s.end_us):
            if scores.revise_performance(self._tx, self._project, span, self._references):
                if span.id not in self._out.closed:
                    self._out.revised.append(span.id)
                    self._tx.execute(
                        "UPDATE windows SET revision = revision + 1 WHERE project = ? AND id = ?",
                        self._project,
                        span.id,
                    )
                labelled.append(span)
        for span in labelled:
            self._judge_decay(span)
        failpoint("monitoring.evaluated")
        return self._out.report()

    def _policy(self, deployment: str) -> MonitorPolicy:
        return self._policies.get(deployment) or MonitorPolicy()

    # --- labels ------------------------------------------------------------------------------------------------------

    def _windows_with_labels(self) -> dict[str, Span]:
        """Windows for which labels arrived since the last evaluation."""
        cursor = int(self._read_state("labels").get("seq", 0))
        rows = self._tx.all(
            "SELECT deployment, at_us, arrived_us, seq FROM labelled_predictions WHERE project = ? AND seq > ? ORDER BY seq LIMIT ?",
            self._project, cursor, _MAX_LABELS,
        )  # fmt: skip
        touched: dict[str, Span] = {}
        for row in rows:
            policy = self._policy(row["deployment"])
            if row["arrived_us"] - row["at_us"] > seconds(policy.label_horizon) * 1e6:
                self._out.late_labels += 1
                continue
            span = span_of(row["deployment"], row["at_us"], policy.window)
            touched[span.id] = span
        if rows:
            late = int(self._read_state("labels").get("late", 0)) + self._out.late_labels
            self._write_state("labels", {"seq": rows[-1]["seq"], "late": late})
            self._out.more = len(rows) >= _MAX_LABELS
        return touched

    # --- closing -----------------------------------------------------------------------------------------------------

    def _due_windows(self) -> list[Row]:
        """Windows to judge now, stale ones first. Windows whose period of grace has not passed do not set ``more``."""
        rows = self._tx.all(
            "SELECT * FROM windows WHERE project = ? AND (state = 'open' OR stale = 1) AND end_us <= ? ORDER BY state, end_us, id",
            self._project, self._now,
        )  # fmt: skip
        ready = [
            r for r in rows if r["end_us"] + seconds(self._policy(r["deployment"]).grace) * 1e6 <= self._now
        ]
        self._out.more = self._out.more or len(ready) > _MAX_WINDOWS
        return ready[:_MAX_WINDOWS]

    def _judge_window(self, row: Row, span: Span) -> None:
        policy = self._policy(span.deployment)
        first_time = row["state"] == "open"
        old: WindowReport | None = from_json(row["report"], WindowReport) if row["report"] else None
        parts = self._tx.all(
            "SELECT * FROM window_parts WHERE project = ? AND window_id = ? ORDER BY version, role",
            self._project,
            span.id,
        )
        champion = _last_champion(parts)
        issues_found: list[Issue] = error_issues(parts, policy)
        drift = prediction = None
        name = f"{champion[0]}@{champion[1]}" if champion else None
        if champion:
            reference = self._references.reference(*champion, policy)
            if isinstance(reference, str):
                drift = DriftReport(
                    verdict=Verdict.NOT_COMPUTABLE, rows=_count_rows(parts), reference=reference
                )
            else:
                if first_time:
                    self._note_champion(span, name or "")
                drift = self._compare_inputs(
                    span, reference, policy, old.drift if old else None, first_time=first_time
                )
                issues_found += issues(_merge_profiles(parts, "profile"), reference, policy)
            prediction = self._compare_scores(span, champion, parts, policy, first_time=first_time)
        report = WindowReport(
            drift=drift,
            prediction=prediction,
            decay=old.decay if old else None,
            vitals=[_vitals_of(p) for p in parts],
            champion=name,
        )
        revision = row["revision"] + (0 if first_time else 1)
        self._tx.execute(
            "UPDATE windows SET state = 'closed', stale = 0, revision = ?, report = ? WHERE project = ? AND id = ?",
            revision, to_json(report).decode(), self._project, span.id,
        )  # fmt: skip
        findings = window_findings(span, drift, prediction, issues_found)
        self._replace_findings(span, findings, kinds=("drift", "quality"))
        if first_time:
            seen = {(f.kind, f.subject): f.detail for f in findings if f.severity == "warning"}
            self._update_alerts(
                span, seen, judged_subjects(drift, prediction, parts, policy), ("drift", "quality"), policy
            )
        (self._out.closed if first_time else self._out.revised).append(span.id)
        failpoint("monitoring.window.closed")

    def _note_champion(self, span: Span, name: str) -> None:
        """After a change of champion the comparisons with the old reference no longer apply: their alerts are resolved, and new test
        streams begin, since a stream is named after its reference."""
        state = self._read_state(f"champion:{span.deployment}")
        if state.get("name") == name:
            return
        if state:
            self._out.resolved += alerts.resolve_alerts(
                self._d,
                self._project,
                span.deployment,
                kinds=("drift", "performance"),
                at_us=span.end_us,
                reason=f"{name} is champion now",
            )
        self._write_state(f"champion:{span.deployment}", {"name": name, "since_us": span.start_us})

    def _compare_inputs(
        self,
        span: Span,
        reference: Reference,
        policy: MonitorPolicy,
        old: DriftReport | None,
        *,
        first_time: bool,
    ) -> DriftReport:
        windows = self._tx.all(
            "SELECT w.id, coalesce(sum(p.rows_n), 0) AS n FROM windows w JOIN window_parts p ON p.project = w.project AND p.window_id = w.id"
            " WHERE w.project = ? AND w.deployment = ? AND w.end_us > ? AND w.end_us <= ? GROUP BY w.id, w.end_us ORDER BY w.end_us DESC LIMIT ?",
            self._project, span.deployment, span.end_us - self._lookback_us(policy), span.end_us, _MAX_LOOKBACK,
        )  # fmt: skip
        counts = [
            self._references.counts(self._tx, w["id"], int(w["n"]), reference) for w in reversed(windows)
        ]
        rows = sum(int(w["n"]) for w in windows)
        if not first_time:
            return drift_report(
                reference,
                counts,
                rows=rows,
                policy=policy,
                level=(old.level if old and old.level is not None else policy.alpha),
                min_windows=self._min_windows(policy),
            )
        stream = f"drift:{span.deployment}:{reference.name}"
        control = OnlineControl.restore(policy.alpha, self._read_state(stream))
        report = drift_report(
            reference,
            counts,
            rows=rows,
            policy=policy,
            control=control,
            min_windows=self._min_windows(policy),
        )
        self._write_state(stream, control.state())
        return report

    def _compare_scores(
        self,
        span: Span,
        champion: tuple[str, int],
        parts: list[Row],
        policy: MonitorPolicy,
        *,
        first_time: bool,
    ) -> ColumnDrift | None:
        """Compare the champion's scores with those of its own first windows."""
        model, version = champion
        where = "project = ? AND deployment = ? AND model = ? AND version = ?"
        key = (self._project, span.deployment, model, version)
        baseline = self._tx.first(f"SELECT until_us, profile FROM score_baselines WHERE {where}", *key)
        known = from_json(baseline["profile"], Profile) if baseline else Profile(rows=0, columns=[])
        wanted = 5 * policy.min_rows
        if known.rows < wanted:
            if first_time:
                of_champion = _merge_profiles(
                    [p for p in parts if (p["model"], p["version"]) == champion], "vitals"
                )
                self._tx.execute(
                    "INSERT INTO score_baselines (project, deployment, model, version, until_us, profile) VALUES (?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (project, deployment, model, version) DO UPDATE SET until_us = excluded.until_us, profile = excluded.profile",
                    *key, span.end_us, to_json(merge(known, of_champion)).decode(),
                )  # fmt: skip
            return ColumnDrift(
                column=PREDICTION,
                verdict=Verdict.INSUFFICIENT_DATA,
                reason=f"the first {wanted} scores of {model}@{version} are being collected",
            )
        if baseline is not None and span.end_us <= baseline["until_us"]:
            return None
        column = column_of(known, PREDICTION)
        if column is None:
            return None
        binned = BinnedColumn(column, policy.bins)
        rows = self._tx.all(
            "SELECT w.id, p.vitals FROM windows w JOIN window_parts p ON p.project = w.project AND p.window_id = w.id"
            " WHERE w.project = ? AND w.deployment = ? AND w.end_us > ? AND w.end_us <= ? AND w.start_us >= ? AND p.model = ? AND p.version = ? ORDER BY w.end_us DESC LIMIT ?",
            self._project, span.deployment, span.end_us - self._lookback_us(policy), span.end_us, baseline["until_us"] if baseline else 0, model, version, _MAX_LOOKBACK,
        )  # fmt: skip
        per_window: defaultdict[str, Cells] = defaultdict(lambda: binned.count(None))
        for row in rows:
            per_window[row["id"]] = per_window[row["id"]] + binned.count(
                column_of(from_json(row["vitals"], Profile), PREDICTION)
            )
        column_drift = compare_column(
            binned,
            list(per_window.values()),
            threshold=policy.columns.get(PREDICTION, policy.psi),
            min_rows=policy.min_rows,
            min_windows=self._min_windows(policy),
        )
        stream = f"prediction:{span.deployment}:{model}@{version}"
        control = OnlineControl.restore(policy.alpha, self._read_state(stream)) if first_time else None
        judged = judge_column(column_drift, control, policy)
        if control is not None:
            self._write_state(stream, control.state())
        return judged

    # --- decay -------------------------------------------------------------------------------------------------------

    def _judge_decay(self, span: Span) -> None:
        """Test the champion's performance, once per window whose labels have arrived: a second test would spend error budget twice."""
        policy = self._policy(span.deployment)
        champion = _last_champion(
            self._tx.all(
                "SELECT * FROM window_parts WHERE project = ? AND window_id = ?", self._project, span.id
            )
        )
        row = self._tx.first(
            "SELECT report FROM windows WHERE project = ? AND id = ? AND state = 'closed'",
            self._project,
            span.id,
        )
        if champion is None or row is None or not row["report"]:
            return
        name = f"{champion[0]}@{champion[1]}"
        stream = f"decay:{span.deployment}:{name}"
        state = self._read_state(stream)
        again = span.end_us <= int(state.get("end_us", -1))
        control = None if again else OnlineControl.restore(policy.alpha, state)
        decay = scores.measure_decay(
            self._tx,
            self._project,
            span,
            champion,
            self._references,
            policy,
            self._lookback_us(policy),
            control,
        )
        if control is not None and decay.p_value is not None:
            self._write_state(stream, {**control.state(), "end_us": span.end_us})
        if again:
            return
        report: WindowReport = from_json(row["report"], WindowReport)
        changed = msgspec.structs.replace(report, decay=decay)
        self._tx.execute(
            "UPDATE windows SET report = ? WHERE project = ? AND id = ?",
            to_json(changed).decode(),
            self._project,
            span.id,
        )
        findings = decay_findings(span, decay)
        self._replace_findings(span, findings, kinds=("performance",))
        current = self._read_state(f"champion:{span.deployment}").get("name")
        if current in (None, name):
            judged = {("performance", decay.metric)} if decay.p_value is not None else set()
            self._update_alerts(
                span, {(f.kind, f.subject): f.detail for f in findings}, judged, ("performance",), policy
            )

    # --- writing -----------------------------------------------------------------------------------------------------

    def _replace_findings(self, span: Span, findings: list[Finding], *, kinds: tuple[str, ...]) -> None:
        marks = ",".join("?" * len(kinds))
        self._tx.execute(
            f"DELETE FROM findings WHERE project = ? AND window_id = ? AND kind IN ({marks})",
            self._project,
            span.id,
            *kinds,
        )
        unique = {(f.kind, f.subject, f.code): f for f in findings}
        self._tx.many(
            "INSERT INTO findings (project, window_id, kind, subject, code, deployment, at_us, severity, report) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    self._project,
                    span.id,
                    f.kind,
                    f.subject,
                    f.code,
                    span.deployment,
                    span.end_us,
                    f.severity,
                    to_json(f).decode(),
                )
                for f in unique.values()
            ],
        )

    def _update_alerts(
        self,
        span: Span,
        seen: Mapping[Any, str],
        judged: set[alerts.Subject] | None,
        kinds: tuple[str, ...],
        policy: MonitorPolicy,
    ) -> None:
        opened, resolved = alerts.update_alerts(
            self._d, self._project, span.deployment,
            window=span.id, at_us=span.end_us, seen=seen, judged=judged, kinds=kinds, policy=policy,
        )  # fmt: skip
        self._out.opened += opened
        self._out.resolved += resolved

    def _lookback_us(self, policy: MonitorPolicy) -> int:
        return max(length_us(policy.window), length_us(policy.lookback) if policy.lookback else 0)

    def _min_windows(self, policy: MonitorPolicy) -> int:
        """Windows needed before a pooled test: seven, to estimate how much windows differ by themselves, or all of a shorter lookback."""
        return min(7, self._lookback_us(policy) // length_us(policy.window))

    def _read_state(self, name: str) -> dict[str, Any]:
        row = self._tx.first(
            "SELECT state FROM test_streams WHERE project = ? AND name = ?", self._project, name
        )
        return dict(from_json(row["state"])) if row else {}

    def _write_state(self, name: str, state: dict[str, Any]) -> None:
        self._tx.execute(
            "INSERT INTO test_streams (project, name, state) VALUES (?, ?, ?) ON CONFLICT (project, name) DO UPDATE SET state = excluded.state",
            self._project, name, to_json(state).decode(),
        )  # fmt: skip


def _last_champion(parts: list[Row]) -> tuple[str, int] | None:
    """Model and version that answered as champion last in this window."""
    champions = [p for p in parts if p["role"] == "champion"] or parts
    newest = max(champions, key=lambda p: (p["last_us"], p["version"]), default=None)
    return (newest["model"], int(newest["version"])) if newest else None


def _count_rows(parts: list[Row]) -> int:
    return sum(int(p["rows_n"]) for p in parts)


def _merge_profiles(parts: list[Row], column: str) -> Profile:
    out = Profile(rows=0, columns=[])
    for part in parts:
        profile: Profile = from_json(part[column], Profile)
        out = profile if not out.rows else merge(out, profile) if profile.rows else out
    return out


def _vitals_of(part: Row) -> Vitals:
    profile: Profile = from_json(part["vitals"], Profile)
    latency, score = column_of(profile, LATENCY), column_of(profile, PREDICTION)
    cuts = quantiles(latency, [0.5, 0.99]) if latency else []
    return Vitals(
        model=part["model"],
        version=part["version"],
        role=part["role"],
        requests=part["requests"],
        rows=part["rows_n"],
        errors=from_json(part["errors"], dict[str, int]),
        latency_p50_us=cuts[0] if cuts else None,
        latency_p99_us=cuts[1] if cuts else None,
        score_mean=score.mean if score else None,
    )
