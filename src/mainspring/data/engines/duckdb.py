"""DuckDB as a table engine: in memory, spilling into a private folder, without access to other files or the network."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import narwhals as nw
import pyarrow as pa

from mainspring.data.engines.base import ROW, KeyComparison, RowSet, Stream
from mainspring.errors import StorageFull, TooLarge

MEMORY = "1GiB"
"""What one engine may hold before it spills."""


@contextlib.contextmanager
def open_duckdb(folder: Path | None = None) -> Iterator[DuckDB]:
    """A fresh engine: sessions in UTC, as many threads as this process may use; it spills below ``folder``."""
    threads = max(1, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="mainspring-", dir=folder) as spill:
        connection = duckdb.connect(
            ":memory:", config={"threads": threads, "temp_directory": spill, "memory_limit": MEMORY}
        )
        try:
            connection.execute("SET TimeZone = 'UTC'")
            # Rows carry their numbers, and keeping their order costs memory.
            connection.execute("SET preserve_insertion_order = false")
            # After two seconds it would write to the standard output.
            connection.execute("SET enable_progress_bar = false")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield DuckDB(connection)
        finally:
            connection.close()


class DuckDB:
    """See :class:`~mainspring.data.engines.base.TableEngine`."""

    name = "duckdb"

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._streams: list[Stream] = []

    def frame(self, stream: Stream) -> nw.LazyFrame[Any]:
        self._streams.append(stream)
        frame: nw.LazyFrame[Any] = nw.from_native(self._connection.from_arrow(stream))
        return frame

    def collect(self, frame: nw.LazyFrame[Any]) -> pa.Table:
        with self._translate_errors(self._streams):
            return frame.collect("pyarrow").to_native()

    def compare_by_key(
        self, before: Stream, after: Stream, *, key: Sequence[str], rest: Sequence[str], limit: int
    ) -> KeyComparison:
        old_row, new_row = f"a.{ROW}", f"b.{ROW}"
        on = " AND ".join(f"a.{k} IS NOT DISTINCT FROM b.{k}" for k in key)
        differs = " OR ".join(f"a.{c} IS DISTINCT FROM b.{c}" for c in rest) or "FALSE"
        added, removed, matched = (
            f"{old_row} IS NULL",
            f"{new_row} IS NULL",
            f"{old_row} IS NOT NULL AND {new_row} IS NOT NULL",
        )
        changed = f"{matched} AND ({differs})"
        wanted = [f"COUNT(*) FILTER (WHERE {which})" for which in (added, removed, matched, changed)]
        wanted += [
            f"min({new_row}, {limit}) FILTER (WHERE {added})",
            f"min({old_row}, {limit}) FILTER (WHERE {removed})",
        ]
        wanted += [
            f"min({old_row}, {limit}) FILTER (WHERE {changed})",
            f"arg_min({new_row}, {old_row}, {limit}) FILTER (WHERE {changed})",
        ]
        # One full join computes all counts and samples: each side is read once, and the hash table of the join may spill.
        # IS NOT DISTINCT FROM, because null equals null here.
        with self._registered(before, after):
            row = self._fetch_all(f"SELECT {', '.join(wanted)} FROM a FULL JOIN b ON {on}", before, after)[0]
        counts, (more, less, old, new) = row[:4], (rows or [] for rows in row[4:])
        return KeyComparison(
            added=RowSet(counts[0], more),
            removed=RowSet(counts[1], less),
            matched=counts[2],
            changed=counts[3],
            changes=list(zip(old, new, strict=True)),
        )

    def compare_bags(
        self, before: Stream, after: Stream, *, columns: Sequence[str], limit: int
    ) -> tuple[RowSet, RowSet]:
        names = ", ".join(columns)
        same = " AND ".join(f"x.{c} IS NOT DISTINCT FROM y.{c}" for c in columns)
        # row_number() numbers the repetitions of a row, so that the anti join counts a repeated row as often as it occurs.
        only = "SELECT x.{row} FROM (SELECT *, row_number() OVER (PARTITION BY {names} ORDER BY {row}) AS nth FROM {present}) AS x ANTI JOIN (SELECT *, row_number() OVER (PARTITION BY {names}) AS nth FROM {absent}) AS y ON x.nth = y.nth AND {same}"
        row_sets = []
        with self._registered(before, after):
            for present, absent in ("ba", "ab"):
                query = only.format(row=ROW, names=names, present=present, absent=absent, same=same)
                count, first = self._fetch_all(
                    f"SELECT COUNT(*), min({ROW}, {limit}) FROM ({query})", before, after
                )[0]
                row_sets.append(RowSet(count, first or []))
        return row_sets[0], row_sets[1]

    # --- inside ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _registered(self, before: Stream, after: Stream) -> Iterator[None]:
        """Register both sides as the tables ``a`` and ``b``."""
        for name, stream in (("a", before), ("b", after)):
            self._connection.register(name, stream)
        try:
            yield
        finally:
            for name in "ab":
                self._connection.unregister(name)

    def _fetch_all(self, query: str, *streams: Stream) -> list[tuple[Any, ...]]:
        with self._translate_errors(streams):
            return list(self._connection.execute(query).fetchall())

    @contextlib.contextmanager
    def _translate_errors(self, streams: Sequence[Stream]) -> Iterator[None]:
        """Raise errors of a stream unchanged, and translate the engine's errors about memory and disk space."""
        try:
            yield
        except duckdb.Error as error:
            for stream in streams:
                if stream.error is not None:
                    raise stream.error from None
            message = str(error).splitlines()[0]
            if isinstance(error, duckdb.OutOfMemoryException):
                raise TooLarge(f"the table engine has not enough memory or space to spill: {message}", next_step="Use fewer columns at once, or free space where temporary files go.") from None  # fmt: skip
            if isinstance(error, duckdb.IOException):
                raise StorageFull(f"the table engine could not spill: {message}", next_step="Free space where temporary files go, then try again.") from None  # fmt: skip
            raise
