"""What changed between two versions: files, columns, rows.

A table engine compares rows over the columns that both sides have. Null equals null, and NaN equals NaN. Values are compared, not
types: a column with another type is a change of the columns, and a change of the rows only where values differ (``values``). With
key columns a full join gives added, removed and changed rows; without, the tables are bags (multisets), and a changed row counts as
one removed and one added. Counts are exact, samples are bounded. Imports pyarrow; import it lazily.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import narwhals as nw
import pyarrow as pa

from mainspring.data.engines import ROW, ArrowSource, KeyComparison, Source, Stream, TableEngine, open_engine
from mainspring.data.shown import MAX_SAMPLE, plain_rows
from mainspring.data.tables import batches_digest
from mainspring.data.values import decode_column, engine_columns, equal_mask, row_numbers
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


def row_difference(
    before: pa.Table | Source,
    after: pa.Table | Source,
    key: Sequence[str],
    *,
    engine: TableEngine | None = None,
) -> RowDiff:
    """Rows that differ. Raises :class:`InvalidInput` for a key column that is missing, or a key that is not unique."""
    if engine is None:
        with open_engine() as default:
            return row_difference(before, after, key, engine=default)
    old, new = (ArrowSource(t) if isinstance(t, pa.Table) else t for t in (before, after))
    shared = [n for n in old.schema.names if n in new.schema.names]
    for name in key:
        if name not in shared:
            raise InvalidInput(
                "no such column on both sides",
                value=name,
                place="key",
                next_step=near(name, shared, what="column"),
            )
    if not shared:
        return RowDiff(key=[], added=new.rows, removed=old.rows, changed=0, unchanged=0)
    sides = _Sides(old, new, shared)
    return _diff_by_key(engine, sides, list(key)) if key else _diff_as_bags(engine, sides)


class _Sides:
    """Both tables: as the engine compares them (columns named by number, equal types, rows numbered) and with their own values."""

    def __init__(self, before: Source, after: Source, shared: Sequence[str]) -> None:
        self.before, self.after, self.shared = before, after, list(shared)
        self.names = {name: f"c{i}" for i, name in enumerate(shared)}

    def streams(self, names: Sequence[str]) -> tuple[Stream, Stream]:
        """Both tables as the engine compares them, with these columns."""
        return self._stream(self.before, names), self._stream(self.after, names)

    def rows(self, side: Source, numbers: Sequence[int]) -> pa.Table:
        """Rows of one side with their own values."""
        return side.take(numbers, self.shared)

    def convert(self, side: Source, name: str, column: pa.Array) -> pa.Array:
        """A part of a column as the engine compares it: converted to one type with the same column of the other side."""
        first = side is self.before
        other = (self.after if first else self.before).schema.field(name).type
        own, counterpart = decode_column(column), decode_column(pa.array([], other))
        pair = engine_columns(own, counterpart) if first else engine_columns(counterpart, own)
        return pair[0 if first else 1].combine_chunks()

    def _stream(self, side: Source, names: Sequence[str]) -> Stream:
        empty = [self.convert(side, n, pa.array([], side.schema.field(n).type)) for n in names]
        fields = [pa.field(self.names[n], c.type) for n, c in zip(names, empty, strict=True)]
        schema = pa.schema([*fields, pa.field(ROW, pa.int64())])

        def batches() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in side.batches(names):
                columns = [self.convert(side, n, c) for n, c in zip(names, batch.columns, strict=True)]
                numbers = row_numbers(start, batch.num_rows)
                yield pa.RecordBatch.from_arrays([*columns, numbers], schema=schema)
                start += batch.num_rows

        return Stream(schema, batches)


def _diff_as_bags(engine: TableEngine, sides: _Sides) -> RowDiff:
    before, after = sides.streams(sides.shared)
    added, removed = engine.compare_bags(before, after, columns=list(sides.names.values()), limit=MAX_SAMPLE)
    return RowDiff(
        key=[],
        added=added.count,
        removed=removed.count,
        changed=0,
        unchanged=sides.before.rows - removed.count,
        reordered=not added.count
        and not removed.count
        and batches_digest(before.schema, before) != batches_digest(after.schema, after),
        added_sample=plain_rows(sides.rows(sides.after, added.first)),
        removed_sample=plain_rows(sides.rows(sides.before, removed.first)),
    )


def _diff_by_key(engine: TableEngine, sides: _Sides, key: list[str]) -> RowDiff:
    for keys, what in zip(sides.streams(key), ("before", "after"), strict=True):
        _check_unique(engine, keys, key, what)
    rest = [n for n in sides.shared if n not in key]
    before, after = sides.streams(sides.shared)
    comparison = engine.compare_by_key(
        before,
        after,
        key=[sides.names[n] for n in key],
        rest=[sides.names[n] for n in rest],
        limit=MAX_SAMPLE,
    )
    return RowDiff(
        key=key,
        added=comparison.added.count,
        removed=comparison.removed.count,
        changed=comparison.changed,
        unchanged=comparison.matched - comparison.changed,
        added_sample=plain_rows(sides.rows(sides.after, comparison.added.first)),
        removed_sample=plain_rows(sides.rows(sides.before, comparison.removed.first)),
        changed_sample=_changed_rows(sides, comparison, key, rest),
    )


def _check_unique(engine: TableEngine, keys: Stream, key: list[str], what: str) -> None:
    frame = engine.frame(keys)
    groups = frame.group_by(*keys.schema.names[:-1]).agg(nw.len().cast(nw.Int64).alias("n"))
    twice = engine.collect(groups.filter(nw.col("n") > 1).select(nw.len().cast(nw.Int64).alias("n")))["n"][
        0
    ].as_py()
    if twice:
        raise InvalidInput(
            f"the key is not unique: {twice} values occur more than once",
            value=key,
            place=f"version {what!r}",
            next_step="Name more key columns, or none.",
        )


def _changed_rows(
    sides: _Sides, comparison: KeyComparison, key: list[str], rest: list[str]
) -> list[ChangedRow]:
    before = sides.rows(sides.before, [old for old, _ in comparison.changes])
    after = sides.rows(sides.after, [new for _, new in comparison.changes])
    differ = {n: _changed_mask(sides, n, before, after) for n in rest}
    changes = []
    for at, (old_values, new_values) in enumerate(zip(plain_rows(before), plain_rows(after), strict=True)):
        names = [n for n in rest if differ[n][at]]
        changes.append(
            ChangedRow(
                key={n: old_values[n] for n in key},
                before={n: old_values[n] for n in names},
                after={n: new_values[n] for n in names},
            )
        )
    return changes


def _changed_mask(sides: _Sides, name: str, before: pa.Table, after: pa.Table) -> list[bool]:
    """For each of these rows whether the column differs."""
    old = sides.convert(sides.before, name, before.column(name).combine_chunks())
    new = sides.convert(sides.after, name, after.column(name).combine_chunks())
    return [not equal_mask(old.slice(i, 1), new[i])[0] for i in range(len(old))]
