"""Operations of monitoring: read the prediction log, judge windows, list what was recorded about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from mainspring.clock import from_us, to_us
from mainspring.errors import InvalidInput, NotFound, near
from mainspring.lineage import Foundation
from mainspring.operations import Role, operation
from mainspring.records.base import check_name, from_json
from mainspring.records.models import ModelRegistry
from mainspring.records.monitoring import (
    Alert,
    BlastRadius,
    DriftReport,
    EvaluateReport,
    Finding,
    IngestReport,
    MonitorCounts,
    MonitorPolicy,
    Paired,
    Performance,
    PredictionRecord,
    SeriesPoint,
    Verdict,
    Window,
    WindowReport,
)
from mainspring.records.serving import LOG_PREFIX
from mainspring.storage.sql import Reader, Row

if TYPE_CHECKING:
    from mainspring.monitoring.references import References

# What computes loads numpy, which most lists do not need (tests/test_imports.py): it is imported where it is called.

_MAX_LIMIT = 1_000


class Monitoring:
    """Facts about live deployments: windows of traffic, findings, alerts. The loop decides what follows from them.

    ``policies`` by deployment (:class:`MonitorPolicy` defaults for the rest). ``models`` answers ``version(model=, selector=)``; by
    default the models room of the same foundation.
    """

    room = "monitoring"

    def __init__(
        self,
        base: Foundation,
        *,
        policies: Mapping[str, MonitorPolicy] | None = None,
        models: ModelRegistry | None = None,
    ) -> None:
        self._base = base
        self._policies = dict(policies or {})
        self._models = models

    @cached_property
    def _references(self) -> References:
        from mainspring.monitoring.references import References

        return References(self._base, self._models)

    # --- changes -----------------------------------------------------------------------------------------------------

    @operation(role=Role.OPERATOR, changes=True, deadline_s=300)
    def ingest(self, *, limit: int = 10_000) -> IngestReport:
        """Read up to ``limit`` records of the prediction log, exactly once; ``more`` says to call again.

        Damaged records are counted, never fatal. Reading the same log again changes nothing.
        """
        from mainspring.monitoring.ingest import ingest

        if not 1 <= limit <= 100_000:
            raise InvalidInput("limit must be 1 to 100,000", value=limit)
        return ingest(self._base, self._policy, limit=limit)

    @operation(role=Role.OPERATOR, changes=True, deadline_s=300)
    def evaluate_windows(self, *, now: datetime | None = None) -> EvaluateReport:
        """Close the windows that ended by ``now`` (default: policy time), judge them, and revise those that got labels.

        Everything in one decision; events ``alert.opened`` and ``alert.resolved``. ``more`` says to call again.
        """
        from mainspring.monitoring.evaluate import Evaluation

        now_us = to_us(now or self._base.clock.now())
        with self._base.ledger.decision() as d:
            return d.done(Evaluation(self._base, d, self._policies, self._references, now_us).run())

    # --- reading -----------------------------------------------------------------------------------------------------

    @operation(role=Role.VIEWER)
    def get_policy(self, deployment: str) -> MonitorPolicy:
        """The policy in force for a deployment."""
        return self._policy(deployment)

    @operation(role=Role.VIEWER)
    def list_windows(
        self,
        deployment: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        newest_first: bool = True,
    ) -> list[Window]:
        """Windows that start in ``[since, until)``; go on by passing the last start as ``until`` (or ``since``)."""
        order = "DESC" if newest_first else "ASC"
        with self._base.store.read() as tx:
            selected = tx.all(
                f"SELECT * FROM windows WHERE project = ? AND deployment = ? AND start_us >= ? AND start_us < ? ORDER BY start_us {order} LIMIT ?",
                self._base.project, deployment, *_bounds_us(since, until), _checked_limit(limit),
            )  # fmt: skip
            return [self._window_of(tx, row) for row in selected]

    @operation(role=Role.VIEWER)
    def get_window(self, id: str) -> Window:  # noqa: A002 - the field is called id on the wire
        """One window; NotFound if there is none."""
        with self._base.store.read() as tx:
            return self._window_of(
                tx,
                tx.one(
                    "SELECT * FROM windows WHERE project = ? AND id = ?",
                    self._base.project,
                    id,
                    what=f"window {id!r}",
                ),
            )

    @operation(role=Role.VIEWER)
    def list_drift(self, window: str) -> DriftReport:
        """The columns of a window against the reference, the largest effect first."""
        entry = self.get_window(id=window)
        if entry.report is None or entry.report.drift is None:
            return DriftReport(
                verdict=Verdict.INSUFFICIENT_DATA,
                rows=entry.rows,
                reference="the window is not closed or has no champion",
            )
        return entry.report.drift

    @operation(role=Role.VIEWER)
    def list_findings(
        self,
        deployment: str,
        *,
        kind: str | None = None,
        window: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        severity: str | None = None,
        limit: int = 100,
    ) -> list[Finding]:
        """Findings of windows that end in ``[since, until)``, newest first."""
        where = ["project = ?", "deployment = ?", "at_us >= ?", "at_us < ?"]
        values: list[str | int] = [self._base.project, deployment, *_bounds_us(since, until)]
        for column, value in (("kind", kind), ("window_id", window), ("severity", severity)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        with self._base.store.read() as tx:
            selected = tx.all(
                f"SELECT report FROM findings WHERE {' AND '.join(where)} ORDER BY at_us DESC, kind, subject, code LIMIT ?",
                *values,
                _checked_limit(limit),
            )
        return [from_json(r["report"], Finding) for r in selected]

    @operation(role=Role.VIEWER)
    def list_alerts(
        self,
        deployment: str | None = None,
        *,
        state: Literal["open", "resolved"] | None = None,
        kind: str | None = None,
        limit: int = 100,
    ) -> list[Alert]:
        """Alerts, newest first; at most one is open per deployment, kind and subject."""
        where, values = ["project = ?"], [self._base.project]
        for column, value in (("deployment", deployment), ("kind", kind)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        if state is not None:
            where.append("open_key IS NOT NULL" if state == "open" else "open_key IS NULL")
        with self._base.store.read() as tx:
            selected = tx.all(
                f"SELECT * FROM alerts WHERE {' AND '.join(where)} ORDER BY opened_us DESC, id DESC LIMIT ?",
                *values,
                _checked_limit(limit),
            )
        return [_alert_of(r) for r in selected]

    @operation(role=Role.VIEWER)
    def get_series(
        self,
        deployment: str,
        metric: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        scorer: str | None = None,
        limit: int = 1_000,
    ) -> list[SeriesPoint]:
        """One metric over time, oldest first.

        ``metric``: a performance metric (one point per window and scorer), ``rows``, ``errors``, ``latency_p99_us``,
        ``score_mean`` or ``psi:<column>`` (``psi:prediction`` for the scores).
        """
        windows = self.list_windows(
            deployment=deployment, since=since, until=until, limit=limit, newest_first=True
        )
        points: list[SeriesPoint] = []
        for window in reversed(windows):
            points += [p for p in _series_points(window, metric) if scorer is None or p.scorer == scorer]
        return points

    @operation(role=Role.VIEWER)
    def get_prediction(self, id: str) -> PredictionRecord:  # noqa: A002 - the field is called id on the wire
        """One predicted row (``request/row``; a bare request id is row 0) with inputs, shadows and label."""
        from mainspring.monitoring import rows

        return rows.read_prediction(self._base, id)

    @operation(role=Role.VIEWER)
    def compare_scorers(
        self,
        deployment: str,
        a: str,
        b: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        min_rows: int = 30,
    ) -> Paired:
        """Two scorers on the same rows with event time in ``[since, until)``: a version by its number, a shadow by its name."""
        from mainspring.monitoring import rows

        return rows.compare_scorers(
            self._base, self._references, deployment, a, b, *_bounds_us(since, until), min_rows
        )

    @operation(role=Role.VIEWER)
    def get_blast_radius(self, model: str, version: int) -> BlastRadius:
        """How many predictions a model version made, and a sample of them."""
        from mainspring.monitoring import rows

        return rows.read_blast_radius(self._base, check_name(model, what="model"), version)

    @operation(role=Role.VIEWER)
    def list_deployments(self) -> list[str]:
        """Deployments that have windows."""
        with self._base.store.read() as tx:
            return [
                r["deployment"]
                for r in tx.all(
                    "SELECT DISTINCT deployment FROM windows WHERE project = ? ORDER BY deployment",
                    self._base.project,
                )
            ]

    @operation(role=Role.VIEWER)
    def get_counts(self, deployment: str | None = None) -> MonitorCounts:
        """Totals of a deployment, or of all; raises NotFound for a deployment never seen."""
        project = self._base.project
        also, values = ("", ()) if deployment is None else (" AND deployment = ?", (deployment,))
        with self._base.store.read() as tx:
            if deployment is not None and not tx.scalar(
                f"SELECT 1 AS one FROM windows WHERE project = ?{also} LIMIT 1", project, *values
            ):
                known = [
                    r["deployment"]
                    for r in tx.all("SELECT DISTINCT deployment FROM windows WHERE project = ?", project)
                ]
                raise NotFound(
                    "no traffic of this deployment is known",
                    value=deployment,
                    next_step=near(deployment, known, what="deployment with traffic"),
                )

            def count(table: str, extra: str = "") -> int:
                return int(
                    tx.scalar(
                        f"SELECT count(*) AS n FROM {table} WHERE project = ?{also}{extra}", project, *values
                    )
                )

            counters = tx.scalar(
                "SELECT counters FROM log_cursors WHERE project = ? AND name = ?", project, LOG_PREFIX
            )
            requests = tx.scalar(
                f"SELECT coalesce(sum(p.requests), 0) AS n FROM window_parts p JOIN windows w ON w.project = p.project AND w.id = p.window_id WHERE w.project = ?{also}",
                project, *values,
            )  # fmt: skip
            return MonitorCounts(
                requests=int(requests),
                rows=count("predictions", " AND status = 'ok'"),
                failed=count("predictions", " AND status <> 'ok'"),
                shadows=count("shadow_predictions"),
                labelled=count("labelled_predictions"),
                windows=count("windows"),
                open_alerts=count("alerts", " AND open_key IS NOT NULL"),
                ingest=from_json(counters, dict[str, int]) if counters else {},
            )

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _policy(self, deployment: str) -> MonitorPolicy:
        return self._policies.get(deployment) or MonitorPolicy()

    def _window_of(self, tx: Reader, row: Row) -> Window:
        parts = tx.all(
            "SELECT requests, rows_n, errors FROM window_parts WHERE project = ? AND window_id = ?",
            self._base.project,
            row["id"],
        )
        performance: list[Performance] = [
            from_json(r["report"], Performance)
            for r in tx.all(
                "SELECT report FROM window_performance WHERE project = ? AND window_id = ? ORDER BY scorer",
                self._base.project,
                row["id"],
            )
        ]
        return Window(
            id=row["id"],
            deployment=row["deployment"],
            start=from_us(row["start_us"]),
            end=from_us(row["end_us"]),
            state=row["state"],
            revision=row["revision"],
            rows=sum(int(p["rows_n"]) for p in parts),
            requests=sum(int(p["requests"]) for p in parts),
            errors=sum(sum(from_json(p["errors"], dict[str, int]).values()) for p in parts),
            labelled=sum(p.labelled for p in performance if not p.scorer.startswith("shadow:")),
            report=from_json(row["report"], WindowReport) if row["report"] else None,
            performance=performance,
        )


def _series_points(window: Window, metric: str) -> Iterator[SeriesPoint]:
    def point(
        value: float | None,
        scorer: str = "all",
        n: int = window.rows,
        low: float | None = None,
        high: float | None = None,
    ) -> SeriesPoint:
        return SeriesPoint(
            window=window.id,
            start=window.start,
            end=window.end,
            scorer=scorer,
            value=value,
            low=low,
            high=high,
            n=n,
        )

    report = window.report
    if metric == "rows":
        yield point(float(window.rows))
    elif metric == "errors":
        yield point(float(window.errors))
    elif metric in {"latency_p50_us", "latency_p99_us", "score_mean"}:
        for vitals in report.vitals if report else []:
            yield point(getattr(vitals, metric), f"{vitals.version}", vitals.rows)
    elif metric.startswith("psi:"):
        columns = [
            *(report.drift.columns if report and report.drift else []),
            *([report.prediction] if report and report.prediction else []),
        ]
        for column in columns:
            if column.column == metric[4:]:
                yield point(column.psi, n=column.n)
    else:
        for performance in window.performance:
            value = performance.metrics.get(metric)
            if value is not None:
                yield point(value.value, performance.scorer, value.n, value.low, value.high)


def _bounds_us(since: datetime | None, until: datetime | None) -> tuple[int, int]:
    return (to_us(since) if since else -(2**62)), (to_us(until) if until else 2**62)


def _checked_limit(limit: int) -> int:
    if not 1 <= limit <= _MAX_LIMIT:
        raise InvalidInput("limit must be 1 to 1,000", value=limit)
    return limit


def _alert_of(row: Row) -> Alert:
    return Alert(
        id=row["id"],
        deployment=row["deployment"],
        kind=row["kind"],
        subject=row["subject"],
        opened_at=from_us(row["opened_us"]),
        last_seen=from_us(row["last_us"]),
        resolved_at=from_us(row["resolved_us"]) if row["resolved_us"] is not None else None,
        hits=row["hits"],
        window=row["window_id"],
        detail=row["detail"],
    )
