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
            connection.execute(
                "SET enable_progress_bar = false"
            )  # after two seconds it would write to the standard output
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
        one, two = f"a.{ROW}", f"b.{ROW}"
        on = " AND ".join(f"a.{k} IS NOT DISTINCT FROM b.{k}" for k in key)
        differs = " OR ".join(f"a.{c} IS DISTINCT FROM b.{c}" for c in rest) or "FALSE"
        added, removed, matched = (
            f"{one} IS NULL",
            f"{two} IS NULL",
            f"{one} IS NOT NULL AND {two} IS NOT NULL",
        )
        changed = f"{matched} AND ({differs})"
        wanted = [f"COUNT(*) FILTER (WHERE {which})" for which in (added, removed, matched, changed)]
        wanted += [
            f"min({two}, {limit}) FILTER (WHERE {added})",
            f"min({one}, {limit}) FILTER (WHERE {removed})",
        ]
        wanted += [
            f"min({one}, {limit}) FILTER (WHERE {changed})",
            f"arg_min({two}, {one}, {limit}) FILTER (WHERE {changed})",
        ]
        # One join that keeps nothing: each side is read once, and what one side does not hold of the other is spilled.
        with self._registered(before, after):
            found = self._all(f"SELECT {', '.join(wanted)} FROM a FULL JOIN b ON {on}", before, after)[0]
        counts, (more, less, old, new) = found[:4], (rows or [] for rows in found[4:])
        return Keyed(
            added=Found(counts[0], more),
            removed=Found(counts[1], less),
            matched=counts[2],
            changed=counts[3],
            changes=list(zip(old, new, strict=True)),
        )

    def bags(
        self, before: Stream, after: Stream, *, columns: Sequence[str], limit: int
    ) -> tuple[Found, Found]:
        names = ", ".join(columns)
        same = " AND ".join(f"x.{c} IS NOT DISTINCT FROM y.{c}" for c in columns)
        only = "SELECT x.{row} FROM (SELECT *, row_number() OVER (PARTITION BY {names} ORDER BY {row}) AS nth FROM {one}) AS x ANTI JOIN (SELECT *, row_number() OVER (PARTITION BY {names}) AS nth FROM {two}) AS y ON x.nth = y.nth AND {same}"
        found = []
        with self._registered(before, after):
            for one, two in ("ba", "ab"):
                query = only.format(row=ROW, names=names, one=one, two=two, same=same)
                count, first = self._all(
                    f"SELECT COUNT(*), min({ROW}, {limit}) FROM ({query})", before, after
                )[0]
                found.append(Found(count, first or []))
        return found[0], found[1]

    # --- inside ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _registered(self, before: Stream, after: Stream) -> Iterator[None]:
        """Both sides as ``a`` and ``b``."""
        for name, stream in (("a", before), ("b", after)):
            self._connection.register(name, stream)
        try:
            yield
        finally:
            for name in "ab":
                self._connection.unregister(name)

    def _all(self, query: str, *streams: Stream) -> list[tuple[Any, ...]]:
        with self._own_errors(streams):
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
