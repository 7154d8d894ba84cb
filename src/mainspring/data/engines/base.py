"""The interface of a table engine: Narwhals frames over batches, and comparisons of two tables row by row.

Everything that Narwhals can express is written in Narwhals, once for all engines (``data/rules``). The rest are methods here:
Narwhals joins never match a null, and a key may be null. Engines see columns by number (they fold case, and read dots and quotes
in a name in their own way), values in the types of ``data/values.py``, and rows numbered from 0 in the column :data:`ROW`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    import narwhals as nw

ROW = "__row"
"""The column of row numbers, from 0, that every frame has in addition to the columns of the table."""


class Stream:
    """Batches of one schema that can be read any number of times; engines read it by the Arrow C stream interface.

    An engine wraps an error that the batches raise in an error of its own, so the original is kept in ``error``.
    """

    def __init__(self, schema: pa.Schema, read: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        self.schema = schema
        self.error: BaseException | None = None
        self._read = read

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._read()
        except GeneratorExit:  # the engine stopped reading early
            raise
        except BaseException as error:
            self.error = error
            raise

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return pa.RecordBatchReader.from_batches(self.schema, iter(self)).__arrow_c_stream__(requested_schema)


@dataclass(frozen=True)
class RowSet:
    """Rows of a table that have something in common: how many there are, and the numbers of the first of them."""

    count: int
    first: list[int]


@dataclass(frozen=True)
class KeyComparison:
    """Two tables compared by a key; ``changes`` are the first changed rows, by their number before and after."""

    added: RowSet
    removed: RowSet
    matched: int
    changed: int
    changes: Sequence[tuple[int, int]]


class TableEngine(Protocol):
    """An engine, open until its context ends. ``streams`` have our column names and :data:`ROW`.

    Null equals null, NaN equals NaN and nothing else; the streams hold one zero and one NaN.
    """

    name: str

    def frame(self, stream: Stream) -> nw.LazyFrame[Any]:
        """A lazy frame over the stream, which is read once for every query of the frame."""

    def collect(self, frame: nw.LazyFrame[Any]) -> pa.Table:
        """Run a query. An error that a stream raised while it was read is raised unchanged."""

    def compare_by_key(
        self, before: Stream, after: Stream, *, key: Sequence[str], rest: Sequence[str], limit: int
    ) -> KeyComparison:
        """Match the rows of both tables by the ``key`` columns, which are unique in each table, and compare the matched rows in ``rest``."""

    def compare_bags(
        self, before: Stream, after: Stream, *, columns: Sequence[str], limit: int
    ) -> tuple[RowSet, RowSet]:
        """The rows that only ``after`` and that only ``before`` holds; a repeated row counts as often as it occurs."""
