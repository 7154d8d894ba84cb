"""Reads the prediction log into rows and windows, exactly once: cursor, rows and sketches commit in one transaction."""

from __future__ import annotations

import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from mainspring.clock import to_us
from mainspring.data.profile import ProfileBuilder, merge
from mainspring.lineage import Foundation
from mainspring.monitoring.spans import Span, span_of
from mainspring.records.base import from_json, to_json
from mainspring.records.monitoring import IngestReport, MonitorPolicy
from mainspring.records.profile import Profile
from mainspring.records.serving import LOG_PREFIX, LoggedPrediction, LoggedShadow, decode_log
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.journal import JournalReader
from mainspring.storage.sql import Writer

declare("monitoring.ingested", "monitoring.archived")

PREDICTION = "prediction"
LATENCY = "latency_us"
_MAX_ID = 64
_MAX_ROWS = 1_000_000
_PART = tuple[str, str, int, str]  # window id, model, version, role


@dataclass
class _Batch:
    predictions: dict[str, LoggedPrediction] = field(default_factory=dict)
    shadows: dict[tuple[str, str], LoggedShadow] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


def log_folder(base: Foundation) -> Path:
    return base.bundle / "log"


def ingest(base: Foundation, policy_of: Callable[[str], MonitorPolicy], *, limit: int) -> IngestReport:
    """Read at most ``limit`` records after the cursor. A record that cannot be decoded is counted and passed over."""
    reader = JournalReader(log_folder(base), LOG_PREFIX)
    with base.store.write() as tx:
        row = tx.first(
            "SELECT cursor, counters FROM log_cursors WHERE project = ? AND name = ?",
            base.project,
            LOG_PREFIX,
        )
        before = row["cursor"] if row else ""
        totals: Counter[str] = Counter(from_json(row["counters"], dict[str, int])) if row else Counter()
        records, cursor = reader.read(before, max_records=limit)
        batch = _decode_records(records)
        batch.counts["torn"] = reader.torn
        # The reader stops at a number of records or of bytes, whichever comes first: only another read shows whether more is there.
        more = bool(reader.read(cursor, max_records=1)[0])
        if records or cursor != before:
            _store_batch(base, tx, batch, policy_of)
            counters = {
                k: totals[k] + batch.counts[k]
                for k in (*totals, *batch.counts)
                if totals[k] + batch.counts[k]
            }
            tx.execute(
                "INSERT INTO log_cursors (project, name, cursor, counters) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (project, name) DO UPDATE SET cursor = excluded.cursor, counters = excluded.counters",
                base.project, LOG_PREFIX, cursor, to_json(counters).decode(),
            )  # fmt: skip
            failpoint("monitoring.ingested")
    _archive_segments(base, reader, cursor)
    names = set(IngestReport.__struct_fields__) - {"more"}
    return IngestReport(**{k: v for k, v in batch.counts.items() if k in names}, more=more)


def _decode_records(records: Iterable[bytes]) -> _Batch:
    batch = _Batch()
    for payload in records:
        try:
            record = decode_log(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            record = None
        if isinstance(record, LoggedPrediction) and _is_plausible(
            record.id, record.rows, record.version, record.event_us
        ):
            if record.id in batch.predictions:
                batch.counts["duplicates"] += 1
            batch.predictions.setdefault(record.id, record)
        elif isinstance(record, LoggedShadow) and _is_plausible(
            record.id, len(record.scores), record.version, record.event_us
        ):
            batch.shadows.setdefault((record.id, record.name), record)
        else:
            batch.counts["bad"] += 1
    return batch


def _is_plausible(ident: str, rows: int, version: int, event_us: int) -> bool:
    in_range = -(2**62) < event_us < 2**62 and -(2**62) < version < 2**62
    return (
        0 < len(ident) <= _MAX_ID
        and 0 <= rows <= _MAX_ROWS
        and "/" not in ident
        and "\0" not in ident
        and in_range
    )


def _store_batch(
    base: Foundation, tx: Writer, batch: _Batch, policy_of: Callable[[str], MonitorPolicy]
) -> None:
    known = _list_known(tx, base.project, list(batch.predictions))
    batch.counts["duplicates"] += len(known)
    now = to_us(base.clock.now())
    rows: list[Any] = []
    groups: dict[_PART, list[tuple[LoggedPrediction, int]]] = defaultdict(list)
    spans: dict[str, Span] = {}
    for ident, record in batch.predictions.items():
        if ident in known:
            continue
        policy = policy_of(record.deployment)
        at_us = _clamp_time(record.event_us, now, policy, batch.counts)
        span = span_of(record.deployment, at_us, policy.window)
        spans[span.id] = span
        groups[span.id, record.model, record.version, record.role].append((record, at_us))
        batch.counts["requests"] += 1
        for i, (score, scores) in enumerate(_row_scores(record)):
            rows.append((
                base.project, ident, i, record.deployment, record.model, record.version, record.role, record.event_us, at_us,
                record.arrival_us, record.latency_us, record.routes, record.status, score, scores,
            ))  # fmt: skip
            batch.counts["rows"] += 1
    tx.many(
        "INSERT INTO predictions (project, request, row_no, deployment, model, version, role, event_us, at_us, arrival_us, latency_us, routes, status, score, scores)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    _store_shadows(base, tx, batch, policy_of, now)
    _open_windows(base, tx, spans.values())
    for part, records in groups.items():
        _extend_part(base, tx, part, records)


def _store_shadows(
    base: Foundation, tx: Writer, batch: _Batch, policy_of: Callable[[str], MonitorPolicy], now: int
) -> None:
    rows: list[Any] = []
    for (ident, name), record in batch.shadows.items():
        at_us = _clamp_time(record.event_us, now, policy_of(record.deployment), Counter())
        for i, (score, scores) in enumerate(_row_scores(record)):
            rows.append((
                base.project, ident, i, name, record.deployment, record.model, record.version, at_us, record.latency_us, record.status, score, scores,
            ))  # fmt: skip
    batch.counts["shadows"] += len(rows)
    tx.many(
        "INSERT INTO shadow_predictions (project, request, row_no, name, deployment, model, version, at_us, latency_us, status, score, scores)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (project, request, row_no, name) DO NOTHING",
        rows,
    )


def _list_known(tx: Writer, project: str, ids: list[str]) -> set[str]:
    known: set[str] = set()
    for start in range(0, len(ids), 400):
        chunk = ids[start : start + 400]
        marks = ",".join("?" * len(chunk))
        known.update(
            r["request"]
            for r in tx.all(
                f"SELECT DISTINCT request FROM predictions WHERE project = ? AND request IN ({marks})",
                project,
                *chunk,
            )
        )
    return known


def _clamp_time(event_us: int, now: int, policy: MonitorPolicy, counts: Counter[str]) -> int:
    """The event time that windows use. A sender's clock may be ahead by one window; a time beyond that (or before 1970) is
    replaced by now and counted, so that one wrong clock cannot open windows in the far future."""
    if 0 <= event_us <= now + span_of("x", 0, policy.window).length:
        return event_us
    counts["clamped"] += 1
    return now


def _row_scores(record: LoggedPrediction | LoggedShadow) -> Iterator[tuple[float | None, str | None]]:
    """(score, JSON of scores) per row; a failed request has one row without a score."""
    if record.status != "ok" or not record.scores:
        yield None, None
        return
    for value in record.scores:
        if isinstance(value, list):
            usable = value and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
            yield None, to_json([float(v) for v in value]).decode() if usable else None
        else:
            yield (
                (float(value), None)
                if isinstance(value, int | float) and math.isfinite(value)
                else (None, None)
            )


def _open_windows(base: Foundation, tx: Writer, spans: Iterable[Span]) -> None:
    for span in spans:
        # A window that exists got late rows: stale, it is judged again if it is closed.
        tx.execute(
            "INSERT INTO windows (project, id, deployment, start_us, end_us, state, revision, stale, report) VALUES (?, ?, ?, ?, ?, 'open', 1, 0, '')"
            " ON CONFLICT (project, id) DO UPDATE SET stale = 1",
            base.project, span.id, span.deployment, span.start_us, span.end_us,
        )  # fmt: skip


def _extend_part(
    base: Foundation, tx: Writer, part: _PART, records: list[tuple[LoggedPrediction, int]]
) -> None:
    """Merge these requests into the sketches and counters of a part of a window."""
    logged = [r for r, _ in records]
    profile, vitals = inputs_profile(logged), vitals_profile(logged)
    errors = Counter(r.status for r in logged if r.status != "ok")
    requests, rows, last = (
        len(logged),
        sum(r.rows for r in logged if r.status == "ok"),
        max(at for _, at in records),
    )
    where = "project = ? AND window_id = ? AND model = ? AND version = ? AND role = ?"
    old = tx.first(f"SELECT * FROM window_parts WHERE {where}", base.project, *part)
    if old:
        profile = merge(from_json(old["profile"], Profile), profile)
        vitals = merge(from_json(old["vitals"], Profile), vitals)
        errors += Counter(from_json(old["errors"], dict[str, int]))
        requests, rows, last = requests + old["requests"], rows + old["rows_n"], max(last, old["last_us"])
    tx.execute(
        "INSERT INTO window_parts (project, window_id, model, version, role, requests, rows_n, errors, last_us, profile, vitals) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (project, window_id, model, version, role) DO UPDATE SET requests = excluded.requests, rows_n = excluded.rows_n, errors = excluded.errors,"
        " last_us = excluded.last_us, profile = excluded.profile, vitals = excluded.vitals",
        base.project, *part, requests, rows, to_json(dict(errors)).decode(), last, to_json(profile).decode(), to_json(vitals).decode(),
    )  # fmt: skip


def inputs_profile(records: list[LoggedPrediction]) -> Profile:
    """The profile of all input rows of answered requests. A model did not use the rows of failed requests as inputs."""
    builder = ProfileBuilder()
    usable = [
        r
        for r in records
        if r.status == "ok" and r.columns and all(len(v) == r.rows for v in r.columns.values())
    ]
    by_shape: dict[tuple[str, ...], list[LoggedPrediction]] = defaultdict(list)
    for record in usable:
        by_shape[tuple(sorted(record.columns))].append(record)
    for names, group in by_shape.items():
        builder.add({name: list(chain.from_iterable(r.columns[name] for r in group)) for name in names})
    return builder.build()


def vitals_profile(records: list[LoggedPrediction]) -> Profile:
    """The profile of the answers: ``prediction`` (score; multiclass: the class with the highest score; several numbers: the first) and
    ``latency_us``."""
    answered = [r for r in records if r.status == "ok" and r.scores]
    values = list(chain.from_iterable(r.scores for r in answered))
    if any(r.outputs for r in answered):
        values = [v[0] for v in values if isinstance(v, list) and v]
    elif any(isinstance(v, list) for v in values):
        values = [f"class {v.index(max(v))}" for v in values if isinstance(v, list) and v]
    predicted = ProfileBuilder().add({PREDICTION: values}).build()
    latency = ProfileBuilder().add({LATENCY: [float(r.latency_us) for r in records]}).build()
    return Profile(rows=predicted.rows, columns=[*predicted.columns, *latency.columns])


# --- finished segments ------------------------------------------------------------------------------------------------


def _archive_segments(base: Foundation, reader: JournalReader, cursor: str) -> None:
    """Store segments that are read to the end as objects, then delete the files. After a crash in between the same is done again."""
    for segment in reader.behind(cursor):
        name = segment.path.stem
        path = next((p for p in (segment.path, segment.path.with_suffix(".seg")) if p.exists()), None)
        if path is None:
            continue
        ids = sorted(r.id for r in segment_records(path.read_bytes(), name))
        with base.objects.writing() as writer:
            stored = writer.put(path)
            writer.flush()
            with base.ledger.decision() as d:
                d.tx.execute(
                    "INSERT INTO log_segments (project, name, digest, min_id, max_id, records) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (project, name) DO NOTHING",
                    base.project, name, stored.digest, ids[0] if ids else "", ids[-1] if ids else "", len(ids),
                )  # fmt: skip
                d.refer(stored.digest, f"log_segment:{name}")
        failpoint("monitoring.archived")
        reader.remove([segment])


def segment_records(data: bytes, name: str) -> Iterator[LoggedPrediction]:
    """The predictions in the bytes of one segment."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{name}.seg").write_bytes(data)
        yield from journal_records(JournalReader(Path(folder), LOG_PREFIX))


def journal_records(reader: JournalReader) -> Iterator[LoggedPrediction]:
    """All predictions that a reader can see, from the beginning."""
    cursor = ""
    while True:
        records, cursor = reader.read(cursor)
        if not records:
            return
        yield from _decode_records(records).predictions.values()
