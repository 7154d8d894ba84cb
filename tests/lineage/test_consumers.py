"""Consumers of the event chain: every event, in order, at least once; by one process at a time; whatever fails."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

from mainspring.clock import ManualClock
from mainspring.errors import Conflict, Corrupt, NotFound, PermissionDenied
from mainspring.lineage import Foundation, Lineage
from mainspring.lineage.consumers import Consumer, Consumers, Refused
from mainspring.operations import Role, acts, operation
from mainspring.records.events import EventKind
from mainspring.records.lineage import ConsumerStatus, Event


@pytest.fixture
def base(foundation_on_each_engine: Foundation) -> Foundation:
    return foundation_on_each_engine


class Inbox:
    """A handler that keeps what it is given, and fails with the events it was told to fail with."""

    def __init__(self, *, failing: Callable[[Event], Exception | None] = lambda _: None) -> None:
        self.events: list[Event] = []
        self.calls: list[list[int]] = []
        self.failing = failing

    def __call__(self, events: Sequence[Event]) -> None:
        self.calls.append([e.seq for e in events])
        for event in events:
            if (error := self.failing(event)) is not None:
                raise error
        self.events += events

    @property
    def seqs(self) -> list[int]:
        return [e.seq for e in self.events]


def record(base: Foundation, count: int = 1, kind: EventKind = EventKind.RUN_USED) -> None:
    for number in range(count):
        with base.ledger.decision() as d:
            d.event(kind, "run:1", {"number": number})


def status(base: Foundation, name: str = "c") -> ConsumerStatus:
    return next(s for s in Lineage(base).list_consumers() if s.name == name)


# --- what is delivered -------------------------------------------------------------------------------------------------


def test_events_come_in_order_and_once(base: Foundation) -> None:
    inbox = Inbox()
    consumers = Consumers(base, [Consumer("c", inbox, batch=3)])
    record(base, 7)
    assert consumers.run_once() == 7
    record(base, 1)
    assert (consumers.run_once(), consumers.run_once()) == (1, 0)
    assert inbox.seqs == list(range(1, 9))
    assert inbox.calls == [[1, 2, 3], [4, 5, 6], [7], [8]]
    now = status(base)
    assert (now.cursor, now.head, now.waiting, now.error, now.set_aside) == (8, 8, 0, None, 0)
    assert now.delivered_at is not None


def test_a_new_consumer_begins_at_the_end_or_where_it_says_and_an_old_one_goes_on(base: Foundation) -> None:
    record(base, 2)
    late, whole = Inbox(), Inbox()
    both = [Consumer("late", late), Consumer("whole", whole, start="beginning")]
    Consumers(base, both)
    record(base, 2)
    Consumers(base, both).run_once()  # another process, later: what came between is not missed
    assert (late.seqs, whole.seqs) == ([3, 4], [1, 2, 3, 4])


def test_only_the_kinds_it_takes_and_all_if_it_says_none(base: Foundation) -> None:
    chosen, everything = Inbox(), Inbox()
    kinds = frozenset({EventKind.ALERT_OPENED, EventKind.MODEL_ALIAS_SET})
    consumers = Consumers(base, [Consumer("c", chosen, kinds=kinds), Consumer("all", everything)])
    record(base, 2)
    record(base, kind=EventKind.ALERT_OPENED)
    record(base, 2)
    with base.store.write() as tx:  # recorded by a newer program
        tx.execute("UPDATE events SET kind = 'invoice.sent' WHERE seq = 1")
    assert status(base).waiting == 1
    consumers.run_once()
    assert (chosen.seqs, everything.seqs) == ([3], [1, 2, 3, 4, 5])
    assert everything.events[0].kind == "invoice.sent"
    now = status(base)
    assert (now.cursor, now.waiting, now.kinds) == (5, 0, ["alert.opened", "model.alias_set"])


def test_looking_writes_nothing(base: Foundation) -> None:
    """Seen red while a turn took its lease first."""
    inbox = Inbox()
    consumers = Consumers(base, [Consumer("c", inbox, kinds=frozenset({EventKind.ALERT_OPENED}), batch=10)])
    consumers.run_once()
    record(base, 9)
    consumers.run_once()
    with base.store.read() as tx:
        assert tx.scalar("SELECT count(*) AS n FROM leases WHERE name LIKE 'consumer:%'") == 0
    assert (status(base).cursor, status(base).waiting) == (0, 0)
    record(base, 1)
    assert consumers.run_once() == 0
    assert status(base).cursor == 10, "but what nobody wants is not looked at for ever"


def test_consumers_of_projects_are_separate(make_foundation: Callable[..., Foundation]) -> None:
    one, two = make_foundation(project="one"), make_foundation(project="two")
    inboxes = Inbox(), Inbox()
    both = [Consumers(b, [Consumer("c", i)]) for b, i in zip((one, two), inboxes, strict=True)]
    record(one, 3)
    record(two, 1)
    for consumers in both:
        consumers.run_once()
    assert [i.seqs for i in inboxes] == [[1, 2, 3], [1]]


def test_the_handler_acts_as_the_consumer_in_its_project(base: Foundation) -> None:
    """Seen red with a role in every project, and with the role of whoever runs the pump."""

    class Room:
        room = "r"

        def __init__(self, base: Foundation) -> None:
            self._base = base

        @operation(role=Role.OPERATOR)
        def act(self) -> None: ...

    seen: list[tuple[str, Role | None, Role | None]] = []

    def handler(_events: Sequence[Event]) -> None:
        who = acts()
        seen.append((who.name, who.role_in("default"), who.role_in("another")))
        with pytest.raises(PermissionDenied):
            Room(base).act()

    consumers = Consumers(base, [Consumer("mail", handler, role=Role.LABELLER)])
    record(base)
    consumers.run_once()
    assert seen == [("consumer:mail", Role.LABELLER, None)]


def test_names_are_checked_and_transactions_refused(base: Foundation) -> None:
    with pytest.raises(Conflict, match="same name"):
        Consumers(base, [Consumer("c", Inbox()), Consumer("c", Inbox())])
    consumers = Consumers(base, [Consumer("c", Inbox())])
    with base.store.write(), pytest.raises(Conflict, match="outside of transactions"):
        consumers.run_once()


# --- what fails --------------------------------------------------------------------------------------------------------


def test_a_poison_event_is_set_aside_after_bounded_attempts_and_the_others_go_on(
    base: Foundation, clock: ManualClock
) -> None:
    """Seen red with attempts without end (the mutant "consumers-a-poison-event-is-tried-for-ever")."""
    inbox = Inbox(failing=lambda e: ValueError("cannot be rendered") if e.seq == 3 else None)
    consumers = Consumers(base, [Consumer("c", inbox, attempts=4, backoff_s=10)], clock=clock)
    record(base, 5)
    began = clock.now()
    assert consumers.run_once() == 2, "those before it are delivered"
    now = status(base)
    assert (now.cursor, now.attempts, now.failing_since, now.waiting) == (2, 1, began, 3)
    assert now.error == "ValueError: cannot be rendered"
    assert now.retry_at == began + timedelta(seconds=10)
    for pause in (10, 20, 40):
        clock.advance(timedelta(seconds=pause - 1))
        assert consumers.run_once() == 0, "not before its time"
        assert inbox.calls[-1] == [3]
        tried = len(inbox.calls)
        clock.advance(timedelta(seconds=1))
        consumers.run_once()
        assert len(inbox.calls) > tried
    assert inbox.seqs == [1, 2, 4, 5]
    assert sum(call == [3] for call in inbox.calls) == 4
    now = status(base)
    assert (now.cursor, now.attempts, now.failing_since, now.error, now.set_aside) == (5, 0, None, None, 1)
    (failed,) = Lineage(base).list_failed_deliveries(consumer="c")
    assert (failed.seq, failed.kind, failed.attempts, failed.error) == (
        3,
        "run.used",
        4,
        "ValueError: cannot be rendered",
    )
    assert failed.event == Lineage(base).list_events(after=2, newest_first=False, limit=1).items[0].id


def test_the_failing_event_is_found_behind_events_of_other_kinds(
    base: Foundation, clock: ManualClock
) -> None:
    inbox = Inbox(failing=lambda _: OSError("away"))
    consumers = Consumers(
        base, [Consumer("c", inbox, kinds=frozenset({EventKind.ALERT_OPENED}), attempts=3)], clock=clock
    )
    record(base, 5)
    record(base, kind=EventKind.ALERT_OPENED)
    for _ in range(3):
        consumers.run_once()
        clock.advance(timedelta(hours=1))
    assert inbox.calls == [[6]] * 3
    assert (status(base).set_aside, status(base).cursor) == (1, 6)
    assert status(base).error == "OSError: away", "nothing was delivered since"


def test_a_target_that_was_away_gets_everything_in_order(base: Foundation, clock: ManualClock) -> None:
    away = True
    inbox = Inbox(failing=lambda _: OSError("away") if away else None)
    consumers = Consumers(base, [Consumer("c", inbox, batch=2)], clock=clock)
    record(base, 5)
    for _ in range(6):
        consumers.run_once()
        clock.advance(timedelta(minutes=1))
    assert inbox.seqs == []
    away = False
    assert consumers.run_once() == 5
    assert inbox.seqs == [1, 2, 3, 4, 5]
    assert (status(base).set_aside, status(base).failing_since) == (0, None)


def test_what_is_refused_is_set_aside_at_once(base: Foundation) -> None:
    inbox = Inbox(failing=lambda e: Refused("400: unknown field") if e.seq == 2 else None)
    consumers = Consumers(base, [Consumer("c", inbox)])
    record(base, 3)
    assert consumers.run_once() == 2
    assert inbox.seqs == [1, 3]
    (failed,) = Lineage(base).list_failed_deliveries(consumer="c")
    assert (failed.seq, failed.attempts, failed.error) == (2, 1, "Refused: 400: unknown field")


def test_what_was_set_aside_is_delivered_again_when_somebody_asks(base: Foundation) -> None:
    broken = True
    inbox = Inbox(failing=lambda e: Refused("no") if broken and e.seq in {2, 3} else None)
    consumers, lineage = Consumers(base, [Consumer("c", inbox)]), Lineage(base)
    record(base, 4)
    consumers.run_once()
    assert lineage.redeliver(consumer="c", seq=2) == 1
    assert lineage.redeliver(consumer="c", seq=2) == 0, "asked for already"
    consumers.run_once()
    assert [(f.seq, f.attempts, f.again) for f in lineage.list_failed_deliveries(consumer="c")] == [
        (2, 2, False),
        (3, 1, False),
    ]
    broken = False
    assert lineage.redeliver(consumer="c") == 2
    consumers.run_once()
    assert lineage.list_failed_deliveries(consumer="c") == []
    assert [s for s in inbox.seqs if s < 5] == [1, 4, 2, 3]
    asked = [e for e in inbox.events if e.kind == EventKind.CONSUMER_REDELIVERED]
    assert [e.data["count"] for e in asked] == [1, 2], "who asks is on the record, once"
    with pytest.raises(NotFound, match="no such event was set aside"):
        lineage.redeliver(consumer="c", seq=2)
    with pytest.raises(NotFound, match="no such consumer"):
        lineage.redeliver(consumer="d")
    assert base.ledger.verify().ok


def test_redelivery_does_not_wait_for_a_failing_event(base: Foundation, clock: ManualClock) -> None:
    inbox = Inbox(
        failing=lambda e: (
            Refused("no") if e.seq == 1 and len(inbox.calls) < 3 else OSError("away") if e.seq == 2 else None
        )
    )
    consumers = Consumers(base, [Consumer("c", inbox)], clock=clock)
    record(base, 2)
    consumers.run_once()
    assert (status(base).set_aside, status(base).attempts) == (1, 1)
    Lineage(base).redeliver(consumer="c")
    consumers.run_once()
    assert inbox.seqs == [1]
    assert status(base).attempts == 1


def test_a_damaged_row_is_set_aside_and_delivered_once_it_is_restored(base: Foundation) -> None:
    """Seen red with rows that cannot be decoded left out in silence, and with them handed to the handler."""
    inbox, others = Inbox(), Inbox()
    consumers = Consumers(
        base, [Consumer("c", inbox), Consumer("other", others, kinds=frozenset({EventKind.ALERT_OPENED}))]
    )
    record(base, 3)
    record(base, kind=EventKind.ALERT_OPENED)
    with base.store.write() as tx:
        whole = tx.scalar("SELECT data FROM events WHERE seq = 2")
        tx.execute("UPDATE events SET data = 'not JSON' WHERE seq = 2")
    assert consumers.run_once() == 4
    assert (inbox.seqs, others.seqs) == ([1, 3, 4], [4])
    (failed,) = Lineage(base).list_failed_deliveries(consumer="c")
    assert (failed.seq, failed.kind, failed.attempts) == (2, "run.used", 0)
    assert "cannot be read" in failed.error
    assert status(base, "other").set_aside == 0, "its kind can be read, and is not one that it takes"
    with base.store.write() as tx:
        tx.execute("UPDATE events SET data = ? WHERE seq = 2", whole)
    Lineage(base).redeliver(consumer="c")
    consumers.run_once()
    assert 2 in inbox.seqs
    assert Lineage(base).list_failed_deliveries(consumer="c") == []


def test_a_row_whose_kind_is_not_even_text_concerns_everybody(foundation: Foundation) -> None:
    inbox = Inbox()
    consumers = Consumers(foundation, [Consumer("c", inbox, kinds=frozenset({EventKind.ALERT_OPENED}))])
    record(foundation, 2)
    record(foundation, kind=EventKind.ALERT_OPENED)
    with foundation.store.write() as tx:
        tx.execute("UPDATE events SET kind = CAST(x'ff' AS TEXT) WHERE seq = 1")
    consumers.run_once()
    assert inbox.seqs == [3]
    assert [(f.seq, f.kind) for f in Lineage(foundation).list_failed_deliveries(consumer="c")] == [(1, "")]


def test_a_chain_that_ends_before_the_cursor_is_told(base: Foundation) -> None:
    """Seen red without the comparison: the next events took numbers that were read already, and nobody heard of them."""
    inbox = Inbox()
    consumers = Consumers(base, [Consumer("c", inbox)])
    record(base, 3)
    consumers.run_once()
    with base.store.write() as tx:
        tx.execute("DELETE FROM events WHERE seq > 1")
        tx.execute("UPDATE chain_heads SET seq = 1, hash = (SELECT hash FROM events WHERE seq = 1)")
    record(base)
    with pytest.raises(Corrupt, match="ends at 2"):
        consumers.run_once()
    assert "before the cursor" in str(status(base).error)


def test_a_removed_consumer_stops(base: Foundation) -> None:
    def handler(_events: Sequence[Event]) -> None:
        Lineage(base).remove_consumer(consumer="c", reason="nobody reads it")

    consumers = Consumers(base, [Consumer("c", handler, batch=1, role=Role.ADMIN)])
    record(base, 3)
    assert consumers.run_once() == 1
    assert consumers.run_once() == 0
    assert Lineage(base).list_consumers() == []


def test_100_000_events_behind_are_read_in_batches(foundation: Foundation) -> None:
    """Bounded memory. Seen red with the whole rest read at once."""
    largest, count = 0, 0

    def handler(events: Sequence[Event]) -> None:
        nonlocal largest, count
        assert events[0].seq == count + 1
        largest, count = max(largest, len(events)), count + len(events)

    consumers = Consumers(foundation, [Consumer("c", handler, batch=1000)])
    record(foundation)
    with foundation.store.write() as tx:
        row = tx.one("SELECT * FROM events", what="event")
        columns = list(row)
        tx.many(
            f"INSERT INTO events ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            (
                tuple((row | {"seq": n, "id": str(n), "data": '{"text":"' + "x" * 500 + '"}'}).values())
                for n in range(2, 100_001)
            ),
        )
        tx.execute("UPDATE chain_heads SET seq = 100000")
    assert status(foundation).waiting == 100_000
    tracemalloc.start()
    consumers.run("c", stop=lambda: count >= 3000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000
    consumers.run_once()
    assert (count, largest) == (100_000, 1000)
    assert peak < 16 * 2**20
