from __future__ import annotations

import multiprocessing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from mainspring.clock import ManualClock
from mainspring.errors import Conflict, InvalidInput, NotFound
from mainspring.lineage import Foundation, Ledger
from mainspring.operations import Role, acting
from mainspring.records.models import Task
from mainspring.records.training import Evaluation, Interval
from mainspring.storage.leases import Leases
from mainspring.storage.sql import Store, open_store
from mainspring.training.operations import Training

CLOCK = ManualClock(datetime(2013, 2, 1, tzinfo=UTC))


def _room(store: Store, home: Path, project: str = "p") -> Training:
    ledger = Ledger(store, project=project, clock=CLOCK)
    no_objects = cast("Any", None)  # this room keeps nothing in the object store
    return Training(
        Foundation(
            project=project,
            home=home,
            store=store,
            objects=no_objects,
            ledger=ledger,
            leases=Leases(store),
            clock=CLOCK,
        )
    )


@pytest.fixture
def room(store: Store, tmp_path: Path) -> Training:
    return _room(store, tmp_path)


def test_every_look_is_counted_and_an_event(room: Training, store: Store) -> None:
    with acting("ann", role=Role.EDITOR):
        first = room.use_holdout(dataset_version="v1", purpose="gate of delay@2")
    second = room.use_holdout(dataset_version="v1", purpose="gate of delay@3")
    third = room.use_holdout(dataset_version="other", purpose="gate of delay@4", by="gate")
    assert (first.count, first.by, second.count, third.by) == (1, "ann", 2, "gate")
    assert room.list_holdout_uses(dataset_version="v1") == [first, second]
    assert room.list_holdout_uses(dataset_version="v1", after=1) == [second]
    assert (room.get_holdout(dataset_version="v1").uses, room.get_holdout(dataset_version="v1").max_uses) == (
        2,
        None,
    )
    with store.read() as tx:
        assert [e["kind"] for e in tx.all("SELECT kind FROM events ORDER BY seq")] == [
            "holdout.locked",
            "holdout.used",
            "holdout.used",
            "holdout.locked",
            "holdout.used",
        ]


def test_the_limit_holds_and_a_refusal_costs_nothing(room: Training) -> None:
    room.lock_holdout(dataset_version="v1", max_uses=1)
    room.use_holdout(dataset_version="v1", purpose="gate")
    for _ in range(2):
        with pytest.raises(Conflict, match="used up"):
            room.use_holdout(dataset_version="v1", purpose="again")
    assert room.get_holdout(dataset_version="v1").uses == 1
    with pytest.raises(Conflict, match="another limit"):
        room.lock_holdout(dataset_version="v1", max_uses=9)
    assert room.lock_holdout(dataset_version="v1").max_uses == 1


def _look(home: str, answers: Any) -> None:
    store = open_store("sqlite", home=Path(home))
    room = _room(store, Path(home))
    for _ in range(5):
        try:
            answers.put(room.use_holdout(dataset_version="v1", purpose="race").count)
        except Conflict:
            answers.put(0)
    store.close()


def test_processes_racing_for_the_last_looks_share_them(tmp_path: Path) -> None:
    home = tmp_path / "home"
    store = open_store("sqlite", home=home)
    _room(store, home).lock_holdout(dataset_version="v1", max_uses=7)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=_look, args=(str(home), answers)) for _ in range(3)]
    for worker in workers:
        worker.start()
    got = [answers.get(timeout=60) for _ in range(15)]
    for worker in workers:
        worker.join()
    store.close()
    assert sorted(g for g in got if g) == [1, 2, 3, 4, 5, 6, 7]


def test_projects_do_not_see_each_other(room: Training, store: Store, tmp_path: Path) -> None:
    room.lock_holdout(dataset_version="v1", max_uses=1)
    room.use_holdout(dataset_version="v1", purpose="gate")
    other = _room(store, tmp_path, project="q")
    with pytest.raises(NotFound):
        other.get_holdout(dataset_version="v1")
    assert other.use_holdout(dataset_version="v1", purpose="gate").count == 1


def _evaluation(**fields: Any) -> Evaluation:
    return Evaluation(task=Task.BINARY, rows=10, metrics={"log_loss": Interval(value=0.5, n=10)}, **fields)


def test_evaluations_are_kept_and_paged(room: Training, store: Store) -> None:
    kept = [
        room.record_evaluation(
            evaluation=_evaluation(subject=f"model_version:delay@{n % 2}", dataset_version="v1")
        )
        for n in range(5)
    ]
    page = room.list_evaluations(dataset_version="v1", limit=3)
    rest = room.list_evaluations(dataset_version="v1", limit=3, after=page.next)
    assert [*page.items, *rest.items] == kept
    assert rest.next is None
    assert room.list_evaluations(subject="model_version:delay@1").items == [kept[1], kept[3]]
    with store.read() as tx:
        assert tx.scalar("SELECT count(*) FROM edges WHERE target = ?", f"evaluation:{kept[0].id}") == 2


def test_an_evaluation_must_say_of_what(room: Training) -> None:
    with pytest.raises(InvalidInput, match="evaluated"):
        room.record_evaluation(evaluation=_evaluation(dataset_version="v1"))
    with pytest.raises(InvalidInput, match="limit"):
        room.list_evaluations(limit=0)
