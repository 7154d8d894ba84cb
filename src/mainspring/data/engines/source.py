"""Tables that are read in batches, a few columns at a time. Engines and checks read from them.

Imports pyarrow; import it lazily.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from mainspring.data.tables import BATCH_ROWS

_SHOWN_ROWS = 1 << 14
"""Batch size when rows are read to be shown: all columns are read then, so batches are smaller than for counting."""


class Source(ABC):
    """A table of ``rows`` rows that can be read any number of times."""

    def __init__(self, schema: pa.Schema, rows: int) -> None:
        self.schema = schema.remove_metadata()
        self.rows = rows

    @abstractmethod
    def parts(
        self, columns: Sequence[str], selects: Callable[[int, int], bool], size: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches of at most ``size`` rows, with the number of their first row.

        Reads only the parts of the table (row groups, batches) for which ``selects(first, end)`` is true.
        """

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows of these columns, in order."""
        for _, batch in self.parts(columns, lambda _first, _end: True, BATCH_ROWS):
            yield batch

    def take(self, numbers: Sequence[int] | np.ndarray[Any, Any], columns: Sequence[str]) -> pa.Table:
        """The rows with these numbers, in this order. Reads only the parts of the table that hold one of them."""
        wanted = np.asarray(numbers, dtype=np.int64)
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]

        def positions(first: int, end: int) -> tuple[int, int]:
            low, high = np.searchsorted(ascending, [first, end])
            return int(low), int(high)

        def holds(first: int, end: int) -> bool:
            low, high = positions(first, end)
            return low < high

        parts = [pa.schema([self.schema.field(n) for n in columns]).empty_table()]
        for first, batch in self.parts(columns, holds, _SHOWN_ROWS):
            low, high = positions(first, first + batch.num_rows)
            if low < high:
                parts.append(pa.Table.from_batches([batch]).take(pa.array(ascending[low:high] - first)))
        return pa.concat_tables(parts).take(pa.array(np.argsort(order, kind="stable")))


class ArrowSource(Source):
    """A table in memory."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__(table.schema, table.num_rows)
        self._table = table

    def parts(
        self, columns: Sequence[str], selects: Callable[[int, int], bool], size: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        first = 0
        for batch in (
            self._table.select(list(columns)).replace_schema_metadata(None).to_batches(max_chunksize=size)
        ):
            if selects(first, first + batch.num_rows):
                yield first, batch
            first += batch.num_rows


class ParquetSource(Source):
    """A Parquet file. Our files have row groups of bounded size, and batches are decoded one at a time."""

    def __init__(self, file: pq.ParquetFile) -> None:
        super().__init__(file.schema_arrow, file.metadata.num_rows)
        self._file = file

    def parts(
        self, columns: Sequence[str], selects: Callable[[int, int], bool], size: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        first = 0
        for group in range(self._file.metadata.num_row_groups):
            end = first + self._file.metadata.row_group(group).num_rows
            if selects(first, end):
                at = first
                for batch in self._file.iter_batches(size, row_groups=[group], columns=list(columns)):
                    yield at, batch.select(list(columns)).replace_schema_metadata(None)
                    at += batch.num_rows
            first = end


class SpooledSource(Source):
    """Batches that can be read only once, kept in a file in ``folder``."""

    def __init__(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch], folder: Path) -> None:
        self._path = folder / "spooled.arrow"
        self._starts = [0]
        with ipc.new_file(self._path, schema, options=ipc.IpcWriteOptions(compression="lz4")) as writer:
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    piece = batch.slice(start, BATCH_ROWS)
                    writer.write_batch(piece)
                    self._starts.append(self._starts[-1] + piece.num_rows)
        super().__init__(schema, self._starts[-1])

    def parts(
        self, columns: Sequence[str], selects: Callable[[int, int], bool], size: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        fields = sorted(self.schema.get_field_index(n) for n in columns)
        with ipc.open_file(self._path, options=ipc.IpcReadOptions(included_fields=fields)) as reader:
            for number, first in enumerate(self._starts[:-1]):
                if selects(first, self._starts[number + 1]):
                    batch = reader.get_batch(number).select(list(columns)).replace_schema_metadata(None)
                    for start in range(0, batch.num_rows, size):
                        yield first + start, batch.slice(start, size)
