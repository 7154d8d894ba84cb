"""Sources of a table version as batches: files in this module, data in memory in ``memory``.

Files are read in batches, so memory does not grow with their size. Imports pyarrow; import it lazily.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mainspring.data.memory import Notes, first_line, index_names, table_of
from mainspring.data.tables import BATCH_ROWS
from mainspring.errors import InvalidInput, NotFound, near
from mainspring.records.reading import Reading, ReadReport

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq")


@dataclass(frozen=True)
class Source:
    """A table to commit: its schema, its batches (can be read once), and the report of how it was read (after all batches)."""

    schema: pa.Schema
    batches: Iterable[pa.RecordBatch]
    report: Callable[[], ReadReport | None]


def is_table_file(path: Path) -> bool:
    """Whether a file of this name is committed as a table."""
    return path.name.lower().endswith(TABLE_SUFFIXES)


def require_path(path: Path) -> Path:
    """The path if it exists. Raises :class:`NotFound` with similar names in its folder."""
    if path.exists():
        return path
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    raise NotFound(
        "no such file",
        value=path.name,
        place=str(folder),
        next_step=near(path.name, names, what="file") if names else "Check the path.",
    )


@contextlib.contextmanager
def open_source(source: object, reading: Reading, *, place: str) -> Iterator[Source]:
    """``source`` as batches: a CSV or Parquet path, or anything that :func:`mainspring.data.memory.table_of` takes.

    Raises :class:`InvalidInput` or :class:`NotFound`, also while the batches are read; never changes the source.
    """
    if isinstance(source, str | Path):
        path = require_path(Path(source))
        with _explain_errors(path):
            yield from _open_file(path, reading)
        return
    notes = Notes()
    table, kind = table_of(source, reading, notes, place=place)
    yield Source(
        table.schema, table.to_batches(max_chunksize=BATCH_ROWS), lambda: notes.report(kind, table.schema)
    )


def read_file(path: Path, reading: Reading | None = None) -> pa.Table:
    """A CSV or Parquet file as the table that a commit of it would hold."""
    with open_source(path, reading or Reading(), place=str(path)) as source:
        return pa.Table.from_batches(list(source.batches), schema=source.schema)


def _open_file(path: Path, reading: Reading) -> Iterator[Source]:
    place = str(path)
    if not path.is_file():
        raise InvalidInput("not a file", value=path.name, place=place)
    if path.stat().st_size == 0:
        raise InvalidInput(
            "the file is empty", value=path.name, place=place, next_step="Give a file with a header and rows."
        )
    if path.name.lower().endswith((".parquet", ".pq")):
        with pq.ParquetFile(path) as file:
            notes = Notes()
            schema = file.schema_arrow
            names = index_names(schema.names, notes)
            renamed = pa.schema([f.with_name(n) for f, n in zip(schema, names, strict=True)])
            batches = (b.rename_columns(names) for b in file.iter_batches(batch_size=BATCH_ROWS))
            yield Source(renamed, batches, lambda: notes.report("parquet", renamed))
        return
    from mainspring.data.csvfile import CsvFile

    csv = CsvFile(path, reading)
    yield Source(csv.schema, csv.batches(), csv.report)


@contextlib.contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    """Raise errors of libraries about the file's bytes as :class:`InvalidInput`."""
    try:
        yield
    except (pa.ArrowException, UnicodeError, EOFError) as error:
        raise InvalidInput(
            f"the file cannot be read as a table: {first_line(error)}", value=path.name, place=str(path)
        ) from None
    except OSError as error:
        if error.errno is not None and error.filename is not None:
            why = f"the file cannot be read: {error.strerror}"
        else:
            why = f"the file cannot be read as a table: {first_line(error)}"
        raise InvalidInput(why, value=path.name, place=str(path)) from None
