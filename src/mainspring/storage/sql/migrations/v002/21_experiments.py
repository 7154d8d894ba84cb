"""Every experiment gets an id, in the order of their first runs; runs that named it by its name name it by the id."""

from __future__ import annotations

from mainspring.records.base import new_id
from mainspring.storage.sql.store import Writer

BATCH = 10_000


def migrate(tx: Writer) -> None:
    last = 0
    while (end := _end_of_batch(tx, last)) is not None:
        _name_experiments(tx, last, end)
        tx.execute(
            "UPDATE runs SET experiment = (SELECT e.id FROM experiments e WHERE e.project = runs.project AND e.name = runs.experiment)"
            " WHERE num > ? AND num <= ?",
            last,
            end,
        )
        last = end
    while without_runs := tx.all(
        "SELECT project, name FROM experiments WHERE id = '' ORDER BY created_us, project, name LIMIT ?",
        BATCH,
    ):
        for row in without_runs:
            _name(tx, row["project"], row["name"])


def _end_of_batch(tx: Writer, last: int) -> int | None:
    end = tx.scalar(
        "SELECT max(b.num) AS num FROM (SELECT num FROM runs WHERE num > ? ORDER BY num LIMIT ?) b",
        last,
        BATCH,
    )
    return None if end is None else int(end)


def _name_experiments(tx: Writer, last: int, end: int) -> None:
    """Ids for the experiments that have their first run in this batch."""
    for row in tx.all(
        "SELECT r.project AS project, r.experiment AS name, min(r.num) AS first, min(r.created_us) AS created_us FROM runs r"
        " LEFT JOIN experiments e ON e.project = r.project AND e.name = r.experiment"
        " WHERE r.num > ? AND r.num <= ? AND (e.id IS NULL OR e.id = '') GROUP BY r.project, r.experiment ORDER BY first",
        last,
        end,
    ):
        # Every program of version 1 wrote the experiment before its runs; should one be missing, the runs still keep their name.
        tx.execute(
            "INSERT INTO experiments (project, name, created_us, tags) VALUES (?, ?, ?, '{}') ON CONFLICT (project, name) DO NOTHING",
            row["project"],
            row["name"],
            int(row["created_us"]),
        )
        _name(tx, row["project"], row["name"])


def _name(tx: Writer, project: str, name: str) -> None:
    tx.execute("UPDATE experiments SET id = ? WHERE project = ? AND name = ?", new_id(), project, name)
