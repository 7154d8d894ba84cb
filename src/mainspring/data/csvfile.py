"""CSV to batches of a table, in bounded memory: the file is read twice in blocks.

The first pass decides each column's type from all of its cells (``cells``), the second makes the values (``typed``). A report
says what was decided. Memory depends on the size of a block and of a row group, not on the size of the file.
Imports pyarrow; import it lazily.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.types as pt

from mainspring.data import dates
from mainspring.data.cells import NULL_WORDS, ColumnScan, Kind, Marks
from mainspring.data.quoting import MisplacedQuote, Quotes
from mainspring.data.text import Shape, Utf8Stream, shape_of
from mainspring.data.typed import LostCells, Plan, type_of, values_of
from mainspring.errors import InvalidInput, near
from mainspring.records.reading import ReadColumn, Reading, ReadReport

BLOCK = 4 << 20
"""Bytes that are read at once."""
LARGEST = 1 << 30
"""Bytes of the largest block: one value must fit into a block."""


@dataclass
class Column:
    """The state of one column while its cells become values."""

    name: str
    scan: ColumnScan | None
    declared: pa.DataType | None
    plan: Plan = field(default_factory=lambda: Plan(pa.string()))
    unquoted: bool = False
    """All of its text is quoted, so an unquoted null word is null."""
    words: Counter[str] = field(default_factory=Counter)
    """How often each unquoted null word occurs."""
    notes: list[str] = field(default_factory=list)
    nulls: int = 0
    lost: LostCells = field(default_factory=LostCells)


class CsvFile:
    """A CSV file as a schema and batches. Raises :class:`InvalidInput` with the line for what cannot be read without loss."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path, self._reading = path, reading
        self._state = self._file_state()
        self._block = BLOCK
        self.shape: Shape = shape_of(path, reading)
        self._marks = Marks(reading.decimal, reading.thousands, comma_possible=self.shape.delimiter != ",")
        for form in reading.dates:
            dates.check_format(form)
        self._columns = [self._make_column(name) for name in self.shape.names]
        self._check_names()
        self._notes = list(self.shape.notes)
        self._rows = self._scan()
        self._decide_types()
        self.schema = pa.schema([pa.field(c.name, c.plan.type) for c in self._columns])

    # --- first pass --------------------------------------------------------------------------------------------------

    def _make_column(self, name: str) -> Column:
        type_name = self._reading.types.get(name)
        declared = (
            type_of(type_name, place=f"reading.types, column {name!r}") if type_name is not None else None
        )
        everywhere = self._reading.nulls is not None
        words = tuple(self._reading.nulls) if self._reading.nulls is not None else NULL_WORDS
        timed = declared is not None and (pt.is_date(declared) or pt.is_timestamp(declared))
        scan = ColumnScan(self._marks, self._reading.dates, words, everywhere, only_time=timed)
        if declared is not None and not timed and not _is_fractional(declared):
            scan.kind = Kind("string")  # the type is declared: only the null words are counted
        return Column(name, scan, declared)

    def _check_names(self) -> None:
        for name in self._reading.types:
            if name not in self.shape.names:
                raise InvalidInput(
                    "a type is declared for a column that is not there",
                    value=name,
                    place=str(self._path),
                    next_step=near(name, self.shape.names, what="column"),
                )

    def _scan(self) -> int:
        rows = 0
        while True:
            quotes = Quotes(self.shape.delimiter, self.shape.quote) if self.shape.quote else None
            try:
                for batch in self._read_cells(watch=None if quotes is None else quotes.add):
                    for column, cells in zip(self._columns, batch.columns, strict=True):
                        if column.scan is not None:
                            column.scan.add(cells)
                    rows += batch.num_rows
            except pa.ArrowInvalid as error:
                if "straddling" in str(error) and self._block < LARGEST:
                    # One value is longer than a block: start again with larger blocks.
                    self._block = min(self._block * 8, LARGEST)
                    self._columns = [self._make_column(name) for name in self.shape.names]
                    rows = 0
                    continue
                if quotes is not None and quotes.first is not None:
                    self._check_quotes(quotes.first)
                raise self._malformed_error(error) from None
            break
        self._check_quotes(None if quotes is None else quotes.end())
        if not rows:
            raise InvalidInput(
                "the file has a header but no rows" if self.shape.header else "the file has no rows",
                value=self._path.name,
                place=str(self._path),
                next_step="Give a file with rows: without one the types of its columns are unknown.",
            )
        return rows

    def _check_quotes(self, misplaced: MisplacedQuote | None) -> None:
        if misplaced is None:
            return
        if not self._reading.lossy:
            raise InvalidInput(
                misplaced.what,
                value=misplaced.shown,
                place=f"{self._path}, line {self.shape.skip_lines + misplaced.line}",
                next_step="Correct it (a quote inside quotes is written twice), or declare quote = '' if quotes are ordinary text; lossy = true reads what can be read.",
            )
        self._notes.append(f"line {self.shape.skip_lines + misplaced.line}: {misplaced.what}; read unchanged")

    def _read_cells(
        self,
        *,
        words: tuple[str, ...] = (),
        only: list[int] | None = None,
        watch: Callable[[bytes], None] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """All cells as text, null where a cell is empty (or one of ``words``) and not quoted."""
        names = [f"c{i}" for i in range(len(self.shape.names))]
        single = len(names) == 1
        quote = self.shape.quote
        with contextlib.closing(
            Utf8Stream(
                self._path,
                self.shape.encoding,
                skip=self.shape.skip_bytes,
                lossy=self._reading.lossy,
                watch=watch,
            )
        ) as stream:
            if not stream.peek():
                return
            reader = pa.csv.open_csv(
                stream,
                read_options=pa.csv.ReadOptions(block_size=self._block, column_names=names),
                parse_options=pa.csv.ParseOptions(
                    delimiter=self.shape.delimiter,
                    quote_char=quote or False,
                    newlines_in_values=bool(quote),
                    ignore_empty_lines=not single,
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    null_values=["", *words],
                    include_columns=None if only is None else [names[i] for i in only],
                ),
            )
            with reader:
                yield from self._drop_empty_end(reader) if single else reader

    def _drop_empty_end(self, reader: pa.csv.CSVStreamingReader) -> Iterator[pa.RecordBatch]:
        """Batches of a file of one column: an empty line is an empty cell, but for those at the end of the file."""
        held = 0
        for batch in reader:
            cells = batch.column(0)
            filled = pc.indices_nonzero(pc.is_valid(cells))
            end = filled[-1].as_py() + 1 if len(filled) else 0
            if end:
                yield pa.RecordBatch.from_arrays(
                    [pa.concat_arrays([pa.nulls(held, pa.string()), cells.slice(0, end)])],
                    names=batch.schema.names,
                )
                held = 0
            held += len(cells) - end
        note = f"{held} empty lines at the end were left out"
        if held and note not in self._notes:
            self._notes.append(note)

    # --- types of columns --------------------------------------------------------------------------------------------

    def _decide_types(self) -> None:
        kinds = [c.scan.kind if c.scan is not None else Kind("string") for c in self._columns]
        comma = self._reading.decimal == "," or any(k.mark == "," and not k.grouped for k in kinds)
        self._points = any(k.mark == "." and not k.grouped for k in kinds)
        for index, (column, kind) in enumerate(zip(self._columns, kinds, strict=True)):
            if name := self.shape.renamed.get(column.name):
                column.notes.append(name)
            if column.declared is not None:
                self._decide_declared(column, kind, comma=comma)
            else:
                self._decide_inferred(column, kind, comma=comma, quoted=self.shape.quoted[index])

    def _decide_declared(self, column: Column, kind: Kind, *, comma: bool) -> None:
        if column.declared is None or column.scan is None:
            return
        text = pt.is_string(column.declared)
        words = () if text and not column.scan.everywhere else column.scan.nulls
        form = kind.forms[0] if kind.forms else next(iter(self._reading.dates), None)
        if len({f for f in kind.forms if f not in self._reading.dates}) > 1 and not set(kind.forms) & set(
            self._reading.dates
        ):
            raise self._ambiguous_dates(column, kind)
        mark = self._reading.decimal or kind.mark or ("," if comma else ".")
        if self._reading.decimal is None and self._is_ambiguous_mark(kind, comma=comma):
            raise InvalidInput(
                f"the marks in the numbers of column {column.name!r} may be of fractions or of thousands",
                value=mark,
                place=str(self._path),
                next_step="Declare 'decimal' or 'thousands'.",
            )
        column.plan = Plan(column.declared, True, words, mark, self._reading.thousands, form)

    def _decide_inferred(self, column: Column, kind: Kind, *, comma: bool, quoted: bool) -> None:
        scan = column.scan
        if scan is None:
            return
        words = scan.nulls
        if kind.name == "null" and scan.words and quoted:  # a quoted word is text
            kind = Kind("string")
        if (
            kind.name in {"date", "timestamp"}
            and len(kind.forms) > 1
            and kind.forms[0] not in self._reading.dates
        ):
            column.notes.append(
                f"kept as text: its dates may be written {' or '.join(kind.forms)}; declare 'dates'"
            )
            kind = Kind("string")
        if self._reading.decimal is None and self._is_ambiguous_mark(kind, comma=comma):
            mark_name = "a comma" if kind.mark == "," else "a point"
            column.notes.append(
                f"kept as text: {mark_name} may mark fractions or thousands; declare 'decimal' or 'thousands'"
            )
            kind = Kind("string")
        if kind.name == "float64" and kind.coded is not None:
            column.notes.append(f"kept as text: {kind.coded!r} may be a code; declare its type")
            kind = Kind("string")
        if kind.name != "string":
            column.plan = Plan(
                _type_of_kind(kind),
                False,
                words,
                kind.mark or ".",
                self._reading.thousands,
                kind.forms[0] if kind.forms else None,
            )
            if kind.rounded is not None:
                column.notes.append(
                    f"{kind.rounded!r} is read as a number, without its last zero; declare 'string' if it is a version"
                )
            if len(kind.offsets) > 1:
                column.notes.append(
                    f"offsets from UTC differ ({', '.join(sorted(kind.offsets)[:4])}): kept as instants in UTC"
                )
            return
        if kind.reason:
            column.notes.append(f"kept as text: {kind.reason}")
        column.unquoted = quoted and not scan.everywhere
        column.plan = Plan(pa.string(), False, words if scan.everywhere else ())
        if scan.words and not scan.everywhere and not column.unquoted:
            shown = ", ".join(f"'{w}' ({n})" for w, n in scan.words.most_common(3))
            column.notes.append(f"{shown} kept as text; declare 'nulls' if it means null")

    def _is_ambiguous_mark(self, kind: Kind, *, comma: bool) -> bool:
        """Whether the mark in a column's numbers may also be a thousands separator, and no other column decides it.

        Files with ``;`` between fields usually have ``,`` as decimal mark, so ``.`` is ambiguous there.
        """
        if not kind.grouped or kind.mark is None:
            return False
        if kind.mark == ",":
            return not comma
        return comma or (self.shape.delimiter == ";" and not self._points)

    def _ambiguous_dates(self, column: Column, kind: Kind) -> InvalidInput:
        return InvalidInput(
            f"dates of column {column.name!r} may be written in more than one way",
            value=" or ".join(kind.forms),
            place=str(self._path),
            next_step=f"Declare dates = ['{kind.forms[0]}'] or another.",
        )

    # --- second pass -------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The values, once. Raises :class:`InvalidInput` for a cell that cannot be kept as declared, unless ``lossy``."""
        marked = [
            i for i, c in enumerate(self._columns) if c.unquoted and c.scan is not None and c.scan.words
        ]
        words = self._read_cells(words=NULL_WORDS, only=marked) if marked else None
        row = 0
        try:
            for batch in self._read_cells():
                columns = list(batch.columns)
                if words is not None:
                    for i, cells in zip(marked, next(words).columns, strict=True):
                        null_words = columns[i].filter(pc.and_(pc.is_null(cells), pc.is_valid(columns[i])))
                        self._columns[i].words.update(null_words.to_pylist())
                        columns[i] = cells
                arrays = []
                for column, cells in zip(self._columns, columns, strict=True):
                    before = column.lost.count
                    values = values_of(cells, column.plan, column.lost)
                    if column.lost.count > before and not self._reading.lossy:
                        raise self._not_kept_error(column, row)
                    column.nulls += values.null_count
                    arrays.append(values)
                row += batch.num_rows
                yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        except pa.ArrowInvalid as error:
            raise self._malformed_error(error) from None
        if row != self._rows or self._file_state() != self._state:
            raise InvalidInput(
                "the file changed while it was read",
                value=self._path.name,
                place=str(self._path),
                next_step="Commit again when nothing writes to it.",
            )

    def report(self) -> ReadReport:
        """How the file was read; complete only after all batches were read."""
        columns = [self._column_report(c) for c in self._columns]
        shape = self.shape
        marks = {c.plan.mark for c in self._columns if pt.is_floating(c.plan.type)}
        return ReadReport(
            source="csv",
            encoding=shape.encoding,
            delimiter=shape.delimiter,
            quote=shape.quote,
            header=shape.header,
            decimal="," if marks == {","} else "." if marks == {"."} else None,
            thousands=self._reading.thousands,
            columns=columns,
            lost=sum(c.lost for c in columns),
            notes=self._notes,
        )

    def _column_report(self, column: Column) -> ReadColumn:
        from mainspring.data.tables import plain_type, type_name

        kind = plain_type(column.plan.type) or column.plan.type
        counted = (
            column.words
            if column.unquoted
            else column.scan.words
            if column.scan and column.plan.words
            else {}
        )
        notes = list(column.notes)
        if column.lost.first is not None:
            notes.append(f"{column.lost.count} cells were not kept, e.g. {column.lost.first[1][:60]!r}")
        return ReadColumn(
            name=column.name,
            type=type_name(kind),
            how="declared" if column.declared is not None else "inferred",
            nulls=column.nulls,
            null_words=dict(counted),
            format=column.plan.form if pt.is_temporal(column.plan.type) else None,
            lost=column.lost.count,
            notes=notes,
        )

    # --- errors ------------------------------------------------------------------------------------------------------

    def _not_kept_error(self, column: Column, start: int) -> InvalidInput:
        from mainspring.data.tables import type_name

        row, cell = column.lost.first or (0, "")
        return InvalidInput(
            f"column {column.name!r} is declared {type_name(column.plan.type)}, and a cell cannot be kept so",
            value=cell,
            place=f"{self._path}, row {start + row + 1}",
            next_step="Declare 'string' or a wider type, name the word in 'nulls', or declare lossy = true to lose what does not fit.",
        )

    def _malformed_error(self, error: pa.ArrowInvalid) -> InvalidInput:
        text = str(error).strip().splitlines()[0][:300]
        if "Expected" in text and "columns" in text:
            place = self._first_ragged()
            if place is not None:
                line, count, shown = place
                return InvalidInput(
                    f"the file cannot be read as a table: line {line} has {count} fields, the others have {len(self.shape.names)}",
                    value=shown,
                    place=str(self._path),
                    next_step=f"Correct the line, declare the delimiter (it was read with {self.shape.delimiter!r}), or leave lines before the header out with skip_lines.",
                )
        return InvalidInput(
            f"the file cannot be read as a table: {text}", value=self._path.name, place=str(self._path)
        )

    def _first_ragged(self) -> tuple[int, int, str] | None:
        """Line, number of fields and text of the first record with another number of fields."""
        shape = self.shape
        options = {"quotechar": shape.quote} if shape.quote else {"quoting": csv.QUOTE_NONE}
        width, old = len(shape.names), csv.field_size_limit(LARGEST)
        try:
            with contextlib.closing(Utf8Stream(self._path, shape.encoding, lossy=self._reading.lossy)) as raw:
                lines = io.TextIOWrapper(io.BufferedReader(raw), encoding="utf-8", newline="")
                for _ in range(self._reading.skip_lines):
                    lines.readline()
                reader = csv.reader(lines, delimiter=shape.delimiter, **options)
                for number, record in enumerate(reader):
                    if record and len(record) != width and not (number == 0 and shape.header):
                        return (
                            reader.line_num + self._reading.skip_lines,
                            len(record),
                            shape.delimiter.join(record)[:120],
                        )
        except (csv.Error, UnicodeError, OSError):
            return None
        finally:
            csv.field_size_limit(old)
        return None

    def _file_state(self) -> tuple[int, int]:
        stat = self._path.stat()
        return stat.st_size, stat.st_mtime_ns


def _is_fractional(kind: pa.DataType) -> bool:
    return bool(pt.is_floating(kind) or pt.is_decimal(kind))


def _type_of_kind(kind: Kind) -> pa.DataType:
    if kind.name == "timestamp":
        zone = None
        if kind.zoned:
            zone = next(iter(kind.offsets)) if len(kind.offsets) == 1 else "UTC"
            zone = "UTC" if zone == "+00:00" else zone
        return pa.timestamp("ns" if kind.fine else "us", zone)
    if kind.name == "time":
        return pa.time64("us") if kind.fine else pa.time32("ms")
    return {
        "null": pa.null(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "date": pa.date32(),
    }[kind.name]
