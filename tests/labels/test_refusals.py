"""What is refused at the door: ids that no server gives, rows that were not predicted, values that are none of the classes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from mainspring.errors import InvalidInput, NotFound
from mainspring.labels import Labels
from mainspring.records.base import Selector, new_id
from mainspring.records.labels import Feedback, FeedbackCounts, is_issued_id
from mainspring.records.models import Column, ModelVersion, Signature, Task
from mainspring.records.serving import FEEDBACK_PREFIX, LoggedFeedback, encode_log
from mainspring.storage.journal import JournalWriter


class Registry:
    """Answers what labels ask of the models room."""

    def __init__(self, task: Task, classes: list[str], kind: Any = None) -> None:
        self._signature = Signature(
            inputs=[Column(name="x", type="float64")], task=task, classes=classes, class_type=kind
        )

    def get_version(self, model: str, selector: Selector = "latest") -> ModelVersion:
        if (model, selector) != ("delay", "1"):
            raise NotFound("no such version", value=selector)
        return ModelVersion(
            model="delay", version=1, package="0" * 64, format="onnx", signature=self._signature,
            created_at=datetime(2013, 1, 1, tzinfo=UTC), created_by="test",
        )  # fmt: skip


@pytest.fixture
def served(make_bench: Callable[[], Any]) -> Callable[..., Any]:
    def make(task: Task = Task.MULTICLASS, classes: list[str] | None = None, kind: Any = "int64") -> Any:
        bench = make_bench()
        bench.labels = Labels(
            bench.base, models=Registry(task, ["1", "2", "3"] if classes is None else classes, kind)
        )
        return bench

    return make


def said(ident: str, value: Any) -> Feedback:
    return Feedback(prediction_id=ident, value=value)


@pytest.mark.parametrize("value", [0, 4, 1.5, True, "one", "", "1,0"])
def test_a_value_that_is_no_class_refuses_the_batch_and_names_the_classes(served: Any, value: Any) -> None:
    """Seen red against 0.1: accepted, and counted as invalid in the window at best."""
    bench = served()
    (ident,) = bench.predict(rows=2)
    with pytest.raises(InvalidInput, match="classes: 1, 2, 3") as caught:
        bench.labels.record_feedback(items=[said(f"{ident}/0", 1), said(f"{ident}/1", value)])
    assert caught.value.place == "items[1]"
    assert bench.labels.get_labels(predictions=[f"{ident}/0", f"{ident}/1"]) == []


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0"])
def test_a_class_by_any_spelling_of_its_value_is_accepted(served: Any, value: Any) -> None:
    bench = served()
    (ident,) = bench.predict()
    assert bench.labels.record_feedback(items=[said(ident, value)]) == FeedbackCounts(accepted=1)


def test_text_for_a_number_is_refused(served: Any) -> None:
    bench = served(Task.REGRESSION, [], None)
    (ident,) = bench.predict()
    with pytest.raises(InvalidInput, match="finite number"):
        bench.labels.record_feedback(items=[said(ident, "12.5")])
    assert bench.labels.record_feedback(items=[said(ident, 12.5)]).accepted == 1


@pytest.mark.parametrize(
    "ident",
    ["nonsense", "0", "3f2b8c1e-0000-4000-8000-000000000000", "01900000-0000-7000-0000-000000000000", "01900000000070008000000000000000"],
)  # fmt: skip
def test_an_id_that_no_server_gives_is_refused(served: Any, ident: str) -> None:
    """Seen red against 0.1: parked for seven days. UUIDv4, a wrong variant and a form without dashes are among them."""
    bench = served()
    with pytest.raises(InvalidInput, match="no prediction can have this id") as caught:
        bench.labels.record_feedback(items=[said(new_id(), 1), said(f"{ident}/0", 1)])
    assert caught.value.place == "items[1]"
    assert bench.labels.get_stats().parked == 0, "nothing of the batch was recorded"


def test_every_id_that_we_give_is_one() -> None:
    assert all(is_issued_id(new_id()) for _ in range(2000))


def test_an_early_label_is_kept_shown_and_judged_when_its_prediction_comes(served: Any) -> None:
    bench = served()
    good, bad = new_id(), new_id()
    assert bench.labels.record_feedback(items=[said(good, 2.0), said(bad, 9)]) == FeedbackCounts(parked=2)
    assert bench.labels.get_stats().parked == 2
    bench.predict(good, bad)
    report = bench.labels.settle_parked()
    assert (report.joined, report.rejected, report.waiting, report.more) == (2, 1, 0, False)
    assert [x.value for x in bench.labels.get_labels(predictions=[good, bad])] == [2.0]
    stats = bench.labels.get_stats(deployment="delay")
    assert (stats.labelled, stats.parked, stats.rejected) == (1, 0, 1)


def test_relayed_items_are_judged_alike_and_counted(served: Any) -> None:
    bench = served()
    (ident,) = bench.predict(rows=2)
    for prediction, value in ((f"{ident}/0", 3), (f"{ident}/1", 7), (f"{ident}/2", 1), ("nonsense", 1)):
        bench.relay(prediction, value)
    assert bench.labels.ingest_relayed() == FeedbackCounts(accepted=1, rejected=3)


def test_an_unregistered_version_takes_any_value(served: Any, make_bench: Any) -> None:
    bench = make_bench()
    (ident,) = bench.predict()
    assert bench.labels.record_feedback(items=[said(ident, "whatever")]) == FeedbackCounts(accepted=1)


def test_a_relay_longer_than_one_reading_says_that_more_is_left(served: Any) -> None:
    """The journal is read 8 MiB at a time. Seen red against 0.1: what was left waited, and nothing said so."""
    bench = served(Task.MULTICLASS, ["a", "b"], "string")
    ids = bench.predict(*(new_id() for _ in range(40)))
    with JournalWriter(bench.folder, prefix=FEEDBACK_PREFIX) as journal:
        for ident in ids:
            journal.append(
                encode_log(LoggedFeedback(prediction_id=ident, value="a", arrival_us=0, source="x" * 250_000))
            )
    first = bench.labels.ingest_relayed()
    assert first.more
    counted, calls = first.rejected, 1
    while (got := bench.labels.ingest_relayed()).more:
        counted, calls = counted + got.rejected, calls + 1
    assert counted + got.rejected == len(ids), "each too long a source is counted once"
    assert calls < 10
    small = bench.labels.ingest_relayed(limit=1)
    assert not small.more
