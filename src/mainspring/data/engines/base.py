"""What a table engine is: it gives Narwhals frames over batches, and compares two tables row by row.

Everything that can be said in Narwhals is said there, once for all engines (``data/rules``). What cannot is a method here:
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
"""The number of a row, from 0: the one column of every frame that is not the table's own."""


class Stream:
    """Batches of one schema that can be read any number of times; engines read it by the Arrow C stream interface.

    An engine reports what the batches raised in its own words, so the error itself is kept in ``error``.
    """

    def __init__(self, schema: pa.Schema, read: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        self.schema = schema
        self.error: BaseException | None = None
        self._read = read

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._read()
        except GeneratorExit:  # the engine has seen enough
            raise
        except BaseException as error:
            self.error = error
            raise

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return pa.RecordBatchReader.from_batches(self.schema, iter(self)).__arrow_c_stream__(requested_schema)


@dataclass(frozen=True)
class Found:
    """How many rows there are, and the numbers of the first of them."""

    count: int
    first: list[int]


@dataclass(frozen=True)
class Keyed:
    """Two tables compared by a key; ``changes`` are the first changed rows, by their number before and after."""

    added: Found
    removed: Found
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
        """Run a query. What reading a stream raised is raised as it was."""

    def keyed(
        self, before: Stream, after: Stream, *, key: Sequence[str], rest: Sequence[str], limit: int
    ) -> Keyed:
        """The rows of both tables by the columns of ``key``, which no two rows of a table share; those that match are compared in ``rest``."""

    def bags(
        self, before: Stream, after: Stream, *, columns: Sequence[str], limit: int
    ) -> tuple[Found, Found]:
        """Rows that only ``after`` and only ``before`` hold, a row that repeats counted as often as it does."""
