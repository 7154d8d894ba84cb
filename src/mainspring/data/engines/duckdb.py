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

from mainspring.data.engines.base import ROW, Found, Keyed, Stream
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
            connection.execute(
                "SET preserve_insertion_order = false"
            )  # rows carry their numbers; order costs memory
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
        with self._own_errors(self._streams):
            return frame.collect("pyarrow").to_native()

    def keyed(
        self, before: Stream, after: Stream, *, key: Sequence[str], rest: Sequence[str], limit: int
    ) -> Keyed:
        self._load(before, after)
        keys = ", ".join(key)
        one, two = (
            self._scalar(f"SELECT COUNT(*) FROM (SELECT 1 FROM {side} GROUP BY {keys} HAVING COUNT(*) > 1)")
            for side in "ab"
        )
        if one or two:
            return Keyed(repeated=(one, two))
        on = " AND ".join(f"a.{k} IS NOT DISTINCT FROM b.{k}" for k in key)
        differs = " OR ".join(f"a.{c} IS DISTINCT FROM b.{c}" for c in rest) or "FALSE"
        match = f"a JOIN b ON {on}"
        changed = self._scalar(f"SELECT COUNT(*) FROM {match} WHERE {differs}")
        flags = "".join(f", a.{c} IS DISTINCT FROM b.{c}" for c in rest)
        changes = self._all(
            f"SELECT a.{ROW}, b.{ROW}{flags} FROM {match} WHERE {differs} ORDER BY a.{ROW} LIMIT {limit}"
        ) if changed else []  # fmt: skip
        return Keyed(
            repeated=(0, 0),
            added=self._found(f"SELECT b.{ROW} FROM b ANTI JOIN a ON {on}", limit),
            removed=self._found(f"SELECT a.{ROW} FROM a ANTI JOIN b ON {on}", limit),
            matched=self._scalar(f"SELECT COUNT(*) FROM {match}"),
            changed=changed,
            changes=[(int(r[0]), int(r[1]), [bool(f) for f in r[2:]]) for r in changes],
        )

    def bags(
        self, before: Stream, after: Stream, *, columns: Sequence[str], limit: int
    ) -> tuple[Found, Found]:
        self._load(before, after)
        names = ", ".join(columns)
        same = " AND ".join(f"x.{c} IS NOT DISTINCT FROM y.{c}" for c in columns)
        only = "SELECT {row} FROM (SELECT *, row_number() OVER (PARTITION BY {names} ORDER BY {row}) AS nth FROM {one}) AS x ANTI JOIN (SELECT *, row_number() OVER (PARTITION BY {names}) AS nth FROM {two}) AS y ON x.nth = y.nth AND {same}"
        added, removed = (
            self._found(only.format(row=ROW, names=names, one=one, two=two, same=same), limit)
            for one, two in ("ba", "ab")
        )
        return added, removed

    # --- inside ------------------------------------------------------------------------------------------------------

    def _load(self, before: Stream, after: Stream) -> None:
        """Both sides as tables of the engine: they are asked several times, and each stream is read once."""
        for name, stream in (("a", before), ("b", after)):
            self._connection.register("incoming", stream)
            with self._own_errors([stream]):
                self._connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM incoming")
            self._connection.unregister("incoming")

    def _found(self, query: str, limit: int) -> Found:
        """How many rows a query has, and the numbers of the first ones."""
        rows = self._all(f"SELECT {ROW}, COUNT(*) OVER () AS n FROM ({query}) ORDER BY {ROW} LIMIT {limit}")
        return Found(int(rows[0][1]) if rows else 0, [int(row) for row, _ in rows])

    def _scalar(self, query: str) -> int:
        return int(self._all(query)[0][0])

    def _all(self, query: str) -> list[tuple[Any, ...]]:
        with self._own_errors([]):
            return list(self._connection.execute(query).fetchall())

    @contextlib.contextmanager
    def _own_errors(self, streams: Sequence[Stream]) -> Iterator[None]:
        """Errors of a stream as they were, and the engine's own where they are about the machine and not about the query."""
        try:
            yield
        except duckdb.Error as error:
            for stream in streams:
                if stream.error is not None:
                    raise stream.error from None
            said = str(error).splitlines()[0]
            if isinstance(error, duckdb.OutOfMemoryException):
                raise TooLarge(f"the table engine has not enough memory or space to spill: {said}", next_step="Use fewer columns at once, or free space where temporary files go.") from None  # fmt: skip
            if isinstance(error, duckdb.IOException):
                raise StorageFull(f"the table engine could not spill: {said}", next_step="Free space where temporary files go, then try again.") from None  # fmt: skip
            raise
