"""Feedback: late, repeated, contradicting, too early, unknown. Every case on both engines."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mainspring.errors import InvalidInput, NotFound
from mainspring.records.base import new_id
from mainspring.records.labels import Feedback, FeedbackCounts
from mainspring.records.serving import FEEDBACK_PREFIX
from mainspring.storage.journal import JournalWriter


def said(ident: str, value: bool | float | str, **more: Any) -> Feedback:
    return Feedback(prediction_id=ident, value=value, **more)


def test_a_label_keeps_both_its_times(bench: Any) -> None:
    (ident,) = bench.predict()
    bench.advance(days=1)
    at = bench.clock.now() - timedelta(hours=3)
    assert bench.labels.record_feedback(
        items=[said(ident, True, at=at, source="arrivals")]
    ) == FeedbackCounts(accepted=1)
    (label,) = bench.labels.get_labels(predictions=[ident])
    assert (label.at, label.arrived_at, label.value, label.revision) == (at, bench.clock.now(), True, 1)
    assert label.prediction_id == f"{ident}/0"


def test_rows_of_a_batch_are_labelled_one_by_one(bench: Any) -> None:
    """A row that a known prediction does not have is refused. Seen red against 0.1, where it was parked until it expired."""
    (ident,) = bench.predict(rows=3)
    counts = bench.labels.record_feedback(items=[said(f"{ident}/2", 1), said(f"{ident}/0", 0)])
    assert counts == FeedbackCounts(accepted=2)
    assert [
        x.prediction_id for x in bench.labels.get_labels(predictions=[f"{ident}/{i}" for i in range(3)])
    ] == [
        f"{ident}/0",
        f"{ident}/2",
    ]
    with pytest.raises(InvalidInput, match="no such row") as caught:
        bench.labels.record_feedback(items=[said(f"{ident}/1", 1), said(f"{ident}/7", 1)])
    assert caught.value.place == "items[1]"
    assert "3 rows" in (caught.value.next_step or "")
    assert len(bench.labels.get_labels(predictions=[f"{ident}/1"])) == 0, "nothing of the batch was recorded"


def test_m02_identical_labels_count_once_and_conflicting_ones_are_revisions(bench: Any) -> None:
    """M02. Seen red with the look-up of known contents removed: the repetition was taken for a revision and the database refused it."""
    (ident,) = bench.predict()
    at = bench.clock.now()
    first, second = said(ident, 0, at=at), said(ident, 1, at=at)
    assert bench.labels.record_feedback(items=[first, first]) == FeedbackCounts(accepted=1, duplicate=1)
    assert bench.labels.record_feedback(items=[second]) == FeedbackCounts(revised=1)
    assert bench.labels.record_feedback(items=[first]) == FeedbackCounts(
        duplicate=1
    )  # a replay does not bring the old one back
    assert [x.value for x in bench.labels.get_history(prediction_id=ident)] == [0, 1]
    assert [x.value for x in bench.labels.get_labels(predictions=[ident])] == [1]
    assert bench.labels.get_stats(deployment="delay").revised == 1


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=20), st.integers(1, 7))
def test_m02_any_sequence_of_batches_counts_each_content_once(
    make_bench: Any, events: list[tuple[int, int]], size: int
) -> None:
    """M02 as a property: cut into batches anyhow, the standing label is the last new content, the history all of them."""
    bench = make_bench()
    ids = bench.predict(*(new_id() for _ in range(4)))
    at = bench.clock.now()
    total = FeedbackCounts()
    for start in range(0, len(events), size):
        got = bench.labels.record_feedback(
            items=[said(ids[who], value, at=at) for who, value in events[start : start + size]]
        )
        total = FeedbackCounts(
            **{f: getattr(total, f) + getattr(got, f) for f in FeedbackCounts.__struct_fields__}
        )
    expected: dict[int, list[int]] = {}
    for who, value in events:
        if value not in expected.setdefault(who, []):
            expected[who].append(value)
    kept = sum(len(v) for v in expected.values())
    assert (total.accepted, total.revised, total.duplicate) == (
        len(expected),
        kept - len(expected),
        len(events) - kept,
    )
    for who, values in expected.items():
        assert [x.value for x in bench.labels.get_history(prediction_id=ids[who])] == values
        assert [x.value for x in bench.labels.get_labels(predictions=[ids[who]])] == values[-1:]


@pytest.mark.parametrize("order", list(itertools.permutations(["predict", "old", "new"])))
def test_m03_label_before_prediction_in_every_order(make_bench: Any, order: tuple[str, ...]) -> None:
    """M03. Seen red with parking removed: a label that came first was lost."""
    bench = make_bench()
    ident = new_id()
    at = bench.clock.now()
    for step in order:
        if step == "predict":
            bench.predict(ident)
        else:
            bench.labels.record_feedback(items=[said(ident, 0 if step == "old" else 1, at=at)])
    bench.labels.settle_parked()
    last = 1 if order.index("new") > order.index("old") else 0
    assert [x.value for x in bench.labels.get_labels(predictions=[ident])] == [last]
    assert len(bench.labels.get_history(prediction_id=ident)) == 2
    assert bench.labels.get_stats().parked == 0


def test_m03_parking_is_bounded_and_ends(bench: Any) -> None:
    """M03. Seen red with the bound removed (three parked) and with expiry removed (still waiting after the time)."""
    bench.labels._max_parked = 2
    items = [said(new_id(), 1) for _ in range(3)]
    assert bench.labels.record_feedback(items=items) == FeedbackCounts(parked=2, rejected=1)
    assert bench.labels.record_feedback(items=items[:1]) == FeedbackCounts(duplicate=1)
    bench.advance(days=6)
    assert bench.labels.settle_parked().waiting == 2
    bench.advance(days=2)
    report = bench.labels.settle_parked()
    assert (report.expired, report.waiting) == (2, 0)
    stats = bench.labels.get_stats()
    assert (stats.expired, stats.rejected, stats.parked) == (2, 1, 0)


def test_m04_unknown_prediction_is_counted_and_not_found(bench: Any) -> None:
    """M04. Seen red with the look-up of known predictions removed: the foreign label was accepted."""
    foreign = new_id()
    assert bench.labels.record_feedback(items=[said(foreign, 1)]) == FeedbackCounts(parked=1)
    with pytest.raises(NotFound):
        bench.labels.get_history(prediction_id=foreign)
    assert bench.labels.get_labels(predictions=[foreign]) == []


def test_m04_a_prediction_of_another_project_is_unknown(make_foundation: Any, clock: Any) -> None:
    """M04, A03: ids of a neighbour are not ours. Seen red with the project left out of the look-up."""
    from mainspring.labels import Labels
    from mainspring.monitoring import Monitoring

    ours, theirs = make_foundation(), make_foundation(project="theirs")
    from mainspring.records.serving import LOG_PREFIX, LoggedPrediction, encode_log

    ident = new_id()
    with JournalWriter(ours.home / "bundle" / "log", prefix=LOG_PREFIX) as journal:
        journal.append(
            encode_log(
                LoggedPrediction(
                    id=ident,
                    deployment="d",
                    model="m",
                    version=1,
                    role="champion",
                    event_us=0,
                    arrival_us=0,
                    latency_us=1,
                    scores=[0.5],
                )
            )
        )
    assert Monitoring(ours).ingest().rows == 1
    assert Labels(theirs).record_feedback(items=[said(ident, 1)]) == FeedbackCounts(parked=1)
    assert Labels(ours).record_feedback(items=[said(ident, 1)]) == FeedbackCounts(accepted=1)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (said("x/y", 1), "prediction id"),
        (said("", 1), "prediction id"),
        (said("a b", 1), "prediction id"),
        (said("x", float("nan")), "finite"),
        (said("x", float("inf")), "finite"),
        (said("x", 2**70), "64 bits"),
        (said("x", "y" * 300), "256"),
        (said("x", "a\0b"), "plain text"),
    ],
)
def test_a_malformed_item_refuses_the_whole_batch(make_bench: Any, item: Feedback, text: str) -> None:
    bench = make_bench()
    (ident,) = bench.predict()
    with pytest.raises(InvalidInput, match=text) as caught:
        bench.labels.record_feedback(items=[said(ident, 1), item])
    assert caught.value.place == "items[1]"
    assert bench.labels.get_labels(predictions=[ident]) == []


def test_too_many_at_once(make_bench: Any) -> None:
    with pytest.raises(InvalidInput, match="too many"):
        make_bench().labels.record_feedback(items=[said("x", 1)] * 10_001)


def test_relayed_feedback_is_read_exactly_once(bench: Any) -> None:
    (ident,) = bench.predict()
    bench.relay(ident, 1)
    with JournalWriter(bench.folder, prefix=FEEDBACK_PREFIX) as journal:
        journal.append(b"f\xc1 not msgpack")
        journal.append(b"?" + msgspec.msgpack.encode({"later": "kind"}))
    assert bench.labels.ingest_relayed() == FeedbackCounts(accepted=1, rejected=2)
    assert bench.labels.ingest_relayed() == FeedbackCounts()
    assert list(bench.folder.glob("feedback-*")) == []  # read segments do not pile up
    bench.relay(ident, 0)
    assert bench.labels.ingest_relayed() == FeedbackCounts(revised=1)


def test_one_event_per_batch(make_bench: Any) -> None:
    bench = make_bench()
    ids = bench.predict(*(new_id() for _ in range(50)))
    bench.labels.record_feedback(items=[said(i, 1) for i in ids])
    with bench.base.store.read() as tx:
        kinds = [r["kind"] for r in tx.all("SELECT kind FROM events WHERE project = ?", bench.base.project)]
    assert kinds.count("feedback.received") == 1
    assert bench.base.ledger.verify().ok


def test_stats_say_how_late_labels_are(bench: Any) -> None:
    ids = bench.predict(*(new_id() for _ in range(10)))
    for day, ident in enumerate(ids[:8], start=1):
        bench.clock.set(bench.clock.now() + timedelta(days=1))
        bench.labels.record_feedback(items=[said(ident, day % 2)])
    stats = bench.labels.get_stats(deployment="delay")
    assert (stats.predictions, stats.labelled) == (10, 8)
    assert stats.delay_p50_s == 5 * 86_400
    assert bench.labels.get_stats(deployment="other").delay_p50_s is None
