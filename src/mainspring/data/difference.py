"""What changed between two versions: files, columns, rows.

Rows are compared by DuckDB over the columns that both sides have, null equal to null and NaN to NaN. With key columns a
full join tells added, removed and changed rows apart; without, the tables are bags and a changed row is one removed and one
added. Counts are exact, samples bounded. Imports pyarrow and duckdb; import it lazily.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from mainspring.data.checks import MAX_SAMPLE, plain
from mainspring.data.engine import connection, quoted
from mainspring.errors import InvalidInput, near
from mainspring.records.data import ChangedRow, ColumnChange, FileDiff, RowDiff, TableColumn
from mainspring.records.objects import ObjectRef

_MAX_PATHS = 1000


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
    old, new = _comparable(before.select(shared), after.select(shared))
    with connection() as engine:
        engine.register("a", old)
        engine.register("b", new)
        return _keyed(engine, shared, list(key)) if key else _bags(engine, old, new)


def _comparable(before: pa.Table, after: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Columns of different types are compared as text."""
    for i, (one, two) in enumerate(zip(before.schema, after.schema, strict=True)):
        if one.type != two.type:
            before = before.set_column(i, one.name, _as_text(before.column(i)))
            after = after.set_column(i, two.name, _as_text(after.column(i)))
    return before, after


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return pa.chunked_array(
            [pa.array([None if v is None else str(plain(v)) for v in column.to_pylist()], pa.string())]
        )


def _bags(engine: duckdb.DuckDBPyConnection, old: pa.Table, new: pa.Table) -> RowDiff:
    removed, removed_sample = _counted(engine, "SELECT * FROM a EXCEPT ALL SELECT * FROM b")
    added, added_sample = _counted(engine, "SELECT * FROM b EXCEPT ALL SELECT * FROM a")
    return RowDiff(
        key=[],
        added=added,
        removed=removed,
        changed=0,
        unchanged=old.num_rows - removed,
        reordered=not added and not removed and not old.equals(new),
        added_sample=added_sample,
        removed_sample=removed_sample,
    )


def _counted(engine: duckdb.DuckDBPyConnection, query: str) -> tuple[int, list[dict[str, Any]]]:
    found = (
        engine.execute(f"SELECT *, COUNT(*) OVER () AS __n FROM ({query}) LIMIT {MAX_SAMPLE}")
        .to_arrow_table()
        .to_pylist()
    )
    return (int(found[0]["__n"]) if found else 0), [
        {k: plain(v) for k, v in row.items() if k != "__n"} for row in found
    ]


def _keyed(engine: duckdb.DuckDBPyConnection, shared: list[str], key: list[str]) -> RowDiff:
    keys = ", ".join(map(quoted, key))
    for side, what in (("a", "before"), ("b", "after")):
        twice = _scalar(
            engine, f"SELECT COUNT(*) FROM (SELECT 1 FROM {side} GROUP BY {keys} HAVING COUNT(*) > 1)"
        )
        if twice:
            raise InvalidInput(
                f"the key is not unique: {twice} values occur more than once",
                value=list(key),
                place=f"version {what!r}",
                next_step="Name more key columns, or none.",
            )
    on = " AND ".join(f"a.{quoted(k)} IS NOT DISTINCT FROM b.{quoted(k)}" for k in key)
    rest = [n for n in shared if n not in key]
    differs = " OR ".join(f"a.{quoted(n)} IS DISTINCT FROM b.{quoted(n)}" for n in rest) or "FALSE"
    match = f"a JOIN b ON {on}"
    matched = _scalar(engine, f"SELECT COUNT(*) FROM {match}")
    changed = _scalar(engine, f"SELECT COUNT(*) FROM {match} WHERE {differs}")
    added, added_sample = _counted(engine, f"SELECT b.* FROM b ANTI JOIN a ON {on}")
    removed, removed_sample = _counted(engine, f"SELECT a.* FROM a ANTI JOIN b ON {on}")
    return RowDiff(
        key=key,
        added=added,
        removed=removed,
        changed=changed,
        unchanged=matched - changed,
        added_sample=added_sample,
        removed_sample=removed_sample,
        changed_sample=_changed(engine, f"FROM {match} WHERE {differs} LIMIT {MAX_SAMPLE}", key, rest)
        if changed
        else [],
    )


def _changed(
    engine: duckdb.DuckDBPyConnection, tail: str, key: list[str], rest: list[str]
) -> list[ChangedRow]:
    keys = [f"a.{quoted(k)} AS k{i}" for i, k in enumerate(key)]
    values = [f"a.{quoted(n)} AS a{i}, b.{quoted(n)} AS b{i}" for i, n in enumerate(rest)]
    rows = engine.execute(f"SELECT {', '.join(keys + values)} {tail}").to_arrow_table().to_pylist()
    found = []
    for row in rows:
        pairs = [(n, plain(row[f"a{i}"]), plain(row[f"b{i}"])) for i, n in enumerate(rest)]
        found.append(
            ChangedRow(
                key={k: plain(row[f"k{i}"]) for i, k in enumerate(key)},
                before={n: x for n, x, y in pairs if x != y},
                after={n: y for n, x, y in pairs if x != y},
            )
        )
    return found


def _scalar(engine: duckdb.DuckDBPyConnection, query: str) -> int:
    row = engine.execute(query).fetchone()
    return int(row[0]) if row else 0
