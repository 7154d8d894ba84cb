"""From what a user has in hand to an Arrow table: files, frames, rows.

Frames of pandas, Polars, Modin, DuckDB relations and the like all come through Narwhals. Imports pyarrow; import it lazily.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from mainspring.errors import InvalidInput, NotFound, near

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq")
NULL_WORDS = ("", "NA")
"""Unquoted CSV cells that mean null; a quoted "NA" is text."""

_INDEX = "__index_level_"


def is_table_file(path: Path) -> bool:
    """Whether a file of this name is committed as a table."""
    return path.name.lower().endswith(TABLE_SUFFIXES)


def existing(path: Path) -> Path:
    """The path, or :class:`NotFound` naming near files beside it."""
    if path.exists():
        return path
    folder = path.parent
    beside = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    raise NotFound(
        "no such file",
        value=path.name,
        place=str(folder),
        next_step=near(path.name, beside, what="file") if beside else "Check the path.",
    )


def table_of(source: object, *, place: str) -> pa.Table:
    """An Arrow table of ``source``: a CSV or Parquet file, any frame Narwhals knows, an Arrow table, batch or reader, a list
    of dicts, or a dict of columns. Raises :class:`InvalidInput` or :class:`NotFound`; never changes the source."""
    if isinstance(source, str | Path):
        return _from_file(existing(Path(source)))
    try:
        table = _from_memory(source, place)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(
            f"the values do not make a table: {_short(error)}",
            place=place,
            next_step="Give each column values of one type.",
        ) from None
    stray = [n for n in table.column_names if n.startswith(_INDEX)]
    return table.drop_columns(stray) if stray else table


def _from_memory(source: object, place: str) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    if isinstance(source, pa.RecordBatchReader):
        return source.read_all()
    if isinstance(source, Mapping):
        return _columns({str(k): v for k, v in source.items()}, place)
    if isinstance(source, Sequence) and not isinstance(source, bytes | bytearray):
        return _rows(source, place)
    return _from_frame(source, place)


def _from_frame(source: object, place: str) -> pa.Table:
    import narwhals as nw
    from narwhals.exceptions import NarwhalsError

    try:
        frame: Any = nw.from_native(source)
        if isinstance(frame, nw.LazyFrame):
            frame = frame.collect("pyarrow")
        return frame.to_arrow()
    except NarwhalsError as error:
        raise InvalidInput(f"the frame cannot be read: {_short(error)}", place=place) from None
    except TypeError as error:
        if (
            "narwhals" not in str(error).lower()
            and "nativ" not in str(error).lower()
            and "DataFrame" not in str(error)
        ):
            raise
        raise InvalidInput(
            "not something a table can be made from",
            value=type(source).__name__,
            place=place,
            next_step="Give a CSV or Parquet path, a pandas, Polars or Arrow table, a DuckDB relation, a list of dicts or a dict of columns.",
        ) from None


def _rows(rows: Sequence[Any], place: str) -> pa.Table:
    if not rows:
        raise InvalidInput(
            "no rows", place=place, next_step="A list of dicts needs at least one row to know its columns."
        )
    names: dict[str, None] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InvalidInput(
                "a row is not a dict", value=type(row).__name__, place=f"{place}, row {number}"
            )
        names.update(dict.fromkeys(map(str, row)))
    return _columns({name: [row.get(name) for row in rows] for name in names}, place)


def _columns(columns: dict[str, Any], place: str) -> pa.Table:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidInput("columns differ in length", value=lengths, place=place)
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            kinds = sorted({type(v).__name__ for v in values if v is not None})
            raise InvalidInput(
                f"column {name!r} holds values that do not go together: {_short(error)}",
                value=", ".join(kinds[:6]),
                place=place,
                next_step="Make them one type before committing.",
            ) from None
    return pa.table(arrays)


def _from_file(path: Path) -> pa.Table:
    place = str(path)
    if not path.is_file():
        raise InvalidInput("not a file", value=path.name, place=place)
    if path.stat().st_size == 0:
        raise InvalidInput("the file is empty", value=path.name, place=place)
    try:
        if path.name.lower().endswith((".parquet", ".pq")):
            with pq.ParquetFile(path) as file:
                return file.read()
        return _csv(path)
    except (pa.ArrowException, UnicodeDecodeError, EOFError) as error:
        raise InvalidInput(
            f"the file cannot be read as a table: {_short(error)}", value=path.name, place=place
        ) from None
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            raise InvalidInput(
                f"the file cannot be read: {error.strerror}", value=path.name, place=place
            ) from None
        raise InvalidInput(
            f"the file cannot be read as a table: {_short(error)}", value=path.name, place=place
        ) from None


def _csv(path: Path) -> pa.Table:
    tabbed = ".tsv" in path.name.lower()
    table = pc.read_csv(
        path,
        parse_options=pc.ParseOptions(delimiter="\t" if tabbed else ",", newlines_in_values=True),
        convert_options=pc.ConvertOptions(
            null_values=list(NULL_WORDS), strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )
    if not table.num_rows:
        raise InvalidInput(
            "the file has a header but no rows",
            value=path.name,
            place=str(path),
            next_step="Without a row the types of its columns are unknown.",
        )
    return table


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__
