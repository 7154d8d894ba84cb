"""Feedback is joined to predictions by id, whether it comes late, repeatedly, with another value, too early, or for an unknown id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from mainspring.clock import from_us, to_us
from mainspring.errors import InvalidInput, MainspringError, NotFound
from mainspring.labels.rows import LabelRows, SentLabel, parse_id
from mainspring.lineage import Foundation
from mainspring.operations import MIB, Role, operation
from mainspring.records.base import from_json, new_id, seconds
from mainspring.records.classes import LabelReader
from mainspring.records.events import EventKind
from mainspring.records.labels import (
    Feedback,
    FeedbackCounts,
    Label,
    LabelStats,
    SettleReport,
    refusal_reason,
)
from mainspring.records.lineage import ref
from mainspring.records.models import ModelRegistry
from mainspring.records.serving import FEEDBACK_PREFIX, LoggedFeedback, decode_log
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.journal import JournalReader

declare("labels.recorded")

MAX_BATCH = 10_000
_MAX_LOOKUP = 1_000
_MAX_READERS = 256


class Labels:
    """Ground truth, kept with the time it is about and the time it came, never overwritten.

    A repeated label is counted once; a contradicting one becomes the next revision and both stay in the history; a label
    whose prediction is unknown is parked, at most ``max_parked`` of them for ``park_for``, and joined when
    the prediction appears. To return to an earlier value, send it with another ``at``: equal content is a repetition.
    """

    room = "labels"

    def __init__(
        self,
        base: Foundation,
        *,
        park_for: str = "7d",
        max_parked: int = 100_000,
        models: ModelRegistry | None = None,
    ) -> None:
        self._base = base
        self._models = models
        self._readers: dict[tuple[str, int], LabelReader] = {}
        self._park_us = int(seconds(park_for) * 1_000_000)
        self._max_parked = max_parked

    @operation(role=Role.LABELLER, changes=True, max_body=8 * MIB)
    def record_feedback(self, items: list[Feedback]) -> FeedbackCounts:
        """Record a batch of at most 10,000 labels in one decision; every item is counted in exactly one field.

        A label is matched to the classes of the version that predicted, by value; one that names none of them, a row that the
        prediction does not have, or an id that no server gives is refused. A well-formed id that is not known yet is parked.
        Raises :class:`InvalidInput` naming the first bad item; then nothing of the batch was recorded.
        """
        if len(items) > MAX_BATCH:
            raise InvalidInput(
                "too many labels in one batch",
                value=len(items),
                next_step=f"Send at most {MAX_BATCH} at a time.",
            )
        sent = []
        for i, item in enumerate(items):
            problem = _find_problem(item)
            if problem:
                raise InvalidInput(
                    problem,
                    value=item.value if "value" in problem else item.prediction_id,
                    place=f"items[{i}]",
                )
            sent.append(self._sent_label(item))
        return self._record_labels(sent, rejected=0, refuse=True)

    @operation(role=Role.OPERATOR, changes=True)
    def ingest_relayed(self, *, limit: int = MAX_BATCH) -> FeedbackCounts:
        """Record the feedback that inference servers relayed through the bundle's journal, exactly once.

        Malformed records and items, and labels about a row or class that cannot be, are counted as ``rejected``. Also settles
        parked labels. ``more`` says to call again.
        """
        reader = JournalReader(self._base.bundle / "log", FEEDBACK_PREFIX)
        with self._base.store.write() as tx:
            labels = LabelRows(tx, self._base.project, self._reader)
            records, cursor = reader.read(labels.read_cursor(), max_records=max(1, min(limit, MAX_BATCH)))
            # The reader stops at a number of records or of bytes, whichever comes first: only another read shows whether more is there.
            more = bool(reader.read(cursor, max_records=1)[0])
            items, rejected = _decode_relayed(records)
            good = [item for item in items if not _find_problem(item)]
            rejected += len(items) - len(good)
            counts = FeedbackCounts()
            for start in range(0, len(good), MAX_BATCH):
                counts = _add_counts(
                    counts,
                    self._record_labels(
                        [self._sent_label(i) for i in good[start : start + MAX_BATCH]], rejected=0
                    ),
                )
            if rejected:
                counts = _add_counts(counts, self._record_labels([], rejected=rejected))
            if records:
                labels.move_cursor(cursor)
            self.settle_parked()
        done = reader.behind(cursor)
        reader.remove(done)
        return msgspec.structs.replace(counts, more=more)

    @operation(role=Role.OPERATOR, changes=True)
    def settle_parked(self, *, limit: int = 10_000) -> SettleReport:
        """Join parked labels whose prediction has appeared; drop and count those that waited too long."""
        now = to_us(self._base.clock.now())
        with self._base.store.read() as reading:
            if not reading.scalar(
                "SELECT 1 AS one FROM parked_labels WHERE project = ? LIMIT 1", self._base.project
            ):
                return SettleReport()
        with self._base.ledger.decision() as d:
            labels = LabelRows(d.tx, self._base.project, self._reader)
            joinable = labels.list_joinable(limit)
            tally = labels.record(joinable, expires_us=now, room=0) if joinable else {}
            labels.delete_parked(joinable)
            expired = labels.expire_parked(now)
            waiting = int(
                d.tx.scalar("SELECT count(*) AS n FROM parked_labels WHERE project = ?", self._base.project)
            )
            report = SettleReport(
                joined=len(joinable),
                expired=expired,
                waiting=waiting,
                rejected=tally.get("rejected", 0),
                more=len(joinable) >= limit,
            )
            if joinable or expired:
                d.event(
                    EventKind.FEEDBACK_SETTLED,
                    ref("feedback", new_id()),
                    {"joined": report.joined, "expired": expired, **tally},
                )
            return d.done(report)

    @operation(role=Role.VIEWER)
    def get_labels(self, predictions: list[str]) -> list[Label]:
        """The current labels of these predictions (at most 1,000); unlabelled ones are left out."""
        if len(predictions) > _MAX_LOOKUP:
            raise InvalidInput(
                "too many predictions in one question",
                value=len(predictions),
                next_step=f"Ask for at most {_MAX_LOOKUP}.",
            )
        wanted = {parse_id(p) for p in predictions}
        with self._base.store.read() as tx:
            rows = LabelRows(tx, self._base.project).current_labels({request for request, _ in wanted})
        return [_label_of(rows[key], *key) for key in sorted(wanted) if key in rows]

    @operation(role=Role.VIEWER)
    def get_history(self, prediction_id: str) -> list[Label]:
        """Every label ever recorded of one predicted row, oldest first; NotFound if there is none."""
        request, row = parse_id(prediction_id)
        with self._base.store.read() as tx:
            rows = tx.all(
                "SELECT revision, value, at_us, arrived_us, source FROM label_revisions WHERE project = ? AND request = ? AND row_no = ? ORDER BY revision",
                self._base.project, request, row,
            )  # fmt: skip
        if not rows:
            raise NotFound(
                "no label is known of this prediction",
                value=prediction_id,
                next_step="Labels of unknown predictions are parked: see stats.",
            )
        return [_label_of(r, request, row) for r in rows]

    @operation(role=Role.VIEWER)
    def get_stats(self, deployment: str | None = None) -> LabelStats:
        """How many predictions are labelled, how often labels changed, and how late they come."""
        where, values = ("", ()) if deployment is None else (" AND k.deployment = ?", (deployment,))
        project = self._base.project
        joined = "FROM known_predictions k JOIN labels l ON l.project = k.project AND l.request = k.request AND l.row_no = k.row_no WHERE k.project = ?"
        with self._base.store.read() as tx:
            predictions = tx.scalar(
                f"SELECT count(*) AS n FROM known_predictions k WHERE k.project = ?{where}", project, *values
            )
            labelled = tx.all(
                f"SELECT count(*) AS n, coalesce(sum(l.revision - 1), 0) AS revised {joined}{where}",
                project,
                *values,
            )[0]
            n = int(labelled["n"])
            # The quantile is the delay at its rank: an OFFSET into the sorted delays, so that no delay is kept in memory.
            delays = {
                share: tx.scalar(
                    f"SELECT l.arrived_us - k.at_us AS delay {joined}{where} ORDER BY delay LIMIT 1 OFFSET ?",
                    project,
                    *values,
                    min(n - 1, int(n * share)),
                )
                for share in (0.5, 0.9)
                if n
            }
            totals = LabelRows(tx, project).read_totals()
            parked = int(tx.scalar("SELECT count(*) AS n FROM parked_labels WHERE project = ?", project))
        return LabelStats(
            deployment=deployment,
            predictions=int(predictions),
            labelled=n,
            revised=int(labelled["revised"]),
            parked=parked,
            expired=totals["expired"],
            rejected=totals["rejected"],
            delay_p50_s=delays[0.5] / 1e6 if n else None,
            delay_p90_s=delays[0.9] / 1e6 if n else None,
        )

    def _sent_label(self, item: Feedback) -> SentLabel:
        request, row = parse_id(item.prediction_id)
        now = to_us(self._base.clock.now())
        return SentLabel.of(
            request,
            row,
            item.value,
            at_us=None if item.at is None else to_us(item.at),
            arrived_us=now,
            source=item.source,
        )

    def _reader(self, model: str, version: int) -> LabelReader | None:
        """How labels of a version are read; None if the registry does not know it."""
        key = (model, version)
        if key not in self._readers:
            if self._models is None:
                from mainspring.models import Models

                self._models = Models(self._base)
            try:
                registered = self._models.get_version(model=model, selector=str(version))
            except MainspringError:
                return None
            if len(self._readers) >= _MAX_READERS:
                self._readers.clear()
            self._readers[key] = LabelReader.of(registered.signature)
        return self._readers[key]

    def _record_labels(self, sent: list[SentLabel], *, rejected: int, refuse: bool = False) -> FeedbackCounts:
        now = to_us(self._base.clock.now())
        with self._base.ledger.decision() as d:
            labels = LabelRows(d.tx, self._base.project, self._reader)
            parked = labels.list_parked_for(sent)
            if parked:  # in the order of arrival, or an older label would replace a newer one
                labels.record(parked, expires_us=now, room=0)
                labels.delete_parked(parked)
            expires = now + self._park_us
            tally = (
                labels.record(sent, expires_us=expires, room=self._max_parked, refuse=refuse) if sent else {}
            )
            if rejected:
                labels.add_counts(rejected=rejected)
                tally["rejected"] = tally.get("rejected", 0) + rejected
            failpoint("labels.recorded")
            if tally:
                d.event(EventKind.FEEDBACK_RECEIVED, ref("feedback", new_id()), dict(tally))
            return d.done(_feedback_counts(tally))


def _find_problem(item: Feedback) -> str | None:
    """Why this label cannot be recorded, whatever the prediction; None if it can."""
    if (why := refusal_reason(item)) is not None:
        return why
    try:
        parse_id(item.prediction_id)
    except InvalidInput:
        return "not a prediction id"
    return None


def _decode_relayed(records: Iterable[bytes]) -> tuple[list[Feedback], int]:
    """The labels of journal records, and how many records could not be decoded."""
    items: list[Feedback] = []
    rejected = 0
    for record in records:
        try:
            logged = decode_log(record)
            if not isinstance(logged, LoggedFeedback):
                rejected += 1
                continue
            at = None if logged.at_us is None else from_us(logged.at_us)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
            rejected += 1
            continue
        items.append(
            Feedback(prediction_id=logged.prediction_id, value=logged.value, at=at, source=logged.source)
        )
    return items, rejected


_COUNTED = ("accepted", "duplicate", "revised", "parked", "rejected")


def _feedback_counts(tally: Mapping[str, int]) -> FeedbackCounts:
    counts = {name: tally.get(name, 0) for name in _COUNTED}
    return msgspec.convert(counts, FeedbackCounts)


def _add_counts(a: FeedbackCounts, b: FeedbackCounts) -> FeedbackCounts:
    return _feedback_counts({name: getattr(a, name) + getattr(b, name) for name in _COUNTED})


def _label_of(row: dict[str, Any], request: str, number: int) -> Label:
    return Label(
        prediction_id=f"{request}/{number}",
        value=from_json(row["value"]),
        revision=int(row["revision"]),
        at=from_us(row["at_us"]),
        arrived_at=from_us(row["arrived_us"]),
        source=row["source"],
    )
