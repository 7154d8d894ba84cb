"""Edges hang on the chain: what nobody decided shows, what was taken away shows, and a damaged row hides nothing else."""

from __future__ import annotations

import sqlite3
import tarfile
from pathlib import Path

import pytest

from mainspring.clock import ManualClock
from mainspring.lineage import Foundation, Ledger, Lineage
from mainspring.records.events import EventKind
from mainspring.storage.sql import Store
from mainspring.workspace import open_workspace

FROZEN = Path(__file__).parents[1] / "fixtures" / "workspaces" / "v001.tar.gz"


@pytest.fixture
def ledger(store: Store, clock: ManualClock) -> Ledger:
    return Ledger(store, project="p", clock=clock)


def _linked(ledger: Ledger) -> None:
    with ledger.decision() as d:
        d.edge("run:1", "model_version:m@1", "trained")
        d.event(EventKind.MODEL_REGISTERED, "model_version:m@1")
    with ledger.decision() as d:
        d.event(EventKind.RUN_USED, "run:1")
        d.edge("dataset_version:d", "run:1", "input")
    with ledger.decision() as d:
        d.event(EventKind.RUN_USED, "thing:1")


def test_edges_are_named_by_the_event_they_were_committed_with(ledger: Ledger) -> None:
    """Seen red on version 1, whose events name no edge."""
    _linked(ledger)
    report = ledger.verify()
    assert (report.ok, report.events, report.edges, report.edges_of_version_1) == (True, 3, 2, 0)
    around = ledger.verify_edges({"run:1"})
    assert (around.forged, around.missing, around.before_version_2, around.problems) == ([], [], [], [])


def test_an_edge_without_an_event_gets_one(ledger: Ledger) -> None:
    with ledger.decision() as d:
        d.edge("a:1", "b:1", "led")
    with ledger.decision() as d:
        d.edge("a:1", "b:1", "led")  # again: nothing to record
    report = ledger.verify()
    assert (report.ok, report.events, report.edges) == (True, 1, 1)


def test_parts_of_one_decision_share_its_last_event(ledger: Ledger, store: Store, clock: ManualClock) -> None:
    """A room that opened its ledger anew inside the transaction must not break the chain of the first."""
    other = Ledger(store, project="p", clock=clock)
    with ledger.decision() as d:
        d.event(EventKind.RUN_USED, "x:1")
        d.edge("a:1", "b:1", "one")
        with other.decision() as inner:
            inner.edge("b:1", "c:1", "two")
            inner.event(EventKind.RUN_USED, "x:2")
        d.edge("c:1", "d:1", "three")
    report = ledger.verify()
    assert (report.ok, report.events, report.edges) == (True, 2, 3)


@pytest.mark.parametrize(
    ("tampering", "says"),
    [
        (
            "INSERT INTO edges (project, source, target, kind, at_us) VALUES ('p', 'dataset_version:clean', 'run:1', 'input', 5)",
            "no event of the chain",
        ),
        (
            "INSERT INTO edges (project, source, target, kind, at_us, event) VALUES ('p', 'dataset_version:clean', 'run:1', 'input', 5, 2)",
            "its row names event 2",
        ),
        (
            "INSERT INTO edges (project, source, target, kind, at_us, event) VALUES ('p', 'dataset_version:clean', 'run:1', 'input', 5, 3)",
            "event 3 of the chain did not record it",
        ),
        ("DELETE FROM edges WHERE kind = 'input'", "missing in the table"),
        ("UPDATE edges SET source = 'dataset_version:clean' WHERE kind = 'input'", "dataset_version:clean"),
    ],
)
def test_a_forged_or_missing_edge_is_named(ledger: Ledger, store: Store, tampering: str, says: str) -> None:
    """Seen red on version 1: the chain was 'intact' after each of these."""
    _linked(ledger)
    with store.write() as tx:
        tx.execute(tampering)
    report = ledger.verify()
    assert not report.ok
    assert report.first_bad is None, "the events themselves are whole"
    assert any(says in p for p in report.problems), report.problems
    around = ledger.verify_edges({"run:1"})
    forged = {e.source for e in around.forged}
    missing = {e.source for e in around.missing}
    assert forged == ({"dataset_version:clean"} if not tampering.startswith("DELETE") else set())
    assert missing == ({"dataset_version:d"} if not tampering.startswith("INSERT") else set())


@pytest.mark.parametrize("event", [2, 3, 99])
def test_an_edge_that_names_another_event_is_forged(ledger: Ledger, store: Store, event: int) -> None:
    """It says that it was recorded at another time. Seen red with any event that names the edge taken for its own."""
    _linked(ledger)
    with store.write() as tx:
        tx.execute("UPDATE edges SET event = ? WHERE source = 'run:1'", event)
    assert not ledger.verify().ok
    assert [e.target for e in ledger.verify_edges({"run:1"}).forged] == ["model_version:m@1"]


def test_an_event_that_was_rewritten_vouches_for_nothing(ledger: Ledger, store: Store) -> None:
    _linked(ledger)
    with store.write() as tx:
        tx.execute(
            "UPDATE events SET data = replace(data, 'dataset_version:d', 'dataset_version:clean') WHERE seq = 2"
        )
        tx.execute("UPDATE edges SET source = 'dataset_version:clean' WHERE kind = 'input'")
    assert ledger.verify().first_bad == 2
    around = ledger.verify_edges({"run:1"})
    assert [e.source for e in around.forged] == ["dataset_version:clean"]
    assert around.problems


def test_edges_of_version_1_are_told_apart_and_sealed(tmp_path: Path) -> None:
    """Seen red with the seal removed: an edge slipped among the old ones was 'recorded before version 2'."""
    with tarfile.open(FROZEN) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "frozen"\n')
    with open_workspace(tmp_path) as workspace:
        before = workspace.lineage.verify()
        assert before.ok
        assert before.edges_of_version_1 > 3
        graph = workspace.lineage.get_origin(ref="model_version:delay@1")
        around = workspace.lineage.verify_edges(refs=[n.ref for n in graph.nodes])
        assert not around.forged
        assert len(around.before_version_2) >= len(graph.edges) > 0
        with workspace.base.ledger.decision() as d:
            d.edge("a:1", "b:1", "led")
        sealed = workspace.lineage.verify()
        assert (sealed.ok, sealed.edges, sealed.edges_of_version_1) == (True, 1, before.edges_of_version_1)
        with workspace.base.store.write() as tx:
            tx.execute(
                "INSERT INTO edges (project, source, target, kind, at_us) VALUES ('frozen', 'a:2', 'b:2', 'led', 1)"
            )
        after = workspace.lineage.verify()
        assert not after.ok
        assert "sealed" in str(after.reason)


def test_a_row_that_is_not_even_text_is_named_and_the_walk_goes_on(
    foundation: Foundation, tmp_path: Path
) -> None:
    """One flipped bit in meta.db. Seen red: sqlite3.OperationalError, "Could not decode to UTF-8 column"."""
    for number in range(5):
        with foundation.ledger.decision() as d:
            d.event(EventKind.RUN_USED, "thing:1", {"said": f"word {number}"})
            d.edge(f"a:{number}", "thing:1", "led")
    for seq in (2, 4):
        raw = sqlite3.connect(foundation.home / "meta.db", isolation_level=None)
        raw.execute(
            "UPDATE events SET data = CAST(replace(CAST(data AS BLOB), 'word', x'f76f7264') AS TEXT) WHERE seq = ?",
            (seq,),
        )
        raw.close()
    report = Lineage(foundation).verify()
    assert (report.ok, report.first_bad, report.events) == (False, 2, 1)
    named = [p for p in report.problems if "data cannot be decoded" in p]
    assert [p.split(" (id ")[0] for p in named] == ["event 2", "event 4"]
    page = Lineage(foundation).list_events(subject="thing:1")
    assert [e.kind for e in page.items] == [
        EventKind.RUN_USED,
        "event.damaged",
        EventKind.RUN_USED,
        "event.damaged",
        EventKind.RUN_USED,
    ]
    assert page.items[1].seq == 4
    assert page.items[1].subject == "thing:1"
    assert "cannot be read" in page.items[1].data["reason"]


@pytest.mark.parametrize("text", ["{", "[]", '"word"', ""])
def test_a_row_that_is_text_but_no_event_is_listed_as_damaged(foundation: Foundation, text: str) -> None:
    """Seen red: ``events`` raised "malformed document" and showed none."""
    with foundation.ledger.decision() as d:
        d.event(EventKind.RUN_USED, "thing:1")
        d.event(EventKind.RUN_USED, "thing:1")
    with foundation.store.write() as tx:
        tx.execute("UPDATE events SET data = ? WHERE seq = 1", text)
    assert [e.kind for e in Lineage(foundation).list_events().items] == [EventKind.RUN_USED, "event.damaged"]
    assert Lineage(foundation).verify().first_bad == 1


def test_a_row_without_a_kind_is_damaged(foundation: Foundation) -> None:
    """Seen red: what could not be read of a row became the text "None", and the row a sound event of the kind "None"."""
    with foundation.ledger.decision() as d:
        d.event(EventKind.RUN_USED, "run:1")
    with foundation.store.write() as tx:
        tx.execute("UPDATE events SET kind = CAST(x'ff' AS TEXT) WHERE seq = 1")
    assert [e.kind for e in Lineage(foundation).list_events().items] == ["event.damaged"]
