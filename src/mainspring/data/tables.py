"""The stored form of tables: their types, the canonical digest of their content, and the layout of our Parquet files.

**Types.** Flat columns only: booleans, integers, floats, decimals, text, binary, dates, times, timestamps (with their zone),
durations. Encodings are not types: dictionary, large and view layouts become the plain type; seconds become milliseconds,
because Parquet has no seconds; half floats become floats. Nested and extension types are refused.

**Canonical digest** (format ``mainspring-table-1``): per column three BLAKE3 streams: the row numbers of nulls (int64), the
non-null values (fixed width as little-endian bytes, booleans as one byte, text and binary as their bytes; every NaN is the
quiet one), and for text and binary the lengths (uint32). The digest of the table is BLAKE3 over the canonical JSON of
the row count and, in order, each column's name, type and streams. It does not depend on batches, files or writer versions.

**Parquet.** Content-defined pages and row groups, zstd, dictionaries for text only, no page index (an insert would change all of
its offsets): an insert rewrites only the pages that it changes and the footer.

This module imports pyarrow and numpy; import it lazily.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import blake3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from mainspring.errors import InvalidInput, TooLarge
from mainspring.records.base import to_json
from mainspring.records.data import TableColumn

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = "mainspring-table-1"
LAYOUT_KEY = b"mainspring.layout"
LAYOUT = b"1"
READING_KEY = b"mainspring.reading"
"""In the Parquet's own metadata: how the table was read, as JSON. It is no part of the content."""
MIN_ROWS, MAX_ROWS = 1 << 17, 1 << 19
PAGE_MIN, PAGE_MAX = 8 << 10, 32 << 10
MAX_COLUMNS = 10_000
MAX_NAME = 256
BATCH_ROWS = 1 << 16


def plain_type(kind: pa.DataType) -> pa.DataType | None:
    """The type in which a version stores values of ``kind``; None if no version can hold them."""
    if pt.is_dictionary(kind):
        return plain_type(kind.value_type)
    for test, plain in _PLAIN:
        if test(kind):
            return plain
    if pt.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if pt.is_decimal(kind):
        return (
            pa.decimal128(kind.precision, kind.scale)
            if kind.precision <= 38
            else pa.decimal256(kind.precision, kind.scale)
        )
    if any(test(kind) for test in _KEPT):
        return kind
    return None


_PLAIN = (
    (lambda t: pt.is_large_string(t) or pt.is_string_view(t), pa.string()),
    (
        lambda t: (
            pt.is_large_binary(t)
            or pt.is_binary_view(t)
            or (pt.is_fixed_size_binary(t) and not pt.is_decimal(t))
        ),
        pa.binary(),
    ),
    (pt.is_float16, pa.float32()),
    (pt.is_date64, pa.date32()),
    (lambda t: pt.is_time32(t) and t.unit == "s", pa.time32("ms")),
    (lambda t: pt.is_duration(t) and t.unit == "s", pa.duration("ms")),
)
_KEPT = (
    pt.is_null, pt.is_boolean, pt.is_integer, pt.is_floating, pt.is_string, pt.is_binary, pt.is_date32, pt.is_time,
    pt.is_timestamp, pt.is_duration,
)  # fmt: skip


def plain_schema(schema: pa.Schema, *, place: str) -> pa.Schema:
    """The schema as a version stores it. Raises :class:`InvalidInput` for names or types that no version can have."""
    if not len(schema):
        raise InvalidInput(
            "the table has no columns", place=place, next_step="Give it at least one named column."
        )
    if len(schema) > MAX_COLUMNS:
        raise TooLarge(
            "too many columns", value=len(schema), place=place, next_step=f"At most {MAX_COLUMNS}."
        )
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise InvalidInput(
            "a column name occurs twice",
            value=", ".join(repeated[:5]),
            place=place,
            next_step="Rename one of them.",
        )
    fields = []
    for field in schema:
        name = field.name
        if not name or len(name) > MAX_NAME or any(ord(c) < 32 or ord(c) == 127 for c in name):
            raise InvalidInput(
                "not a valid column name",
                value=name,
                place=place,
                next_step=f"Use 1 to {MAX_NAME} printable characters.",
            )
        kind = plain_type(field.type)
        if kind is None:
            raise InvalidInput(
                f"column {name!r} has a type that a table version cannot hold",
                value=str(field.type),
                place=place,
                next_step="Flatten nested values into columns of their own, or write them as text (JSON).",
            )
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def check_names(schema: pa.Schema, *, place: str) -> None:
    """Refuse names that are the same text in different Unicode encodings. Old versions may have them, new ones may not."""
    seen: dict[str, str] = {}
    for name in schema.names:
        other = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise InvalidInput(
                "two column names are the same text in different encodings (Unicode NFC and NFD)",
                value=f"{other!a} and {name!a}",
                place=place,
                next_step="Rename one of them.",
            )


def checked_batches(batches: Iterable[pa.RecordBatch], *, place: str) -> Iterator[pa.RecordBatch]:
    """The batches, each validated against its types: text is UTF-8, decimals have at most their digits."""
    row = 0
    for batch in batches:
        try:
            batch.validate(full=True)
        except pa.ArrowException:
            raise _invalid_cell_error(batch, row, place) from None
        row += batch.num_rows
        yield batch


def _invalid_cell_error(batch: pa.RecordBatch, start: int, place: str) -> InvalidInput:
    """The error that names the first cell that does not fit its type (by bisection)."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        low, high = 0, len(column)
        why = _find_flaw(column)
        if why is None:
            continue
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _find_flaw(column.slice(low, middle - low)) else (middle, high)
        shown = column.slice(low, 1).view(pa.binary())[0].as_py()[:40] if pt.is_string(column.type) else None
        text = (
            "text that is not UTF-8"
            if pt.is_string(column.type)
            else f"a value that is no {column.type}: {why}"
        )
        return InvalidInput(
            f"column {name!r} holds {text}",
            value=shown,
            place=f"{place}, row {start + low}",
            next_step="Decode it as what it is, or commit the column as binary.",
        )
    return InvalidInput("the table is malformed", place=place)


def _find_flaw(column: pa.Array) -> str | None:
    # A copy, because validation reads whole buffers: it would report flaws outside of this slice.
    piece = (
        pa.concat_arrays([column])
        if not column.offset
        else column.take(pa.array(range(len(column)), pa.int64()))
    )
    try:
        piece.validate(full=True)
    except pa.ArrowException as error:
        return _first_line(error)
    return None


def type_name(kind: pa.DataType) -> str:
    """Our own name of a plain type. It is part of the canonical digest, so it must not change with a library.

    >>> type_name(pa.float64()), type_name(pa.timestamp("us", "UTC"))
    ('float64', 'timestamp[us, tz=UTC]')
    """
    if pt.is_floating(kind) or pt.is_integer(kind):
        sign = "float" if pt.is_floating(kind) else "int" if pt.is_signed_integer(kind) else "uint"
        return f"{sign}{kind.bit_width}"
    if pt.is_timestamp(kind):
        return f"timestamp[{kind.unit}, tz={kind.tz}]" if kind.tz else f"timestamp[{kind.unit}]"
    if pt.is_decimal(kind):
        return f"decimal{kind.bit_width}({kind.precision}, {kind.scale})"
    if pt.is_time(kind) or pt.is_duration(kind):
        return f"{'duration' if pt.is_duration(kind) else f'time{kind.bit_width}'}[{kind.unit}]"
    for test, name in _NAMED:
        if test(kind):
            return name
    raise InvalidInput("not a type of a table version", value=str(kind))


_NAMED = (
    (pt.is_null, "null"), (pt.is_boolean, "bool"), (pt.is_string, "string"), (pt.is_binary, "binary"), (pt.is_date32, "date32"),
)  # fmt: skip


def columns_of(schema: pa.Schema) -> list[TableColumn]:
    """The columns as a version records them."""
    return [TableColumn(name=f.name, type=type_name(f.type)) for f in schema]


def plain_batches(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, *, place: str
) -> Iterator[pa.RecordBatch]:
    """The batches with exactly ``schema``."""
    for batch in batches:
        if batch.schema.equals(schema):
            yield batch
            continue
        columns = []
        for field, column in zip(schema, batch.columns, strict=True):
            try:
                columns.append(column if column.type == field.type else column.cast(field.type))
            except pa.ArrowException as error:
                raise InvalidInput(
                    f"column {field.name!r} cannot be kept as {field.type}: {_first_line(error)}", place=place
                ) from None
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


class ContentDigest:
    """The canonical digest of a table, batch by batch (see the docstring of this module)."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows = 0
        self._streams = [(blake3.blake3(), blake3.blake3(), blake3.blake3()) for _ in schema]

    @property
    def rows(self) -> int:
        """How many rows were added."""
        return self._rows

    def update(self, batch: pa.RecordBatch) -> None:
        """Add rows; the batch has the schema given at the start."""
        for column, (nulls, values, lengths) in zip(batch.columns, self._streams, strict=True):
            if column.null_count:
                missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
                nulls.update((missing + self._rows).astype("<i8").view(np.uint8).data)
                column = column.drop_null()  # noqa: PLW2901
            if len(column):
                _hash_values(column, values, lengths)
        self._rows += batch.num_rows

    def hexdigest(self) -> str:
        """The digest of all rows so far."""
        columns = [
            [field.name, type_name(field.type), *(s.hexdigest() for s in streams)]
            for field, streams in zip(self._schema, self._streams, strict=True)
        ]
        return blake3.blake3(to_json({"format": FORMAT, "rows": self._rows, "columns": columns})).hexdigest()


def _hash_values(column: pa.Array, values: Any, lengths: Any) -> None:
    """Hash an array without nulls."""
    kind, n = column.type, len(column)
    if pt.is_null(kind):
        return
    buffers = column.buffers()
    if pt.is_boolean(kind):
        values.update(column.cast(pa.uint8()).to_numpy().data)
    elif pt.is_string(kind) or pt.is_binary(kind):
        offsets = np.frombuffer(buffers[1], dtype="<i4", count=column.offset + n + 1)[column.offset :]
        lengths.update(np.diff(offsets).astype("<u4").view(np.uint8).data)
        if buffers[2] is not None:
            values.update(memoryview(buffers[2]).cast("B")[int(offsets[0]) : int(offsets[-1])])
    else:
        width = kind.bit_width // 8
        raw = memoryview(buffers[1]).cast("B")[column.offset * width : (column.offset + n) * width]
        if pt.is_floating(kind):
            numbers = np.frombuffer(raw, dtype=f"<f{width}")
            is_nan = np.isnan(numbers)
            if is_nan.any():
                raw = np.where(is_nan, numbers.dtype.type(np.nan), numbers).view(np.uint8).data
        values.update(raw)


def content_digest(table: pa.Table) -> str:
    """The canonical digest of an Arrow table: a version made of it has this digest.

    >>> a = content_digest(pa.table({"x": [1, 2, 3]}))
    >>> a == content_digest(pa.concat_tables([pa.table({"x": [1]}), pa.table({"x": [2, 3]})]))
    True
    """
    return batches_digest(table.schema, table.to_batches())


def batches_digest(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> str:
    """The canonical digest of the table of these batches."""
    plain = plain_schema(schema, place="table")
    digest = ContentDigest(plain)
    for batch in plain_batches(batches, plain, place="table"):
        digest.update(batch)
    return digest.hexdigest()


class TableWriter:
    """Writes our Parquet from batches of one plain schema.

    The content decides where row groups end: at the first row after ``MIN_ROWS`` whose hash is rare, at the latest after
    ``MAX_ROWS``. An inserted or deleted row therefore changes one boundary, not all that follow. A table of fewer than
    ``MIN_ROWS`` rows is one group.
    """

    def __init__(self, sink: Path | BinaryIO, schema: pa.Schema) -> None:
        marked = schema.with_metadata({LAYOUT_KEY: LAYOUT})
        self._writer = pq.ParquetWriter(
            sink,
            marked,
            compression="zstd",
            use_content_defined_chunking={"min_chunk_size": PAGE_MIN, "max_chunk_size": PAGE_MAX},
            write_page_index=False,
            # A dictionary is filled in the order of the rows, so for numbers one row less would renumber all that follow.
            use_dictionary=[f.name for f in schema if pt.is_string(f.type) or pt.is_binary(f.type)],
        )
        self._schema = marked
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows; the batch has the schema given at the start."""
        ends = _possible_boundaries(batch)
        start = 0
        while start < batch.num_rows:
            end = self._next_boundary(ends, start, batch.num_rows)
            self._pending.append(batch.slice(start, (batch.num_rows if end is None else end) - start))
            self._rows += self._pending[-1].num_rows
            start += self._pending[-1].num_rows
            if end is not None:
                self._flush()

    def add_metadata(self, key: bytes, value: bytes) -> None:
        """Store a value in the metadata of the file; it is not part of the content digest."""
        self._writer.add_key_value_metadata({key: value})

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._pending:
            self._flush()
        self._writer.close()

    def _next_boundary(self, ends: npt.NDArray[np.int64], start: int, stop: int) -> int | None:
        """The row of this batch before which the current row group ends; None if it goes on."""
        first = start + max(1, MIN_ROWS - self._rows)
        last = start + MAX_ROWS - self._rows
        position = int(np.searchsorted(ends, first))
        natural = int(ends[position]) if position < len(ends) else stop + 1
        end = min(natural, last)
        return end if end <= stop else None

    def _flush(self) -> None:
        table = (
            pa.Table.from_batches(self._pending)
            .replace_schema_metadata(self._schema.metadata)
            .combine_chunks()
        )
        self._writer.write_table(table, row_group_size=MAX_ROWS)
        self._pending, self._rows = [], 0


def _possible_boundaries(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Rows after which a row group may end: about one in 16,384, chosen by a hash of the values of the row."""
    mixed = np.zeros(batch.num_rows, dtype=np.uint64)
    for column in batch.columns:
        kind = column.type
        if not (pt.is_integer(kind) or pt.is_floating(kind) or pt.is_timestamp(kind) or pt.is_date32(kind)):
            continue
        width = kind.bit_width
        plain = column.view(f"int{width}")
        numbers = (plain.fill_null(0) if plain.null_count else plain).to_numpy(zero_copy_only=False)
        mixed = (mixed ^ numbers.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.flatnonzero((mixed >> np.uint64(50)) == 1) + 1


def write_table(sink: Path | BinaryIO, table: pa.Table, *, place: str = "table") -> None:
    """Write a table as our Parquet."""
    write_batches(sink, table.schema, table.to_batches(max_chunksize=BATCH_ROWS), place=place)


def write_batches(
    sink: Path | BinaryIO,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    *,
    place: str,
    reading: Callable[[], bytes | None] = lambda: None,
) -> None:
    """Write batches of one schema as our Parquet; ``reading`` is called after the last batch, and its result is stored in the metadata.

    Raises :class:`InvalidInput` for a column or a value that no version can have.
    """
    kept = plain_schema(schema, place=place)
    check_names(kept, place=place)
    writer = TableWriter(sink, kept)
    try:
        for batch in checked_batches(plain_batches(batches, kept, place=place), place=place):
            writer.write(batch)
        if (report := reading()) is not None:
            writer.add_metadata(READING_KEY, report)
    finally:
        writer.close()


@contextlib.contextmanager
def open_parquet(source: Path | BinaryIO, *, place: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; every error about its bytes is raised as :class:`InvalidInput`."""
    with _explain_errors(place):
        file = pq.ParquetFile(source, thrift_string_size_limit=64 << 20, thrift_container_size_limit=4 << 20)
    try:
        with _explain_errors(place):
            yield file
    finally:
        file.close()


def is_ours(file: pq.ParquetFile, schema: pa.Schema) -> bool:
    """Whether the file was written by :class:`TableWriter` with this plain schema: then its bytes are kept unchanged."""
    stored = file.schema_arrow
    return (stored.metadata or {}).get(LAYOUT_KEY) == LAYOUT and stored.equals(schema)


@contextlib.contextmanager
def _explain_errors(place: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise InvalidInput(f"not a readable Parquet file: {_first_line(error)}", place=place) from None
    except OSError as error:
        if (
            error.errno is not None
        ):  # a real I/O error; Arrow also raises OSError for malformed bytes, without errno
            raise
        raise InvalidInput(f"not a readable Parquet file: {_first_line(error)}", place=place) from None


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__
