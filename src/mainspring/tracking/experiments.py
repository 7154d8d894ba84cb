"""Experiments: groups of runs. An experiment's id never changes; its name is unique in the project and may change.

Deleting one hides it and its runs from search, and no run can begin in it. Nothing is lost: :meth:`Experiments.restore_experiment`
brings them back.
"""

from __future__ import annotations

from typing import Literal

from mainspring.clock import from_us, to_us
from mainspring.errors import Conflict, InvalidInput, NotFound
from mainspring.lineage import Decision, Foundation
from mainspring.operations import Role, operation
from mainspring.records.base import Id, check_name, from_json, new_id, to_json
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.tracking import Experiment, ExperimentPage
from mainspring.storage.sql import Reader, Row
from mainspring.tracking.rows import check_texts, chunks
from mainspring.tracking.search import Sql

View = Literal["active", "deleted", "all"]

MAX_NAMED = 5000
"""Experiments that one search may name: each is a bound value of one statement."""

LISTING = "'mainspring experiments list --view all' shows those that do."


class Experiments:
    """The operations on the experiments of one project: a part of the room ``tracking``."""

    _base: Foundation

    @operation(role=Role.EDITOR, changes=True)
    def create_experiment(self, name: str, *, tags: dict[str, str] = {}) -> Experiment:  # noqa: B006 - never changed
        """Make an experiment; one that exists is returned as it is. A run makes its experiment by itself."""
        check_name(name, what="experiment")
        check_texts(tags, "tag")
        with self._base.ledger.decision() as d:
            row = ensure_experiment(d, self._base, name, tags)
            if row["deleted_us"] is not None:
                raise Conflict(
                    "a deleted experiment has this name",
                    value=name,
                    next_step=f"Bring it back: mainspring experiments restore {name}. Or give it another name first.",
                )
            return d.done(self._records_of(d.tx, [row])[0])

    @operation(role=Role.VIEWER)
    def get_experiment(self, *, name: str | None = None, id: Id | None = None) -> Experiment:  # noqa: A002 - the parameter is called id on the wire
        """One experiment, by its name or by its id: pass one of them. Deleted ones are returned too (``deleted`` says so)."""
        if (name is None) == (id is None):
            raise InvalidInput(
                "an experiment is selected by its name or by its id",
                place="name, id",
                next_step="Pass one of them.",
            )
        with self._base.store.read() as tx:
            return self._records_of(
                tx, [self._by_id(tx, id) if id is not None else self._by_name(tx, name or "")]
            )[0]

    @operation(role=Role.VIEWER)
    def list_experiments(
        self, *, view: View = "active", after: str | None = None, limit: int = 100
    ) -> ExperimentPage:
        """Experiments by name, with how many runs each holds."""
        if not 1 <= limit <= 1000:
            raise InvalidInput("limit must be 1 to 1000", value=limit)
        with self._base.store.read() as tx:
            rows = tx.all(
                f"SELECT * FROM experiments WHERE project = ? AND name > ?{_VIEWS[view]} ORDER BY name LIMIT ?",
                self._base.project,
                after or "",
                limit + 1,
            )
            items = self._records_of(tx, rows[:limit])
        return ExperimentPage(items=items, next=items[-1].name if len(rows) > limit else None)

    @operation(role=Role.EDITOR, changes=True)
    def rename_experiment(self, id: Id, *, name: str) -> Experiment:  # noqa: A002
        """Give an experiment another name. Its runs refer to its id, so they follow."""
        check_name(name, what="experiment")
        with self._base.ledger.decision() as d:
            before = self._by_id(d.tx, id)
            if before["name"] != name:
                taken = d.tx.first(
                    "SELECT deleted_us FROM experiments WHERE project = ? AND name = ?",
                    self._base.project,
                    name,
                )
                if taken is not None:
                    raise Conflict(
                        f"{'a deleted' if taken['deleted_us'] is not None else 'another'} experiment has this name",
                        value=name,
                        next_step="Choose another name, or rename that one first.",
                    )
                d.tx.execute("UPDATE experiments SET name = ? WHERE id = ?", name, id)
                d.event(
                    EventKind.EXPERIMENT_RENAMED,
                    ref("experiment", id),
                    {"name": name, "before": before["name"]},
                )
            return d.done(self._records_of(d.tx, [self._by_id(d.tx, id)])[0])

    @operation(role=Role.EDITOR, changes=True)
    def delete_experiment(self, id: Id) -> Experiment:  # noqa: A002
        """Hide an experiment and its runs: search leaves them out, and no run can begin in it. Nothing is lost."""
        with self._base.store.freeing():
            return self._set_deleted(id, to_us(self._base.clock.now()), EventKind.EXPERIMENT_DELETED)

    @operation(role=Role.EDITOR, changes=True)
    def restore_experiment(self, id: Id) -> Experiment:  # noqa: A002
        """Bring a deleted experiment back, with the runs that it had; runs that were deleted by themselves stay so."""
        return self._set_deleted(id, None, EventKind.EXPERIMENT_RESTORED)

    def _set_deleted(self, ident: str, deleted_us: int | None, event: EventKind) -> Experiment:
        with self._base.ledger.decision() as d:
            row = self._by_id(d.tx, ident)
            if (row["deleted_us"] is None) != (deleted_us is None):
                d.tx.execute("UPDATE experiments SET deleted_us = ? WHERE id = ?", deleted_us, ident)
                d.event(event, ref("experiment", ident), {"name": row["name"]})
            return d.done(self._records_of(d.tx, [self._by_id(d.tx, ident)])[0])

    def _by_id(self, tx: Reader, ident: str) -> Row:
        return _find_by_id(tx, self._base.project, ident)

    def _by_name(self, tx: Reader, name: str) -> Row:
        row = tx.first("SELECT * FROM experiments WHERE project = ? AND name = ?", self._base.project, name)
        if row is None:
            raise NotFound("no experiment has this name", value=name, next_step=LISTING)
        return row

    def _records_of(self, tx: Reader, rows: list[Row]) -> list[Experiment]:
        counts: dict[str, int] = {}
        for part in chunks([row["id"] for row in rows], 500):
            for row in tx.all(
                "SELECT experiment, count(*) AS n FROM runs WHERE project = ? AND deleted_us IS NULL"
                f" AND experiment IN ({', '.join('?' * len(part))}) GROUP BY experiment",
                self._base.project,
                *part,
            ):
                counts[row["experiment"]] = int(row["n"])
        return [
            Experiment(
                id=row["id"],
                name=row["name"],
                created_at=from_us(row["created_us"]),
                deleted=row["deleted_us"] is not None,
                tags=from_json(row["tags"], dict[str, str]),
                runs=counts.get(row["id"], 0),
            )
            for row in rows
        ]


def _find_by_id(tx: Reader, project: str, ident: str) -> Row:
    row = tx.first("SELECT * FROM experiments WHERE id = ? AND project = ?", ident, project)
    if row is None:
        raise NotFound("no experiment has this id", value=ident, next_step=LISTING)
    return row


_VIEWS = {"active": " AND deleted_us IS NULL", "deleted": " AND deleted_us IS NOT NULL", "all": ""}


def ensure_experiment(d: Decision, base: Foundation, name: str, tags: dict[str, str]) -> Row:
    """The row of the experiment with this name, inserted now if there was none."""
    sql = "SELECT * FROM experiments WHERE project = ? AND name = ?"
    row = d.tx.first(sql, base.project, name)
    if row is not None:
        return row
    ident = new_id()
    made = d.tx.execute(
        "INSERT INTO experiments (project, name, id, created_us, tags) VALUES (?, ?, ?, ?, ?) ON CONFLICT (project, name) DO NOTHING",
        base.project, name, ident, to_us(base.clock.now()), to_json(tags).decode(),
    )  # fmt: skip
    if made:
        d.event(EventKind.EXPERIMENT_CREATED, ref("experiment", ident), {"name": name})
    return d.tx.all(sql, base.project, name)[0]


def experiment_of_new_run(
    d: Decision, base: Foundation, *, name: str | None, ident: str | None, started_us: int
) -> Row:
    """The row of the experiment that a new run begins in, inserted now if there was none of that name.

    A run that began before its experiment was deleted and arrives afterwards is stored in it all the same, hidden with the others.
    Any other run raises NotFound: what is in a spool stays there and arrives once the experiment is restored.
    """
    if ident is None:
        row = ensure_experiment(
            d, base, check_name("default" if name is None else name, what="experiment"), {}
        )
    elif name is None:
        row = _find_by_id(d.tx, base.project, ident)
    else:
        raise InvalidInput(
            "the experiment is named twice",
            value=name,
            place="experiment, experiment_id",
            next_step="Pass its name or its id.",
        )
    if row["deleted_us"] is not None and started_us >= row["deleted_us"]:
        raise NotFound(
            "this experiment is deleted: no run can begin in it",
            value=row["name"],
            next_step=f"Bring it back: mainspring experiments restore {row['name']}. Or name another one.",
        )
    return row


def view_conditions(tx: Reader, project: str, view: View) -> list[Sql]:
    """The SQL conditions on runs ``r`` of a view. A run is deleted if it was deleted itself, or its experiment was."""
    if view == "all":
        return []
    own = f"r.deleted_us IS {'NULL' if view == 'active' else 'NOT NULL'}"
    hidden = "SELECT id FROM experiments WHERE project = ? AND deleted_us IS NOT NULL"
    # The usual case: without the subquery the engines choose the simpler plan.
    if tx.first(f"{hidden} LIMIT 1", project) is None:
        return [Sql(own)]
    if view == "active":
        return [Sql(own), Sql(f"r.experiment NOT IN ({hidden})", (project,))]
    return [Sql(f"({own} OR r.experiment IN ({hidden}))", (project,))]


def experiment_condition(tx: Reader, project: str, names: list[str], idents: list[str]) -> Sql:
    """The SQL condition that a run ``r`` belongs to one of these experiments; unknown names and ids match nothing."""
    if len(names) + len(idents) > MAX_NAMED:
        raise InvalidInput(
            f"at most {MAX_NAMED} experiments can be named",
            value=len(names) + len(idents),
            place="experiments, experiment_ids",
            next_step="Leave them out to search in all, or use a filter on attributes.experiment.",
        )
    matching = set(idents)
    for part in chunks(names, 500):
        marks = ", ".join("?" * len(part))
        sql = f"SELECT id FROM experiments WHERE project = ? AND name IN ({marks})"
        matching |= {row["id"] for row in tx.all(sql, project, *part)}
    return Sql(f"r.experiment IN ({', '.join('?' * len(matching)) or 'NULL'})", tuple(sorted(matching)))
