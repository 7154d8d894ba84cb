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
from mainspring.data.engine import connection
from mainspring.errors import InvalidInput, near
from mainspring.records.data import ChangedRow, ColumnChange, FileDiff, RowDiff, TableColumn
from mainspring.records.objects import ObjectRef

_MAX_PATHS = 1000
_Names = dict[str, str]  # from the engine's names of columns to ours


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
    # The engine sees columns by number: it folds case, and reads dots and quotes in a name its own way.
    names = [f"c{i}" for i in range(len(shared))]
    with connection() as engine:
        engine.register("a", old.rename_columns(names))
        engine.register("b", new.rename_columns(names))
        shown = dict(zip(names, shared, strict=True))
        return (
            _keyed(engine, shown, [names[shared.index(k)] for k in key])
            if key
            else _bags(engine, shown, old, new)
        )


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


def _bags(engine: duckdb.DuckDBPyConnection, shown: _Names, old: pa.Table, new: pa.Table) -> RowDiff:
    removed, removed_sample = _counted(engine, "SELECT * FROM a EXCEPT ALL SELECT * FROM b", shown)
    added, added_sample = _counted(engine, "SELECT * FROM b EXCEPT ALL SELECT * FROM a", shown)
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


def _counted(
    engine: duckdb.DuckDBPyConnection, query: str, shown: _Names
) -> tuple[int, list[dict[str, Any]]]:
    found = (
        engine.execute(f"SELECT *, COUNT(*) OVER () AS n FROM ({query}) LIMIT {MAX_SAMPLE}")
        .to_arrow_table()
        .to_pylist()
    )
    return (int(found[0]["n"]) if found else 0), [
        {name: plain(row[c]) for c, name in shown.items()} for row in found
    ]


def _keyed(engine: duckdb.DuckDBPyConnection, shown: _Names, key: list[str]) -> RowDiff:
    keys = ", ".join(key)
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
    added, added_sample = _counted(engine, f"SELECT b.* FROM b ANTI JOIN a ON {on}", shown)
    removed, removed_sample = _counted(engine, f"SELECT a.* FROM a ANTI JOIN b ON {on}", shown)
    return RowDiff(
        key=[shown[k] for k in key],
        added=added,
        removed=removed,
        changed=changed,
        unchanged=matched - changed,
        added_sample=added_sample,
        removed_sample=removed_sample,
        changed_sample=_changed(engine, f"FROM {match} WHERE {differs} LIMIT {MAX_SAMPLE}", shown, key, rest)
        if changed
        else [],
    )


def _changed(
    engine: duckdb.DuckDBPyConnection, tail: str, shown: _Names, key: list[str], rest: list[str]
) -> list[ChangedRow]:
    columns = [f"a.{k} AS k_{k}" for k in key] + [f"a.{c} AS a_{c}, b.{c} AS b_{c}" for c in rest]
    found = []
    for row in engine.execute(f"SELECT {', '.join(columns)} {tail}").to_arrow_table().to_pylist():
        pairs = [(shown[c], plain(row[f"a_{c}"]), plain(row[f"b_{c}"])) for c in rest]
        found.append(
            ChangedRow(
                key={shown[k]: plain(row[f"k_{k}"]) for k in key},
                before={n: x for n, x, y in pairs if x != y},
                after={n: y for n, x, y in pairs if x != y},
            )
        )
    return found


def _scalar(engine: duckdb.DuckDBPyConnection, query: str) -> int:
    row = engine.execute(query).fetchone()
    return int(row[0]) if row else 0
