"""Experiments: an id for ever, a name that may change, and nothing lost by deleting."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mainspring.errors import Conflict, InvalidInput, NotFound
from mainspring.lineage import Foundation, Lineage
from mainspring.records.base import new_id
from mainspring.records.tracking import Experiment
from mainspring.tracking import Tracking
from mainspring.tracking.client import TrackingClient


@pytest.fixture
def tracking(both: Tracking) -> Tracking:
    return both


def kinds(tracking: Tracking, experiment: Experiment) -> list[str]:
    events = (
        Lineage(tracking._base).list_events(subject=f"experiment:{experiment.id}", newest_first=False).items
    )
    return [event.kind for event in events]


def test_one_is_made_once_and_found_by_name_or_id(tracking: Tracking) -> None:
    made = tracking.create_experiment(name="a", tags={"team": "x"})
    assert (made.name, made.deleted, made.tags, made.runs) == ("a", False, {"team": "x"}, 0)
    tracking.create_run(experiment="a")
    again = tracking.create_experiment(name="a", tags={"team": "y"})
    assert (again.id, again.tags, again.runs) == (made.id, {"team": "x"}, 1)
    assert tracking.get_experiment(name="a") == tracking.get_experiment(id=made.id) == again
    assert kinds(tracking, made) == ["experiment.created"]
    with pytest.raises(NotFound, match="name"):
        tracking.get_experiment(name=made.id)
    with pytest.raises(NotFound, match="id"):
        tracking.get_experiment(id=new_id())
    for arguments in ({}, {"name": "a", "id": made.id}):
        with pytest.raises(InvalidInput, match="by its name or by its id"):
            tracking.get_experiment(**arguments)


def test_a_run_names_its_experiment_by_name_or_id(tracking: Tracking) -> None:
    by_name = tracking.create_run(experiment="a")
    by_id = tracking.create_run(experiment_id=by_name.experiment_id)
    assert (by_id.experiment, by_id.experiment_id) == ("a", by_name.experiment_id)
    assert tracking.create_run().experiment == "default"
    with pytest.raises(InvalidInput, match="twice"):
        tracking.create_run(experiment="a", experiment_id=by_name.experiment_id)
    with pytest.raises(NotFound):
        tracking.create_run(experiment_id=new_id())


def test_a_new_name_is_shown_everywhere_at_once(tracking: Tracking) -> None:
    run = tracking.create_run(experiment="old")
    renamed = tracking.rename_experiment(id=run.experiment_id, name="new")
    assert (renamed.id, renamed.name, renamed.runs) == (run.experiment_id, "new", 1)
    assert tracking.get_run(run=run.id).experiment == "new"
    assert [r.id for r in tracking.search_runs(experiments=["new"]).items] == [run.id]
    assert [r.id for r in tracking.search_runs(filter="experiment = 'new'").items] == [run.id]
    assert tracking.search_runs(experiments=["old"]).items == []
    assert tracking.search_runs(filter="experiment = 'old'").items == []
    assert [r.id for r in tracking.search_runs(experiment_ids=[run.experiment_id]).items] == [run.id]
    assert tracking.rename_experiment(id=run.experiment_id, name="new") == renamed
    assert kinds(tracking, renamed) == ["experiment.created", "experiment.renamed"]


def test_a_run_that_arrives_twice_does_not_bring_the_old_name_back(tracking: Tracking) -> None:
    """Seen red with the experiment looked up before the run."""
    ident = new_id()
    run = tracking.create_run(id=ident, experiment="old")
    tracking.rename_experiment(id=run.experiment_id, name="new")
    assert tracking.create_run(id=ident, experiment="old").experiment == "new"
    assert [e.name for e in tracking.list_experiments().items] == ["new"]


def test_a_name_is_one_experiment_s(tracking: Tracking) -> None:
    a, b = tracking.create_experiment(name="a"), tracking.create_experiment(name="b")
    with pytest.raises(Conflict, match="another experiment"):
        tracking.rename_experiment(id=a.id, name="b")
    tracking.delete_experiment(id=b.id)
    with pytest.raises(Conflict, match="a deleted experiment"):
        tracking.rename_experiment(id=a.id, name="b")
    with pytest.raises(Conflict, match="a deleted experiment"):
        tracking.create_experiment(name="b")
    tracking.rename_experiment(id=b.id, name="b-before")
    assert tracking.rename_experiment(id=a.id, name="b").name == "b"
    with pytest.raises(InvalidInput):
        tracking.rename_experiment(id=a.id, name="../b")


def test_a_deleted_experiment_hides_its_runs_and_loses_nothing(tracking: Tracking) -> None:
    """Seen red with the experiment left out of what a view shows."""
    kept, gone = tracking.create_run(experiment="kept"), tracking.create_run(experiment="gone")
    own = tracking.delete_run(run=tracking.create_run(experiment="gone").id)
    deleted = tracking.delete_experiment(id=gone.experiment_id)
    assert (deleted.deleted, deleted.runs) == (True, 1)

    def shown(view: str, **query: object) -> set[str]:
        return {r.id for r in tracking.search_runs(view=view, **query).items}  # type: ignore[arg-type]

    assert shown("active") == {kept.id}
    assert shown("active", experiments=["gone"]) == set()
    assert shown("deleted") == {gone.id, own.id}
    assert shown("all") == {kept.id, gone.id, own.id}
    assert tracking.get_run(run=gone.id).deleted
    assert [e.name for e in tracking.list_experiments().items] == ["kept"]
    assert tracking.get_experiment(name="gone").deleted
    for arguments in ({"experiment": "gone"}, {"experiment_id": gone.experiment_id}):
        with pytest.raises(NotFound, match="experiment is deleted"):
            tracking.create_run(**arguments)  # type: ignore[arg-type]
    assert tracking.delete_experiment(id=gone.experiment_id) == deleted

    restored = tracking.restore_experiment(id=gone.experiment_id)
    assert not restored.deleted
    assert tracking.restore_experiment(id=gone.experiment_id) == restored
    assert (shown("active"), shown("deleted")) == ({kept.id, gone.id}, {own.id})
    assert tracking.create_run(experiment="gone").experiment_id == gone.experiment_id
    assert kinds(tracking, restored) == ["experiment.created", "experiment.deleted", "experiment.restored"]


def test_a_run_that_began_before_the_deletion_still_arrives(tracking: Tracking) -> None:
    """Seen red with every run of a deleted experiment refused."""
    experiment = tracking.create_experiment(name="a")
    tracking.delete_experiment(id=experiment.id)
    run = tracking.create_run(experiment="a", started_us=1_000_000)
    assert run.deleted
    assert tracking.create_run(id=run.id, experiment="a") == run
    assert tracking.search_runs().items == []


def test_what_is_in_a_spool_waits_for_the_experiment_to_come_back(foundation: Foundation) -> None:
    """Training goes on, and what it logged arrives when it can."""
    operations = Tracking(foundation)
    experiment = operations.create_experiment(name="a")
    operations.delete_experiment(id=experiment.id)
    client = TrackingClient(operations)
    run = client.start_run(experiment="a", capture=False)
    run.log_metric("x", 1.0)
    with pytest.warns(RuntimeWarning, match="not everything is stored"):
        assert not run.finish(flush_s=0.2)
    operations.restore_experiment(id=experiment.id)
    run._wake.set()
    run._thread.join(60)
    assert operations.get_run(run=run.id).metrics["x"].number == 1.0


def test_pages_of_experiments(tracking: Tracking) -> None:
    made = {name: tracking.create_experiment(name=name) for name in ("c", "a", "B", "e", "d")}
    for name in ("a", "d"):
        tracking.delete_experiment(id=made[name].id)
    tracking.create_run(experiment="e")

    def names(view: str) -> list[str]:
        seen: list[str] = []
        after = None
        while True:
            page = tracking.list_experiments(view=view, limit=2, after=after)  # type: ignore[arg-type]
            seen += [e.name for e in page.items]
            after = page.next
            if after is None:
                return seen

    assert names("active") == ["B", "c", "e"]
    assert names("deleted") == ["a", "d"]
    assert names("all") == ["B", "a", "c", "d", "e"]
    assert {e.name: e.runs for e in tracking.list_experiments().items} == {"B": 0, "c": 0, "e": 1}
    for limit in (0, 1001):
        with pytest.raises(InvalidInput):
            tracking.list_experiments(limit=limit)


def test_experiments_of_another_project_are_not_there(
    make_foundation: Callable[..., Foundation], store_url: str
) -> None:
    """Seen red with the project left out of the look-up by id."""
    ours, theirs = (Tracking(make_foundation(store_url, project=project)) for project in ("ours", "theirs"))
    ident = theirs.create_run(experiment="secret").experiment_id
    ours.create_run(experiment="secret")
    for call in (ours.get_experiment, ours.delete_experiment, ours.restore_experiment):
        with pytest.raises(NotFound):
            call(id=ident)
    with pytest.raises(NotFound):
        ours.rename_experiment(id=ident, name="mine")
    with pytest.raises(NotFound):
        ours.create_run(experiment_id=ident)
    assert ours.search_runs(experiment_ids=[ident]).items == []
    theirs.delete_experiment(id=ident)
    assert len(ours.search_runs(experiments=["secret"]).items) == 1


@pytest.mark.parametrize("view", ["active", "deleted", "all"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("experiment = 'a'", "a"), ("not experiment = 'a'", "bc"), ("experiment != 'a'", "bc"), ("experiment IN ('a', 'c', 'x')", "ac"),
        ("experiment NOT IN ('a', 'x')", "bc"), ("experiment = 'x'", ""), ("not experiment = 'x'", "abc"), ("experiment LIKE '%'", "abc"),
        ("experiment IS NULL", ""), ("experiment IS NOT NULL", "abc"), ("attributes.experiment_name = 'b'", "b"), ("experiment > 'a'", "bc"),
    ],
)  # fmt: skip
def test_filters_on_the_name(tracking: Tracking, view: str, text: str, expected: str) -> None:
    """Seen red with a name that no experiment has compared as NULL."""
    for name in "abc":
        tracking.create_run(experiment=name)
        tracking.create_experiment(name=f"{name}-empty")
    hidden = tracking.create_experiment(name="hidden")
    tracking.delete_experiment(id=hidden.id)
    names = {r.experiment for r in tracking.search_runs(filter=text, view=view).items}  # type: ignore[arg-type]
    assert names == (set(expected) if view != "deleted" else set())


def test_filters_on_the_id(tracking: Tracking) -> None:
    run = tracking.create_run(experiment="a")
    tracking.create_run(experiment="b")
    text = f"attributes.experiment_id = '{run.experiment_id}'"
    assert [r.id for r in tracking.search_runs(filter=text).items] == [run.id]
