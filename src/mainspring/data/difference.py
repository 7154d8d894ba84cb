"""What changed between two versions: files, columns, rows.

Rows are compared by DuckDB over the columns that both sides have, null equal to null and NaN to NaN, and by value: a column
that changed its type is a change of the columns, and of the rows only where the values differ (``values``). With key columns a
full join tells added, removed and changed rows apart; without, the tables are bags and a changed row is one removed and one
added. Counts are exact, samples bounded. Imports pyarrow and duckdb; import it lazily.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from mainspring.data.engine import connection
from mainspring.data.shown import MAX_SAMPLE, plain_rows
from mainspring.data.tables import content_digest
from mainspring.data.values import engine_columns, row_numbers
from mainspring.errors import InvalidInput, near
from mainspring.records.data import ChangedRow, ColumnChange, FileDiff, RowDiff, TableColumn
from mainspring.records.objects import ObjectRef

_MAX_PATHS = 1000
ROW = "__row"


def tree_difference(before: Mapping[str, ObjectRef], after: Mapping[str, ObjectRef]) -> FileDiff:
    """Paths added, removed and changed (each list bounded to 1,000)."""
    both = before.keys() & after.keys()
    changed = sorted(p for p in both if before[p].digest != after[p].digest)
    return FileDiff(
        added=sorted(after.keys() - before.keys())[:_MAX_PATHS],
        removed=sorted(before.keys() - after.keys())[:_MAX_PATHS],
        changed=changed[:_MAX_PATHS],
        unchanged=len(both) - len(changed),
    )


def type_changes(before: Sequence[TableColumn], after: Sequence[TableColumn]) -> list[ColumnChange]:
    """Columns added (``before`` None), removed (``after`` None) or of another type."""
    old, new = {c.name: c.type for c in before}, {c.name: c.type for c in after}
    names = list(old) + [n for n in new if n not in old]
    return [
        ColumnChange(name=n, before=old.get(n), after=new.get(n)) for n in names if old.get(n) != new.get(n)
    ]


def row_difference(before: pa.Table, after: pa.Table, key: Sequence[str]) -> RowDiff:
    """Rows that differ. Raises :class:`InvalidInput` for a key column that is missing, or a key that is not unique."""
    shared = [n for n in before.column_names if n in after.column_names]
    for name in key:
        if name not in shared:
            raise InvalidInput(
                "no such column on both sides",
                value=name,
                place="key",
                next_step=near(name, shared, what="column"),
            )
    if not shared:
        return RowDiff(key=[], added=after.num_rows, removed=before.num_rows, changed=0, unchanged=0)
    names = [f"c{i}" for i in range(len(shared))]
    pairs = [engine_columns(before.column(n), after.column(n)) for n in shared]
    # The engine sees columns by number: it folds case, and reads dots and quotes in a name its own way. What it sees are values
    # to compare; what is shown of a row is taken from the table by the row's number.
    old = pa.table(
        {n: one for n, (one, _) in zip(names, pairs, strict=True)} | {ROW: row_numbers(before.num_rows)}
    )
    new = pa.table(
        {n: two for n, (_, two) in zip(names, pairs, strict=True)} | {ROW: row_numbers(after.num_rows)}
    )
    sides = _Sides(before.select(shared), after.select(shared), dict(zip(names, shared, strict=True)))
    with connection() as engine:
        engine.register("a", old)
        engine.register("b", new)
        if key:
            return _keyed(engine, sides, [names[shared.index(k)] for k in key])
        return _bags(engine, sides, old, new)


@dataclass(frozen=True)
class _Sides:
    """Both tables as they are shown, and our names of the engine's columns."""

    before: pa.Table
    after: pa.Table
    shown: Mapping[str, str]


def _bags(engine: duckdb.DuckDBPyConnection, sides: _Sides, old: pa.Table, new: pa.Table) -> RowDiff:
    names = ", ".join(sides.shown)
    only = "SELECT {row} FROM (SELECT *, row_number() OVER (PARTITION BY {names} ORDER BY {row}) AS nth FROM {one}) AS x ANTI JOIN (SELECT *, row_number() OVER (PARTITION BY {names}) AS nth FROM {two}) AS y ON x.nth = y.nth AND {same}"
    same = " AND ".join(f"x.{c} IS NOT DISTINCT FROM y.{c}" for c in sides.shown)
    removed, removed_rows = _counted(engine, only.format(row=ROW, names=names, one="a", two="b", same=same))
    added, added_rows = _counted(engine, only.format(row=ROW, names=names, one="b", two="a", same=same))
    return RowDiff(
        key=[],
        added=added,
        removed=removed,
        changed=0,
        unchanged=old.num_rows - removed,
        reordered=not added and not removed and content_digest(old) != content_digest(new),
        added_sample=_rows(sides.after, added_rows),
        removed_sample=_rows(sides.before, removed_rows),
    )


def _counted(engine: duckdb.DuckDBPyConnection, query: str) -> tuple[int, list[int]]:
    """How many rows a query has, and the numbers of the first ones."""
    found = engine.execute(
        f"SELECT {ROW}, COUNT(*) OVER () AS n FROM ({query}) ORDER BY {ROW} LIMIT {MAX_SAMPLE}"
    ).fetchall()
    return (int(found[0][1]) if found else 0), [int(row) for row, _ in found]


def _rows(table: pa.Table, numbers: list[int]) -> list[dict[str, Any]]:
    return plain_rows(table.take(pa.array(numbers, pa.int64())))


def _keyed(engine: duckdb.DuckDBPyConnection, sides: _Sides, key: list[str]) -> RowDiff:
    keys, shown = ", ".join(key), sides.shown
    for side, what in (("a", "before"), ("b", "after")):
        twice = _scalar(
            engine, f"SELECT COUNT(*) FROM (SELECT 1 FROM {side} GROUP BY {keys} HAVING COUNT(*) > 1)"
        )
        if twice:
            raise InvalidInput(
                f"the key is not unique: {twice} values occur more than once",
                value=[shown[k] for k in key],
                place=f"version {what!r}",
                next_step="Name more key columns, or none.",
            )
    on = " AND ".join(f"a.{k} IS NOT DISTINCT FROM b.{k}" for k in key)
    rest = [c for c in shown if c not in key]
    differs = " OR ".join(f"a.{c} IS DISTINCT FROM b.{c}" for c in rest) or "FALSE"
    match = f"a JOIN b ON {on}"
    matched = _scalar(engine, f"SELECT COUNT(*) FROM {match}")
    changed = _scalar(engine, f"SELECT COUNT(*) FROM {match} WHERE {differs}")
    added, added_rows = _counted(engine, f"SELECT b.{ROW} FROM b ANTI JOIN a ON {on}")
    removed, removed_rows = _counted(engine, f"SELECT a.{ROW} FROM a ANTI JOIN b ON {on}")
    return RowDiff(
        key=[shown[k] for k in key],
        added=added,
        removed=removed,
        changed=changed,
        unchanged=matched - changed,
        added_sample=_rows(sides.after, added_rows),
        removed_sample=_rows(sides.before, removed_rows),
        changed_sample=_changed(engine, f"FROM {match} WHERE {differs}", sides, key, rest) if changed else [],
    )


def _changed(
    engine: duckdb.DuckDBPyConnection, tail: str, sides: _Sides, key: list[str], rest: list[str]
) -> list[ChangedRow]:
    flags = "".join(f", a.{c} IS DISTINCT FROM b.{c}" for c in rest)
    found = engine.execute(
        f"SELECT a.{ROW}, b.{ROW}{flags} {tail} ORDER BY a.{ROW} LIMIT {MAX_SAMPLE}"
    ).fetchall()
    before, after = (_rows(t, [int(r[i]) for r in found]) for i, t in enumerate((sides.before, sides.after)))
    shown = sides.shown
    changes = []
    for (_, _, *differ), one, two in zip(found, before, after, strict=True):
        names = [shown[c] for c, different in zip(rest, differ, strict=True) if different]
        changes.append(
            ChangedRow(
                key={shown[k]: one[shown[k]] for k in key},
                before={n: one[n] for n in names},
                after={n: two[n] for n in names},
            )
        )
    return changes


def _scalar(engine: duckdb.DuckDBPyConnection, query: str) -> int:
    row = engine.execute(query).fetchone()
    return int(row[0]) if row else 0
